"""The value of a tree at a point, in complex numbers of many digits (mpmath).

Conventions of real analysis where no imaginary unit is written: an odd root of a negative number
is real, and a function has no value where it leaves the reals. The caps stop what would not end.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
from mpmath import mp

from magistral_jax.verifier.math.caps import MAX_FACTORIAL, Unreadable
from magistral_jax.verifier.math.nodes import Apply, Based, Constant, Node, Num, Symbol

Real = Any
"""mpmath's mpf, which it makes in a way that no checker follows; and its mpc."""
Complex = Any
_MAX_EXPONENT = 10**6
_MAX_ANGLE = mpmath.mpf(10) ** 30
_MAX_LOG2 = 10**7
_MULTIPLYING = frozenset({"^", "*", "/", "root", "exp", "factorial", "binom", "sinh", "cosh"})
LOG_BASE = "the base of \\log"
"""`log` without a base may mean ten or e: its base is a variable like any other."""


class Evaluator:
    """Values of trees at one point; keeps the size of the largest number on the way."""

    def __init__(self, point: Mapping[str, Real]) -> None:
        self.point = point
        self.largest = mpmath.mpf(0)
        self.is_real = True
        """False once a value on the way had an imaginary part."""
        self.scale = 0
        """Digits before or behind the point of the largest or smallest power, product, quotient."""

    def value(self, node: Node) -> Complex:
        """The value. Raises Unreadable if there is none here, or it is beyond the caps."""
        result = mpmath.mpc(self._value(node))
        size = abs(result)
        if not mpmath.isfinite(size) or (size and abs(mpmath.mag(size)) > _MAX_LOG2):
            raise Unreadable("no finite value")
        self.largest = max(self.largest, size)
        self.is_real = self.is_real and _is_real(result)
        if size and isinstance(node, Apply) and node.name in _MULTIPLYING:
            self.scale = max(self.scale, abs(int(mpmath.mag(size))) * 3 // 10)
        return result

    def _value(self, node: Node) -> Complex:
        match node:
            case Num(value) | Based(value, _):
                return mpmath.mpf(value.numerator) / value.denominator
            case Symbol(name):
                return self.point[name]
            case Constant("pi"):
                return +mp.pi
            case Constant("e"):
                return +mp.e
            case Constant("i"):
                return mpmath.mpc(0, 1)
            case Apply("^", (Constant("e"), exponent)):
                return _exp([self.value(exponent)])
            case Apply("log", (argument,)):
                return mpmath.log(self.value(argument)) / mpmath.log(self.point[LOG_BASE])
            case Apply(name, args) if name in _FUNCTIONS:
                try:
                    return _FUNCTIONS[name]([self.value(arg) for arg in args])
                except (ZeroDivisionError, ValueError, OverflowError) as failure:
                    raise Unreadable("no value") from failure
            case _:
                raise Unreadable("no number")


Values = Sequence[Complex]


def _is_real(value: Complex) -> bool:
    return abs(value.imag) <= abs(value) * mpmath.mpf(10) ** (20 - mp.dps)


def _whole(value: Complex) -> int | None:
    if not _is_real(value) or abs(value) > 10**9:
        return None
    nearest = int(mpmath.nint(value.real))
    return nearest if value.real == nearest else None


def _power(values: Values) -> Complex:
    base, exponent = values
    if abs(exponent) > _MAX_EXPONENT:
        raise Unreadable("an exponent beyond the caps")
    if base == 0:
        if not _is_real(exponent) or exponent.real <= 0:
            raise Unreadable("a power of zero")
        return mpmath.mpc(0)
    whole = _whole(exponent)
    return base**whole if whole is not None else mpmath.power(base, exponent)


def _root(values: Values) -> Complex:
    base, degree = values[0], _whole(values[1])
    if degree is None or not 1 <= degree <= 10**4:
        if values[1] == 0:
            raise Unreadable("the root of degree zero")
        return _power([base, 1 / values[1]])
    if degree % 2 and _is_real(base) and base.real < 0:
        return -mpmath.root(-base.real, degree)
    return mpmath.sqrt(base) if degree == 2 else mpmath.root(base, degree)


def _angle(function: Callable[[Complex], Complex]) -> Callable[[Values], Complex]:
    def apply(values: Values) -> Complex:
        if abs(values[0]) > _MAX_ANGLE or abs(values[0].imag) > _MAX_EXPONENT:
            raise Unreadable("an angle beyond the caps")
        return function(values[0])

    return apply


def _exp(values: Values) -> Complex:
    if abs(values[0]) > _MAX_EXPONENT:
        raise Unreadable("an exponent beyond the caps")
    return mpmath.exp(values[0])


def _factorial(values: Values) -> Complex:
    if abs(values[0]) > MAX_FACTORIAL * 10:
        raise Unreadable("a factorial beyond the caps")
    return mpmath.gamma(values[0] + 1)


def _binomial(values: Values) -> Complex:
    n, k = values
    if max(abs(n), abs(k)) > MAX_FACTORIAL * 10:
        raise Unreadable("a binomial beyond the caps")
    return mpmath.binomial(n, k)


def _ordered(choose: Callable[..., Real]) -> Callable[[Values], Complex]:
    def apply(values: Values) -> Complex:
        if not all(_is_real(v) for v in values) or any(abs(v) > 10**40 for v in values):
            raise Unreadable("no order")
        return choose(*(v.real for v in values))

    return apply


def _log(values: Values) -> Complex:
    base = values[1]
    if base in (0, 1):
        raise Unreadable("a base without logarithms")
    return mpmath.log(values[0]) / mpmath.log(base)


_FUNCTIONS: dict[str, Callable[[Values], Complex]] = {
    "+": lambda v: sum(v, mpmath.mpc(0)),
    "*": lambda v: v[0] * v[1],
    "/": lambda v: v[0] / v[1],
    "neg": lambda v: -v[0],
    "^": _power,
    "root": _root,
    "abs": lambda v: abs(v[0]),
    "conjugate": lambda v: mpmath.conj(v[0]),
    "exp": _exp,
    "ln": lambda v: mpmath.log(v[0]),
    "lg": lambda v: mpmath.log(v[0]) / mpmath.log(10),
    "log": _log,
    "factorial": _factorial,
    "binom": _binomial,
    "degree": lambda v: v[0] * mp.pi / 180,
    "floor": _ordered(mpmath.floor),
    "ceil": _ordered(mpmath.ceil),
    "max": _ordered(max),
    "min": _ordered(min),
    "sin": _angle(mpmath.sin),
    "cos": _angle(mpmath.cos),
    "tan": _angle(mpmath.tan),
    "cot": _angle(mpmath.cot),
    "sec": _angle(mpmath.sec),
    "csc": _angle(mpmath.csc),
    "sinh": _angle(mpmath.sinh),
    "cosh": _angle(mpmath.cosh),
    "tanh": _angle(mpmath.tanh),
    "coth": _angle(mpmath.coth),
    "arcsin": lambda v: mpmath.asin(v[0]),
    "arccos": lambda v: mpmath.acos(v[0]),
    "arctan": lambda v: mpmath.atan(v[0]),
    "arccot": lambda v: mp.pi / 2 - mpmath.atan(v[0]),
}
