"""Which names of a program its tests use. Decided from the data set's code alone."""

import ast
import builtins
import sys
import warnings
from collections.abc import Iterator


def names_used(code: str) -> tuple[list[str], list[str]]:
    """Names that `code` takes from the program, and modules it takes for granted.

    A name that Python or its library has is not the program's, so a program cannot put a `len` or
    a `math` of its own under the tests. Only where the tests use no other name is the function
    that they call first meant (MBPP tests one named `sum`). Raises SyntaxError.
    """
    tree = _parsed(code)
    bound = set(_bound(tree))
    used = {
        node.id: None
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    free = [name for name in used if name not in bound and not hasattr(builtins, name)]
    modules = [name for name in free if name in sys.stdlib_module_names]
    names = [name for name in free if name not in modules]
    if not names:
        called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        names = [func.id for func in called if isinstance(func, ast.Name)][:1]
    return names, modules


def with_call(test_code: str, entry_point: str) -> str:
    """HumanEval's test code, with the call of `check` that some copies of it leave out."""
    tree = _parsed(test_code)
    defines = any(isinstance(n, ast.FunctionDef) and n.name == "check" for n in tree.body)
    calls = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    )
    return f"{test_code}\ncheck({entry_point})\n" if defines and not calls else test_code


def _parsed(code: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the data set's affair
        return ast.parse(code)


def is_start_of(entry_point: str, prompt: str) -> bool:
    """Whether the prompt is code that starts this function; else it is prose about it."""
    try:
        body = _parsed(prompt).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name == entry_point
        for node in body
    )


def _bound(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0]
