r"""Whether two expressions are one number or one function, by balls around their values.

Balls (balls.py) that do not meet prove that two constants differ. Balls that meet, at one precision
and at twice that precision, each smaller than any difference that the two texts can hide, are taken
for equality; algebra.py then confirms it where it can. What has no value anywhere on the way, or
none that a bounded precision finds, equals nothing.

Two functions are equal if they agree at points near zero, far away, and of either sign, and have
real values at the same ones: so \sqrt{x^2} is not x, and a term that vanishes where it is real does
not hide where it is not. One rule: roots and logarithms follow the rules for positive numbers, so
\sqrt{x}\sqrt{y} is \sqrt{xy} and \ln x^2 is 2 \ln x; but where one side alone has bars, as in
\ln |x|, they are there for the other numbers.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction

import flint

from magistral_jax.verifier.math.balls import (
    LOG_BASE,
    Ball,
    Evaluator,
    Undefined,
    is_accurate,
    real_part,
)
from magistral_jax.verifier.math.caps import MAX_NODES, Unreadable
from magistral_jax.verifier.math.exact import exact
from magistral_jax.verifier.math.judge import Judge
from magistral_jax.verifier.math.nodes import (
    Apply,
    Constant,
    Node,
    Num,
    variables,
    walk,
)

_BITS = 170
_MAX_BITS = 16_000
_GLANCE = 192
"""Bits of the first look, which tells how far the numbers on the way lie apart."""
_TRIES = 3
_PLACES = 300
_WHOLE_NAMES = frozenset("nkm")
_NEAR = 200
_MOST_WORK = 40_000
"""Bits times factorials and binomials, which cost the most by far."""
_PIECES = frozenset({"abs", "max", "min"})
_FEWEST = 3
"""Points at which two functions must have real values."""

Confirm = Callable[[Node, Node], bool | None]
"""Whether algebra finds two expressions the same; None where it does not decide."""
Point = dict[str, Fraction]
"""Exact, so that any precision can be had of it."""


def numeric_judge(confirm: Confirm) -> Judge:
    """The judge that knows values at points; what it cannot tell is not the same.

    `confirm` is asked where points find two expressions equal, and may disprove it.
    """

    def confirmed(a: Node, b: Node) -> bool:
        return equal(a, b) and (a == b or confirm(a, b) is not False)

    return Judge(equal=confirmed, proportional=proportional, place=place, unknown=False)


def equal(a: Node, b: Node) -> bool:
    """Whether two expressions have one value wherever either has a real one.

    Raises Unreadable if a constant has no value that a bounded precision finds.
    """
    if _is_infinite(a) or _is_infinite(b):
        return _infinity(a) is not None and _infinity(a) == _infinity(b)
    exact_a, exact_b = exact(a), exact(b)
    if exact_a is not None and exact_b is not None:
        return exact_a == exact_b
    names = _names(a) | _names(b)
    if not names:
        left, right = _enclosed((a, b), {}).values
        return _meet(left, right) and _meet(*_enclosed((a, b), {}, sharper=2).values)
    if _has(a, _STAIRS) != _has(b, _STAIRS):
        return False  # no points find the step that one side alone has
    seen = 0
    for left, right in _real_pairs(a, b, names):
        if not _meet(left, right):
            return False
        seen += 1
    return seen >= _FEWEST


def proportional(f: Node, g: Node, is_positive: bool) -> bool:
    """Whether f = c g with a constant c, not 0; for `is_positive` c must be above 0."""
    names = _names(f) | _names(g)
    if not names or _has(f, _STAIRS) != _has(g, _STAIRS):
        return False
    quotients: list[Ball] = []
    for left, right in _real_pairs(f, g, names):
        are_zero = [bool(value.contains(0)) for value in (left, right)]
        if all(are_zero):
            continue
        if any(are_zero):
            return False
        with flint.ctx.workprec(_MAX_BITS):  # a quotient is only as good as it is computed
            quotient = left / right
        if quotients and not _meet(quotient, quotients[0]):
            return False
        quotients.append(quotient)
    if len(quotients) < _FEWEST:
        return False
    return not is_positive or all(bool(real_part(q) > 0) for q in quotients)


def place(node: Node) -> Fraction:
    """A constant's place on the line, to 300 digits behind the point.

    Raises Unreadable if it has none, or if its text can hide a smaller difference.
    """
    value = exact(node)
    if value is None:
        if _names(node):
            raise Unreadable("no constant")
        if _bits_for((node,), {}) > 2 * _PLACES:
            raise Unreadable("a place that takes more digits")
        found = _enclosed((node,), {}, least=4 * _PLACES)
        mantissa, exponent = real_part(found.values[0]).mid().man_exp()
        is_zero = bool(found.values[0].contains(0))  # then its middle may be anything
        value = Fraction(0) if is_zero else Fraction(int(mantissa)) * Fraction(2) ** int(exponent)
    elif value.denominator.bit_length() > 2 * _PLACES:
        raise Unreadable("a place that takes more digits")
    return Fraction(round(value * 10**_PLACES), 10**_PLACES)


class _Enclosed:
    """Balls around the values of some trees at one point, and which of them are real."""

    def __init__(self, nodes: tuple[Node, ...], point: Point) -> None:
        evaluators = [Evaluator(point) for _ in nodes]
        self.values = [e.value(node) for e, node in zip(evaluators, nodes, strict=True)]
        self.are_real = [e.is_real for e in evaluators]


def _enclosed(
    nodes: tuple[Node, ...], point: Point, *, least: int = _BITS, sharper: int = 1
) -> _Enclosed:
    """Values known to more bits than the trees can hide a difference in; `sharper` times as many.

    Raises Undefined or Unreadable if that takes more than the caps allow.
    """
    bits = sharper * max(least, _bits_for(nodes, point))
    for attempt in range(_TRIES):
        with flint.ctx.workprec((bits + 64) << attempt):
            try:
                found = _Enclosed(nodes, point)
            except Undefined:
                if attempt == _TRIES - 1:
                    raise
                continue
            if all(is_accurate(value, bits) for value in found.values):
                return found
    raise Undefined("a value that no precision settles")


def _bits_for(nodes: tuple[Node, ...], point: Point) -> int:
    """Enough bits that no number in the trees, and no tiny or huge value, hides a difference."""
    hidden, count = 0, 0
    for node in nodes:
        for n in walk(node):
            count += 1
            if isinstance(n, Num):
                hidden += max(n.value.numerator.bit_length(), n.value.denominator.bit_length())
    if count > 2 * MAX_NODES:
        raise Unreadable("more nodes than the cap")
    evaluator = Evaluator(point)
    with flint.ctx.workprec(_GLANCE):
        for node in nodes:
            try:
                evaluator.value(node)
            except Undefined:  # so it seems to so few bits; its parts have sizes all the same
                for part in walk(node):
                    with suppress(Undefined):
                        evaluator.value(part)
    bits = _BITS + 2 * (hidden + evaluator.scale)
    if bits * sum(_has_many(node) for node in nodes) > _MOST_WORK:
        raise Unreadable("more gamma functions than the cap")
    if bits > _MAX_BITS:
        raise Unreadable("more digits than the cap")
    return bits


def _has_many(node: Node) -> int:
    return sum(isinstance(n, Apply) and n.name in ("factorial", "binom") for n in walk(node))


def _meet(left: Ball, right: Ball) -> bool:
    with flint.ctx.workprec(_MAX_BITS):
        return bool((left - right).contains(0))


def _names(node: Node) -> frozenset[str]:
    has_log = any(isinstance(n, Apply) and n.name == "log" and len(n.args) == 1 for n in walk(node))
    return variables(node) | ({LOG_BASE} if has_log else set())


def _real_pairs(a: Node, b: Node, names: frozenset[str]) -> Iterator[tuple[Ball, Ball]]:
    """Both values where both are real; one pair that does not meet where one alone is.

    Where the texts write i, complex values count, too.
    """
    is_complex = any(n == Constant("i") for tree in (a, b) for n in walk(tree))
    has_bars = _has(a, _PIECES) or _has(b, _PIECES)
    may_be_narrower = _is_cut(a) and _is_cut(b) and not has_bars
    for point in _points(a, b, names):
        try:
            bits = _bits_for((a, b), point)
            left, left_is_real = _value_at(a, point, bits)
            right, right_is_real = _value_at(b, point, bits)
        except Unreadable:  # beyond the caps: far away that is no wonder, but near it is a choice
            if not _is_far(point) and min(_size(a, point), _size(b, point)) < _MAX_BITS // 2:
                yield flint.acb(0), flint.acb(1)
            continue
        if left is not None and right is not None and (is_complex or left_is_real == right_is_real):
            if is_complex or left_is_real:
                yield left, right
        elif (
            left is not right
            and not may_be_narrower
            and (is_complex or left_is_real or right_is_real)
        ):
            yield flint.acb(0), flint.acb(1)


def _value_at(node: Node, point: Point, bits: int) -> tuple[Ball | None, bool]:
    """The value and whether it is real; None where there is none."""
    try:
        found = _enclosed((node,), point, least=bits)
    except Undefined:
        return None, False
    return found.values[0], found.are_real[0]


def _is_far(point: Point) -> bool:
    return any(abs(value) > _NEAR for value in point.values())


def _size(node: Node, point: Point) -> int:
    """The bits that a value takes here by itself; more than the cap if it is beyond the caps."""
    try:
        bits = _bits_for((node,), point)
        _value_at(node, point, bits)
    except Unreadable:
        return _MAX_BITS + 1
    return bits


def _is_cut(node: Node) -> bool:
    """Whether a root or a logarithm of something with variables stands in the tree."""
    for n in walk(node):
        match n:
            case Apply("ln" | "log" | "lg" | "root", args) if variables(args[0]):
                return True
            case Apply("^", (base, exponent)) if variables(base):
                value = exact(exponent)
                if variables(exponent) or (value is not None and value.denominator > 1):
                    return True
            case _:
                pass
    return False


def _has(node: Node, names: frozenset[str] | set[str]) -> bool:
    return any(isinstance(n, Apply) and n.name in names for n in walk(node))


def _points(a: Node, b: Node, names: frozenset[str]) -> Iterator[Point]:
    """Rational points, the same for the same two trees: near zero, far away, of either sign.

    n, k and m are whole where only then a value is real: as the exponent of a negative base.
    """
    dice = random.Random(f"{a}{b}")
    ordered = sorted(names)
    whole = (_alternating(a) | _alternating(b)) & _WHOLE_NAMES
    for low, high, times in _RANGES:
        for _ in range(times):
            point = {}
            for name in ordered:
                share = Fraction(dice.randrange(1, 10**15), 10**15)
                value = Fraction(low) + (Fraction(high) - Fraction(low)) * share
                if name in whole:
                    value = Fraction(
                        dice.choice((dice.randrange(-9, 60), dice.randrange(60, 3000)))
                    )
                point[name] = 2 + abs(value) if name == LOG_BASE else value
            yield point
    if _has(a, _STAIRS) and _has(b, _STAIRS):  # where a floor jumps
        for sign in (1, -1):
            yield {n: Fraction(sign * (i + 3)) for i, n in enumerate(ordered)}
        for step in ("1", "2", "4", "8", "9", "16", "1/2", "-1/2", "-1"):
            yield dict.fromkeys(ordered, Fraction(step))


_RANGES = (
    ("0.2", "1", 4),
    ("1", "4", 4),
    ("-4", "4", 6),
    ("-1", "1", 4),
    ("5", "60", 2),
    ("-60", "-5", 2),
    ("60", "200", 1),
    ("-200", "-60", 1),
    ("-1e-9", "1e-9", 2),
    ("1e3", "1e6", 1),
    ("-1e6", "-1e3", 1),
    ("1e30", "1e32", 1),
    ("-1e32", "-1e30", 1),
    ("1e99", "1e100", 1),
    ("-1e100", "-1e99", 1),
)
_STAIRS = frozenset({"floor", "ceil"})


def _alternating(node: Node) -> frozenset[str]:
    """The n of (-1)^n: variables above a negative base, which only for whole ones is real."""
    found = frozenset[str]()
    for n in walk(node):
        if isinstance(n, Apply) and n.name == "^" and variables(n.args[1]):
            base = exact(n.args[0])
            if base is not None and base < 0:
                found |= variables(n.args[1])
    return found


def _is_infinite(node: Node) -> bool:
    return any(n == Constant("oo") for n in walk(node))


def _infinity(node: Node) -> int | None:
    match node:
        case Constant("oo"):
            return 1
        case Apply("neg", (inner,)):
            found = _infinity(inner)
            return None if found is None else -found
        case _:
            return None
