import fcntl
import os
import resource
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import Problem, UserError
from magistral_jax.verifier import worker
from magistral_jax.verifier.reward import TEXT_LIMIT, Judge, RewardRule
from magistral_jax.verifier.wire import Question, limits_of, question_line
from magistral_jax.verifier.worker import VerifierPool

PROBLEM = Problem(id="sum", domain="math", question="What is 2+2?", answer="4")
RULE = RewardRule(soft_tokens=80, max_tokens=100)
RIGHT = r"<think>hm</think>\boxed{4}"
LONG_S = 60.0  # for a machine under load; no test waits this long when all is well


def pool_of(workers: int, timeout_s: float = LONG_S, **options) -> VerifierPool:
    return VerifierPool(RULE, VerifierConfig(workers=workers, timeout_s=timeout_s), **options)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LONG_S} s for {what}"
        time.sleep(0.02)


def state(pid: int) -> str:
    """The kernel's letter for what a process does: T is stopped, Z is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def is_alive(pid: int) -> bool:
    return state(pid) != "Z"


def freeze(pid: int) -> None:
    """Make a process hang, and return only when it does: a signal takes its time."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state(pid) == "T", "the process to stop")


def unread_bytes(pid: int) -> int:
    """What lies in the pipe to a process and has not been read by it."""
    with open(f"/proc/{pid}/fd/0", "rb", buffering=0) as pipe:
        return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]


def test_the_pool_says_what_the_judge_says():
    texts = [
        RIGHT,
        "4",
        r"<think></think>\boxed{5}",
        "\ud800" + RIGHT,
        RIGHT.replace("4", "5\ud800"),
        "",
    ]
    texts += [RIGHT.replace("4", rf"\frac{{{2 * n}}}{{n}}") for n in range(1, 100)]
    with pool_of(2, LONG_S) as pool:
        futures = [pool.submit(PROBLEM, text, n) for n, text in enumerate(texts)]
        verdicts = [future.result(LONG_S) for future in futures]
    assert verdicts == [Judge(RULE)(PROBLEM, text, n) for n, text in enumerate(texts)]


def test_a_huge_text_passes_and_a_larger_one_is_not_sent():
    with pool_of(1, LONG_S) as pool:
        # Half a pair of surrogates is twelve bytes of JSON: far more than a pipe holds.
        huge = RIGHT + "\ud800" * (TEXT_LIMIT - len(RIGHT))
        assert pool.submit(PROBLEM, huge, 1).result(LONG_S).outcome == "right"
        assert pool.submit(PROBLEM, huge + ".", 1).result(LONG_S).detail == "too long to read"
    long = Question(PROBLEM, "x" * (5 * TEXT_LIMIT), 1)
    line = question_line(long, limits_of(PROBLEM, VerifierConfig()))
    assert len(line) < 2 * TEXT_LIMIT


def child_of(server: int) -> int:
    """The process that judges for a server."""
    children = Path(f"/proc/{server}/task/{server}/children")
    until(lambda: children.read_text() != "", "the server to fork")
    return int(children.read_text().split()[0])


@pytest.mark.parametrize("text", [RIGHT, RIGHT + "x" * 900_000], ids=["short", "huge"])
def test_a_check_that_hangs_is_stopped_and_its_answer_wrong(text):
    with pool_of(1, 0.7) as pool:
        pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        hung = child_of(pool.pids[0])
        freeze(hung)
        start = time.monotonic()
        verdict = pool.submit(PROBLEM, text, 1).result(LONG_S)
        assert (verdict.outcome, verdict.reason) == ("wrong", "timeout")
        assert dict(verdict.parts) == {"format": 0.1, "correct": 0, "length": 0, "language": 0}
        assert 0.9 <= time.monotonic() - start < 20
        assert not is_alive(hung)
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"


