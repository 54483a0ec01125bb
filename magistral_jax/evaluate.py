"""pass@1 over n samples of held-out problems, with an interval that treats problems as clusters."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from magistral_jax.types import Completion, Prompt, Verdict


@runtime_checkable
class Sampling(Protocol):
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        count: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation found. Checks that failed are counted, and judged neither way."""

    accuracy: float
    accuracy_ci95: tuple[float, float]
    format: float
    """Share of completions that passed the format gate."""
    length: float
    """Mean length in tokens."""
    truncated: float
    problems: int
    samples: int
    errored: int


def evaluate(
    generator: Sampling,
    judge: Callable[[Prompt, Completion], Future[Verdict]],
    prompts: Sequence[Prompt],
    *,
    samples: int,
    timeout_s: float,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Evaluation, list[tuple[tuple[Completion, ...], tuple[Verdict, ...]]]]:
    """Answer each prompt `samples` times; the measurement, and what it was made from."""
    answered = generator.generate(prompts, count=samples, on_step=on_step)
    waiting = [
        [judge(prompt, completion) for completion in completions]
        for prompt, completions in zip(prompts, answered, strict=True)
    ]
    judged = [tuple(v.result(timeout=timeout_s) for v in verdicts) for verdicts in waiting]
    return summarise(answered, judged), list(zip(answered, judged, strict=True))


def compared(before: Mapping[str, Any], after: Evaluation) -> dict[str, Any]:
    """Two evaluations under the names of summary.json; the first as a checkpoint holds it."""
    return {
        "accuracy_before": before["accuracy"],
        "accuracy_after": after.accuracy,
        "accuracy_before_ci95": list(before["accuracy_ci95"]),
        "accuracy_after_ci95": list(after.accuracy_ci95),
        "heldout_problems": after.problems,
        "format_before": before["format"],
        "format_after": after.format,
        "length_before": before["length"],
        "length_after": after.length,
    }


def summarise(
    answered: Sequence[tuple[Completion, ...]], judged: Sequence[tuple[Verdict, ...]]
) -> Evaluation:
    verdicts = [v for verdicts in judged for v in verdicts if v.outcome != "error"]
    completions = [c for group in answered for c in group]
    per_problem = [
        float(np.mean([v.outcome == "right" for v in verdicts if v.outcome != "error"]))
        for verdicts in judged
        if any(v.outcome != "error" for v in verdicts)
    ]
    return Evaluation(
        accuracy=float(np.mean(per_problem)) if per_problem else 0.0,
        accuracy_ci95=interval(per_problem),
        format=float(np.mean([v.parts["format"] > 0 for v in verdicts])) if verdicts else 0.0,
        length=float(np.mean([len(c.tokens) for c in completions])),
        truncated=float(np.mean([c.finish == "length" for c in completions])),
        problems=len(judged),
        samples=max(len(verdicts) for verdicts in judged),
        errored=sum(v.outcome == "error" for verdicts in judged for v in verdicts),
    )


def interval(per_problem: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean by the normal approximation, problems as the unit.

    The samples of one problem are alike, so counting them one by one would make it too narrow.
    """
    n = len(per_problem)
    if n < 2:
        return (0.0, 1.0)
    mean = float(np.mean(per_problem))
    half = 1.96 * float(np.std(per_problem, ddof=1)) / n**0.5
    return (max(0.0, mean - half), min(1.0, mean + half))
