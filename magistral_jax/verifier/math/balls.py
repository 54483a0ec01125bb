"""The value of a tree at a point, enclosed in a ball of complex numbers (Arb, by python-flint).

A ball holds the true value and says how far off its middle may be, so what cancels, overflows or
sits on a pole is seen as such and never passes for a number (a division by a ball that holds zero
has no value). Conventions of real analysis where no imaginary unit is written: an odd root of a
negative number is real. The caps stop what would not end.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import flint

from magistral_jax.verifier.math.caps import MAX_FACTORIAL, Unreadable
from magistral_jax.verifier.math.exact import exact
from magistral_jax.verifier.math.nodes import Apply, Based, Constant, Node, Num, Symbol

Ball = Any
"""flint's acb: a rectangle in the complex plane; the package has no complete type stubs."""
_MAX_EXPONENT = 10**6
_MAX_ANGLE = 10**30
_MAX_LOG2 = 10**5
LOG_BASE = "the base of \\log"
"""`log` without a base may mean ten or e: its base is a variable like any other."""
_SATURATING = frozenset({"tanh", "coth", "exp", "cosh", "sinh"})
"""These hide their argument's size behind as many digits as it is large."""


class Undefined(Unreadable):
    """There is no value here: a pole, the logarithm of zero, an order of complex numbers."""


class Evaluator:
    """Values of trees at one point, at flint's current precision."""

    def __init__(self, point: Mapping[str, Fraction]) -> None:
        self.point = point
        self.is_real = True
        """False once a value on the way had an imaginary part."""
        self.scale = 0
        """Bits before or behind the point of the largest or smallest number on the way: how far
        apart two values can lie that were meant to look the same."""

    def value(self, node: Node) -> Ball:
        """The value. Raises Undefined if there is none here, Unreadable if the caps end it."""
        result = self._value(node)
        if not result.is_finite():
            raise Undefined("no value")
        if not result.contains(0):
            size = _log2(result)
            if size > _MAX_LOG2:
                raise Unreadable("a value beyond the caps")
            self.scale = max(self.scale, size)
        self.is_real = self.is_real and is_real(result)
        return result

    def _value(self, node: Node) -> Ball:
        match node:
            case Num(value) | Based(value, _):
                return _fraction(value)
            case Symbol(name):
                return _fraction(self.point[name])
            case Constant("pi"):
                return flint.acb.pi()
            case Constant("e"):
                return flint.acb(1).exp()
            case Constant("i"):
                return flint.acb(0, 1)
            case Apply("^", (Constant("e"), exponent)):
                return self._hiding("exp", self.value(exponent))
            case Apply("^", (base, exponent)):
                return _power(self.value(base), self.value(exponent), exact(exponent))
            case Apply("root", (base, degree)):
                return _root(self.value(base), self.value(degree), exact(degree))
            case Apply("log", (argument,)):
                return _log([self.value(argument), _fraction(self.point[LOG_BASE])])
            case Apply(name, (argument,)) if name in _SATURATING:
                return self._hiding(name, self.value(argument))
            case Apply(name, args) if name in _FUNCTIONS:
                return _FUNCTIONS[name]([self.value(arg) for arg in args])
            case _:
                raise Unreadable("no number")

    def _hiding(self, name: str, argument: Ball) -> Ball:
        if abs(argument) > _MAX_EXPONENT:
            raise Unreadable("an exponent beyond the caps")
        if not abs(argument) < _MAX_EXPONENT:
            raise Undefined("an exponent of unknown size")
        self.scale = max(self.scale, 3 * int(float(argument.abs_upper())))
        return getattr(argument, name)()


Values = Sequence[Ball]


def is_real(ball: Ball) -> bool:
    """Whether the value is real as far as this precision tells."""
    if ball.imag.is_zero():
        return True
    return ball.imag.contains(0) and _is_tiny(ball.imag)


def is_accurate(ball: Ball, bits: int) -> bool:
    """Whether the ball is so small that its value is known to that many bits."""
    if ball.contains(0):
        radius = ball.rad()
        return bool(radius.is_zero()) or -_log2_of(radius) >= bits
    return ball.rel_accuracy_bits() >= bits


