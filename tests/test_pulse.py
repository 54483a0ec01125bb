"""What a run last wrote of itself is there when it is gone, whatever ended it."""

import subprocess
import sys

from magistral_jax.pulse import NAME, Pulse, read_pulse

DYING = """
import os, signal, sys
from pathlib import Path
from magistral_jax.pulse import Pulse
pulse = Pulse(Path(sys.argv[1]))
pulse.write(step=3, tokens=2**40 + 1, device_s=1.5, saving=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_its_numbers(tmp_path):
    assert subprocess.run([sys.executable, "-c", DYING, str(tmp_path)]).returncode == -9
    found = read_pulse(tmp_path)
    assert (found.step, found.tokens, found.device_s) == (3, 2**40 + 1, 1.5)
    assert (found.saving, found.pushing) == (True, False)
    assert found.beat > 0


def test_a_new_run_begins_with_nothing(tmp_path):
    Pulse(tmp_path).write(step=9)
    Pulse(tmp_path)
    assert read_pulse(tmp_path).step == 0


def test_where_there_is_none_there_is_none(tmp_path):
    assert read_pulse(tmp_path) is None
    (tmp_path / NAME).write_bytes(b"no pulse")
    assert read_pulse(tmp_path) is None
