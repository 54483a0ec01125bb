"""Reference solutions pass; with one mutation they fail where it changes what the tests see.

The oracle is a plain process that runs mutant and tests together, as their authors meant it.
"""

import ast
import gzip
import json
import random
import subprocess
import sys
import warnings
from typing import Any

import pytest

from magistral_jax.types import CodeTests
from magistral_jax.verifier.code.judge import judge_code

SAMPLE = 40
_OPERATORS = [
    (ast.Add, ast.Sub), (ast.Sub, ast.Add), (ast.Mult, ast.Add), (ast.Div, ast.Mult),
    (ast.FloorDiv, ast.Mult), (ast.Mod, ast.FloorDiv), (ast.Lt, ast.LtE), (ast.LtE, ast.Lt),
    (ast.Gt, ast.GtE), (ast.GtE, ast.Gt), (ast.Eq, ast.NotEq), (ast.NotEq, ast.Eq),
    (ast.And, ast.Or), (ast.Or, ast.And),
]  # fmt: skip


def rows_of(path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def mutated(source: str, seed: str, function: str = "") -> str:
    """The source with one operator, comparison, number or returned value changed.

    Only in `function`, if it is given: HumanEval's tests have their own copies of the helpers.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # some write "\\." for a regular expression
        tree = ast.parse(source)
    named = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    changes = []
    for node in ast.walk(named[0] if named else tree):
        for name in ("op", "ops"):
            kind = getattr(node, name, None)
            kind = kind[0] if isinstance(kind, list) else kind
            for old, new in _OPERATORS:
                if isinstance(kind, old):
                    value = [new(), *node.ops[1:]] if name == "ops" else new()
                    changes.append((node, name, value))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            changes.append((node, "value", node.value + 1))
        if isinstance(node, ast.Return) and node.value is not None:
            changes.append((node, "value", ast.Constant(None)))
    if changes:
        node, name, value = random.Random(seed).choice(changes)
        setattr(node, name, value)
    return ast.unparse(ast.fix_missing_locations(tree))


def passes_plainly(*parts: str) -> bool:
    """The oracle: whether program and tests, in one process, end well."""

    # Not by preexec_fn: the process that runs the tests has threads, and must not run code forked.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (500_000_000,) * 2)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", "\n".join([limited, *parts])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=6,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def agrees_plainly(program: str, stdio) -> bool:
    """The oracle of mbpp_stdin: whether the program, as it is, prints what is expected."""
    for stdin, expected in stdio:
        command = [sys.executable, "-c", program]
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=6)
        except subprocess.TimeoutExpired:
            return False
        # In JSON 0 is not false, though Python takes them for equal.
        if done.returncode != 0 or repr(json.loads(done.stdout)) != repr(json.loads(expected)):
            return False
    return True


def check(sandbox, row, tests: CodeTests, program: str, parts: list[str]) -> str | None:
    """What is wrong with the judgements on a row's solution and on one mutant of it."""
    judged = judge_code(tests, program, "python", sandbox, seed=row["id"])
    if judged.reason != "pass":
        return f"{row['id']}: the solution gets {judged}"
    mutant = mutated(program, row["id"], tests.entry_point)
    judged = judge_code(tests, mutant, "python", sandbox, seed=row["id"])
    if (judged.reason == "pass") != passes_plainly(mutant, *parts):
        return f"{row['id']}: the oracle disagrees with {judged} on\n{mutant}"
    return None


def check_mbpp(sandbox, rows) -> list[str]:
    faults = []
    for row in rows:
        tests = CodeTests(asserts=tuple(row["asserts"]), setup=row["setup"])
        parts = [row["setup"].replace("\r", ""), *row["asserts"]]
        faults.append(check(sandbox, row, tests, row["solution"], parts))
    return [fault for fault in faults if fault]


def check_mbpp_stdin(sandbox, rows, solutions) -> list[str]:
    faults = []
    for row in rows:
        program = (
            f"{solutions[row['id'].replace('stdin', '')]}\nimport json\n"
            f"print(json.dumps({row['entry_point']}(*json.loads(input())), default=list))\n"
        )
        stdio = tuple((test["stdin"], test["stdout"]) for test in row["tests"])
        tests = CodeTests(stdio=stdio, checker="json", entry_point=row["entry_point"])
        judged = judge_code(tests, program, "python", sandbox, seed=row["id"])
        # Some of these outputs are of a corrected solution, which mbpp.jsonl does not have.
        if judged.reason != "pass" and agrees_plainly(program, stdio):
            faults.append(f"{row['id']}: the solution gets {judged}")
    return faults


def check_humaneval(sandbox, rows) -> list[str]:
    faults = []
    for row in rows:
        tests = CodeTests(
            test_code=row["test_code"], entry_point=row["entry_point"], prompt=row["problem"]
        )
        program = row["problem"] + row["solution"]
        judged = judge_code(tests, row["solution"], "python", sandbox, seed=row["id"])
        if judged.reason != "pass":
            faults.append(f"{row['id']}: the bare completion gets {judged}")
        faults.append(check(sandbox, row, tests, program, [row["test_code"]]))
    return [fault for fault in faults if fault]


def sample(rows: list, count: int = SAMPLE) -> list:
    return random.Random(0).sample(rows, count)


def solutions_in(data_dir) -> dict[str, str]:
    return {row["id"]: row["solution"] for row in rows_of(data_dir / "mbpp.jsonl.gz")}


def test_some_of_mbpp(sandbox, data_dir):
    rows = rows_of(data_dir / "mbpp.jsonl.gz")
    special = [r for r in rows if r["setup"] or r["id"] in ("mbpp-126", "mbpp-533", "mbpp-596")]
    assert len(special) == 5
    assert check_mbpp(sandbox, special + sample(rows)) == []


def test_some_of_mbpp_on_stdin(sandbox, data_dir):
    rows = sample(rows_of(data_dir / "mbpp_stdin.jsonl.gz"), 8)
    assert check_mbpp_stdin(sandbox, rows, solutions_in(data_dir)) == []


def test_some_of_humaneval(sandbox, data_dir):
    rows = rows_of(data_dir / "humaneval_first82.jsonl")
    with_helpers = [r for r in rows if r["id"] in ("HumanEval/32", "HumanEval/38", "HumanEval/50")]
    assert check_humaneval(sandbox, with_helpers + sample(rows, 15)) == []


@pytest.mark.full
def test_all_of_mbpp(sandbox, data_dir):
    assert check_mbpp(sandbox, rows_of(data_dir / "mbpp.jsonl.gz")) == []


@pytest.mark.full
def test_all_of_mbpp_on_stdin(sandbox, data_dir):
    rows = rows_of(data_dir / "mbpp_stdin.jsonl.gz")
    assert check_mbpp_stdin(sandbox, rows, solutions_in(data_dir)) == []


@pytest.mark.full
def test_all_of_humaneval(sandbox, data_dir):
    assert check_humaneval(sandbox, rows_of(data_dir / "humaneval_first82.jsonl")) == []
