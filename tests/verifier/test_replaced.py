"""Processes that die, hang or talk nonsense: each is told once, with where it hung, and counted."""

import os
import signal
import time
from pathlib import Path

import pytest

from magistral_jax.types import CodeTests, Problem
from magistral_jax.verifier import worker

from .processes import (
    LONG_S,
    PROBLEM,
    RIGHT,
    SERVE,
    child_of,
    freeze,
    is_alive,
    pool_of,
    run_instead,
    unread_bytes,
    until,
)

AT = f"while it judged problem {PROBLEM.id!r}"


@pytest.fixture
def told() -> list[str]:
    return []


def lines_of(message: str) -> tuple[str, str]:
    """What a message says, and the stacks below."""
    line, _, below = message.partition("\n")
    return line, below


@pytest.mark.parametrize("text", [RIGHT, RIGHT + "x" * 900_000], ids=["short", "huge"])
def test_a_stopped_server_is_told_and_costs_one_completion(monkeypatch, told, text):
    monkeypatch.setattr(worker, "_LOADING_S", 1.0)
    monkeypatch.setattr(worker, "_PATIENCE", 1)
    with pool_of(1, 1.0, tell=told.append) as pool:
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
        (hung,) = pool.pids
        child = child_of(hung)
        freeze(hung)
        verdict = pool.submit(PROBLEM, text, 1).result(LONG_S)
        assert (verdict.outcome, verdict.detail) == ("error", "its process said nothing for 2.4 s")
        assert verdict.reward == 0 and set(verdict.parts.values()) == {0}
        assert not is_alive(hung)
        until(lambda: not is_alive(child), "the child to end with its server")
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
        assert pool.replaced == 1
    line, below = lines_of(*told)
    start = f"verifier process {hung} said nothing for 2.4 s {AT}, and is replaced; it (stopped"
    assert line.startswith(start) and ") hangs in " in line
    assert f"; its judge {child} (sleeping" in line and "in _serve (server.py:" in line
    assert below.count("most recent call first") == 2


HANGS = {
    "server": "def stuck(self, line):\n    time.sleep(99)\nserver.Server.judge = stuck",
    # The clock that ends a check does not move.
    "judge": "server._Clock.left = lambda self: 0.5\n"
    "def stuck(*a, **k):\n    time.sleep(99)\nJudge.__call__ = stuck",
}
HEAD = (
    "import time\nfrom magistral_jax.verifier import server\n"
    "from magistral_jax.verifier.reward import Judge\n"
)


@pytest.mark.parametrize("who", HANGS)
def test_what_hangs_is_named_before_the_run_gives_up(monkeypatch, told, who):
    run_instead(monkeypatch, f"{HEAD}{HANGS[who]}\nserver.main()")
    with pool_of(1, LONG_S, tell=told.append, most_s=4.0) as pool:
        pool._children[0].make_ready()  # starting is on nobody's clock
        began = time.monotonic()
        verdict = pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        assert 2.0 <= time.monotonic() - began < 4.0
        assert (verdict.reason, verdict.detail) == ("error", "its process said nothing for 2 s")
        assert pool.replaced == 1
    line, below = lines_of(*told)
    hanging = [part for part in line.split("; ") if "hangs in stuck (<string>:" in part]
    assert [part.startswith("it (") for part in hanging] == [who == "server"]
    assert hanging[0].startswith("it (sleeping" if who == "server" else "its judge ")
    assert " in stuck\n" in below
    assert below.count(" in <module>") == (1 if who == "server" else 2)


def test_one_that_cannot_say_where_it_hangs_is_told_as_such(monkeypatch, told):
    deaf = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])"
    hang = HANGS["server"].replace("time.sleep", f"{deaf}; time.sleep")
    run_instead(monkeypatch, f"import signal\n{HEAD}{hang}\nserver.main()")
    with pool_of(1, LONG_S, tell=told.append, most_s=3.0) as pool:
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).reason == "error"
    line, below = lines_of(*told)
    assert "; it (sleeping" in line and ") cannot be asked where it hangs" in line
    assert below == ""


def test_deaths_in_a_row_do_not_add_up_to_more_than_the_run_waits(monkeypatch, told):
    die_late = "def die(self, line):\n    time.sleep(0.8)\n    raise SystemExit(3)\n"
    run_instead(monkeypatch, f"{HEAD}{die_late}server.Server.judge = die\nserver.main()")
    with pool_of(1, LONG_S, tell=told.append, most_s=2.5) as pool:
        verdict = pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
    # Half of it is for questions.
    assert "died" in told[0] and "(exit code 3)" in told[0]
    assert verdict.detail.startswith(("its process said nothing for 0.", "its process died 2"))
    assert len(told) == 2


@pytest.mark.parametrize("victim", ["server", "child"])
def test_a_process_killed_from_outside_in_the_middle_costs_nothing(told, victim):
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
        assert pool.replaced == len(told)
    # A child is the server's business.
    died = f"verifier process {server} died {AT} (by signal 9), and is replaced"
    assert told == ([died] if victim == "server" else [])


