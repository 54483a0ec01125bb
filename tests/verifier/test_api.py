import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import UserError
from magistral_jax.verifier import api
from magistral_jax.verifier.reward import RewardRule
from magistral_jax.verifier.worker import VerifierPool

ROOT = Path(__file__).parents[2]
MATH = {"id": "m", "domain": "math", "problem": "What is 2+2?", "answer": "4"}
RIGHT = MATH | {"response": r"<think>hm</think>\boxed{4}"}
ADD = {"domain": "code", "problem": "Add.", "tests": [{"stdin": "1 2", "stdout": "3\n"}]}
PROGRAM = "<think></think>\n```python\nprint(sum(map(int, input().split())))\n```"
PARTS = {"format": 0.1, "correct": 0.9, "length": 0.0, "language": 0.0}


def test_a_verdict_has_all_parts_and_an_id():
    row = api.judge(RIGHT)
    assert row.pop("seconds") >= 0
    assert row == {
        "id": "m",
        "reward": 1.0,
        "parts": PARTS,
        "outcome": "right",
        "reason": "pass",
        "detail": "",
    }


@pytest.mark.parametrize(
    ("row", "outcome", "reason"),
    [
        (RIGHT | {"response": r"<think>hm</think>\boxed{5}"}, "wrong", "wrong"),
        (RIGHT | {"response": "4"}, "wrong", "format"),
        (RIGHT | {"response": r"<think></think>\boxed{\frac{8}{2}}"}, "right", "pass"),
        (RIGHT | {"answer": 4}, "right", "pass"),
        (RIGHT | {"id": 7}, "right", "pass"),
        (RIGHT | {"answer": r"2\sqrt{2}", "response": r"<think></think>\boxed{\sqrt{8}}"},
         "right", "pass"),
        ({"id": "c", **ADD, "response": PROGRAM}, "right", "pass"),
        ({"id": "c", **ADD, "response": PROGRAM.replace("sum", "max")}, "wrong", "wrong"),
        ({"id": "c", **ADD, "response": PROGRAM.replace("print(", "print((")}, "wrong", None),
        ({"id": "c", **ADD, "response": "print(3)"}, "wrong", "format"),
    ],
)  # fmt: skip
def test_rows_are_judged(row, outcome, reason):
    said = api.judge(row)
    assert said["outcome"] == outcome and said["id"] == row["id"]
    assert reason in (None, said["reason"])


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({}, "row 1: key 'response' is missing"),
        (RIGHT | {"domain": "art"}, "row 1: domain is"),
        (RIGHT | {"answer": ""}, "row 1: answer is empty"),
        (RIGHT | {"num_tokens": "9"}, 'row 1: num_tokens is "9"'),
        ({"id": "c", **ADD, "tests": [], "response": PROGRAM}, "a code problem needs one of"),
    ],
)
def test_a_row_that_cannot_be_read_is_an_error_with_all_parts(row, detail):
    said = api.judge(row)
    assert (said["outcome"], said["reason"], said["reward"]) == ("error", "error", 0)
    assert detail in said["detail"] and set(said["parts"]) == set(PARTS)


def test_verdicts_come_in_the_order_of_the_rows():
    answers = [str(n % 7) for n in range(200)]
    rows = [RIGHT | {"id": str(n), "answer": a, "response": r"<think></think>\boxed{3}"}
            for n, a in enumerate(answers)]  # fmt: skip
    said = list(api.judge_many(rows))
    assert [row["id"] for row in said] == [row["id"] for row in rows]
    assert [row["outcome"] == "right" for row in said] == [a == "3" for a in answers]


def test_a_source_that_waits_for_a_verdict_gets_it():
    asked: queue.Queue = queue.Queue()

    def rows():
        while (row := asked.get(timeout=60)) is not None:
            yield row

    said = api.judge_many(rows())
    for number in range(3):
        asked.put(RIGHT | {"id": str(number)})
        assert next(said)["id"] == str(number)
    asked.put(None)
    assert list(said) == []


def test_a_fault_of_the_source_reaches_the_caller():
    def rows():
        yield RIGHT
        raise UserError("the file is gone")

    said = api.judge_many(rows())
    assert next(said)["outcome"] == "right"
    with pytest.raises(UserError, match="the file is gone"):
        next(said)


def test_length_costs_only_under_a_rule():
    row = RIGHT | {"num_tokens": 90}
    assert api.judge(row)["reward"] == 1.0
    rule = RewardRule(soft_tokens=80, max_tokens=100)
    with VerifierPool(rule, VerifierConfig()) as pool:
        (said,) = api.judge_many([row], pool)
    assert said["reward"] == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("gold", "pred", "mode", "same"),
    [
        ("4", "4.0", "answer", True),
        ("4", "5", "answer", False),
        (r"\sqrt{8}", r"2\sqrt{2}", "answer", True),
        ("4", r"So the answer is \boxed{4}.", "text", True),
        ("4", r"So the answer is \boxed{14}.", "text", False),
    ],
)
def test_math_equal(gold, pred, mode, same):
    assert api.math_equal(gold, pred, mode) is same


def test_math_equal_takes_two_modes():
    with pytest.raises(UserError, match='mode is \'box\'; it must be "answer" or "text"'):
        api.math_equal("1", "1", "box")


def test_math_equal_works_on_any_thread():
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(api.math_equal(r"\sqrt{8}", r"2\sqrt{2}")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 4


def test_the_cheap_ones():
    assert api.format_ok(r"<think>a</think>\boxed{1}", "math")
    assert not api.format_ok("1", "math")
    assert api.extract(r"<think>\boxed{2}</think>\boxed{1}", "math") == "1"
    assert api.extract("x</think>\n```cpp\nint a;\n```", "code") == ("int a;\n", "cpp")
    assert api.extract("1", "math") is None and api.extract("1", "code") is None
    assert api.length_penalty(90, 100, 20) == pytest.approx(-0.05)
    assert api.length_penalty(80, 100, 20) == 0
    assert api.length_penalty(101, 100, 20) == -0.1
    assert api.total(True, True, -0.05, True) == pytest.approx(1.05)
    assert api.total(False, True, -0.05, True) == 0
    french = "Le nombre cherché est le double de la somme des deux autres nombres."
    english = "The number that we want is twice the sum of the two other numbers."
    assert api.detect_language(french) == "fr"
    assert api.language_consistent(french, french, french)
    assert not api.language_consistent(french, english, french)


def test_a_forked_process_has_a_pool_of_its_own():
    program = (
        "import os, sys\nfrom magistral_jax.verifier import api\n"
        "assert api.math_equal('1', '1.0')\n"
        "pid = os.fork()\n"
        "assert api.math_equal('2', '2.0')\n"
        "sys.exit(os.waitpid(pid, 0)[1] if pid else 0)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_pool_ends_with_its_process():
    program = (
        "from magistral_jax.verifier import api\n"
        "assert api.math_equal('1', '1.0')\n"
        "print(*api._default.pool().pids)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert done.stderr == ""


def test_jax_is_never_loaded():
    program = (
        "import sys\nfrom magistral_jax.verifier import api\n"
        f"print(api.judge({json.dumps(RIGHT)})['outcome'])\n"
        "print([m for m in ('jax', 'sympy', 'math_verify', 'fasttext') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["right", "[]"]
