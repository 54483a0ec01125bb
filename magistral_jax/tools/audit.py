"""Whether a finished run counted every prompt exactly once, by what lies in its folder.

Three accounts must agree: the stream says which positions were handed out, the record says which
completions were judged and which batches were trained on, and the last checkpoint says what was
still on its way. None of them is believed alone.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from magistral_jax.batch.backlog import STRIKES
from magistral_jax.checkpoint import Checkpoints
from magistral_jax.config import RunConfig
from magistral_jax.data.sources import problems_of
from magistral_jax.data.stream import PromptStream
from magistral_jax.metrics import COMPLETIONS, METRICS
from magistral_jax.types import RunFailed

QUARTERS = 4


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in one run. A position is a prompt's place in the stream.

    Example: skipped (17,) if 17 was handed out, and neither was judged nor is on its way.
    """

    handed_out: int
    """Positions below the checkpoint's `next`, held-out problems and those set aside left out."""
    skipped: tuple[int, ...] = ()
    """Of which a completion is nowhere, or which were good to train on and never were."""
    twice: tuple[int, ...] = ()
    """Of which a completion is in two places, or which were trained on twice."""
    strangers: tuple[int, ...] = ()
    """Recorded or on their way, but never handed out."""
    bad_steps: tuple[int, ...] = ()
    """Without exactly one row of metrics, or whose batch is not of the size it should be."""
    miscounted: int = 0
    """By how much progress/completions differs from the completions recorded."""
    mean_lengths: Mapping[int, float]
    """Mean length of the completions recorded, by position."""


def audit(config: RunConfig, folder: Path) -> Audit:
    """Of the run in this folder, which is over."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
    meta = checkpoints.latest()
    if meta is None or meta.step != config.trainer.steps:
        at = "there is none" if meta is None else f"the newest is of step {meta.step}"
        raise RunFailed(f"{folder} has no checkpoint of step {config.trainer.steps}: {at}")
    with gzip.open(folder / COMPLETIONS, "rt", encoding="utf-8") as file:
        rows = [_brief(json.loads(line)) for line in file]
    metrics = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    return audited(
        rows,
        metrics,
        meta.frontier,
        handed_out(config, meta.frontier["queue"]["next"]),
        group_size=config.generator.group_size,
        groups_per_batch=config.groups_per_batch,
        steps=config.trainer.steps,
    )


def handed_out(config: RunConfig, end: int) -> dict[int, str]:
    """Position -> problem of all that a stream gives before `end`.

    A stream of its own, and not that of a `Run`, which would take this machine's devices.
    """
    data = config.data
    stream = PromptStream(
        problems_of(config),
        lambda problem: np.zeros(0, np.int32),
        seed=config.seed,
        heldout_percent=data.heldout_percent,
    )
    found: dict[int, str] = {}
    while (prompt := stream.next()).group < end:
        found[prompt.group] = prompt.problem.id
    return found


def audited(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
    frontier: Mapping[str, Any],
    handed_out: Mapping[int, str],
    *,
    group_size: int,
    groups_per_batch: int,
    steps: int,
) -> Audit:
    """The three accounts, held against each other."""
    queue = frontier["queue"]
    set_aside = {problem for problem, count in queue["strikes"].items() if count >= STRIKES}
    whole = {_group(entry) for entry in queue["entries"] if entry["is_whole"]}
    recorded = Counter((row["group"], row["index"]) for row in rows)
    places = recorded + _places_in_flight(frontier, group_size)
    expected = {g for g, problem in handed_out.items() if problem not in set_aside}
    indices = range(group_size)
    skipped = {g for g in expected if any(places[g, i] == 0 for i in indices)}
    twice = {g for (g, _), count in places.items() if count > 1}
    # An index that no group has is one more completion than there should be.
    twice |= {g for g, i in places if i not in indices}

    trained, bad_batches = _trained(metrics, diverse(rows), groups_per_batch)
    twice |= {g for g, count in trained.items() if count > 1} | (whole & trained.keys())
    skipped |= diverse(rows) - trained.keys() - whole

    by_step = Counter(row["step"] for row in metrics)
    wanted = range(1, steps + 1)
    bad_steps = {step for step in wanted if by_step[step] != 1} | (by_step.keys() - set(wanted))
    counted = metrics[-1]["progress/completions"] if metrics else 0
    return Audit(
        handed_out=len(expected),
        skipped=tuple(sorted(skipped)),
        twice=tuple(sorted(twice)),
        strangers=tuple(sorted({g for g, _ in places} - handed_out.keys())),
        bad_steps=tuple(sorted(bad_steps | bad_batches)),
        miscounted=abs(int(counted) - len(rows)),
        mean_lengths=_mean_lengths(rows),
    )


def diverse(rows: Iterable[Mapping[str, Any]]) -> set[int]:
    """Groups that can be learned from, by their recorded rewards: `types.Group.is_diverse`."""
    rewards: dict[int, set[np.float32]] = {}
    for row in rows:
        if row["outcome"] != "error":
            rewards.setdefault(row["group"], set()).add(np.float32(row["reward"]))
    return {group for group, found in rewards.items() if len(found) > 1}


def by_quarter(
    groups: Iterable[int], mean_lengths: Mapping[int, float]
) -> tuple[int, int, int, int, int]:
    """How many of these groups lie in each quarter of all groups, the shortest first; last, how
    many have no length, since nothing of them was recorded. Equal lengths go by position."""
    order = sorted(mean_lengths, key=lambda group: (mean_lengths[group], group))
    quarter = {group: QUARTERS * rank // len(order) for rank, group in enumerate(order)}
    counts = [0] * (QUARTERS + 1)
    for group in groups:
        counts[quarter.get(group, QUARTERS)] += 1
    first, second, third, fourth, unknown = counts
    return first, second, third, fourth, unknown


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of a row: a long run's tokens need not all be held."""
    kept = {name: row[name] for name in ("group", "index", "reward", "outcome")}
    return {**kept, "length": len(row["tokens"])}


