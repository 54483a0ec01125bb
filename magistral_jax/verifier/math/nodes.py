"""The parsed answer: a tree of numbers, symbols, operations, and the forms answers take."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Num:
    """An exact number."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Based:
    """A number whose base is written with it: 1011_2, 11_{10}."""

    value: Fraction
    base: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, with its subscript: x, x_{1}, \\theta, f(x), AB."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """One of pi, e, i, oo, R (the reals)."""

    name: str


@dataclass(frozen=True, slots=True)
class Words:
    """Text that is no mathematics, in lower case: an answer like `east`."""

    text: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation or function: + * / ^ neg pm root log sin ... cup cap setminus ratio."""

    name: str
    args: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Group:
    """Items in brackets. A bare list has none, a set braces, an interval two round or square."""

    opening: str
    closing: str
    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    rows: "tuple[tuple[Node, ...], ...]"


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain: parts[0] signs[0] parts[1] signs[1] ...; signs are = < > <= >= != ~ in."""

    parts: "tuple[Node, ...]"
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """Statements between `or`, or between `and`."""

    word: str
    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Measured:
    """A quantity: value times `factor` in the units that `dimension` names."""

    value: "Node"
    factor: Fraction
    dimension: tuple[tuple[str, int], ...] = field(default=())


Node = (
    Num | Based | Symbol | Constant | Words | Apply | Group | Matrix | Relation | Joined | Measured
)

EMPTY_SET = Group("{", "}", ())
ONE = Num(Fraction(1))
MINUS_ONE = Num(Fraction(-1))


def children(node: Node) -> tuple[Node, ...]:
    """The trees directly below this one."""
    match node:
        case Apply():
            return node.args
        case Group() | Joined():
            return node.items
        case Matrix():
            return tuple(item for row in node.rows for item in row)
        case Relation():
            return node.parts
        case Measured():
            return (node.value,)
        case _:
            return ()


def walk(node: Node) -> Iterator[Node]:
    """This tree and all below it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(children(node))


def variables(node: Node) -> frozenset[str]:
    """The names of the symbols in the tree."""
    return frozenset(n.name for n in walk(node) if isinstance(n, Symbol))


def replaced(node: Node, old: Node, new: Node) -> Node:
    """The tree with `new` wherever `old` stands."""
    if node == old:
        return new
    match node:
        case Apply(name, args):
            return Apply(name, tuple(replaced(arg, old, new) for arg in args))
        case Group(opening, closing, items):
            return Group(opening, closing, tuple(replaced(item, old, new) for item in items))
        case Matrix(rows):
            return Matrix(tuple(tuple(replaced(item, old, new) for item in row) for row in rows))
        case Relation(parts, signs):
            return Relation(tuple(replaced(part, old, new) for part in parts), signs)
        case Joined(word, items):
            return Joined(word, tuple(replaced(item, old, new) for item in items))
        case Measured(value, factor, dimension):
            return Measured(replaced(value, old, new), factor, dimension)
        case _:
            return node


def sorted_tree(node: Node) -> Node:
    """The tree with the terms of each sum and the factors of each product in one order."""
    match node:
        case Apply("+" | "*", _):
            parts: list[Node] = []
            waiting = list(node.args)
            while waiting:
                part = waiting.pop()
                if isinstance(part, Apply) and part.name == node.name:
                    waiting.extend(part.args)
                else:
                    parts.append(sorted_tree(part))
            if node.name == "*" and any(
                isinstance(n, Matrix | Group) for p in parts for n in walk(p)
            ):
                return node  # a product in which the order may count
            return Apply(node.name, tuple(sorted(parts, key=repr)))
        case Apply(name, args):
            return Apply(name, tuple(sorted_tree(arg) for arg in args))
        case _:
            return node


def is_expression(node: Node) -> bool:
    """True if the tree is one number or function, not a statement, a list or a quantity."""
    return all(isinstance(n, Num | Based | Symbol | Constant | Apply) for n in walk(node)) and all(
        n.name not in ("cup", "cap", "setminus", "builder", "ratio", "pm", "mp")
        for n in walk(node)
        if isinstance(n, Apply)
    )


def difference(a: Node, b: Node) -> Node:
    """The tree of a - b."""
    return Apply("+", (a, Apply("neg", (b,))))
