import os
import resource
import signal
import time
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import UserError
from magistral_jax.verifier import worker
from magistral_jax.verifier.reward import TEXT_LIMIT, Judge
from magistral_jax.verifier.wire import Question, limits_of, question_line
from magistral_jax.verifier.worker import VerifierPool

from .processes import (
    LONG_S,
    PROBLEM,
    RIGHT,
    RULE,
    SERVE,
    child_of,
    freeze,
    is_alive,
    pool_of,
    run_instead,
    unread_bytes,
    until,
)


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
