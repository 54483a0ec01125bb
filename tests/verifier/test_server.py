import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from magistral_jax.types import Problem
from magistral_jax.verifier.server import READY
from magistral_jax.verifier.wire import Limits, Question, question_line

ROOT = Path(__file__).parents[2]
SETTINGS = json.dumps(
    {"rule": {"soft_tokens": 80, "max_tokens": 100}, "config": {"timeout_s": 0.5}}
)
PROBLEM = Problem(id="sum", domain="math", question="2+2", answer="4")
RIGHT = r"<think></think>\boxed{4}"


def line(text: str = RIGHT) -> bytes:
    return question_line(Question(PROBLEM, text, 3), Limits(0.5, 0.7))


def serve(
    lines: list[bytes], *, setup: str = "", timeout: float = 60
) -> subprocess.CompletedProcess:
    """Run a server over these lines, after `setup` has changed what it calls."""
    program = f"from magistral_jax.verifier import server\n{setup}\nserver.main()"
    return subprocess.run(
        [sys.executable, "-c", program, SETTINGS],
        input=b"".join(lines),
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
    done = serve([line(), line("4"), line()])
    assert [v["reason"] for v in verdicts(done)] == ["pass", "format", "pass"]
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "bad",
    [b"\n", b"{}\n", b"1 2\n", b"x y {}\n", b"1 2 {}\n", b'1 2 {"problem": 1}\n', b"\xff\xfe\n"],
)
def test_a_line_it_cannot_read_is_an_error_and_not_its_end(bad):
    first, second = verdicts(serve([bad, line()]))
    assert (first["reason"], first["reward"]) == ("error", 0)
    assert second["reason"] == "pass"


HEAD = "import os, signal, time\nfrom magistral_jax.verifier.reward import Judge\n"


def instead(body: str) -> str:
    """A judge that does this, unless a known-good answer or a known verdict is asked for."""
    return HEAD + (
        "old = Judge.__call__\n"
        "def judge(self, problem, text, tokens, draw='', known=None):\n"
        "    if problem.id == 'sum' and not known:\n"
        f"        {body}\n"
        "    return old(self, problem, text, tokens, draw=draw, known=known)\n"
        "Judge.__call__ = judge"
    )


@pytest.mark.parametrize(
    ("body", "reason", "detail"),
    [
        ("time.sleep(50)", "timeout", "stopped after"),
        ("while True: pass", "timeout", "stopped after"),
        ("signal.pthread_sigmask(0, range(1, 64)); pow(7, 10**9)", "timeout", "stopped after"),
        ("bytearray(3 * 1024**3)", "memory", "the check ran out of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "memory", "the check died 3 times, last by -11"),
        ("os._exit(3)", "memory", "the check died 3 times, last by 3"),
    ],
)
def test_an_answer_that_exhausts_a_limit_is_wrong_and_keeps_its_format(body, reason, detail):
    verdict, after = verdicts(serve([line(), line("4")], setup=instead(body)))
    assert verdict["reason"] == reason and detail in verdict["detail"]
    assert verdict["parts"] == {"format": 0.1, "correct": 0, "length": 0, "language": 0}
    assert after["reason"] == "format"
    assert verdict["seconds"] < 10


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("raise ZeroDivisionError('oh')", "ZeroDivisionError: oh"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the check was killed 3 times from outside"),
    ],
)
def test_our_own_faults_are_errors(body, detail):
    verdict, _ = verdicts(serve([line(), line("4")], setup=instead(body)))
    assert (verdict["reason"], verdict["detail"]) == ("error", detail)


def test_a_check_that_also_fails_a_known_good_answer_is_an_error():
    setup = HEAD + "Judge.__call__ = Judge.compare = lambda *a, **k: time.sleep(50)"
    (verdict,) = verdicts(serve([line()], setup=setup))
    assert verdict["reason"] == "error" and "so did a known-good answer" in verdict["detail"]


def test_what_a_check_prints_is_no_answer():
    done = serve([line()], setup=instead("os.write(1, b'hello')"))
    assert [v["reason"] for v in verdicts(done)] == ["pass"]
    assert b"hello" in done.stderr


def test_a_child_is_replaced_after_its_share_of_checks():
    setup = HEAD + (
        "server.RECYCLE = 2\n"
        "Judge.__call__ = lambda *a, **k: server.without_reward('wrong', str(os.getpid()))"
    )
    pids = [v["detail"] for v in verdicts(serve([line()] * 5, setup=setup))]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_a_process_may_be_idle_for_longer_than_a_check_may_take():
    program = "from magistral_jax.verifier.server import main; main()"
    command = [sys.executable, "-c", program, SETTINGS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == READY
        for _ in range(2):
            process.stdin.write(line())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["reason"] == "pass"
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
    assert loaded == {"magistral_jax.config", "magistral_jax.types"}


def test_a_server_and_its_check_end_when_their_pool_is_killed(tmp_path):
    """A pool that is killed in the middle of a check cannot tell; nothing may outlive it."""
    mark = tmp_path / "pids"
    body = f"open({str(mark)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}}'); time.sleep(50)"
    program = f"from magistral_jax.verifier import server\n{instead(body)}\nserver.main()"
    pool = (
        "import subprocess, sys\n"
        "server = subprocess.Popen(sys.argv[1:5], stdin=subprocess.PIPE)\n"
        "server.stdin.write(sys.argv[5].encode()); server.stdin.flush(); server.wait()"
    )
    question = question_line(Question(PROBLEM, RIGHT, 3), Limits(60.0, 60.0)).decode()
    command = [sys.executable, "-c", pool, sys.executable, "-c", program, SETTINGS, question]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as pools:
        wait_until(lambda: mark.exists() and " " in mark.read_text(), 30)
        pids = mark.read_text().split()
        pools.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 2)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
