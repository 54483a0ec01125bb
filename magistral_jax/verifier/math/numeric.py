r"""Whether two expressions are one number or one function, by values at points (mpmath).

Two constants are equal if they agree to nearly all digits computed, and there are more digits than
either text can hide a difference in. Two functions are equal if they agree at every point where
both have a real value; points lie on both sides of zero, so \sqrt{x^2} is not x. So \ln x^2 is
2 \ln x, as it is meant where x > 0; but where one side alone has bars, as in \ln |x|, they are
there for the other numbers, and both must have real values at the same points. Agreement at points
of many digits is taken for equality; no symbolic step follows it.
"""

import random
from collections.abc import Iterator
from fractions import Fraction

import mpmath
from mpmath import mp

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
from magistral_jax.verifier.math.points import LOG_BASE, Complex, Evaluator, Real

_DIGITS = 50
_MAX_DIGITS = 2500
_GUARD = 12
_PLACES = 60
_WHOLE_NAMES = frozenset("nkm")


def numeric_judge() -> Judge:
    """The judge that knows values at points; what it cannot tell is not the same."""
    return Judge(equal=equal, proportional=proportional, place=place, unknown=False)


def equal(a: Node, b: Node) -> bool:
    """Whether two expressions have one value wherever both have a real one."""
    if a == b:
        return True
    if _is_infinite(a) or _is_infinite(b):
        return _infinity(a) is not None and _infinity(a) == _infinity(b)
    exact_a, exact_b = exact(a), exact(b)
    if exact_a is not None and exact_b is not None:
        return exact_a == exact_b
    names = _names(a) | _names(b)
    if not names:
        return _same_constant(a, b)
    seen = 0
    for left, right, size in _values(a, b, names):
        if abs(left - right) > size * _tolerance():
            return False
        seen += 1
    return seen >= 3


def proportional(f: Node, g: Node, is_positive: bool) -> bool:
    """Whether f = c g with a constant c, not 0; for `is_positive` c must be above 0."""
    names = _names(f) | _names(g)
    if not names:
        return False
    quotients: list[Complex] = []
    for left, right, size in _values(f, g, names):
        are_zero = [abs(value) <= size * _tolerance() for value in (left, right)]
        if all(are_zero):
            continue
        if any(are_zero):
            return False
        quotient = left / right
        if quotients and abs(quotient - quotients[0]) > abs(quotient) * _tolerance() * 1000:
            return False
        quotients.append(quotient)
    if len(quotients) < 3:
        return False
    return not is_positive or all(q.real > 0 and abs(q.imag) < q.real / 1000 for q in quotients)


def place(node: Node) -> Fraction:
    """A constant's place on the line, to 60 digits behind the point."""
    value = exact(node)
    if value is None:
        if _names(node):
            raise Unreadable("no constant")
        with mp.workdps(_digits_for(frozenset(), node) + 40):
            computed = Evaluator({}).value(node)
            if abs(computed.imag) > abs(computed) * _tolerance() or abs(computed) > 10**30:
                raise Unreadable("no place on the line")
            return Fraction(int(mpmath.nint(computed.real * 10**_PLACES)), 10**_PLACES)
    return Fraction(round(value * 10**_PLACES), 10**_PLACES)


def _tolerance() -> Real:
    return mpmath.mpf(10) ** (_GUARD - mp.dps)


def _names(node: Node) -> frozenset[str]:
    has_log = any(isinstance(n, Apply) and n.name == "log" and len(n.args) == 1 for n in walk(node))
    return variables(node) | ({LOG_BASE} if has_log else set())


def _digits_for(names: frozenset[str], *nodes: Node) -> int:
    """Enough digits that no number in the trees, and no tiny or huge value, hides a difference."""
    hidden, count = 0, 0
    for node in nodes:
        for n in walk(node):
            count += 1
            if isinstance(n, Num):
                size = max(n.value.numerator.bit_length(), n.value.denominator.bit_length())
                hidden += int(size * 0.302)
    if count > 2 * MAX_NODES:
        raise Unreadable("more nodes than the cap")
    evaluator = Evaluator({})
    with mp.workdps(15):
        for point in _points(names):
            evaluator = Evaluator(point)
            try:
                for node in nodes:
                    evaluator.value(node)
                break
            except Unreadable:
                continue
    digits = _DIGITS + 2 * hidden + evaluator.scale
    if digits > _MAX_DIGITS:
        raise Unreadable("more digits than the cap")
    return digits


def _same_constant(a: Node, b: Node) -> bool:
    with mp.workdps(_digits_for(frozenset(), a, b)):
        evaluator = Evaluator({})
        left, right = evaluator.value(a), evaluator.value(b)
        # What both sides only reach by cancelling is known to fewer digits.
        return abs(left - right) <= evaluator.largest * _tolerance()


def _values(a: Node, b: Node, names: frozenset[str]) -> Iterator[tuple[Complex, Complex, Real]]:
    """Both values, and the size of the largest number on the way, where both have real ones."""
    is_complex = any(n == Constant("i") for tree in (a, b) for n in walk(tree))
    is_one_barred = _has_bars(a) != _has_bars(b)
    with mp.workdps(_digits_for(names, a, b)):
        for point in _points(names):
            sides = Evaluator(point), Evaluator(point)
            try:
                left, right = sides[0].value(a), sides[1].value(b)
            except Unreadable:
                continue
            size = max(side.largest for side in sides)
            are_real = [side.is_real for side in sides]
            if is_complex or all(are_real) or (is_one_barred and any(are_real)):
                yield left, right, size


def _has_bars(node: Node) -> bool:
    return any(isinstance(n, Apply) and n.name == "abs" for n in walk(node))


def _points(names: frozenset[str]) -> Iterator[dict[str, Real]]:
    """Points with a fixed seed: small positive ones, then of either sign, then whole.

    One empty point if there are no names.
    """
    if not names:
        yield {}
        return
    dice = random.Random(2025)
    ordered = sorted(names)
    for low, high, times in (
        (0.2, 1.0, 3),
        (1.0, 4.0, 4),
        (-4.0, 4.0, 4),
        (-1.0, 1.0, 2),
        (5.0, 60.0, 2),
    ):
        for _ in range(times):
            point = {name: mpmath.mpf(dice.randrange(10**20)) / 10**20 for name in ordered}
            point = {name: low + (high - low) * value for name, value in point.items()}
            yield _with_log_base(point)
    for sign in (1, -1):  # where a floor jumps
        point = {name: mpmath.mpf(sign * (i + 3)) for i, name in enumerate(ordered)}
        yield _with_log_base(point)
    if names <= _WHOLE_NAMES:
        for start in range(2, 7):
            yield {name: mpmath.mpf(start + 3 * i) for i, name in enumerate(ordered)}


def _with_log_base(point: dict[str, Real]) -> dict[str, Real]:
    if LOG_BASE in point:
        point[LOG_BASE] = 2 + abs(point[LOG_BASE])
    return point


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
