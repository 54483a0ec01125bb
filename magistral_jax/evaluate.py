"""pass@1 over n samples of held-out problems, with an interval that treats problems as clusters."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from math import comb
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy.stats import t as student

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
    on_verdict: Callable[[], None] | None = None,
) -> tuple[Evaluation, list[tuple[tuple[Completion, ...], tuple[Verdict, ...]]]]:
    """Answer each prompt `samples` times; the measurement, and what it was made from.

    `on_step(completions done)` is called after each decode step, `on_verdict()` after each verdict
    that was waited for.
    """
    answered = generator.generate(prompts, count=samples, on_step=on_step)
    waiting = [
        [judge(prompt, completion) for completion in completions]
        for prompt, completions in zip(prompts, answered, strict=True)
    ]

    def judgement(verdict: Future[Verdict]) -> Verdict:
        found = verdict.result(timeout=timeout_s)
        if on_verdict is not None:
            on_verdict()
        return found

    judged = [tuple(map(judgement, verdicts)) for verdicts in waiting]
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
    """95% interval of the mean of shares between 0 and 1, problems as the unit.

    The samples of one problem are alike, so counting them one by one would make it too narrow.
    Wilson's interval, of as many independent trials as would spread the mean as much, with
    Student's quantile. The spread counts one more problem, half of it solved and half of it not:
    few problems that happen to agree say little about how far others would be off.
    """
    n = len(per_problem)
    if n < 2:
        return (0.0, 1.0)
    shares = np.asarray(per_problem, np.float64)
    mean = float(shares.mean())
    squares = float(np.sum((shares - mean) ** 2)) + 0.5 * (mean**2 + (1 - mean) ** 2)
    variance = squares / n**2
    towards_half = (float(shares.sum()) + 0.5) / (n + 1)
    trials = max(1.0, towards_half * (1 - towards_half) / variance)
    z = float(student.ppf(0.975, n - 1))
    centre = (mean + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = mean * (1 - mean) / trials + z**2 / (4 * trials**2)
    half = z / (1 + z**2 / trials) * spread**0.5
    # Of all alike, the end at the mean is the mean, but for rounding.
    return (max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def pass_at(k: int, right: int, count: int) -> float:
    """Unbiased chance that k of `count` samples, drawn without replacement, hold a right one
    (Chen et al., 2021): 1 - C(count - right, k) / C(count, k)."""
    assert 1 <= k <= count and 0 <= right <= count, (k, right, count)
    return 1.0 - comb(count - right, k) / comb(count, k)


def majority_at(k: int, answers: Sequence[str], is_right: Sequence[bool]) -> float:
    """Share of the blocks of k samples whose commonest answer is right.

    All right answers are one answer, however they are spelt; "" is none and never wins. Of answers
    that are as common, the one that came first counts. Samples beyond the last whole block are left
    out.
    """
    assert 1 <= k <= len(answers) == len(is_right), (k, len(answers), len(is_right))
    named = [_RIGHT if right else answer for answer, right in zip(answers, is_right, strict=True)]
    blocks = [named[at : at + k] for at in range(0, len(named) - k + 1, k)]
    return float(np.mean([_commonest(block) == _RIGHT for block in blocks]))


_RIGHT = "\0right"


def _commonest(answers: Sequence[str]) -> str:
    counts = Counter(answer for answer in answers if answer)
    return counts.most_common(1)[0][0] if counts else ""
