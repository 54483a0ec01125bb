"""Which completions of a run become traces to learn from (section 5.2).

The paper took right answers of its RL run, left out the early steps with their short thoughts,
capped the number per problem, and up-sampled problems that are rarely solved. It prints no number:
they are arguments here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""A row of a run's completions.jsonl.gz."""


class Harvest(NamedTuple):
    kept: list[Row]
    """By problem, then by step; a row that counts several times stands there several times."""
    counts: dict[str, int]
    """What became of all rows: kept, copies, wrong, cut, early, capped."""


def pass_rates(rows: Iterable[Row]) -> dict[str, float]:
    """Problem -> share of its judged completions that were right, over the whole run."""
    right, judged = Counter(), Counter()
    for row in rows:
        if row["outcome"] != "error":
            judged[row["prompt_id"]] += 1
            right[row["prompt_id"]] += row["outcome"] == "right"
    return {name: right[name] / count for name, count in judged.items()}


def harvest(
    rows: Iterable[Row], *, skip: float, cap: int, low_rate: float, upsample: int
) -> Harvest:
    """The rows to learn from.

    Args:
        skip: Share of the run's steps, from its first, whose completions are left out.
        cap: Most rows of one problem; the latest are taken.
        low_rate: Problems solved less often than this have each row `upsample` times.
    """
    rows = list(rows)
    rates = pass_rates(rows)
    last = max((row["step"] for row in rows), default=0)
    counts: Counter[str] = Counter()
    by_problem: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["outcome"] != "right":
            counts["wrong"] += 1
        elif row["finish"] != "stop":
            counts["cut"] += 1
        elif row["step"] <= skip * last:
            counts["early"] += 1
        else:
            by_problem[row["prompt_id"]].append(row)
    kept: list[Row] = []
    for name in sorted(by_problem):
        latest = sorted(by_problem[name], key=lambda row: (row["step"], row["group"], row["index"]))
        taken = latest[-cap:]
        counts["capped"] += len(latest) - len(taken)
        counts["kept"] += len(taken)
        copies = upsample if rates[name] < low_rate else 1
        counts["copies"] += (copies - 1) * len(taken)
        kept += [row for row in taken for _ in range(copies)]
    names = ("kept", "copies", "wrong", "cut", "early", "capped")
    return Harvest(kept, {name: counts[name] for name in names})
