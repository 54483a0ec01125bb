"""Matrices in answers: which trees are one, and small determinants."""

from fractions import Fraction

from magistral_jax.verifier.math.caps import Unreadable
from magistral_jax.verifier.math.nodes import (
    Apply,
    Group,
    Matrix,
    Node,
    Num,
    Symbol,
    is_expression,
)


def as_matrix(node: Node, other: Node) -> Matrix | None:
    """The matrix, with a factor multiplied in; nested brackets count if the other is a matrix."""
    match node:
        case Matrix():
            return node
        case Apply("neg", (inner,)) if found := as_matrix(inner, other):
            return times(found, Num(Fraction(-1)))
        case Apply("*", (factor, inner)) if is_expression(factor) and (
            found := as_matrix(inner, other)
        ):
            return times(found, factor)
        case Apply("*" | "/", (inner, factor)) if is_expression(factor) and (
            found := as_matrix(inner, other)
        ):
            factor = factor if node.name == "*" else Apply("/", (Num(Fraction(1)), factor))
            return times(found, factor)
        case Apply("^", (Matrix(rows), Symbol("T"))):
            return Matrix(tuple(zip(*rows, strict=True)))
        case Group("[", "]", (Matrix() as inner,)):
            return inner
        case Group("[", "]", items) if isinstance(other, Matrix):
            rows = tuple(item.items for item in items if isinstance(item, Group))
            if len(rows) == len(items) and len({len(row) for row in rows}) == 1:
                return Matrix(rows)
            return None
        case _:
            return None


def times(matrix: Matrix, factor: Node) -> Matrix:
    return Matrix(tuple(tuple(Apply("*", (factor, item)) for item in row) for row in matrix.rows))


def determinant(node: Node) -> Node:
    """The sum of products of a square matrix of at most three rows. Raises Unreadable else."""
    if not isinstance(node, Matrix) or not 1 <= len(node.rows) == len(node.rows[0]) <= 3:
        raise Unreadable("no small square matrix")
    if len(node.rows) == 1:
        return node.rows[0][0]
    terms: list[Node] = []
    for column, item in enumerate(node.rows[0]):
        minor = Matrix(tuple(row[:column] + row[column + 1 :] for row in node.rows[1:]))
        term = Apply("*", (item, determinant(minor)))
        terms.append(Apply("neg", (term,)) if column % 2 else term)
    return Apply("+", tuple(terms))
