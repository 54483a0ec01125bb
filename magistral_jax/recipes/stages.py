"""The stages of a run (Magistral, section 5.1): when the next one begins, and what it asks.

Three conditions are to hold at any time: the data are not too easy, lengths keep growing, and the
cache stays affordable. So a stage ends when reward or length no longer grows, at a step, or by
hand; and the next one changes which problems are asked, how long completions may be, and how many
there are at once. A stage is left as a run is stopped, at a checkpoint, but with nothing in flight:
all that was dispatched under its numbers is trained under them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magistral_jax.config import RunConfig, StageConfig
from magistral_jax.types import Group, Problem, UserError

NEXT_STAGE = "next-stage"
"""A file of this name in the run folder asks for the next stage."""


class Stages:
    """Where a run is in its stages, and what it has seen to tell when to move on."""

    def __init__(self, config: RunConfig, saved: Mapping[str, Any] | None = None) -> None:
        """From the first stage, or from where `saved()` said it was."""
        saved = saved or {}
        self._base = config
        self.index: int = saved.get("index", 0)
        self.leaving: str = saved.get("leaving", "")
        """Why this stage is being left; empty while it goes on."""
        self.log: list[dict[str, Any]] = list(saved.get("log", []))
        """The stages begun, each with its step, its reason and its numbers."""
        self._rewards: list[float] = list(saved.get("rewards", []))
        self._lengths: list[float] = list(saved.get("lengths", []))
        self._solved = {name: tuple(counts) for name, counts in saved.get("solved", {}).items()}
        # Decided when the stage began: later pass rates must not change the order of prompts.
        self._is_in: dict[str, bool] = dict(saved.get("is_in", {}))
        if config.stage and self.index >= len(config.stage):
            raise UserError(
                f"this run is in stage[{self.index}] and the config has {len(config.stage)} "
                "stages. Resume with those it was begun with."
            )

    @property
    def config(self) -> RunConfig:
        """What holds in this stage."""
        return self._base.in_stage(self.index)

    @property
    def _next(self) -> StageConfig | None:
        later = self._base.stage[self.index + 1 :]
        return later[0] if later else None

    def observe(self, step: int, reward: float, length: float, groups: Sequence[Group]) -> None:
        """Take down an update's mean reward and length and who solved what; `leaving` says
        afterwards whether the stage is over."""
        if not self._base.stage:
            return
        self._rewards.append(reward)
        self._lengths.append(length)
        for group in groups:
            right, tried = self._solved.get(group.prompt.problem.id, (0, 0))
            outcomes = [group.verdicts[i].outcome for i in group.valid]
            counts = (right + outcomes.count("right"), tried + len(outcomes))
            self._solved[group.prompt.problem.id] = counts
        if self._next is not None and not self.leaving:
            self.leaving = self._reason(self._next, step)

    def is_asked_in_vain(self, folder: Path) -> bool:
        """Look for the user's wish; true where there is no stage left to go to, and then the wish
        is taken away. One that is granted stays until the next stage is saved."""
        wish = folder / NEXT_STAGE
        if not wish.exists():
            return False
        if self._next is None:
            wish.unlink()
            return True
        self.leaving = self.leaving or f"a file named {NEXT_STAGE} in the run folder"
        return False

    def advance(self, step: int) -> None:
        """Begin the next stage: everything of the one before is trained on."""
        assert self._next is not None, "there is no stage after this one"
        self.index += 1
        now, config = self._base.stage[self.index], self.config
        self._is_in = {
            name: now.min_pass_rate <= right / tried <= now.max_pass_rate
            for name, (right, tried) in self._solved.items()
            if tried
        }
        self.log.append(
            {
                "step": step,
                "stage": self.index,
                "reason": self.leaving,
                "max_tokens": config.generator.max_tokens,
                "soft_tokens": config.soft_tokens,
                "completions": config.batch.completions,
                "in_flight": config.generator.in_flight,
                "left_out": sum(not is_in for is_in in self._is_in.values()),
            }
        )
        self.leaving = ""
        self._rewards, self._lengths = [], []

    def told(self) -> str:
        """The stage that has just begun, in words."""
        begun = self.log[-1]
        return (
            f"stage {self.index + 1} of {len(self._base.stage)} after step {begun['step']} "
            f"({begun['reason']}): max_tokens {begun['max_tokens']}, completions "
            f"{begun['completions']}, in flight {begun['in_flight']}, {begun['left_out']} problems "
            "left out"
        )

    def wanted(self, problem: Problem) -> bool:
        """Whether this stage asks the problem."""
        if not self._base.stage:
            return True
        if (decided := self._is_in.get(problem.id)) is not None:
            return decided
        now = self._base.stage[self.index]
        rate = problem.pass_rate
        return rate is None or now.min_pass_rate <= rate <= now.max_pass_rate

    def write_down(self, folder: Path) -> None:
        """The stages begun, as a file to read; a resume writes what its checkpoint knows."""
        if self._base.stage:
            rows = "".join(f"{json.dumps(row)}\n" for row in self.log)
            (folder / "stages.jsonl").write_text(rows, encoding="utf-8")

    def saved(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        if not self._base.stage:
            return {}
        return {
            "index": self.index,
            "leaving": self.leaving,
            "log": self.log,
            "rewards": self._rewards,
            "lengths": self._lengths,
            "solved": {name: list(counts) for name, counts in self._solved.items()},
            "is_in": self._is_in,
        }

    def _reason(self, stage: StageConfig, step: int) -> str:
        if 0 < stage.from_step <= step:
            return f"step {stage.from_step}"
        seen = {"reward_plateau": self._rewards, "length_plateau": self._lengths}.get(stage.when)
        if seen is None or not is_plateau(seen, stage.plateau_steps, stage.plateau_gain):
            return ""
        before, after = spans(seen, stage.plateau_steps)
        what = stage.when.partition("_")[0]
        return (
            f"{what} plateau: {after:.4g} over the last {stage.plateau_steps} updates, "
            f"{before:.4g} over those before"
        )


def spans(values: Sequence[float], steps: int) -> tuple[float, float]:
    """The means of the last span of `steps` values and of the one before, earlier first."""
    later, earlier = values[-steps:], values[-2 * steps : -steps]
    return sum(earlier) / len(earlier), sum(later) / len(later)


def is_plateau(values: Sequence[float], steps: int, gain: float) -> bool:
    """Whether the last span's mean is above the one before by less than `gain` of it; never with
    fewer than two spans."""
    if len(values) < 2 * steps:
        return False
    before, after = spans(values, steps)
    return after - before < gain * abs(before)
