"""What happened since the previous weight update, gathered from every thread.

The loops add up counters and drain them once a step; with the groups judged meanwhile they become
that step's row of metrics.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import SupportsFloat, get_args

import numpy as np

from magistral_jax.lengths import Lengths
from magistral_jax.types import Group, Reason

PARTS = ("format", "correct", "length", "language")


class Tally:
    """Counters. Any thread may add; one drains."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = defaultdict(float)
        self._latest: dict[str, float] = {}
        self.lengths = Lengths()

    def add(self, name: str, value: SupportsFloat) -> None:
        """Add to a counter that starts at 0 after each drain."""
        with self._lock:
            self._sums[name] += float(value)

    def note(self, name: str, value: SupportsFloat) -> None:
        """Keep the newest value of a number; forgotten after each drain."""
        with self._lock:
            self._latest[name] = float(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to a counter."""
        start = monotonic()
        try:
            yield
        finally:
            self.add(name, monotonic() - start)

    def drain(self) -> tuple[dict[str, float], dict[str, float]]:
        """Counters and newest values since the last call."""
        with self._lock:
            drained = dict(self._sums), self._latest
            self._sums.clear()
            self._latest = {}
            return drained


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, lengths and spans of the groups judged since the last step, dropped ones included.

    All judged groups count, so that what is shown is what the policy does, not what was kept.
    """
    judged = [(g.completions[i], g.verdicts[i]) for g in groups for i in g.valid]
    errored = sum(len(g.completions) - len(g.valid) for g in groups)
    reasons = [v.reason for g in groups for v in g.verdicts]
    values = {
        "batch/uniform_groups": float(np.mean([not g.is_diverse for g in groups] or [0.0])),
        "batch/errored": float(errored),
        **{f"verifier/{r}": float(reasons.count(r)) for r in get_args(Reason) if r in reasons},
    }
    if not judged:
        return values
    lengths = np.array([len(c.tokens) for c, _ in judged])
    spans = np.array([len(c.spans) for c, _ in judged])
    return values | {
        "reward/mean": float(np.mean([v.reward for _, v in judged])),
        **{f"reward/{p}": float(np.mean([v.parts[p] for _, v in judged])) for p in PARTS},
        "reward/accuracy": float(np.mean([v.outcome == "right" for _, v in judged])),
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "length/truncated": float(np.mean([c.finish == "length" for c, _ in judged])),
        "policy/spans_mean": float(spans.mean()),
        "policy/spans_two_or_more": float(np.mean(spans >= 2)),
    }


def rates(raw: dict[str, float], *, slots: int, step_s: float) -> dict[str, float]:
    """Rates, from the loops' counters."""
    decode_steps = raw.get("decode_steps", 0.0)
    decode_step_s = raw.get("decode_s", 0.0) / max(decode_steps, 1.0)
    return {
        "time/step": step_s,
        "generator/tokens_per_s": raw.get("tokens", 0.0) / max(step_s, 1e-9),
        "generator/decode_steps": decode_steps,
        "generator/occupancy": raw.get("tokens", 0.0) / max(decode_steps * slots, 1.0),
        "push/pause_steps": raw.get("swap_s", 0.0) / max(decode_step_s, 1e-9),
        "train/tokens_per_s": raw.get("train_tokens", 0.0) / max(raw.get("time/train", 0.0), 1e-9),
    }
