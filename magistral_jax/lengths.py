"""Are the lengths trained on those that were sampled? (Magistral 3.2: no length bias.)"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from threading import Lock
from typing import Any

from magistral_jax.types import Group

QUARTERS = (1, 2, 3, 4)


class Lengths:
    """Completions trained on, counted by length; and those of them that were overtaken: a group
    dispatched later was trained on in an earlier batch."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._trained: Counter[int] = Counter()
        self._overtaken: Counter[int] = Counter()
        self._newest = -1
        """The last dispatched of the groups trained on."""

    def trained(self, groups: Sequence[Group]) -> None:
        """The next batch."""
        with self._lock:
            for group in groups:
                lengths = [len(c.tokens) for c in group.completions]
                self._trained.update(lengths)
                if group.group < self._newest:
                    self._overtaken.update(lengths)
            self._newest = max(self._newest, *(group.group for group in groups))

    def shares(self) -> dict[str, float]:
        """Of the completions trained on so far, in each quarter of their lengths, the share that
        came in its turn: 1 everywhere in the order of dispatch.

        Training in the order of finishing would make the long ones come late, nearly all of them.
        """
        with self._lock:
            trained, overtaken = Counter(self._trained), Counter(self._overtaken)
        lengths = sorted(trained)
        total = trained.total()
        below = dict(zip(lengths, accumulate(trained[n] for n in lengths), strict=True))
        # A length belongs to the quarter in which the middle one of its completions lies.
        quarter = {n: 1 + min(3, int(4 * (below[n] - trained[n] / 2) / total)) for n in lengths}
        shares = {}
        for q in QUARTERS:
            inside = [n for n in lengths if quarter[n] == q]
            if inside:
                count = sum(trained[n] for n in inside)
                late = sum(overtaken[n] for n in inside)
                shares[f"length/in_turn_q{q}"] = 1 - late / count
        return shares

    def saved(self) -> dict[str, Any]:
        with self._lock:
            counts = {"trained": self._trained, "overtaken": self._overtaken}
            listed = {name: sorted([n, k] for n, k in c.items()) for name, c in counts.items()}
            return {**listed, "newest": self._newest}

    def restore(self, saved: Mapping[str, Any]) -> None:
        with self._lock:
            self._trained = Counter({n: k for n, k in saved["trained"]})
            self._overtaken = Counter({n: k for n, k in saved["overtaken"]})
            self._newest = saved["newest"]
