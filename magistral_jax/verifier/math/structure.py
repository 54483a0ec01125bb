"""Whether two trees are the same answer, form by form, given a judge of what is inside the forms.

Decisions:
- a unit that one side leaves out is forgiven, another unit is not; units of one kind convert;
- a degree sign may be left out, and is otherwise pi/180;
- tuples keep order, brackets and length; (1,2) may be a pair or an interval, {1,2} has no order;
- a vector may stand in angle brackets: <1,2,3> is (1,2,3);
- a matrix is no tuple, and its bars (a determinant) are no brackets;
- ratios reduce (3:4 = 6:8) unless they may be clock times;
- a number in a base other than ten equals only what names its base, too: 1011_2 = 11_{10}.
"""

from fractions import Fraction
from typing import Any

from magistral_jax.verifier.math.caps import Unreadable
from magistral_jax.verifier.math.exact import exact
from magistral_jax.verifier.math.judge import Judge, Verdict, either, every, in_order
from magistral_jax.verifier.math.matrices import as_matrix
from magistral_jax.verifier.math.nodes import (
    Apply,
    Based,
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
    is_expression,
    sorted_tree,
    variables,
    walk,
)
from magistral_jax.verifier.math.realset import real_set, variable_of
from magistral_jax.verifier.math.statements import (
    assignments,
    is_name_for,
    same_assignments,
    same_relations,
    same_solutions,
    solutions,
    without_label,
    without_rounding,
    without_steps,
)


def same_tree(gold: Node, candidate: Node, judge: Judge) -> Verdict:
    """True or False if the judge's knowledge settles it, else None."""
    if gold == candidate or sorted_tree(gold) == sorted_tree(candidate):
        return True
    if (verdict := _same_radians(gold, candidate, judge)) is not _NO_RADIANS:
        return verdict
    gold, candidate = (_plain(without_rounding(node, judge)) for node in (gold, candidate))
    if isinstance(gold, Words) or isinstance(candidate, Words):
        return gold == candidate
    candidate = _unlabelled(gold, candidate)
    bases = _bases(gold), _bases(candidate)
    if any(bases) and not all(bases) and bases[0] | bases[1] != {10}:
        return False
    if isinstance(gold, Measured) or isinstance(candidate, Measured):
        return _same_measured(gold, candidate, judge)
    if _is_angle(gold) != _is_angle(candidate):
        return _same_angle(gold, candidate, judge)
    if is_expression(gold) and is_expression(candidate):
        return judge.equal(gold, candidate)
    if _has_name(gold, "ratio") or _has_name(candidate, "ratio"):
        return _same_ratio(gold, candidate, judge)
    gold, candidate = _unnamed_matrix(gold), _unnamed_matrix(candidate)
    matrices = as_matrix(gold, candidate), as_matrix(candidate, gold)
    if matrices[0] is not None or matrices[1] is not None:
        return _same_matrix(matrices[0], matrices[1], judge)
    return _same_statement(gold, candidate, judge)


def _unlabelled(gold: Node, candidate: Node) -> Node:
    """The candidate without a label before it, where the gold answer is a value."""
    return candidate if variables(gold) else without_label(candidate)


def _unnamed_matrix(node: Node) -> Node:
    match node:
        case Relation((Symbol(), Matrix() as value), ("=",)):
            return value
        case _:
            return node


