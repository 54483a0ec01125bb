import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "magistral_jax", "verify"]
MATH = {"domain": "math", "problem": "What is 2+2?", "answer": "4"}
CODE = {"domain": "code", "problem": "Add.", "tests": [{"stdin": "1 2", "stdout": "3\n"}]}


def math(name, answer, **more):
    return {"id": name, **MATH, "response": rf"<think></think>\boxed{{{answer}}}", **more}


def code(name, program, language="python"):
    return {"id": name, **CODE, "response": f"<think></think>\n```{language}\n{program}\n```"}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def verify(*arguments, stdin="", env=None):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
        env=env,
    )


def rows_of(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_thoughts_that_the_prompt_opened_belong_to_the_response():
    said = [math(str(i), "4", response=r"t</think>\boxed{4}") for i in range(40)]
    closed = verify("-", stdin=lines(*said))
    assert '"no leading <think>". ' in closed.stderr and "`opened`" in closed.stderr
    rows = [{**row, "opened": "<think>\n"} for row in said]
    bad, null = math("x", "4", opened=3), math("y", "4", opened=None)
    done = verify("-", stdin=lines(*rows, bad, null))
    assert [row["outcome"] for row in rows_of(done)] == ["right"] * 40 + ["error", "right"]
    assert "opened is 3; it must be a text" in rows_of(done)[40]["detail"]
    assert "fail the format check" not in done.stderr


def test_a_file_is_judged_in_order_with_a_summary(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        lines(
            math("a", "4"),
            math("b", "5"),
            code("c", "print(sum(map(int, input().split())))"),
            code("d", "print(4)"),
            math("e", r"\sqrt{16}"),
        )
    )
    done = verify(path)
    assert done.returncode == 0, done.stderr
    said = rows_of(done)
    assert [row["id"] for row in said] == list("abcde")
    assert [row["reason"] for row in said] == ["pass", "wrong", "pass", "wrong", "pass"]
    assert [row["outcome"] for row in said] == ["right", "wrong", "right", "wrong", "right"]
    assert said[0]["parts"] == {"format": 0.1, "correct": 0.9, "length": 0.0, "language": 0.0}
    assert "5 rows in" in done.stderr and "3 right, 2 wrong, 0 not judged" in done.stderr
    assert "verify: " in done.stderr.splitlines()[0]  # the sandbox, once a program came


def test_a_row_that_cannot_be_judged_is_said_and_the_rest_goes_on():
    rows = lines(math("a", "4")) + "{oops\n\n" + lines(MATH | {"id": "c"}, math("d", "4"))
    done = verify("-", stdin=rows)
    assert done.returncode == 1
    said = rows_of(done)
    assert [row["outcome"] for row in said] == ["right", "error", "error", "right"]
    assert said[1]["id"] is None and "-:2: not JSON" in said[1]["detail"]
    assert said[2]["id"] == "c" and "'response' is missing" in said[2]["detail"]
    assert "2 not judged" in done.stderr


def test_verdicts_leave_while_rows_still_come():
    with subprocess.Popen(
        [*COMMAND, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for name in "ab":
            process.stdin.write(lines(math(name, "4")).encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == name
        process.stdin.close()
        assert process.wait(60) == 0


def test_ctrl_c_ends_it_and_its_workers():
    # A shell ignores SIGINT in what it runs in the background, and so would all below it.
    with subprocess.Popen(
        ["env", "--default-signal=INT", *COMMAND, "-", "--workers", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(lines(math("a", "4")).encode())
        process.stdin.flush()
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None and b"interrupted" in process.stderr.read()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "the workers outlived it"
        time.sleep(0.05)


def test_a_reader_that_goes_away_is_no_drama():
    rows = lines(*(math(str(n), "4") for n in range(500)))
    shell = f"{sys.executable} -m magistral_jax verify - | head -1"
    done = subprocess.run(
        ["bash", "-c", shell], input=rows, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert json.loads(done.stdout)["id"] == "0"
    assert "Traceback" not in done.stderr


def test_length_costs_under_a_config_or_a_limit(tmp_path):
    row = lines(math("a", "4", num_tokens=100))
    assert rows_of(verify("-", stdin=row))[0]["parts"]["length"] == 0
    done = verify("-", "--generator.max_tokens", "100", stdin=row)
    assert rows_of(done)[0]["parts"]["length"] == pytest.approx(-0.1)
    done = verify("-", "--config", ROOT / "configs" / "demo.toml", stdin=row)
    assert rows_of(done)[0]["parts"]["length"] < 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.jsonl"], "nothing.jsonl cannot be read: No such file"),
        (["-", "--workerz", "3"], "there is no option --workerz; did you mean --workers?"),
        (["-", "--verifier.sandbox", "moat"], "it must be one of"),
        (["-", "--workers", "0"], "verifier.workers is 0; it must be at least 1"),
        (["-", "--config", "nothing.toml"], "nothing.toml does not exist"),
    ],
)
def test_a_mistake_is_told_in_one_message(arguments, told):
    done = verify(*arguments)
    assert done.returncode == 2 and told in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_layer_that_cannot_be_had_refuses_programs_and_says_what_is_missing():
    done = verify("-", "--verifier.sandbox", "remote", stdin=lines(code("a", "print(3)")))
    assert done.returncode == 2 and "verifier.sandbox_url" in done.stderr


def test_it_starts_within_a_second():
    row = lines(math("a", "4"))
    walls = []
    for _ in range(3):
        began = time.monotonic()
        verify("-", stdin=row, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
        walls.append(time.monotonic() - began)
    # The whole command, on a machine that does other things: the best of three.
    assert min(walls) < 2.0
