"""What kills cost a run, as rows of a table: each with the rule it must keep, where it has one."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from scipy.stats import t

from magistral_jax.tools.audit import QUARTERS, Audit, by_quarter

MANY_RUNS = 3
"""From here on the spread between runs is known well enough to count."""
COLUMNS = [
    "what",
    "in peace",
    "under kills",
    "must be",
    *(f"length quarter {q}" for q in range(1, QUARTERS + 1)),
    "no length",
]
_MEANING = {
    "process": "kills of the whole process, any time",
    "checkpoint": "kills of the whole process, in a checkpoint",
    "push": "kills of the whole process, in a push",
    "verifier": "kills of a verifier process",
}


@dataclass(frozen=True, kw_only=True)
class Toll:
    """What was seen of one run in peace, and of those under kills."""

    kills: Sequence[str]
    """The kind of each."""
    audits: Sequence[Audit]
    """That of the run in peace, then those of the others."""
    summaries: Sequence[Mapping[str, Any]]
    """Their summary.json, in this order."""
    resumed_s: Sequence[float]
    """From a kill of the whole process to the next token."""
    flips_due: int
    more_peace: Sequence[Mapping[str, Any]] = ()
    """Summaries of more runs in peace: how much runs differ by themselves."""
    flips_found: Sequence[bool]
    """For each flipped bit, whether the run refused the checkpoint and went on from the other."""


@dataclass(frozen=True, kw_only=True)
class Row:
    what: str
    peace: float | int | None = None
    killed: float | int | None = None
    is_zero: bool = False
    """Its rule: both are 0."""
    at_least: float | int | None = None
    """Its rule: both are this or more."""
    quarters: tuple[int, ...] = ()
    """By length, of the runs under kills."""

    @property
    def rule(self) -> str | None:
        if self.is_zero:
            return "0"
        return None if self.at_least is None else f">= {self.at_least:g}"

    @property
    def cells(self) -> list[Any]:
        quarters = self.quarters or (None,) * (QUARTERS + 1)
        return [self.what, self.peace, self.killed, self.rule, *quarters]

    @property
    def fault(self) -> str:
        """What does not hold, in a line; empty if all does."""
        for where, value in (("in peace", self.peace), ("under kills", self.killed)):
            if value is None:
                continue
            is_too_low = self.at_least is not None and value < self.at_least
            if is_too_low or (self.is_zero and value != 0):
                return f"{self.what}, {where}: {value:g}, and it must be {self.rule}"
        return ""


def rows_of(toll: Toll) -> list[Row]:
    """The whole table."""
    kinds = Counter(toll.kills)
    whole = sum(kinds.values()) - kinds["verifier"]
    return [
        *(Row(what=what, killed=kinds[kind]) for kind, what in _MEANING.items()),
        *_of_audits(toll.audits),
        Row(
            what="bits flipped in a checkpoint",
            killed=len(toll.flips_found),
            at_least=toll.flips_due,
        ),
        Row(
            what="damaged weights accepted",
            killed=sum(not found for found in toll.flips_found),
            is_zero=True,
        ),
        *_of_accuracy([toll.summaries[0], *toll.more_peace], toll.summaries[1:]),
        *_of_time(toll, whole),
    ]


def difference(
    peace: Sequence[Mapping[str, Any]], killed: Sequence[Mapping[str, Any]]
) -> tuple[float, tuple[float, float]]:
    """Mean accuracy under kills minus mean accuracy in peace, with its 95% interval.

    The intervals of the runs have problems as clusters; they are taken as independent, though the
    problems are the same, which makes this one too wide rather than too narrow. Runs differ by
    their timing, too, killed or not: where there are enough of them to see it, the wider interval
    counts (Student's, with one spread for both kinds of runs).
    """
    accuracies = [[summary["accuracy_after"] for summary in runs] for runs in (peace, killed)]
    found = mean(accuracies[1]) - mean(accuracies[0])
    half = sum(mean(_half_width(s) ** 2 for s in runs) / len(runs) for runs in (peace, killed))
    half **= 0.5
    freedom = sum(len(of_runs) - 1 for of_runs in accuracies)
    if freedom >= MANY_RUNS - 1:
        squares = sum((a - mean(of_runs)) ** 2 for of_runs in accuracies for a in of_runs)
        spread = (squares / freedom * sum(1 / len(of_runs) for of_runs in accuracies)) ** 0.5
        half = max(half, float(t.ppf(0.975, freedom)) * spread)
    return found, (found - half, found + half)


def _half_width(summary: Mapping[str, Any]) -> float:
    """An end of the interval may be cut off at 0 or 1: the other one tells."""
    low, high = summary["accuracy_after_ci95"]
    return max(summary["accuracy_after"] - low, high - summary["accuracy_after"])


def _of_audits(audits: Sequence[Audit]) -> list[Row]:
    peace, *killed = audits

    def row(what: str, of: Callable[[Audit], Sequence[int]], by_length: bool = True) -> Row:
        counts = [by_quarter(of(audit), audit.mean_lengths) for audit in killed]
        return Row(
            what=what,
            peace=len(of(peace)),
            killed=sum(len(of(audit)) for audit in killed),
            is_zero=True,
            quarters=tuple(map(sum, zip(*counts, strict=True))) if by_length else (),
        )

    recorded = [by_quarter(audit.mean_lengths, audit.mean_lengths) for audit in killed]
    return [
        Row(what="runs", peace=1, killed=len(killed)),
        Row(
            what="prompts handed out",
            peace=peace.handed_out,
            killed=sum(audit.handed_out for audit in killed),
        ),
        Row(
            what="prompts recorded",
            peace=len(peace.mean_lengths),
            killed=sum(len(audit.mean_lengths) for audit in killed),
            quarters=tuple(map(sum, zip(*recorded, strict=True))),
        ),
        row("prompts skipped", lambda audit: audit.skipped),
        row("prompts counted twice", lambda audit: audit.twice),
        row("prompts never handed out", lambda audit: audit.strangers),
        row("updates without one row and one batch", lambda audit: audit.bad_steps, False),
        Row(
            what="completions miscounted",
            peace=peace.miscounted,
            killed=sum(audit.miscounted for audit in killed),
            is_zero=True,
        ),
    ]


def _of_accuracy(
    peace: Sequence[Mapping[str, Any]], killed: Sequence[Mapping[str, Any]]
) -> list[Row]:
    if "accuracy_after" not in peace[0]:
        return []  # eval.problems = 0
    found, (low, high) = difference(peace, killed)
    means = [mean(summary["accuracy_after"] for summary in runs) for runs in (peace, killed)]
    return [
        Row(what="runs that are compared", peace=len(peace), killed=len(killed)),
        Row(what="accuracy, mean", peace=means[0], killed=means[1]),
        Row(what="its difference", killed=found),
        Row(what="low end of the difference's 95% interval", killed=low),
        Row(what="high end of the difference's 95% interval", killed=high, at_least=0.0),
    ]


def _of_time(toll: Toll, whole: int) -> list[Row]:
    if whole == 0:
        return []
    lost_s = sum(summary["ledger_s"]["lost"] for summary in toll.summaries[1:])
    rows = [Row(what="device-seconds lost per kill of the whole process", killed=lost_s / whole)]
    if toll.resumed_s:
        what = "seconds from such a kill to the next token"
        rows += [
            Row(what=f"{what}, {name}", killed=of(toll.resumed_s))
            for name, of in (("mean", mean), ("median", median), ("most", max))
        ]
    return rows