def _same_statement(gold: Node, candidate: Node, judge: Judge) -> Verdict:
    def same(a: Node, b: Node) -> Verdict:
        return same_tree(a, b, judge)

    if isinstance(gold, Relation):
        gold = without_steps(gold, same)
    if isinstance(candidate, Relation):
        candidate = without_steps(candidate, same)
    if (system := assignments(gold)) is not None:
        as_written = isinstance(gold, Relation)
        return same_assignments(system, candidate, same, as_written=as_written, asked=judge.asked)
    if (system := assignments(candidate)) is not None:
        as_written = isinstance(candidate, Relation)
        return same_assignments(system, gold, same, as_written=as_written, asked=judge.asked)
    are_relations = isinstance(gold, Relation) and isinstance(candidate, Relation)
    given, found = solutions(gold), solutions(candidate)
    if given is not None and found is not None:
        if given.values == (gold,) and found.values == (candidate,):
            return judge.unknown
        verdict = same_solutions(given, found, same, is_unordered=judge.asked.is_unordered)
        if verdict is not False or not are_relations:
            return verdict
    if isinstance(gold, Relation) and isinstance(candidate, Relation):
        as_sets = _same_sets(gold, candidate, judge)
        if as_sets is True:
            return True
        return either([as_sets, same_relations(gold, candidate, judge, same)])
    for named, other in ((gold, candidate), (candidate, gold)):
        value = _named_value(named)
        if value is not None and not isinstance(other, Relation):
            return same(value, other) if named is gold else same(other, value)
    return _same_brackets(gold, candidate, judge)


_VECTORS = {"()", "langlerangle"}


def _same_brackets(gold: Node, candidate: Node, judge: Judge) -> Verdict:
    if isinstance(gold, Group) and isinstance(candidate, Group):
        brackets = {gold.opening + gold.closing, candidate.opening + candidate.closing}
        if (len(brackets) == 1 and brackets != {"{}"}) or brackets == _VECTORS:
            return in_order(gold.items, candidate.items, lambda a, b: same_tree(a, b, judge))
        if len(gold.items) != 2 or len(candidate.items) != 2:
            return False
    if is_expression(gold) and not _may_be_set(gold):
        return False
    if is_expression(candidate) and not _may_be_set(candidate):
        return False
    return _same_sets(gold, candidate, judge)


def _same_sets(gold: Node, candidate: Node, judge: Judge) -> Verdict:
    names = variable_of(gold), variable_of(candidate)
    if all(names) and names[0] != names[1]:
        return False
    try:
        return real_set(gold, judge.place) == real_set(candidate, judge.place)
    except Unreadable:
        pass
    if isinstance(gold, Apply) and isinstance(candidate, Apply) and gold.name == candidate.name:
        pairs = in_order(gold.args, candidate.args, lambda a, b: same_tree(a, b, judge))
        return True if pairs else judge.unknown
    if isinstance(gold, Joined) and isinstance(candidate, Joined) and gold.word == candidate.word:
        pairs = in_order(gold.items, candidate.items, lambda a, b: same_tree(a, b, judge))
        return True if pairs else judge.unknown
    return judge.unknown


def _may_be_set(node: Node) -> bool:
    return node == Constant("R")


def _named_value(node: Node) -> Node | None:
    """The tuple, set or matrix that a name is given: A = (1, 2), x in S, (x, y) = (1, 2)."""
    match node:
        case Relation((Symbol(name), value), ("=",)) if is_name_for(name, value):
            return value
        case Relation((Symbol(), value), ("in",)):
            return value
        case Relation((Group("(", ")", names), Group("(", ")") as value), ("=",)) if all(
            isinstance(name, Symbol) for name in names
        ):
            return value
        case _:
            return None


def _plain(node: Node) -> Node:
    match node:
        case Measured(value, _, (("angle", 1),)):
            return Apply("degree", (value,))
        case Apply(("neg" | "+" | "*"), _) if (inner := _in_degrees(node)) is not None:
            return Apply("degree", (inner,))
        case Measured(value, _, (("radian", 1),)):
            return value
        case Measured(value, factor, ()):
            return Apply("*", (value, Num(factor)))
        case Apply("*", (Measured() as quantity, other)):
            return Measured(
                Apply("*", (quantity.value, other)), quantity.factor, quantity.dimension
            )
        case _:
            return node


def _in_degrees(node: Node) -> Node | None:
    """How many degrees -1°, 90° + 30° or 2 * 45° are; None for what is no such angle."""
    match node:
        case Apply("degree", (inner,)):
            return inner
        case Apply(("neg" | "+"), args):
            parts = [inner for arg in args if (inner := _in_degrees(arg)) is not None]
            return Apply(node.name, tuple(parts)) if len(parts) == len(args) else None
        case Apply("*", (factor, angle)) if (inner := _in_degrees(angle)) is not None:
            return Apply("*", (factor, inner))
        case _:
            return None


