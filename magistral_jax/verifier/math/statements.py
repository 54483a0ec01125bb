r"""Answers that say something about a variable: x = 5, x = 1 or x = 2, \pm 3, x > 2, y = 2x + 1.

Decisions:
- `x = 5` is 5, but `y = 2x + 1` is not `2x + 1`: a name may be left out only before a constant,
  or if it says itself that it is a name for what follows: f(x), a_n, m_{\max};
- where the gold answer is solved (`x = 5`, `x > 2`), so must the candidate be: `2x = 10` only
  says the problem again;
- unsolved equations are the same up to a constant factor;
- values between `or`, behind `\pm`, in braces or with the variable's name repeated have no order,
  and neither has a list of tuples; another bare list has one, which a set must keep, unless the
  problem asks for all of something and for no order (asked.py);
- `1 or 2` without a name is a hedge, unless the gold answer says `or`, too.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from magistral_jax.verifier.math.asked import Asked
from magistral_jax.verifier.math.caps import Unreadable
from magistral_jax.verifier.math.judge import (
    Judge,
    Verdict,
    as_sets,
    every,
    in_any_order,
    in_order,
)
from magistral_jax.verifier.math.nodes import (
    Apply,
    Constant,
    Group,
    Joined,
    Matrix,
    Measured,
    Node,
    Num,
    Relation,
    Symbol,
    Words,
    difference,
    is_expression,
    variables,
    walk,
)

Same = Callable[[Node, Node], Verdict]
_TELLING_NAME = re.compile(
    r"[A-Za-z](?:\((?P<arguments>[A-Za-z](?:,[A-Za-z])*)\)|_\{\\?(?P<subscript>[A-Za-z]+)\})"
)
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


_ROUNDING = Fraction(1, 100)
"""A value may be followed by a decimal that is this near to it."""


@dataclass(frozen=True)
class Solutions:
    """The values that an answer gives, and the variable if it names one."""

    variable: str | None
    values: tuple[Node, ...]
    kind: str
    """one | list (in order) | set (braces) | or (any order, no braces) | pm."""


def solutions(node: Node) -> Solutions | None:
    """The values a statement gives to one variable; None if it is of another form."""
    match node:
        case Relation((Symbol(name), value), ("=" | "in",)):
            inner = solutions(value)
            if inner is None or inner.variable or (node.signs == ("in",) and inner.kind != "set"):
                return None
            kind = "or" if inner.kind in ("set", "list") else inner.kind
            return Solutions(name, inner.values, kind)
        case Relation((value, Symbol()), ("=",)) if not variables(value):
            return solutions(Relation((node.parts[1], value), ("=",)))
        case Joined("or", items):
            return _together(items, "or")
        case Group("{", "}", items):
            return _together(items, "set") if items else Solutions(None, (), "set")
        case Group("", "", items):
            return _together(items, "list")
        case Relation() | Joined() | Matrix() | Words():
            return None
        case Apply(("cup" | "cap" | "setminus" | "builder"), _) | Constant("R"):
            return None
        case _:
            signs = [n for n in walk(node) if isinstance(n, Apply) and n.name in ("pm", "mp")]
            if isinstance(node, Group) and len(signs) != 1:
                return None
            if not signs:
                return Solutions(None, (node,), "one")
            return Solutions(None, (_with_sign(node, 1), _with_sign(node, -1)), "pm")


def _together(items: tuple[Node, ...], kind: str) -> Solutions | None:
    values: list[Node] = []
    names: list[str | None] = []
    for item in items:
        inner = solutions(item)
        if inner is None and not isinstance(item, Relation | Joined):
            inner = Solutions(None, (item,), "one")  # a tuple, a set, a word
        if inner is None or inner.kind == "list":
            return None
        if inner.kind == "set":
            inner = Solutions(None, (item,), "one")
        values.extend(inner.values)
        names.append(inner.variable)
    name = names[0]
    if any(n not in (name, None) for n in names) or (name is None and set(names) != {None}):
        return None
    return Solutions(name, tuple(values), "or" if name and kind == "list" else kind)


def _with_sign(node: Node, sign: int) -> Node:
    match node:
        case Apply(("pm" | "mp"), (inner,)):
            inner = _with_sign(inner, sign)
            is_plus = (node.name == "pm") == (sign > 0)
            return inner if is_plus else Apply("neg", (inner,))
        case Apply(name, args):
            return Apply(name, tuple(_with_sign(arg, sign) for arg in args))
        case Group():
            return replace(node, items=tuple(_with_sign(item, sign) for item in node.items))
        case Measured():
            return replace(node, value=_with_sign(node.value, sign))
        case _:
            return node


def same_solutions(
    gold: Solutions, candidate: Solutions, same: Same, *, is_unordered: bool = False
) -> Verdict:
    """Whether two statements give the same values; see the module on names and order."""
    if gold.variable != candidate.variable:
        if gold.variable and candidate.variable:
            return False
        name = gold.variable or candidate.variable or ""
        if not all(is_name_for(name, v) for v in (*gold.values, *candidate.values)):
            return False
    if (len(gold.values) == 1) != (len(candidate.values) == 1):
        return False
    if len(gold.values) == 1 and (gold.kind == "set") != (candidate.kind == "set"):
        return False
    is_unordered = is_unordered or _are_tuples(gold.values)
    is_hedge = candidate.kind == "or" and candidate.variable is None and gold.kind != "or"
    if is_hedge and (not is_unordered or len(gold.values) == 1):
        return False
    are_sets = gold.kind == candidate.kind == "set"
    if not are_sets and len(gold.values) != len(candidate.values):
        return False
    if gold.kind in ("one", "list") and candidate.kind != "pm" and not is_unordered:
        return in_order(gold.values, candidate.values, same)
    if are_sets:
        return as_sets(gold.values, candidate.values, same)
    return in_any_order(gold.values, candidate.values, same)


def _are_tuples(values: tuple[Node, ...]) -> bool:
    return len(values) > 1 and all(
        isinstance(value, Group) and (value.opening, value.closing) == ("(", ")")
        for value in values
    )


def is_name_for(name: str, value: Node) -> bool:
    r"""True if `name = value` says no more than the value: a constant, f(x), a_n, m_{\max}."""
    used = variables(value)
    if not used:
        return True
    match = _TELLING_NAME.fullmatch(name)
    if match is None or isinstance(value, Symbol):
        return False  # x_n = y_n says more than y_n
    if any(other.startswith(name[0]) for other in used):
        return False
    if match["arguments"]:
        return bool(used & set(match["arguments"].split(",")))
    subscript = match["subscript"]
    return len(subscript) > 1 or subscript in used


def assignments(node: Node) -> dict[str, Node] | None:
    """What a system says: x = 1, y = 2; or (x, y) = (1, 2). None if it is of another form."""
    match node:
        case Group("{", "}", items) if len(items) > 1:
            return assignments(Group("", "", items))
        case Joined("and", items):
            return assignments(Group("", "", items))
        case Relation((Group("(", ")") as names, Group("(", ")") as values), ("=",)):
            pairs = list(zip(names.items, values.items, strict=False))
            if len(names.items) != len(values.items):
                return None
        case Group("", "", items):
            pairs = []
            for item in items:
                if not isinstance(item, Relation) or item.signs != ("=",):
                    return None
                pairs.append(item.parts)
        case _:
            return None
    named = {name.name: value for name, value in pairs if isinstance(name, Symbol)}
    return named if len(named) == len(pairs) >= 2 else None


def same_assignments(
    gold: dict[str, Node], candidate: Node, same: Same, *, as_written: bool, asked: Asked
) -> Verdict:
    """A system against a system, or against the tuple of its values in the order of its names.

    That order is the one in which the problem lists the names, or the one of a tuple of names
    (`as_written`), or the alphabet's: for x, y and z always, else if the system keeps to it.
    """
    other = assignments(candidate)
    if other is not None:
        if gold.keys() != other.keys():
            return False
        return every(same(value, other[name]) for name, value in gold.items())
    if isinstance(candidate, Group) and candidate.opening == "(" and candidate.closing == ")":
        if any(variables(value) for value in gold.values()):
            return False
        names = list(gold)
        for order in asked.orders:
            if sorted(order) == sorted(names):
                names, as_written = list(order), True
        if not as_written and names != sorted(names):
            if not set(names) <= {"x", "y", "z"}:
                return False
            names = sorted(names)
        return in_order(tuple(gold[name] for name in names), candidate.items, same)
    return False


def without_label(node: Node) -> Node:
    """The value of a sum of names, which only says again what was asked for: m + n = 113."""
    match node:
        case Relation((Apply("+", terms), value), ("=",)) if (
            not variables(value) and len(terms) > 1 and all(_is_name(term) for term in terms)
        ):
            return value
        case _:
            return node


def _is_name(term: Node) -> bool:
    """A name, or a whole multiple of one: m, 100m."""
    match term:
        case Symbol():
            return True
        case Apply("*", (Num(value), Symbol())):
            return value.denominator == 1
        case _:
            return False


def is_solved(node: Relation) -> bool:
    """A variable by itself against constants."""
    names = [part for part in node.parts if isinstance(part, Symbol)]
    return len(names) == 1 and sum(bool(variables(part)) for part in node.parts) == 1


def without_steps(node: Relation, same: Same) -> Relation:
    """x = 2 + 3 = 5 as x = 5. Raises Unreadable unless each step is known to be equal."""
    if len(node.signs) == 1 or set(node.signs) != {"="}:
        return node
    steps = zip(node.parts[1:-1], node.parts[2:], strict=True)
    if not isinstance(node.parts[0], Symbol) or not every(same(a, b) for a, b in steps):
        raise Unreadable("steps that are not equal")
    return Relation((node.parts[0], node.parts[-1]), ("=",))


def without_rounding(node: Node, judge: Judge) -> Node:
    r"""\frac23 \approx 0.667 as \frac23, 0.5 = \frac12 as 0.5; others as they are.

    Raises Unreadable if a step is false, or cannot be checked.
    """
    if not isinstance(node, Relation):
        return node
    parts, signs = node.parts, node.signs
    if signs[-1] == "~":
        rounded, value = judge.place(parts[-1]), judge.place(parts[-2])
        if not _is_decimal(parts[-1]) or not _is_rounding(rounded, value):
            raise Unreadable("a value that is not near the rounded one")
        parts, signs = parts[:-1], signs[:-1]
    if set(signs) == {"="} and not any(variables(part) for part in parts):
        if not all(is_expression(part) for part in parts) or len({*map(judge.place, parts)}) > 1:
            raise Unreadable("steps that are not equal")
        signs = ()
    return Relation(parts, signs) if signs else parts[0]


def _is_rounding(rounded: Fraction, value: Fraction) -> bool:
    """Within 1%, or half a unit of the last digit written where that is within 10%."""
    off, digits = abs(rounded - value), 0
    while rounded * 10**digits % 1 and digits < 20:
        digits += 1
    half = min(Fraction(1, 2 * 10**digits), abs(value) / 10)
    return off <= max(abs(value) * _ROUNDING, half)


def _is_decimal(node: Node) -> bool:
    match node:
        case Apply("neg", (Num(),)) | Num():
            return True
        case _:
            return False


def same_relations(gold: Relation, candidate: Relation, judge: Judge, same: Same) -> Verdict:
    """Two equations or two inequalities, in one or several variables."""
    if is_solved(gold) and not is_solved(candidate):
        return False
    for other in (candidate, _mirrored(candidate)):
        if other.signs == gold.signs and in_order(gold.parts, other.parts, same):
            return True
    if len(gold.signs) != 1 or len(candidate.signs) != 1 or "~" in (*gold.signs, *candidate.signs):
        return judge.unknown
    if not all(is_expression(part) for part in (*gold.parts, *candidate.parts)):
        return judge.unknown
    (f, sign_f), (g, sign_g) = _below(gold), _below(candidate)
    if sign_f != sign_g:
        return False
    return judge.proportional(f, g, sign_f in ("<", "<="))


def _mirrored(node: Relation) -> Relation:
    signs = tuple(_MIRRORED.get(sign, sign) for sign in node.signs[::-1])
    return Relation(node.parts[::-1], signs) if "in" not in node.signs else node


def _below(node: Relation) -> tuple[Node, str]:
    """f and the sign of `f sign 0`, where the sign is none of > and >=."""
    if node.signs[0] in (">", ">="):
        node = _mirrored(node)
    return difference(node.parts[0], node.parts[1]), node.signs[0]
