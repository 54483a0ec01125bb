"""Graders of the user's own, by import path, run in the same pool under the same limits.

A grader is a callable `(problem, answer, response) -> bool | float`, or a class of such, made once
a process without arguments. `answer` is what the format gate found: the content of the box in the
domain "math", the first program in the domain "code"; `response` is all that follows `</think>`.
It returns whether the answer is right, or a share between 0 and 1. What it raises is an error of
the grader, not a wrong answer.

Example: `verifier.own = "magistral_jax.verifier.own:ReasoningGym"`.
"""

import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, cast

from magistral_jax.types import Problem, UserError
from magistral_jax.verifier.code.extract import first_block
from magistral_jax.verifier.format import Format
from magistral_jax.verifier.grade import Grade, shown

Grader = Callable[[Problem, str, str], bool | float]


def load_own(path: str) -> Callable[[Problem, Format], Grade]:
    """The grader at "package.module:name". Raises UserError if there is none."""
    module, colon, name = path.partition(":")
    try:
        if not colon:
            raise ValueError("there is no colon in it")
        grader: Any = getattr(import_module(module), name)
        if inspect.isclass(grader):
            grader = grader()
        if not callable(grader):
            raise TypeError(f"it is a {type(grader).__name__}, which cannot be called")
    except Exception as fault:
        raise UserError(
            f"verifier.own is {path!r}; it must be package.module:callable, and cannot be loaded: "
            f"{type(fault).__name__}: {fault}"
        ) from fault
    return partial(grade_by, cast(Grader, grader))


def grade_by(grader: Grader, problem: Problem, form: Format) -> Grade:
    """What the grader says of a completion; what it raises or says out of range is an error."""
    answer = form.boxed
    if answer is None:
        block = first_block(form.answer_part)
        answer = block[0] if block else ""
    try:
        share = float(grader(problem, answer, form.answer_part))
    except Exception as fault:
        said = f"{type(fault).__name__}: {fault}"
        return Grade(0.0, "error", f"the grader failed: {shown(said, 120)}")
    if not (math.isfinite(share) and 0 <= share <= 1):
        return Grade(0.0, "error", f"the grader said {share}, which is not between 0 and 1")
    if share == 1:
        return Grade(1.0, "pass")
    return Grade(share, "wrong", f"the grader gave {share:g} to {shown(answer)}")


class ReasoningGym:
    """Scores answers to the procedural tasks of reasoning-gym (extra `reasoning-gym`).

    A problem's source is "reasoning-gym/NAME", and its answer is the JSON of the entry, with
    "question", "answer" and "metadata", as that package made it.
    """

    def __init__(self) -> None:
        self._scorers: dict[str, Callable[[str, dict[str, Any]], float]] = {}

    def __call__(self, problem: Problem, answer: str, response: str) -> float:
        """The package's own score. Some of its scorers raise; that becomes an error."""
        from reasoning_gym import get_score_answer_fn

        name = problem.source.removeprefix("reasoning-gym/")
        if name not in self._scorers:
            scorer: Any = get_score_answer_fn(name)
            self._scorers[name] = scorer
        return min(1.0, max(0.0, float(self._scorers[name](answer, json.loads(problem.answer)))))
