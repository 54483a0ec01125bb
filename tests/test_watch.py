"""Who hangs is named, who was told to stop stops: mostly in processes of their own, which end."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from magistral_jax.watch import NOTICE, STACKS, Stop, dump_stacks, innermost

PLAY = """
import ctypes, sys, threading, time
from pathlib import Path
from magistral_jax.ledger import GENERATOR, TRAINER, Activity, Ledger
from magistral_jax.watch import Stop, Watch

folder = Path(sys.argv[1])
ledger, stop, others = Ledger({GENERATOR: 1.0, TRAINER: 1.0}), Stop(), []

def hang_here():
    time.sleep(60)

def watch(**more):
    options = {"stall_s": 0.8, "grace_s": 0.8, "others": lambda: others}
    options |= {"on_exit": lambda: print("closed", flush=True), **more}
    return Watch(ledger, stop, folder, **options)
"""

HANG_IN_A_THREAD = """
def generate():
    with ledger.doing(GENERATOR, "decode", "a decode step"):
        hang_here()

threading.Thread(target=generate, name="generator", daemon=True).start()
with watch(), ledger.doing(TRAINER, "wait_batch", "a batch"):
    time.sleep(60)
"""
NOTHING_MOVES = """
with watch(), ledger.doing(TRAINER, "wait_batch", "a batch"):
    hang_here()
"""
ANOTHER_S_HANG = """
with watch():
    others.append(Activity("verifier", "replacing a process", 4.0, False, 0))
    others.append(Activity("checkpoint writer", "step 7", 5.0, False, threading.get_ident()))
    others.append(Activity("verifier", "another", 3.0, False, 0))
    while True:
        with ledger.doing(TRAINER, "trained"):
            time.sleep(0.01)
"""
STOP_NOT_HONOURED = """
with watch(stall_s=60.0):
    stop.request("SIGTERM")
    with ledger.doing(TRAINER, "trained", "update 3"):
        hang_here()
"""
STOP_BY_A_FILE = """
with watch():
    (folder / "stop").touch()
    while not stop:
        ledger.beat(TRAINER)
        time.sleep(0.01)
print(stop.reason, (folder / "stop").exists())
"""
BUSY_AND_WELL = """
with watch(), ledger.doing(TRAINER, "warmup", "the warm-up"):
    for _ in range(30):
        time.sleep(0.1)
        ledger.beat(TRAINER)
print("well")
"""
A_WAIT_WITH_A_DEADLINE = """
with watch(), ledger.doing(TRAINER, "wait_batch", "a batch"):
    time.sleep(1.8)
    print("it says itself what it waited for")
"""
# Each of them shorter than the deadline, their sum twice as long.
MANY_COMPILATIONS = """
import jax, magistral_jax.build

def twice(x):
    time.sleep(0.6)  # tracing is a part of it
    return x * 2

with watch(stall_s=1.5):
    for size in range(1, 6):
        jax.jit(twice)(jax.numpy.ones(size))
print("well")
"""
A_COMPILATION_THAT_HANGS = """
import jax, magistral_jax.build

def hang(x):
    hang_here()

with watch():
    jax.jit(lambda x: x * 2)(jax.numpy.ones(3))
    jax.jit(hang)(jax.numpy.ones(3))
"""
CANNOT_CLOSE = """
def fail():
    raise RuntimeError("cannot close")

with watch(on_exit=fail), ledger.doing(TRAINER, "trained", "update 3"):
    hang_here()
"""
TICKS = """
ticks = []
with watch(on_tick=lambda: ticks.append(time.monotonic())):
    time.sleep(0.75)
print(len(ticks))
"""
HOLDS_THE_INTERPRETER = """
import magistral_jax.watch as module
module._SLACK_S = 0.05
with watch():
    time.sleep(0.3)
    ctypes.PyDLL(None).usleep(20_000_000)
"""


LONG_AFTERWARDS = """
import magistral_jax.watch as module
module._SLACK_S = 0.01
with watch():
    time.sleep(0.3)