def _group(entry: Mapping[str, Any]) -> int:
    return int(entry["prompt"][0])


def _places_in_flight(frontier: Mapping[str, Any], group_size: int) -> Counter[tuple[int, int]]:
    """Where the checkpoint has each completion that is not in the record yet."""
    queue, in_flight = frontier["queue"], frontier["in_flight"]
    places: Counter[tuple[int, int]] = Counter()
    for entry in queue["judged"]:
        places.update((_group(entry), i) for i in range(group_size))
    for entry in queue["entries"]:
        if not entry["is_whole"]:  # a whole one was recorded when it was judged, or is in `judged`
            places.update((_group(entry), c["index"]) for c in entry["completions"])
    places.update((_group(draft), draft["index"]) for draft in in_flight["drafts"])
    for waiting in in_flight["waiting"]:
        indices = range(waiting["next_index"], waiting["count"])
        places.update((_group(waiting), i) for i in indices)
    return places


def _trained(
    metrics: Sequence[Mapping[str, Any]], candidates: set[int], groups_per_batch: int
) -> tuple[Counter[int], set[int]]:
    """How often each group was trained on, and the steps whose batch is of another size."""
    trained: Counter[int] = Counter()
    bad: set[int] = set()
    order = np.array(sorted(candidates), np.int64)
    for row in metrics:
        ends = (row["batch/first_group"], row["batch/last_group"])
        batch = order[np.searchsorted(order, ends[0]) : np.searchsorted(order, ends[1], "right")]
        trained.update(batch.tolist())
        if len(batch) != groups_per_batch or not candidates.issuperset(ends):
            bad.add(row["step"])
    return trained, bad


def _mean_lengths(rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    lengths: dict[int, list[int]] = {}
    for row in rows:
        lengths.setdefault(row["group"], []).append(row["length"])
    return {group: float(np.mean(found)) for group, found in lengths.items()}