def _is_tiny(part: Ball) -> bool:
    """Whether an interval about zero is narrow enough to be zero (half the precision)."""
    return abs(part) < flint.arb(2) ** (-flint.ctx.prec // 3)


def _log2(ball: Ball) -> int:
    """Bits before the point, or zeros behind it, of a value that is not 0."""
    return abs(_log2_of(ball.abs_upper()))


def _log2_of(size: Ball) -> int:
    mantissa, exponent = size.man_exp()
    return int(mantissa.bit_length() + exponent)


def _fraction(value: Fraction) -> Ball:
    return flint.acb(flint.fmpq(value.numerator, value.denominator))


def real_part(ball: Ball) -> Ball:
    """The value on the line. Raises Undefined if it lies beside it."""
    if not is_real(ball):
        raise Undefined("no place on the line")
    return _on_line(ball).real


def _on_line(ball: Ball) -> Ball:
    """A value that is real up to rounding as one that is: else a branch cut runs through it.

    How far it may lie beside the line goes into its radius: what enlarges that must see it.
    """
    if ball.imag.is_zero() or not is_real(ball):
        return ball
    return flint.acb(ball.real + flint.arb(0, ball.imag.abs_upper()))


def _power(base: Ball, exponent: Ball, known: Fraction | None) -> Ball:
    """`known` is the exponent where it is rational."""
    base = _on_line(base)
    if base == 1:
        return base
    if abs(exponent) > _MAX_EXPONENT:
        raise Unreadable("an exponent beyond the caps")
    if base.is_zero():
        if not (is_real(exponent) and exponent.real > 0):
            raise Undefined("a power of zero")
        return flint.acb(0)
    if known is not None and known <= 0 and base.contains(0):
        raise Undefined("zero to the power of zero, or less")
    if known is not None and known.denominator == 1:
        return base ** flint.fmpz(int(known))
    return base.sqrt() if known == Fraction(1, 2) else base**exponent


def _root(base: Ball, degree: Ball, known: Fraction | None) -> Ball:
    if known == 0:
        raise Undefined("the root of degree zero")
    is_odd = known is not None and known.denominator == 1 and known.numerator % 2
    base = _on_line(base)
    if is_odd and base.imag.is_zero() and base.real < 0:
        return -((-base) ** (1 / degree))
    return _power(base, 1 / degree, None if known is None else 1 / known)


def _angle(name: str) -> Callable[[Values], Ball]:
    def apply(values: Values) -> Ball:
        if not abs(values[0]) < _MAX_ANGLE or not abs(values[0].imag) < _MAX_EXPONENT:
            raise Unreadable("an angle beyond the caps")
        return getattr(values[0], name)()

    return apply


def _arc(name: str, is_inverse: bool = False) -> Callable[[Values], Ball]:
    def apply(values: Values) -> Ball:
        value = _on_line(values[0])
        return getattr(1 / value if is_inverse else value, name)()

    return apply


def _factorial(values: Values) -> Ball:
    if not abs(values[0]) < MAX_FACTORIAL * 10:
        raise Unreadable("a factorial beyond the caps")
    return (values[0] + 1).gamma()


def _binomial(values: Values) -> Ball:
    n, k = values
    if not (abs(n) < MAX_FACTORIAL * 10 and abs(k) < MAX_FACTORIAL * 10):
        raise Unreadable("a binomial beyond the caps")
    return (n + 1).gamma() * (k + 1).rgamma() * (n - k + 1).rgamma()


def _ordered(choose: Callable[[Ball, Ball], Ball]) -> Callable[[Values], Ball]:
    def apply(values: Values) -> Ball:
        chosen = real_part(values[0])
        for value in values[1:]:
            chosen = choose(chosen, real_part(value))
        return flint.acb(chosen)

    return apply


def _whole(name: str) -> Callable[[Values], Ball]:
    def apply(values: Values) -> Ball:
        found = getattr(real_part(values[0]), name)()
        if not found.is_exact():
            raise Undefined("a value on the step of a staircase")
        return flint.acb(found)

    return apply


def _log(values: Values) -> Ball:
    argument, base = (_on_line(value) for value in values)
    return argument.log() / base.log()


_FUNCTIONS: dict[str, Callable[[Values], Ball]] = {
    "+": lambda v: sum(v, flint.acb(0)),
    "*": lambda v: v[0] * v[1],
    "/": lambda v: v[0] / v[1],
    "neg": lambda v: -v[0],
    "abs": lambda v: flint.acb(abs(v[0])),
    "conjugate": lambda v: v[0].conjugate(),
    "ln": lambda v: _on_line(v[0]).log(),
    "lg": lambda v: _log([v[0], flint.acb(10)]),
    "log": _log,
    "factorial": _factorial,
    "binom": _binomial,
    "degree": lambda v: v[0] * flint.acb.pi() / 180,
    "floor": _whole("floor"),
    "ceil": _whole("ceil"),
    "max": _ordered(lambda a, b: a.max(b)),
    "min": _ordered(lambda a, b: a.min(b)),
    **{name: _angle(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    "arcsin": _arc("asin"),
    "arccos": _arc("acos"),
    "arctan": _arc("atan"),
    "arccot": lambda v: flint.acb.pi() / 2 - _on_line(v[0]).atan(),
    "arcsec": _arc("acos", is_inverse=True),
    "arccsc": _arc("asin", is_inverse=True),
    "arsinh": _arc("asinh"),
    "arcosh": _arc("acosh"),
    "artanh": _arc("atanh"),
    "arcoth": _arc("atanh", is_inverse=True),
}
