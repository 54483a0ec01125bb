"""What a comparison of forms asks about the numbers and functions inside them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from magistral_jax.verifier.math.asked import NOTHING, Asked
from magistral_jax.verifier.math.nodes import Node

Verdict = bool | None
"""None: not known here, another stage must say."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """One stage's knowledge: exact arithmetic only, or points as well."""

    equal: Callable[[Node, Node], Verdict]
    """Whether two expressions have one value, for all values of their variables."""
    proportional: Callable[[Node, Node, bool], Verdict]
    """Whether f = c g for a constant c that is not 0; with True, for a positive c."""
    place: Callable[[Node], Fraction]
    """Where a constant lies on the line. Raises Unreadable if it has no place known here."""
    unknown: Verdict
    """What to say when this stage cannot tell."""
    asked: Asked = NOTHING
    """What the problem's words say about the form of its answer."""


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """False if one is False, else None if one is None, else True."""
    total: Verdict = True
    for verdict in verdicts:
        if verdict is False:
            return False
        if verdict is None:
            total = None
    return total


def either(verdicts: Iterable[Verdict]) -> Verdict:
    """True if one is True, else None if one is None, else False."""
    total: Verdict = False
    for verdict in verdicts:
        if verdict is True:
            return True
        if verdict is None:
            total = None
    return total


def in_order(
    gold: Sequence[Node], candidate: Sequence[Node], same: Callable[[Node, Node], Verdict]
) -> Verdict:
    """Item by item."""
    if len(gold) != len(candidate):
        return False
    return every(same(a, b) for a, b in zip(gold, candidate, strict=True))


def in_any_order(
    gold: Sequence[Node], candidate: Sequence[Node], same: Callable[[Node, Node], Verdict]
) -> Verdict:
    """Each item of either side is among the other's, as often as it is there."""
    verdict = as_sets(gold, candidate, same)
    if verdict is not True:
        return verdict
    # Sameness is an equivalence, so an item's likes are counted on both sides.
    counts = [[[same(a, b) for b in side].count(True) for side in (gold, candidate)] for a in gold]
    return all(here == there for here, there in counts)


def as_sets(
    gold: Sequence[Node], candidate: Sequence[Node], same: Callable[[Node, Node], Verdict]
) -> Verdict:
    """Each item of either side is among the other's, however often."""
    table = [[same(a, b) for b in candidate] for a in gold]
    columns = [list(column) for column in zip(*table, strict=True)] or [[] for _ in candidate]
    return every(either(line) for line in (*table, *columns))
