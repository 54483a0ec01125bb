"""Are the lengths trained on those that were sampled? (Magistral 3.2: no length bias.)"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from threading import Lock

from magistral_jax.types import Group

QUARTERS = (1, 2, 3, 4)


class Lengths:
    """Completions of groups worth training on, counted by length: sampled ones and trained ones."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sampled: Counter[int] = Counter()
        self._trained: Counter[int] = Counter()

    def sampled(self, group: Group) -> None:
        """A judged group that is kept."""
        with self._lock:
            self._sampled.update(len(c.tokens) for c in group.completions)

    def trained(self, groups: Sequence[Group]) -> None:
        with self._lock:
            self._trained.update(len(c.tokens) for g in groups for c in g.completions)

    def shares(self) -> dict[str, float]:
        """Of the completions in each quarter of the sampled lengths, the share trained on so far.

        Training in the order of finishing would leave the longest quarter behind the others.
        """
        with self._lock:
            sampled, trained = Counter(self._sampled), Counter(self._trained)
        lengths = sorted(sampled)
        total = sampled.total()
        below = dict(zip(lengths, accumulate(sampled[n] for n in lengths), strict=True))
        # A length belongs to the quarter in which the middle one of its completions lies.
        quarter = {n: 1 + min(3, int(4 * (below[n] - sampled[n] / 2) / total)) for n in lengths}
        shares = {}
        for q in QUARTERS:
            inside = [n for n in lengths if quarter[n] == q]
            if inside:
                count = sum(sampled[n] for n in inside)
                shares[f"length/trained_q{q}"] = sum(trained[n] for n in inside) / count
        return shares

    def saved(self) -> dict[str, list[list[int]]]:
        with self._lock:
            counts = {"sampled": self._sampled, "trained": self._trained}
            return {name: sorted([n, k] for n, k in c.items()) for name, c in counts.items()}

    def restore(self, saved: Mapping[str, Sequence[Sequence[int]]]) -> None:
        with self._lock:
            self._sampled = Counter({n: k for n, k in saved["sampled"]})
            self._trained = Counter({n: k for n, k in saved["trained"]})
