"""A process is seen from outside as it is, and ends where it is meant to."""

import random
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from magistral_jax.tools.victim import Victim, flip_a_bit, numbers, sealed

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

# A run that does what the test writes to its folder: one word after the other.
PLAY = """
import subprocess, sys, time
from pathlib import Path
from magistral_jax.pulse import Pulse

folder = Path(sys.argv[1])
pulse = Pulse(folder)
pulse.write(step=3, tokens=10)
(folder / "up").touch()
workers = []
while True:
    word = folder / "word"
    if not word.exists():
        pulse.write(device_s=time.monotonic())
        time.sleep(0.002)
        continue
    name, _, value = word.read_text().partition(" ")
    if name == "end":
        sys.exit(int(value))
    if name == "worker":
        command = [sys.executable, "-c", "import time; time.sleep(60)", value]
        workers.append(subprocess.Popen(command))
    else:
        pulse.write(**{name: float(value)})
    word.unlink()
"""


@pytest.fixture
def begin(tmp_path):
    started = []

    def start():
        command = [sys.executable, "-c", PLAY, str(tmp_path)]
        (tmp_path / "up").unlink(missing_ok=True)
        victim = Victim(command, tmp_path, tmp_path / "log", {"PYTHONPATH": ":".join(sys.path)})
        started.append(victim)
        return victim

    yield start
    for victim in started:
        victim.kill()


def tell(victim, word):
    draft = victim.folder / "draft"
    draft.write_text(word)
    draft.rename(victim.folder / "word")
    assert victim.wait(lambda: not (victim.folder / "word").exists()) or word.startswith("end")


def is_up(victim):
    return (victim.folder / "up").exists()


def checkpoint(folder, number, *, is_whole):
    inside = folder / "checkpoints" / str(number)
    inside.mkdir(parents=True)
    (inside / "data").write_bytes(bytes(range(200)))
    if is_whole:
        (inside / "seal").write_text("whole")


def test_what_the_process_before_said_is_not_believed(begin, tmp_path):
    first = begin()
    assert first.wait(lambda: is_up(first))
    tell(first, "pushing 1")
    assert first.is_pushing
    first.kill()
    second = begin()
    assert not is_up(second)
    assert second.look() is None
    assert not second.is_pushing
    assert second.wait(lambda: is_up(second))
    reading = second.look()
    assert reading is not None
    assert (reading.step, reading.pushing) == (3, False)


def test_it_decodes_once_it_has_more_tokens_than_it_began_with(begin):
    victim = begin()
    assert victim.wait(lambda: victim.look() is not None)
    tell(victim, "step 4")
    victim.look()
    assert victim.decoding_since is None
    before = monotonic()
    tell(victim, "tokens 11")
    victim.look()
    assert victim.decoding_since is not None
    assert before <= victim.decoding_since <= monotonic()


def test_only_an_unsealed_checkpoint_of_its_own_is_being_saved(begin, tmp_path):
    checkpoint(tmp_path, 3, is_whole=True)
    checkpoint(tmp_path, 4, is_whole=False)
    victim = begin()
    assert victim.is_resumed
    assert not victim.is_saving, "that is the one before's"
    checkpoint(tmp_path, 10, is_whole=False)
    assert victim.is_saving
    assert numbers(tmp_path) == [3, 4, 10]
    (tmp_path / "checkpoints" / "10" / "seal").touch()
    assert not victim.is_saving
    (tmp_path / "checkpoints" / "3" / "seal").unlink()
    assert not victim.is_saving, "that one is being deleted"
    assert sealed(tmp_path) == [10]


def test_a_frozen_process_does_nothing_until_it_is_thawed(begin):
    victim = begin()
    assert victim.wait(lambda: is_up(victim))
    assert victim.freeze()
    beat = victim.look().beat
    sleep(0.05)
    assert victim.look().beat == beat
    victim.thaw()
    assert victim.wait(lambda: victim.look().beat > beat)
    victim.freeze()
    assert victim.kill(), "a frozen process can be killed"


def test_who_ended_by_itself_was_not_killed(begin):
    victim = begin()
    assert victim.wait(lambda: is_up(victim))
    tell(victim, "end 7")
    assert not victim.wait(lambda: False)
    assert victim.code == 7
    assert not victim.freeze()
    assert not victim.kill()


def test_one_of_its_verifiers_is_killed_and_nobody_elses(begin):
    victim = begin()
    assert victim.wait(lambda: is_up(victim))
    tell(victim, "worker something-else")
    chance = random.Random(0)
    strangers = [sys.executable, "-c", "import time; time.sleep(60)"]
    stranger = subprocess.Popen([*strangers, "magistral_jax.verifier.server"])
    try:
        assert not victim.kill_worker(chance)
        tell(victim, "worker magistral_jax.verifier.server")
        assert victim.wait(lambda: victim.kill_worker(chance))
        # The one killed is a zombie without a command line until its parent asks for it.
        sleep(0.05)
        assert not victim.kill_worker(chance)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_bit_of_one_file_is_flipped(tmp_path):
    checkpoint(tmp_path, 1, is_whole=True)
    (tmp_path / "checkpoints" / "1" / "empty").touch()
    inside = tmp_path / "checkpoints" / "1"
    chance, hit = random.Random(0), set()
    for _ in range(20):
        before = {path: path.read_bytes() for path in inside.iterdir()}
        path = flip_a_bit(inside, chance)
        hit.add(path.name)
        changed = {p: p.read_bytes() for p in inside.iterdir() if p.read_bytes() != before[p]}
        assert list(changed) == [path]
        pairs = zip(before[path], changed[path], strict=True)
        assert sum((a ^ b).bit_count() for a, b in pairs) == 1
    assert hit == {"data", "seal"}
