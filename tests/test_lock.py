"""One process at a time in a run folder: who lives is told, who is gone is replaced by just one."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from magistral_jax import lock
from magistral_jax.__main__ import main
from magistral_jax.lock import locked
from magistral_jax.types import UserError

REPO = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from pathlib import Path
from magistral_jax import lock
lock.BEAT_S = 0.05
with lock.locked(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that is in the folder; none outlives the test."""
    started = []

    def start(folder=tmp_path, seconds=60.0):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), str(seconds)],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "in\n", process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def owner_of(folder):
    """The newest lock file, and what it says."""
    path = max(folder.glob("lock.*"), key=lambda path: int(path.suffix[1:]))
    return path, json.loads(path.read_text())


def from_elsewhere(folder, **changes):
    """As if the newest lock file had been written on another host."""
    path, said = owner_of(folder)
    path.write_text(json.dumps({**said, "host": "elsewhere", **changes}))
    return path


def test_a_second_process_is_told_who_is_there(tmp_path, holder):
    process = holder()
    with pytest.raises(UserError) as refused, locked(tmp_path):
        pass
    message = str(refused.value)
    assert (
        f"{tmp_path} is in use by process {process.pid} on host {socket.gethostname()}" in message
    )
    assert "--run-dir" in message and "\n" not in message
    assert process.poll() is None


@pytest.mark.parametrize("command", ["train", "sft"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_command_is_refused_in_one_line_with_code_2(
    tmp_path, holder, capsys, monkeypatch, command, resume
):
    monkeypatch.chdir(tmp_path)
    text = (
        "model.shape = {layers = 1, width = 16, heads = 1, kv_heads = 1, head_dim = 16, ffn = 16}"
    )
    Path("c.toml").write_text(
        f"{text}\neval.problems = 0\nsft.path = 'traces.jsonl'\n[data]\ndigits = 1\n"
    )
    turns = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    Path("traces.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    process = holder(tmp_path / "run")
    Path("run/config.toml").touch()
    arguments = [command, "c.toml", "--run-dir", "run"] + ["--resume"] * resume
    before = sorted(Path("run").iterdir())
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run is in use by process {process.pid} on host" in line
    assert sorted(Path("run").iterdir()) == before, "who was refused wrote something"


def test_one_let_go_or_killed_is_free_at_once(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 1000.0)
    holder(seconds=0.0).wait()
    with locked(tmp_path):
        pass
    # Not waited for by anybody: what is left of the process is in the list of processes still.
    process = holder()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with locked(tmp_path):
        assert owner_of(tmp_path)[1]["pid"] == os.getpid()
    assert len(list(tmp_path.iterdir())) == 1, "old files are left"


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path, holder):
    process = holder()
    path, said = owner_of(tmp_path)
    process.kill()
    process.wait()
    started = lock._started(1)
    path.write_text(json.dumps({**said, "pid": 1, "started": f"{started}0"}))
    with locked(tmp_path):
        pass
    from_elsewhere(tmp_path, host=said["host"], pid=1, started=started, is_gone=False)
    with pytest.raises(UserError, match="process 1 on host"), locked(tmp_path):
        pass


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"realm": "another boot"}])
def test_an_owner_elsewhere_lives_as_long_as_it_touches_its_file(
    tmp_path, holder, monkeypatch, changes
):
    """Whatever the clocks of the two hosts say: its times here lie in 1970."""
    monkeypatch.setattr(lock, "SILENCE_S", 0.6)
    holder(seconds=0.0).wait()
    path = from_elsewhere(tmp_path, is_gone=False, **changes)
    over = threading.Event()

    def beat():
        at = 0
        while not over.wait(0.05):
            at += 1
            os.utime(path, (at, at))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match="is in use by process"), locked(tmp_path):
        pass
    over.set()
    thread.join()
    with locked(tmp_path):
        assert owner_of(tmp_path)[1]["host"] == socket.gethostname()


def test_an_owner_elsewhere_that_lets_go_while_we_look_is_gone(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 20.0)
    holder(seconds=0.0).wait()
    path = from_elsewhere(tmp_path, is_gone=False)
    said = json.loads(path.read_text())
    timer = threading.Timer(0.3, lambda: lock._write(path, lock.Owner(**{**said, "is_gone": True})))
    timer.start()
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began < 10


def test_who_was_taken_for_gone_ends_as_soon_as_it_moves_again(tmp_path, holder):
    process = holder()
    path, said = owner_of(tmp_path)
    (tmp_path / "lock.99").write_text(json.dumps(said))
    assert process.wait(20) == 1
    assert "was taken over by another process" in process.stderr.read()
    assert not path.with_name("lock.100").exists()


def test_a_lock_that_was_torn_is_taken_over_and_one_without_links_works(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 0.2)
    (tmp_path / "lock.3").write_text("{")

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with locked(tmp_path):
        assert owner_of(tmp_path)[0].name == "lock.4"
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock.4"]


def test_one_that_was_slow_to_look_takes_nothing(tmp_path, holder, monkeypatch):
    """It saw a lock that was let go; since then others came, deleted it, and one is there."""
    for _ in range(3):
        holder(seconds=0.0).wait()
    process, honest = holder(), lock._numbers
    looks = iter([[1]])
    monkeypatch.setattr(lock, "_numbers", lambda folder: next(looks, None) or honest(folder))
    with pytest.raises(UserError, match=f"process {process.pid}"), locked(tmp_path):
        pass
    assert honest(tmp_path) == [3]


def race(folder, rounds, barrier, wins, me):
    """Take over each round's folder at the same moment as the others."""
    for number in range(rounds):
        barrier.wait(60)
        try:
            with locked(folder / str(number)):
                wins[me] += 1
                barrier.wait(60)
        except UserError:
            barrier.wait(60)


def test_of_many_that_race_for_a_stale_lock_exactly_one_wins(tmp_path, holder):
    process = holder(tmp_path / "0")
    process.kill()
    process.wait()
    rounds, racers = 40, 4
    for number in range(1, rounds):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(racers), context.Array("i", racers)
    processes = [
        context.Process(target=race, args=(tmp_path, rounds, barrier, wins, me))
        for me in range(racers)
    ]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
    assert [one.exitcode for one in processes] == [0] * racers
    assert sum(wins) == rounds
