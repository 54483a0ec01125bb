"""Sets of real numbers as unions of intervals with known ends: cut, joined and compared exactly.

|x| < 2 is (-2, 2) and |x| > 2 two half-lines, but z and w may be complex.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from magistral_jax.verifier.math.caps import Unreadable
from magistral_jax.verifier.math.nodes import (
    Apply,
    Constant,
    Group,
    Joined,
    Node,
    Relation,
    Symbol,
)

# A place on the line: a value and which side of it: -1 just below, 0 at it, +1 just above.
Cut = tuple[int, Fraction, int]
Interval = tuple[Cut, Cut]
Place = Callable[[Node], Fraction]
"""The value of an end of an interval. Raises Unreadable if it has none that can be ordered."""

_LOWEST: Cut = (-1, Fraction(0), 0)
_HIGHEST: Cut = (1, Fraction(0), 0)


@dataclass(frozen=True)
class RealSet:
    """A union of disjoint intervals in order, each from one cut to a later one."""

    intervals: tuple[Interval, ...]

    def union(self, other: "RealSet") -> "RealSet":
        return _joined([*self.intervals, *other.intervals])

    def intersection(self, other: "RealSet") -> "RealSet":
        return _joined(
            [(max(a, c), min(b, d)) for a, b in self.intervals for c, d in other.intervals]
        )

    def complement(self) -> "RealSet":
        cuts = [_LOWEST, *(cut for interval in self.intervals for cut in interval), _HIGHEST]
        return _joined(list(zip(cuts[::2], cuts[1::2], strict=True)))


def real_set(node: Node, place: Place) -> RealSet:
    """The set that an interval, an inequality in one variable, a union, ... describes.

    Raises Unreadable if the tree describes none, or an end of it has no known value.
    """
    match node:
        case Group("{", "}", items):
            return _joined([_point(place(item)) for item in items])
        case Group(("(" | "["), (")" | "]"), (low, high)):
            return _interval(low, high, node.opening == "[", node.closing == "]", place)
        case Constant("R"):
            return _joined([(_LOWEST, _HIGHEST)])
        case Apply("cup", (a, b)):
            return real_set(a, place).union(real_set(b, place))
        case Apply("cap", (a, b)):
            return real_set(a, place).intersection(real_set(b, place))
        case Apply("+", (a, Apply("neg", (Group("{", "}") as b,)))):
            return real_set(Apply("setminus", (a, b)), place)
        case Group("", "", (Relation((Symbol(name), Constant("R")), ("in",)), rule)) if (
            _variable(rule) == name
        ):
            return real_set(rule, place)
        case Apply("setminus", (a, b)):
            return real_set(a, place).intersection(real_set(b, place).complement())
        case Apply(
            "builder", (Symbol(name) | Relation((Symbol(name), Constant("R")), ("in",)), rule)
        ):
            if _variable(rule) != name:
                raise Unreadable("a condition on something else")
            return real_set(rule, place)
        case Joined(word, items):
            sets = [real_set(item, place) for item in items]
            if len({_variable(item) for item in items}) > 1:
                raise Unreadable("conditions on several variables")
            total = sets[0]
            for other in sets[1:]:
                total = total.union(other) if word == "or" else total.intersection(other)
            return total
        case Relation((Apply("abs", (Symbol() as name,)), end), (sign,)):
            return real_set(_without_bars(name, sign, end, place), place)
        case Relation((end, Apply("abs", (Symbol() as name,))), (sign,)):
            return real_set(_without_bars(name, _MIRRORED.get(sign, "?"), end, place), place)
        case Relation():
            return _condition(node, place)
        case _:
            raise Unreadable("no set of reals")


def variable_of(node: Node) -> str | None:
    """The name of the variable whose values a condition describes; None for a set by itself."""
    match node:
        case Relation() | Joined():
            return _variable(node)
        case _:
            return None


def _variable(node: Node) -> str | None:
    if isinstance(node, Joined):
        return _variable(node.items[0])
    if isinstance(node, Relation):
        for part in node.parts:
            match part:
                case Symbol(name) | Apply("abs", (Symbol(name),)):
                    return name
                case _:
                    pass
    return None


def _without_bars(name: Symbol, sign: str, end: Node, place: Place) -> Node:
    """|x| < 2 as -2 < x < 2, |x| > 2 as x < -2 or x > 2."""
    if name.name in _COMPLEX_NAMES or place(end) <= 0:
        raise Unreadable("bars that are no distance on the line")
    below = Apply("neg", (end,))
    match sign:
        case "<" | "<=":
            return Relation((below, name, end), (sign, sign))
        case ">" | ">=":
            outside = Relation((name, below), (_MIRRORED[sign],)), Relation((name, end), (sign,))
            return Joined("or", outside)
        case _:
            raise Unreadable("no order")


def _condition(node: Relation, place: Place) -> RealSet:
    """The x of a < x <= b, x > a, x != a, x = a, x in S."""
    at = [i for i, part in enumerate(node.parts) if isinstance(part, Symbol)]
    if len(at) != 1:
        raise Unreadable("no variable by itself")
    if node.signs == ("in",) and at == [0]:
        return real_set(node.parts[1], place)
    if len(node.signs) > 1 and not any(set(node.signs) <= way for way in _WAYS):
        raise Unreadable("a chain in two directions")
    total = _joined([(_LOWEST, _HIGHEST)])
    for i, sign in enumerate(node.signs):
        left, right = node.parts[i], node.parts[i + 1]
        if i == at[0]:
            total = total.intersection(_half(sign, right, place))
        elif i + 1 == at[0]:
            total = total.intersection(_half(_MIRRORED.get(sign, "?"), left, place))
        elif not _holds(place(left), sign, place(right)):
            raise Unreadable("a chain that contradicts itself")
    return total


_COMPLEX_NAMES = frozenset("zw")
"""|z| < 2 is a disc, unless somebody says that z is real."""
_WAYS = ({"<", "<="}, {">", ">="})
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def _holds(a: Fraction, sign: str, b: Fraction) -> bool:
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}.get(sign, False)


def _half(sign: str, end: Node, place: Place) -> RealSet:
    if _is_infinite(end):
        if sign in ("<", ">") and (sign == ">") == (end != Constant("oo")):
            return _joined([(_LOWEST, _HIGHEST)])
        raise Unreadable("a condition at infinity")
    value = place(end)
    match sign:
        case "<":
            return _joined([(_LOWEST, (0, value, -1))])
        case "<=":
            return _joined([(_LOWEST, (0, value, 1))])
        case ">":
            return _joined([((0, value, 1), _HIGHEST)])
        case ">=":
            return _joined([((0, value, -1), _HIGHEST)])
        case "=":
            return _joined([_point(value)])
        case "!=":
            return _joined([_point(value)]).complement()
        case _:
            raise Unreadable("no order")


def _interval(low: Node, high: Node, has_low: bool, has_high: bool, place: Place) -> RealSet:
    if _is_infinite(low) and (has_low or low == Constant("oo")):
        raise Unreadable("an interval that holds infinity")
    if _is_infinite(high) and (has_high or high != Constant("oo")):
        raise Unreadable("an interval that holds infinity")
    start = _LOWEST if _is_infinite(low) else (0, place(low), -1 if has_low else 1)
    end = _HIGHEST if _is_infinite(high) else (0, place(high), 1 if has_high else -1)
    if start > end:
        raise Unreadable("an interval the wrong way round")
    return _joined([(start, end)])


def _is_infinite(node: Node) -> bool:
    return node in (Constant("oo"), Apply("neg", (Constant("oo"),)))


def _point(value: Fraction) -> Interval:
    return (0, value, -1), (0, value, 1)


def _joined(intervals: list[Interval]) -> RealSet:
    done: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[0] < i[1]):
        if done and start <= done[-1][1]:
            done[-1] = (done[-1][0], max(done[-1][1], end))
        else:
            done.append((start, end))
    return RealSet(tuple(done))
