"""The exact rational value of a tree, where it has one within the caps. No floats anywhere."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from magistral_jax.verifier.math.caps import MAX_BITS, MAX_EXPONENT, MAX_FACTORIAL
from magistral_jax.verifier.math.nodes import Apply, Based, Node, Num


def exact(node: Node) -> Fraction | None:
    """The value; None if it is not rational, not a number, undefined, or too large to write out."""
    match node:
        case Num() | Based():
            return node.value if _is_small(node.value) else None
        case Apply():
            operation = _OPERATIONS.get(node.name)
            if operation is None:
                return None
            values = []
            for arg in node.args:
                value = exact(arg)
                if value is None:
                    return None
                values.append(value)
            result = operation(values)
            return result if result is not None and _is_small(result) else None
        case _:
            return None


def _is_small(value: Fraction) -> bool:
    return max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS


def _quotient(values: Sequence[Fraction]) -> Fraction | None:
    return values[0] / values[1] if values[1] else None


def _power(values: Sequence[Fraction]) -> Fraction | None:
    base, exponent = values
    if exponent.denominator != 1:
        if exponent.numerator != 1 or base < 0:
            return None
        return _root((base, Fraction(exponent.denominator)))
    if base in (0, 1, -1):
        if base == 0 and exponent <= 0:
            return None
        return base ** int(exponent % 2) if base == -1 else base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) > MAX_EXPONENT * 4 or bits * abs(exponent) > MAX_BITS:
        return None
    return base ** int(exponent)


def _root(values: Sequence[Fraction]) -> Fraction | None:
    base, degree = values
    if degree.denominator != 1 or not 2 <= degree <= 100 or (base < 0 and degree % 2 == 0):
        return None
    sign = -1 if base < 0 else 1
    top = _whole_root(abs(base.numerator), int(degree))
    bottom = _whole_root(base.denominator, int(degree))
    return None if top is None or bottom is None else Fraction(sign * top, bottom)


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
        return root if root * root == number else None
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < number:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == number else None


def _factorial(values: Sequence[Fraction]) -> Fraction | None:
    number = values[0]
    if number.denominator != 1 or not 0 <= number <= MAX_FACTORIAL:
        return None
    return Fraction(math.factorial(int(number)))


def _binomial(values: Sequence[Fraction]) -> Fraction | None:
    n, k = values
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n:
        return None
    if n > 10**9 or min(k, n - k) > MAX_FACTORIAL:
        return None
    return Fraction(math.comb(int(n), int(k)))


def _whole(function: Callable[..., int]) -> Callable[[Sequence[Fraction]], Fraction | None]:
    def apply(values: Sequence[Fraction]) -> Fraction | None:
        if any(v.denominator != 1 for v in values):
            return None
        return Fraction(function(*(int(v) for v in values)))

    return apply


_OPERATIONS: dict[str, Callable[[Sequence[Fraction]], Fraction | None]] = {
    "+": lambda v: sum(v, Fraction(0)),
    "*": lambda v: v[0] * v[1],
    "/": _quotient,
    "^": _power,
    "neg": lambda v: -v[0],
    "root": _root,
    "abs": lambda v: abs(v[0]),
    "floor": lambda v: Fraction(math.floor(v[0])),
    "ceil": lambda v: Fraction(math.ceil(v[0])),
    "factorial": _factorial,
    "binom": _binomial,
    "gcd": _whole(math.gcd),
    "lcm": _whole(math.lcm),
    "max": max,
    "min": min,
}