def _bases(node: Node) -> set[int]:
    return {n.base for n in walk(node) if isinstance(n, Based)}


def _same_measured(gold: Node, candidate: Node, judge: Judge) -> Verdict:
    if isinstance(gold, Measured) and isinstance(candidate, Measured):
        if gold.dimension != candidate.dimension:
            return False
        if gold.factor == candidate.factor:
            return same_tree(gold.value, candidate.value, judge)
        return same_tree(_scaled(gold), _scaled(candidate), judge)
    bare, measured = (candidate, gold) if isinstance(gold, Measured) else (gold, candidate)
    assert isinstance(measured, Measured)
    if isinstance(bare, Relation):
        named = _named_value(bare)
        return (
            False
            if named is None
            else _same_measured(gold, named, judge)
            if (bare is candidate)
            else _same_measured(named, candidate, judge)
        )
    if not is_expression(bare) or _is_angle(bare) or variables(bare):
        return False
    return same_tree(measured.value, bare, judge)


def _scaled(node: Measured) -> Node:
    return Apply("*", (node.value, Num(node.factor)))


_NO_RADIANS = object()


def _same_radians(gold: Node, candidate: Node, judge: Judge) -> Any:
    """Beside degrees, or a quantity of another kind, radians are what they say."""
    sides = gold, candidate
    radians = [isinstance(s, Measured) and s.dimension == (("radian", 1),) for s in sides]
    if radians[0] == radians[1]:
        return _NO_RADIANS
    angle, other = (gold, candidate) if radians[0] else (candidate, gold)
    assert isinstance(angle, Measured)
    other = _plain(other)
    if _is_angle(other):
        return judge.equal(angle.value, other)
    return False if isinstance(other, Measured) else _NO_RADIANS


def _is_angle(node: Node) -> bool:
    return isinstance(node, Apply) and node.name == "degree"


def _same_angle(gold: Node, candidate: Node, judge: Judge) -> Verdict:
    angle, other = (gold, candidate) if _is_angle(gold) else (candidate, gold)
    assert isinstance(angle, Apply)
    if isinstance(other, Relation):
        value = _named_value(other)
        return False if value is None else same_tree(angle, value, judge)
    if not is_expression(other):
        return False
    return either([judge.equal(angle.args[0], other), judge.equal(angle, other)])


def _has_name(node: Node, name: str) -> bool:
    return isinstance(node, Apply) and node.name == name


def _same_ratio(gold: Node, candidate: Node, judge: Judge) -> Verdict:
    if not isinstance(gold, Apply) or not isinstance(candidate, Apply):
        return False
    if gold.name != candidate.name or len(gold.args) != len(candidate.args):
        return False
    plain = every(judge.equal(a, b) for a, b in zip(gold.args, candidate.args, strict=True))
    if plain or (_may_be_time(gold) and _may_be_time(candidate)):
        return plain
    first_a, first_b = gold.args[0], candidate.args[0]
    for first in (first_a, first_b):  # 0:0 in disguise would be any ratio
        is_zero = judge.equal(first, Num(Fraction(0)))
        if is_zero is not False:
            return None if is_zero is None else False
    return every(
        judge.equal(Apply("*", (a, first_b)), Apply("*", (b, first_a)))
        for a, b in zip(gold.args[1:], candidate.args[1:], strict=True)
    )


def _may_be_time(node: Apply) -> bool:
    values = [exact(arg) for arg in node.args]
    return all(v is not None and v.denominator == 1 and 0 <= v < 60 for v in values) and all(
        v is not None and v >= 10 for v in values[1:]
    )


def _same_matrix(gold: Matrix | None, candidate: Matrix | None, judge: Judge) -> Verdict:
    if gold is None or candidate is None or len(gold.rows) != len(candidate.rows):
        return False
    return every(
        in_order(a, b, lambda x, y: same_tree(x, y, judge))
        for a, b in zip(gold.rows, candidate.rows, strict=True)
    )
