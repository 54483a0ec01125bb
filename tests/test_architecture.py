"""The import law, and the caps that keep a file readable. Rooms share values, never code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "magistral_jax"
FUNCTION_CAP = 100

BASE = {"types", "arrays", "config"}
ROOMS = {"model", "data", "generator", "verifier", "batch", "trainer", "weights"}
SERVICES = {
    "tokenizer",
    "tally",
    "lengths",
    "ledger",
    "pulse",
    "watch",
    "lock",
    "damage",
    "metrics",
    "console",
    "frontier",
    "checkpoint",
    "evaluate",
    "loops",
}

# What each module or folder of the package may import; always itself.
LAW = {
    "__init__": set(),
    "types": set(),
    "config": set(),
    "arrays": {"types"},
    "rows": {"types"},
    "rules": {"config"},
    "settings": {"types", "config", "rules"},
    "tokenizer": {"types", "config"},
    "model": {"types", "config"},
    "data": {"types", "config", "rows", "tokenizer"},
    "generator": {"types", "config", "model"},
    "verifier": {"types", "config", "rows"},
    "batch": BASE,
    "trainer": BASE | {"model"},
    "weights": {"types", "config", "model"},
    "lengths": {"types"},
    "ledger": set(),
    "pulse": {"ledger"},
    "watch": {"ledger"},
    "lock": {"types"},
    "tally": {"types", "lengths"},
    "loops": BASE | {"tally", "ledger"},
    "metrics": BASE | {"ledger"},
    "console": BASE,
    "frontier": {"types"},
    "fingerprint": set(),
    "seal": set(),
    "damage": set(),
    "checkpoint": BASE | {"fingerprint", "seal", "damage"},
    "evaluate": BASE,
    "recipes": BASE | {"rows"} | ROOMS | SERVICES,
    "asking": BASE | {"data", "tokenizer"},
    "build": BASE | ROOMS | SERVICES | {"recipes", "settings", "asking"},
    "measuring": BASE | SERVICES | {"build"},
    "resume": BASE | ROOMS | SERVICES | {"build"},
    "session": BASE | ROOMS | SERVICES | {"recipes", "build", "measuring", "resume"},
    "run": BASE | SERVICES | {"recipes", "settings", "build", "session"},
    "tools": BASE
    | {"rows"}
    | ROOMS
    | SERVICES
    | {"recipes", "settings", "build", "measuring", "run"},
    "parser": {"config"},
    "__main__": BASE | SERVICES | {"parser", "recipes", "tools", "settings", "build", "run"},
}

MAY_PRINT = {"__main__", "metrics", "console"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
every_source = pytest.mark.parametrize(
    "path", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES]
)


def room_of(path: Path) -> str:
    """The key of LAW under which a file stands: its top folder, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_of(path: Path) -> list[str]:
    return ["magistral_jax", *path.relative_to(PACKAGE).parts[:-1]]


def modules_named(node: ast.AST, package: list[str]) -> list[str]:
    """The dotted names that an import statement in `package` may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*parents, *([node.module] if node.module else [])])
    # `from magistral_jax import trainer` loads a room, too.
    return [f"{module}.{alias.name}" for alias in node.names]


def rooms_imported(text: str, package: list[str]) -> set[str]:
    names = [n for node in ast.walk(ast.parse(text)) for n in modules_named(node, package)]
    return {n.split(".")[1] for n in names if n.startswith("magistral_jax.")}


@pytest.mark.parametrize(
    "text",
    [
        "import magistral_jax.trainer.loss",
        "import magistral_jax.trainer.loss as loss",
        "from magistral_jax import trainer",
        "from magistral_jax.trainer import loss",
        "from magistral_jax.trainer.loss import policy_loss",
        "from ..trainer.loss import policy_loss",
        "from .. import trainer",
        "def late():\n    from magistral_jax.trainer import loss",
    ],
)
def test_every_way_to_import_is_seen(text):
    assert rooms_imported(text, ["magistral_jax", "batch"]) == {"trainer"}


def test_a_neighbour_in_the_same_room_is_no_other_room():
    assert rooms_imported("from . import pack\nimport jax", ["magistral_jax", "batch"]) == {"batch"}


@every_source
def test_imports_obey_the_law(path):
    room = room_of(path)
    assert room in LAW, (
        f"{path.relative_to(PACKAGE)} is new to the import law. Add {room!r} to LAW in "
        "tests/test_architecture.py, with what it may import, and to the README's tree."
    )
    forbidden = rooms_imported(path.read_text("utf-8"), package_of(path)) - LAW[room] - {room}
    assert not forbidden, f"{path.relative_to(PACKAGE)} may not import {sorted(forbidden)}"


@every_source
def test_no_function_outgrows_a_reading(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_CAP, f"{path.name}:{node.name} has {lines} lines"


@every_source
def test_only_the_command_line_prints(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not prints or room_of(path) in MAY_PRINT, (
        f"{path.relative_to(PACKAGE)} prints in lines {prints}; record a metric, or raise"
    )


# Programs for the sandbox, where they lie beside each other and are no modules of a package.
INSIDE = {"serve", "tester"}
VERIFIER = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.glob("verifier/**/[!_]*.py"))
    if path.stem not in INSIDE
]


@pytest.mark.parametrize("module", ["magistral_jax.types", *VERIFIER])
def test_checks_run_without_jax(module):
    """Verifiers are many short processes, and what they judge must not meet an accelerator."""
    probe = (
        f"import sys, {module}; "
        "sys.exit(str([m for m in ('jax', 'jaxlib') if m in sys.modules] or '') or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"importing {module} in a fresh interpreter: {done.stderr}"
