import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magistral_jax.verifier.server import READY

ROOT = Path(__file__).parents[2]
SETTINGS = json.dumps({"rule": {"soft_tokens": 80, "max_tokens": 100}, "timeout_s": 0.5})
PROBLEM = {"id": "sum", "domain": "math", "question": "2+2", "answer": "4"}
ITEM = {"problem": PROBLEM, "text": r"<think></think>\boxed{4}", "tokens": 3}


def serve(
    lines: list[bytes], *, setup: str = "", timeout: float = 60
) -> subprocess.CompletedProcess:
    """Run a server over these lines, after `setup` has changed what it calls."""
    program = f"from magistral_jax.verifier import server\n{setup}\nserver.main()"
    return subprocess.run(
        [sys.executable, "-c", program, SETTINGS],
        input=b"".join(line + b"\n" for line in lines),
        capture_output=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )


def verdicts(done: subprocess.CompletedProcess) -> list[dict]:
    ready, *answers = done.stdout.splitlines(keepends=True)
    assert ready == READY
    return [json.loads(answer) for answer in answers]


def test_a_line_in_is_a_line_out_until_input_ends():
    wrong = ITEM | {"text": "4"}
    done = serve([json.dumps(item).encode() for item in (ITEM, wrong, ITEM)])
    assert [v["outcome"] for v in verdicts(done)] == ["right", "wrong", "right"]
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"problem": 1}', b"\xff\xfe", b""])
def test_a_line_it_cannot_read_is_an_error_and_not_its_end(line):
    first, second = verdicts(serve([line, json.dumps(ITEM).encode()]))
    assert (first["outcome"], first["reward"]) == ("error", 0)
    assert second["outcome"] == "right"


def test_an_exception_is_an_error_with_its_name():
    setup = "def judge(*_): raise ZeroDivisionError('oh')\nserver.judge = judge"
    (verdict,) = verdicts(serve([json.dumps(ITEM).encode()], setup=setup))
    assert (verdict["outcome"], verdict["reason"]) == ("error", "ZeroDivisionError: oh")


def test_memory_is_limited_and_running_out_is_an_error():
    setup = "def judge(*_): bytearray(3 * 1024**3)\nserver.judge = judge"
    (verdict,) = verdicts(serve([json.dumps(ITEM).encode()], setup=setup))
    assert (verdict["outcome"], verdict["reason"][:11]) == ("error", "MemoryError")


def test_what_a_check_prints_is_no_answer():
    setup = "import os\ndef judge(*a): os.write(1, b'hello'); return old(*a)\n"
    setup += "old, server.judge = server.judge, judge"
    done = serve([json.dumps(ITEM).encode()], setup=setup)
    assert [v["outcome"] for v in verdicts(done)] == ["right"]
    assert done.stderr == b"hello"


def test_a_check_that_hangs_ends_even_if_nobody_kills_it():
    setup = "import time\nserver.judge = lambda *_: time.sleep(50)"
    done = serve([json.dumps(ITEM).encode()], setup=setup, timeout=40)
    assert done.returncode == -signal.SIGALRM


def test_a_process_may_be_idle_for_longer_than_a_check_may_take():
    program = "from magistral_jax.verifier.server import main; main()"
    command = [sys.executable, "-c", program, SETTINGS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == READY
        for _ in range(2):
            process.stdin.write(json.dumps(ITEM).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["outcome"] == "right"
            time.sleep(1.5)
        process.stdin.close()
        assert process.wait(30) == 0


def test_neither_jax_nor_the_rest_of_the_package_is_loaded():
    program = (
        "import sys, magistral_jax.verifier.worker, magistral_jax.verifier.server\n"
        "print(*(m for m in sys.modules if m.partition('.')[0] in ('jax', 'jaxlib', 'sympy')"
        " or m.startswith('magistral_jax.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = {name for name in done.stdout.split() if "verifier" not in name}
    assert loaded == {"magistral_jax.types"}
