"""No answer that knows nothing of its problem earns the reward."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from magistral_jax.verifier.math.equal import math_equal

HERE = Path(__file__).parent
PAIRS = 60_000


def searched(*arguments):
    """What a search prints. In a process of its own: here every call has its types checked."""
    command = [sys.executable, HERE / "search.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_attacks_written_from_the_outside_earn_nothing():
    said = re.match(
        r"(\d+) attacks of (\d+) kinds", searched("--attacks", HERE / "constants.jsonl")
    )
    assert said and int(said[1]) >= 6000 and int(said[2]) >= 30


def test_no_random_answer_equals_two_references_that_differ(capsys):
    said = searched("--pairs", PAIRS, "--seed", 20261201)
    with capsys.disabled():
        print("", said.strip(), end=" ")
    counts = re.match(r"(\d+) pairs.*: (\d+) answers equal one reference, 0 equal two", said)
    assert counts and int(counts[1]) >= PAIRS and int(counts[2]) > 0  # some do equal one


def test_no_two_of_the_searched_references_are_the_same():
    golds = runpy.run_path(str(HERE / "search.py"))["GOLDS"]
    same = [(a, b) for a in golds for b in golds if a != b and math_equal(a, b)]
    assert len(golds) >= 14 and same == []
