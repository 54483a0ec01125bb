r"""Whether two expressions are the same by algebra (SymPy), asked where points found them equal.

Expressions are built from our trees with constructors only; no text is ever given to SymPy. It
decides rational functions, and constants made of roots and of sines at rational parts of pi, both
ways; of all else only that the difference is zero, when expanding shows it. None says that it did
not decide, within sizes that are bounded before anything is built and a budget of CPU time.

This module takes a third of a second to load: only a worker that needs it does (symbolic.py).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import sympy

from magistral_jax.verifier.math.caps import Unreadable
from magistral_jax.verifier.math.exact import exact
from magistral_jax.verifier.math.nodes import (
    Apply,
    Based,
    Constant,
    Node,
    Num,
    Symbol,
    variables,
    walk,
)

BUDGET_S = 0.3
"""Of CPU time, for one comparison. What takes longer is not decided."""
_MAX_NODES = 120
_MAX_BITS = 2000
_MAX_POWER = 24
"""Of a sum: what expanding it may cost."""
_MAX_DEGREE = 16
"""Of the number field in which two constants are compared."""

Expression = Any
"""A SymPy expression."""


class _OverBudget(BaseException):
    """BaseException, since SymPy catches Exception here and there."""


def same(a: Node, b: Node) -> bool | None:
    """True or False where algebra proves it, None where it does not decide."""
    if sum(1 for tree in (a, b) for _ in walk(tree)) > _MAX_NODES:
        return None
    try:
        with _budget(BUDGET_S):
            return _is_zero(_built(a) - _built(b))
    except MemoryError:
        raise
    except (_OverBudget, Exception):  # whatever SymPy stumbles over is not decided
        return None


def warm() -> None:
    """Pay once, before a worker forks, for what the first comparison loads and caches."""
    two = Num(Fraction(2))
    same(Apply("root", (two, two)), Apply("+", (two, Apply("root", (two, two)))))


def _is_zero(difference: Expression) -> bool | None:
    if difference.is_zero is True:
        return True
    names = difference.free_symbols
    if names and difference.is_rational_function(*names) and not _roots(difference):
        return bool(sympy.cancel(difference) == 0)
    for rewritten in _rewritten(difference):
        whole: Expression = sympy.together(rewritten)
        if sympy.expand(whole.as_numer_denom()[0]) == 0:
            return True
    return None if names else _is_zero_constant(difference)


def _rewritten(difference: Expression) -> Iterator[Expression]:
    """The same value in forms in which expanding may show that it is zero."""
    yield difference
    if difference.has(sympy.factorial, sympy.binomial):
        yield sympy.combsimp(difference)
    if difference.has(sympy.asinh, sympy.acosh, sympy.atanh, sympy.log):
        yield sympy.expand_log(difference.rewrite(sympy.log), factor=True)
    if difference.has(sympy.sin, sympy.cos, sympy.tan, sympy.exp, sympy.sinh, sympy.cosh):
        yield sympy.expand(difference.rewrite(sympy.exp), power_exp=True)


def _roots(expression: Expression) -> list[Expression]:
    return [power for power in expression.atoms(sympy.Pow) if not power.exp.is_Integer]


def _is_zero_constant(value: Expression) -> bool | None:
    degree = 1
    for power in value.atoms(sympy.Pow):
        if power.exp.is_Rational:
            degree *= int(power.exp.q)
    for wave in value.atoms(sympy.sin, sympy.cos, sympy.tan):
        share = wave.args[0] / sympy.pi
        degree *= int(sympy.totient(2 * share.q)) if share.is_Rational else _MAX_DEGREE + 1
    waves = value.atoms(sympy.sin, sympy.cos, sympy.tan)
    if degree > _MAX_DEGREE or not value.subs(dict.fromkeys(waves, 1)).is_algebraic:
        return None
    variable = sympy.Dummy()
    return bool(sympy.minimal_polynomial(value, variable) == variable)


@contextmanager
def _budget(seconds: float) -> Iterator[None]:
    """Raises _OverBudget in the body once it has used so much CPU time.

    Only a courtesy: the pool's own limit, from outside, is what holds. Timers reach the main
    thread alone, which is where a worker judges; elsewhere nothing is decided.
    """
    if threading.current_thread() is not threading.main_thread():
        raise _OverBudget

    def stop(*_: object) -> None:
        raise _OverBudget

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _built(node: Node) -> Expression:
    match node:
        case Num(value) | Based(value, _):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
                raise Unreadable("digits beyond the budget")
            return sympy.Rational(value.numerator, value.denominator)
        case Symbol(name):
            return sympy.Symbol(name, real=True)
        case Constant("pi"):
            return sympy.pi
        case Constant("e"):
            return sympy.E
        case Constant("i"):
            return sympy.I
        case Apply("^", (base, exponent)):
            return _power(base, exponent)
        case Apply("root", (base, degree)):
            return _root(base, degree)
        case Apply(name, args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_built(arg) for arg in args))
        case _:
            raise Unreadable("not for SymPy")


def _power(base: Node, exponent: Node) -> Expression:
    value = exact(exponent)
    if value is None:
        if not variables(exponent) and not isinstance(base, Constant):
            raise Unreadable("an exponent without bound")
    elif abs(value) > (_MAX_POWER if variables(base) else _MAX_BITS):
        raise Unreadable("a power beyond the budget")
    known = exact(base)
    if known is not None and value is not None:
        bits = max(known.numerator.bit_length(), known.denominator.bit_length())
        if bits * abs(value) > _MAX_BITS:
            raise Unreadable("a power beyond the budget")
    return sympy.Pow(_built(base), _built(exponent))


def _root(base: Node, degree: Node) -> Expression:
    of, by = _built(base), exact(degree)
    if by is None or by.denominator != 1 or not 2 <= by <= _MAX_DEGREE:
        raise Unreadable("a root beyond the budget")
    exponent = sympy.Rational(1, int(by))
    if by % 2 == 0 or of.is_nonnegative:
        return sympy.Pow(of, exponent)
    if of.is_negative:  # real, where SymPy would take the first complex one
        return -sympy.Pow(-of, exponent)
    raise Unreadable("an odd root of either sign")


_FUNCTIONS: dict[str, Callable[..., Expression]] = {
    "+": lambda *v: sympy.Add(*v),
    "*": lambda a, b: sympy.Mul(a, b),
    "/": lambda a, b: sympy.Mul(a, sympy.Pow(b, -1)),
    "neg": lambda v: -v,
    "abs": sympy.Abs,
    "conjugate": sympy.conjugate,
    "exp": sympy.exp,
    "ln": sympy.log,
    "lg": lambda v: sympy.log(v) / sympy.log(10),
    "log": lambda v, base: sympy.log(v) / sympy.log(base),
    "factorial": sympy.factorial,
    "binom": sympy.binomial,
    "degree": lambda v: v * sympy.pi / 180,
    "max": sympy.Max,
    "min": sympy.Min,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "tanh": sympy.tanh,
    "coth": sympy.coth,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "arsinh": sympy.asinh,
    "arcosh": sympy.acosh,
    "artanh": sympy.atanh,
}