@pytest.mark.parametrize("text", [RIGHT, RIGHT + "x" * 900_000], ids=["short", "huge"])
def test_a_server_that_hangs_is_killed_and_costs_one_completion(monkeypatch, text):
    monkeypatch.setattr(worker, "_LOADING_S", 1.0)
    told = []
    with pool_of(1, 0.1, tell=told.append) as pool:
        pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        (hung,) = pool.pids
        child = child_of(hung)
        freeze(hung)
        verdict = pool.submit(PROBLEM, text, 1).result(LONG_S)
        assert (verdict.outcome, verdict.detail) == ("error", "its process said nothing for 2.4 s")
        assert verdict.reward == 0 and set(verdict.parts.values()) == {0}
        assert not is_alive(hung)
        until(lambda: not is_alive(child), "the child to end with its server")
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
    (message,) = told
    start = f"verifier process {hung} said nothing for 2.4 s while it judged problem {PROBLEM.id!r}"
    assert message.startswith(f"{start}, and is replaced; it hangs in ")
    assert "(server.py:" in message


def test_no_check_may_say_nothing_for_longer_than_the_run_waits():
    told = []
    with pool_of(1, LONG_S, tell=told.append, most_s=1.0) as pool:
        pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        freeze(pool.pids[0])
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S / 2).reason == "error"
    assert "said nothing for 1 s" in told[0]


@pytest.mark.parametrize("victim", ["server", "child"])
def test_a_process_killed_from_outside_in_the_middle_costs_nothing(victim):
    told = []
    with pool_of(1, tell=told.append) as pool:
        pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        server = pool.pids[0]
        child = child_of(server)
        freeze(child)
        future = pool.submit(PROBLEM, RIGHT, 1)
        until(lambda: unread_bytes(child) > 0, "the question to be sent")
        os.kill(server if victim == "server" else child, signal.SIGKILL)
        assert future.result(LONG_S / 2).outcome == "right"
        until(lambda: not is_alive(child), "the child to end")
    # A child is the server's business.
    died = f"verifier process {server} died while it judged problem {PROBLEM.id!r} (by signal 9)"
    assert told == ([f"{died}, and is replaced"] if victim == "server" else [])


def test_a_process_that_died_while_idle_costs_nothing():
    told = []
    with pool_of(1, LONG_S, tell=told.append) as pool:
        pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid), "the process to die")
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
    assert len(told) == 1 and f"verifier process {pid} died" in told[0]