time.sleep(1.5)
print("alive")
"""


def play(code, folder):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PLAY + code, str(folder)], capture_output=True, text=True, timeout=60
    )
    return done, time.monotonic() - began


def test_a_thread_that_hangs_is_named_with_its_stack(tmp_path):
    done, took = play(HANG_IN_A_THREAD, tmp_path)
    assert (done.returncode, done.stdout) == (70, "closed\n"), done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith("magistral-jax: stalled: generator is at a decode step for 0.")
    assert "stall_s is 0.8" in first
    assert any(line.startswith("  trainer waits for a batch for ") for line in rest)
    assert any("generator is in hang_here (<string>:" in line for line in rest)
    assert "--resume" in rest[-1]
    stacks = (tmp_path / STACKS).read_text()
    assert "-- generator" in stacks and "-- MainThread" in stacks and "in hang_here" in stacks
    assert took < 5


def test_a_run_in_which_nothing_moves_is_ended_though_all_only_wait(tmp_path):
    done, took = play(NOTHING_MOVES, tmp_path)
    assert done.returncode == 70
    assert "nothing has moved for" in done.stderr and "hang_here (<string>:" in done.stderr
    assert took < 12


def test_what_hangs_beside_a_run_that_goes_on_is_found(tmp_path):
    done, _ = play(ANOTHER_S_HANG, tmp_path)
    assert done.returncode == 70
    assert "stalled: checkpoint writer is at step 7 for 5 s" in done.stderr
    assert "verifier is at another for 3 s" in done.stderr
    assert "checkpoint writer is in <module>" in done.stderr


def test_a_stop_that_takes_too_long_ends_the_run_all_the_same(tmp_path):
    done, took = play(STOP_NOT_HONOURED, tmp_path)
    assert (done.returncode, done.stdout) == (75, "closed\n")
    assert "SIGTERM came 0.8 s ago (grace_s)" in done.stderr
    assert "trainer is at update 3" in done.stderr and "--resume" in done.stderr
    assert "in hang_here" in (tmp_path / STACKS).read_text()
    assert took < 5


def test_who_hangs_is_ended_though_nobody_reads_what_is_said(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PLAY + HANG_IN_A_THREAD, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with process:
        process.stderr.close()
        assert process.wait(15) == 70
    assert "in hang_here" in (tmp_path / STACKS).read_text()


def test_a_file_named_stop_is_a_wish_to_stop(tmp_path):
    done, _ = play(STOP_BY_A_FILE, tmp_path)
    assert (done.returncode, done.stdout) == (0, f"the file {NOTICE} False\n"), done.stderr
    assert not (tmp_path / STACKS).exists(), "an empty file was left"


def test_who_is_long_at_one_thing_but_comes_forward_is_left_alone(tmp_path):
    done, _ = play(BUSY_AND_WELL, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


def test_a_start_that_compiles_one_program_after_another_is_no_stall(tmp_path):
    code = "import magistral_jax.watch as module\nmodule._SLACK_S = 0.0\n" + MANY_COMPILATIONS
    done, _ = play(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


def test_a_program_whose_compilation_hangs_is_found(tmp_path):
    code = "import magistral_jax.watch as module\nmodule._SLACK_S = 0.0\n"
    done, _ = play(code + A_COMPILATION_THAT_HANGS, tmp_path)
    assert done.returncode == 70, done.stderr
    assert "nothing has moved for" in done.stderr and "hang_here (<string>:" in done.stderr


def test_a_wait_that_has_a_deadline_of_its_own_may_speak_first(tmp_path):
    done, _ = play(A_WAIT_WITH_A_DEADLINE, tmp_path)
    assert (done.returncode, done.stdout) == (0, "it says itself what it waited for\n"), done.stderr


def test_a_run_that_cannot_be_closed_is_ended_all_the_same(tmp_path):
    done, took = play(CANNOT_CLOSE, tmp_path)
    assert done.returncode == 70 and took < 10
    assert "trainer is at update 3" in done.stderr


def test_others_are_called_at_each_look(tmp_path):
    done, _ = play(TICKS, tmp_path)
    assert 3 <= int(done.stdout) <= 7, done.stderr


def test_who_holds_the_interpreter_is_ended_by_the_c_library(tmp_path):
    done, took = play(HOLDS_THE_INTERPRETER, tmp_path)
    assert done.returncode == 1 and took < 10
    assert "Timeout" in (tmp_path / STACKS).read_text()


def test_a_watch_that_is_over_ends_nobody(tmp_path):
    done, _ = play(LONG_AFTERWARDS, tmp_path)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_file_left_by_the_run_before_stops_nobody(tmp_path):
    (tmp_path / NOTICE).touch()
    done, _ = play("with watch():\n    time.sleep(0.5)\nprint(bool(stop))", tmp_path)
    assert done.stdout == "False\n"


def test_a_wish_to_stop_comes_once_and_reaches_who_listens_late():
    stop, heard = Stop(), []
    with stop.told_to(lambda: heard.append("over")):
        pass
    with stop.told_to(lambda: heard.append("early")):
        assert not stop
        stop.request("SIGTERM")
        stop.request("SIGINT")
    with stop.told_to(lambda: heard.append("late")):
        pass
    assert stop and stop.reason == "SIGTERM" and heard == ["early", "late"]


def test_who_has_listened_is_let_go():
    """A stage's loop holds the caches of its sequences: they go with the stage."""

    class Loop:
        def stop(self):
            pass

    stop, loop = Stop(), Loop()
    kept = weakref.ref(loop)
    with stop.told_to(loop.stop):
        pass
    del loop
    assert kept() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_wish_and_a_second_ctrl_c_an_order(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with stop.on_signals():
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_signals_are_the_main_threads():
    """A run that somebody plays in another thread leaves them to whoever has it."""
    before, stop, passed = signal.getsignal(signal.SIGTERM), Stop(), []

    def play_here():
        with stop.on_signals():
            passed.append(signal.getsignal(signal.SIGTERM) == before)

    thread = threading.Thread(target=play_here)
    thread.start()
    thread.join()
    assert passed == [True]


def test_stacks_name_threads_and_where_they_are(tmp_path):
    go_on = threading.Event()

    def wait_for_the_test():
        go_on.wait(10)

    thread = threading.Thread(target=wait_for_the_test, name="the waiter")
    thread.start()
    for _ in range(2):
        path = dump_stacks(tmp_path)
    place = innermost(thread.ident)
    go_on.set()
    thread.join()
    assert path.read_text().count("-- the waiter") == 2
    assert "wait_for_the_test (test_watch.py:" in place
    assert innermost(thread.ident) == ""