def test_a_process_that_died_while_idle_costs_nothing(told):
    with pool_of(1, tell=told.append) as pool:
        for _ in range(3):
            pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
            (pid,) = pool.pids
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not is_alive(pid), "the process to die")
            assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
            died = f"verifier process {pid} died between two questions (by signal 9)"
            assert told.pop() == f"{died}, and is replaced"
        assert pool.replaced == 3
    assert told == []


@pytest.mark.parametrize(
    ("reply", "reason", "said"),
    [
        ("'x' * 10**8", "its process died 3 times", f"died {AT}"),
        ("'nonsense\\n'", "its process answered nonsense", f"answered nonsense {AT}"),
        ("'{}\\n'", "its process answered nonsense", f"answered nonsense {AT}"),
        ("'\\n\\n'", "its process answered nonsense", f"answered nonsense {AT}"),
    ],
)
def test_a_process_that_babbles_is_replaced(monkeypatch, told, reply, reason, said):
    babble = "import sys\nprint('ready', flush=True)\n"
    run_instead(monkeypatch, babble + f"for _ in sys.stdin: print({reply}, end='', flush=True)")
    with pool_of(1, tell=told.append) as pool:
        pids = set()
        for _ in range(2):
            verdict = pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
            assert (verdict.outcome, verdict.detail) == ("error", reason)
            pids |= set(pool.pids)
        assert len(pids) == 2
        assert pool.replaced == len(told) == (6 if "died" in reason else 2)
    assert all(said in message for message in told)


TALKS_ON = """import sys, time
from magistral_jax.verifier.reward import without_reward
from magistral_jax.verifier.wire import verdict_line
print("ready", flush=True)
for _ in sys.stdin:
    for words in (verdict_line(without_reward("error", "so it is")), b"and more\\n"):
        sys.stdout.buffer.write(words)
        sys.stdout.flush()
        time.sleep(0.3)
"""


def test_a_process_that_speaks_unasked_is_replaced(monkeypatch, told):
    run_instead(monkeypatch, TALKS_ON)
    with pool_of(1, tell=told.append) as pool:
        (pid,) = pool.pids
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).detail == "so it is"
        until(pool._children[0]._has_spoken, "more words")
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).detail == "so it is"
    assert told == [f"verifier process {pid} spoke unasked, and is replaced"]


@pytest.mark.parametrize(
    "program", ["print('hello')", "import os, signal; os.close(1); signal.pause()"]
)
def test_each_failed_start_is_told(monkeypatch, told, program):
    run_instead(monkeypatch, program)
    with pool_of(1, tell=told.append) as pool:
        with pytest.raises(RuntimeError, match="failed to start 3 times in a row"):
            pool.submit(PROBLEM, RIGHT, 1).result(LONG_S)
        assert pool.replaced == len(told) == 3
    assert all(" failed to start" in message for message in told)


def test_a_process_that_fails_to_start_once_is_started_again(monkeypatch, told, tmp_path):
    mark = tmp_path / "tried"
    once = f"import pathlib, sys\nmark = pathlib.Path({str(mark)!r})\n"
    once += "if not mark.exists(): mark.touch(); sys.exit(5)\n"
    run_instead(monkeypatch, once + SERVE)
    with pool_of(1, tell=told.append) as pool:
        (pid,) = pool.pids
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
    assert told == [f"verifier process {pid} failed to start (exit code 5), and is replaced"]


def test_nothing_is_told_of_checks_that_are_stopped_nor_of_a_pool_that_is_closed(told):
    with pool_of(1, 2.0, tell=told.append) as pool:
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).outcome == "right"
        freeze(child_of(pool.pids[0]))
        assert pool.submit(PROBLEM, RIGHT, 1).result(LONG_S).reason == "timeout"
        freeze(pool.pids[0])
        for _ in range(3):  # one is being judged when the pool is closed, the others are not yet
            pool.submit(PROBLEM, RIGHT, 1)
        until(lambda: unread_bytes(pool.pids[0]) > 0, "the question to be sent")
    assert told == [] and pool.replaced == 0


COUNT = """import os
def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
print(sum(map(is_open, range(3, 500))))"""


def test_no_program_gets_hold_of_the_file_of_stacks():
    tests = CodeTests(stdio=(("", "0\n"),))
    problem = Problem(id="c", domain="code", question="?", answer="", tests=tests)
    with pool_of(1) as pool:
        text = f"<think></think>\n```python\n{COUNT}\n```"
        assert pool.submit(problem, text, 1).result(LONG_S).reason == "pass"
        stacks = os.fstat(pool._children[0]._stacks.fileno())
        server = pool.pids[0]
        judge = child_of(server)
        launcher = child_of(judge)
        flags = [flags_of(pid, stacks) for pid in (server, judge, launcher)]
    # Not even by a grader of the user's that starts a program by os.system.
    assert [flag is not None and flag & os.O_CLOEXEC != 0 for flag in flags] == [True, True, False]
    assert flags[2] is None


def flags_of(pid: int, file: os.stat_result) -> int | None:
    """The flags under which a process holds a file open, if it does."""
    for one in Path(f"/proc/{pid}/fd").iterdir():
        if os.path.samestat(one.stat(), file):
            flags = Path(f"/proc/{pid}/fdinfo/{one.name}").read_text().split("flags:")[1]
            return int(flags.split()[0], 8)
    return None