@pytest.fixture
def core_limit():
    """Core dumps are allowed here as far as they can be, so that forbidding them shows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_a_process_sees_no_jax_no_secret_and_no_terminal(monkeypatch, core_limit):
    monkeypatch.setenv("SOME_API_TOKEN", "hush")
    monkeypatch.setenv("PYTHONPATH", "/nowhere/else")
    monkeypatch.setenv("TMPDIR", "/nowhere/to/write")
    with pool_of(1, LONG_S) as pool:
        pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        (pid,) = pool.pids
        root = Path(f"/proc/{pid}")
        names = {entry.split(b"=")[0] for entry in (root / "environ").read_bytes().split(b"\0")}
        assert b"hush" not in (root / "environ").read_bytes()
        assert b":/nowhere/else\0" in (root / "environ").read_bytes()
        assert b"\0TMPDIR=/nowhere/to/write\0" in b"\0" + (root / "environ").read_bytes()
        allowed = {b"PATH", b"LD_LIBRARY_PATH", b"PYTHONHOME", b"PYTHONPATH", b"TMPDIR"}
        ours = {b"OPENBLAS_NUM_THREADS", b"SYMPY_GROUND_TYPES", b"MPMATH_NOGMPY", b""}
        assert names <= allowed | ours
        assert "jaxlib" not in (root / "maps").read_text()
        limits = (root / "limits").read_text()
        assert f"Max address space         {2 * 1024**3}" in limits
        assert "Max core file size        0 " in limits
        assert os.getsid(pid) == pid != os.getsid(0)


def test_ctrl_c_does_not_reach_a_process():
    with pool_of(1, LONG_S) as pool:
        pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGINT)
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
        assert pool.pids == [pid]


def test_closing_ends_every_process_and_wakes_every_waiter():
    pool = pool_of(2, LONG_S)
    wait([pool.submit(PROBLEM, RIGHT, 1) for _ in range(4)], LONG_S)
    pids = pool.pids
    for pid in pids:
        freeze(pid)
    futures = [pool.submit(PROBLEM, RIGHT, 1) for _ in range(5)]
    until(lambda: all(unread_bytes(pid) for pid in pids), "the questions to be sent")
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < LONG_S / 2
    assert not any(is_alive(pid) for pid in pids) and pool.pids == []
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(1)
    pool.close()  # twice does no harm


def run_instead(monkeypatch, program: str) -> None:
    monkeypatch.setattr(worker, "_COMMAND", (sys.executable, "-c", program))


SERVE = "from magistral_jax.verifier import server\nserver.main()"


def test_starting_takes_nothing_from_the_time_of_a_check(monkeypatch):
    run_instead(monkeypatch, f"import time\ntime.sleep(2.5)\n{SERVE}")
    with pool_of(1, 2.0) as pool:
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"


@pytest.mark.parametrize(
    "program", ["raise SystemExit(3)", "print('hello')", "import time; time.sleep(99)"]
)
def test_a_process_that_never_starts_fails_every_future(monkeypatch, program):
    monkeypatch.setattr(worker, "_START_S", 0.5)
    run_instead(monkeypatch, program)
    with pool_of(2, LONG_S) as pool:
        futures = [pool.submit(PROBLEM, RIGHT, 1) for _ in range(6)]
        for future in futures:
            with pytest.raises(RuntimeError, match="failed to start 3 times in a row"):
                future.result(LONG_S)


def test_a_process_that_fails_to_start_once_is_started_again(monkeypatch, tmp_path):
    mark = tmp_path / "tried"
    once = f"import pathlib, sys\nmark = pathlib.Path({str(mark)!r})\n"
    once += "if not mark.exists(): mark.touch(); sys.exit(1)\n"
    run_instead(monkeypatch, once + SERVE)
    with pool_of(1, LONG_S) as pool:
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
    assert mark.exists()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("'x' * 10**8", "its process died 3 times"),
        ("'nonsense\\n'", "its process answered nonsense"),
        ("'{}\\n'", "its process answered nonsense"),
        ("'\\n\\n'", "its process answered nonsense"),
    ],
)
def test_a_process_that_babbles_is_replaced(monkeypatch, reply, reason):
    babble = "import sys\nprint('ready', flush=True)\n"
    run_instead(monkeypatch, babble + f"for _ in sys.stdin: print({reply}, end='', flush=True)")
    with pool_of(1, LONG_S) as pool:
        pids = set()
        for _ in range(2):
            verdict = pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
            assert (verdict.outcome, verdict.detail) == ("error", reason)
            pids |= set(pool.pids)
        assert len(pids) == 2


def test_a_process_that_stops_listening_is_replaced(monkeypatch):
    run_instead(
        monkeypatch, "import os, time\nos.close(0)\nprint('ready', flush=True)\ntime.sleep(99)"
    )
    with pool_of(1, LONG_S) as pool:
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).detail == "its process died 3 times"


def test_a_command_that_does_not_exist_is_told_at_once(monkeypatch):
    monkeypatch.setattr(worker, "_COMMAND", ("/nonexistent/python",))
    with pytest.raises(RuntimeError, match="could not be started"):
        pool_of(1, 1.0)


def test_what_a_check_lacks_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "lid.176.ftz"
    config = VerifierConfig(language_model=str(path))
    with pytest.raises(UserError, match=r"verifier\.language_model is .*no such file"):
        VerifierPool(RULE, config)
    path.write_bytes(b"another model")
    with VerifierPool(RULE, config) as pool:
        verdict = pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        assert verdict.outcome == "error" and str(path) in verdict.detail


def test_the_classifier_may_lie_elsewhere(tmp_path):
    from magistral_jax.verifier import language

    path = tmp_path / "lid.176.ftz"
    path.write_bytes(language._carried().read_bytes())
    with VerifierPool(RULE, VerifierConfig(language_model=str(path))) as pool:
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
