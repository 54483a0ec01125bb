"""An endless, seeded order of prompts, where every position can be asked for at any time.

Position -> problem is a pure function of the problems and the seed, so a position resumes the
stream exactly. Every epoch is a new shuffle of all problems; held-out ones
keep their positions and are passed over, so that positions do not depend on what is held out.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import grain
import numpy as np
from jaxtyping import Int32

from magistral_jax.data.sources import Mixture, Problems, is_heldout
from magistral_jax.types import Problem, Prompt, TooLong, UserError

_SEEDS = 2**32  # grain's range
_MOST_LOOKS = 1_000_000


class PromptStream:
    """The prompts of a run, from a position on."""

    def __init__(
        self,
        problems: Problems,
        render: Callable[[Problem], Int32[np.ndarray, " prompt"]],
        *,
        seed: int,
        heldout_percent: float,
        position: int = 0,
        wanted: Callable[[Problem], bool] = lambda problem: True,
        tell: Callable[[str], None] = lambda fault: None,
    ) -> None:
        """Problems that are not `wanted` are passed over, as held-out ones are; a prompt that was
        dispatched when it was wanted can still be asked for."""
        # One problem to train on is enough for `next` to end: every epoch meets it.
        self._heldout_percent, self._wanted = heldout_percent, wanted
        if all(self._is_heldout(problems[i]) for i in range(len(problems))):
            raise UserError(
                f"data.heldout_percent is {heldout_percent}; it holds out all {len(problems)} "
                "problems, which leaves none to train on. Lower it."
            )
        if not any(self._is_next(problems[i]) for i in range(len(problems))):
            raise UserError(
                f"none of the {len(problems)} problems is left: all but the held-out ones are set "
                "aside or solved. Change stage.min_pass_rate or stage.max_pass_rate."
            )
        self._problem_at = _shuffled(problems, seed)
        self._problems, self._render, self._tell = problems, render, tell
        self._too_long: set[str] = set()
        self._round = _round(problems)
        self._position = position

    @property
    def position(self) -> int:
        """The first position not yet handed out."""
        return self._position

    def next(self) -> Prompt:
        """The next prompt that is wanted, not held out and not too long; those that are too long
        are told, and passed over whenever they come."""
        begun, last = self._position, None
        while self._position - begun < self._round:
            problem = self._problem_at(self._position)
            if problem.id not in self._too_long and self._is_next(problem):
                try:
                    prompt = self.prompt_at(self._position)
                    self._position += 1
                    return prompt
                except TooLong as fault:
                    self._too_long.add(problem.id)
                    self._tell(str(fault))
                    last = fault
            self._position += 1
        told = f", the last one since {last}" if last else ""
        raise UserError(
            f"none of the {len(self._problems)} problems can be asked: all are held out, left out "
            f"by this stage, or too long{told}"
        )

    def prompt_at(self, position: int) -> Prompt:
        """The prompt at a stream position, whatever has been dispatched; never a held-out one."""
        problem = self._problem_at(position)
        if self._is_heldout(problem):
            raise UserError(
                f"prompt {position} of the stream is problem {problem.id!r}, which is held out. "
                "Resume with the seed, data.path and data.heldout_percent the run began with."
            )
        return Prompt(group=position, problem=problem, tokens=self._render(problem))

    def _is_next(self, problem: Problem) -> bool:
        return self._wanted(problem) and not self._is_heldout(problem)

    def _is_heldout(self, problem: Problem) -> bool:
        return is_heldout(problem.question, self._heldout_percent)


def heldout_problems(
    problems: Problems,
    percent: float,
    *,
    count: int,
    seed: int,
    fits: Callable[[Problem], bool] = lambda problem: True,
) -> list[Problem]:
    """`count` distinct held-out problems that fit, in a seeded order."""
    problem_at = _shuffled(problems, seed)
    looks = min(len(problems), _MOST_LOOKS) if percent > 0 else 0
    found: list[Problem] = []
    for position in range(looks):
        if len(found) == count:
            break
        problem = problem_at(position)
        if is_heldout(problem.question, percent) and fits(problem):
            found.append(problem)
    if len(found) < count:
        raise UserError(
            f"eval.problems is {count}, but data.heldout_percent = {percent} holds out only "
            f"{len(found)} of {looks or len(problems)} problems. Lower the one or raise the other."
        )
    return found


def _shuffled(problems: Problems, seed: int) -> Callable[[int], Problem]:
    """Position -> problem, for every position from 0 on: one shuffle after the other; of a mixture,
    each part's own, interleaved by their weights."""
    if isinstance(problems, Mixture):
        parts = [_endless(part, seed + i) for i, (part, _) in enumerate(problems.parts)]
        order = grain.MapDataset.mix(parts, weights=[weight for _, weight in problems.parts])
    else:
        order = _endless(problems, seed)

    def problem_at(position: int) -> Problem:
        problem = order[position]
        assert problem is not None, "grain filters nothing here"
        return problem

    return problem_at


def _round(problems: Problems) -> int:
    """Positions in a row among which every problem comes at least once."""
    if not isinstance(problems, Mixture):
        return 2 * len(problems)
    total = sum(weight for _, weight in problems.parts)
    return max(math.ceil((2 * len(part) + 1) * total / weight) for part, weight in problems.parts)


def _endless(problems: Problems, seed: int) -> grain.MapDataset[Problem]:
    source = cast(Sequence[Problem], problems)  # of a sequence, grain needs no more than this
    return grain.MapDataset.source(source).seed(seed % _SEEDS).shuffle().repeat()
