"""A hang planted in each part of a real run is named within the deadline, with its stack."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
STALL_S = 5.0
CONFIG = f"""
name = "hangs"
stall_s = {STALL_S}
model.shape = {{layers = 1, width = 32, heads = 2, kv_heads = 1, head_dim = 16, ffn = 32}}
data = {{digits = 1, max_prompt_tokens = 8}}
generator = {{group_size = 2, in_flight = 4, max_tokens = 6}}
batch = {{completions = 4, row_tokens = 24, rows = 4}}
trainer = {{steps = 1000, learning_rate = 1e-3}}
warmup = {{steps = 2, completions = 4}}
eval = {{problems = 2, samples = 1}}
metrics = {{probe_every = 0, tensorboard = false}}
checkpoint = {{every = 1}}
"""

# The command line as it is, but for a judge that a random network can please, and for one function
# that never returns from its third call on.
DRIVER = """
import importlib, sys, time
from concurrent.futures import Future
import magistral_jax
from magistral_jax.build import Run
from magistral_jax.types import Verdict

def judge(self, prompt, completion):
    is_right = completion.index == 0
    parts = {"format": 0.1, "correct": 0.9 * is_right, "length": 0.0, "language": 0.0}
    verdict = Future()
    reason = "pass" if is_right else "wrong"
    verdict.set_result(Verdict(reward=sum(parts.values()), parts=parts, reason=reason))
    return verdict

Run.judge = judge
module, owner, name, calls = sys.argv[1:5]
place = importlib.import_module(module)
place = getattr(place, owner) if owner else place
honest, count = getattr(place, name), 0

def planted_hang(*args, **options):
    global count
    count += 1
    if count > int(calls):
        if name == "judge":
            return Future()
        print("planted", time.monotonic(), flush=True)
        while True:
            time.sleep(0.05)
    return honest(*args, **options)

setattr(place, name, planted_hang)
from magistral_jax.__main__ import main
sys.exit(main(["train", "hangs.toml", "--run-dir", "run"]))
"""

# part -> (module, owner, function, calls that return, words of the message)
PLACES = {
    "warm-up": ("trainer.trainer", "Trainer", "minibatch_step", 1, ["trainer is at the warm-up"]),
    "evaluation": (
        "generator.engine",
        "Engine",
        "generate_many",
        1,
        ["generator is at an evaluation"],
    ),
    "generator": (
        "generator.engine",
        "Engine",
        "generate_many",
        8,
        ["generator is at a decode step"],
    ),
    "trainer": ("trainer.trainer", "Trainer", "step", 2, ["trainer is at update 3"]),
    "push": ("weights.push", "WeightPush", "__call__", 4, ["trainer is at the push of"]),
    "checkpoint": ("checkpoint", "", "_seal", 2, ["checkpoint writer", "step 2"]),
    "verdicts": ("build", "Run", "judge", 40, ["trainer waited", "completions with the verifier"]),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Programs that the first run compiles, for the others."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.full
@pytest.mark.parametrize("place", PLACES)
def test_a_planted_hang_is_named_with_its_stack(place, compiled, tmp_path):
    module, owner, name, calls, words = PLACES[place]
    (tmp_path / "hangs.toml").write_text(CONFIG)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPO),
    }
    command = [sys.executable, "-c", DRIVER, f"magistral_jax.{module}", owner, name, str(calls)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    ended = time.monotonic()
    print(done.stderr)
    assert done.returncode == 70, done.stderr
    message = done.stderr[done.stderr.index("stalled: ") :]
    for word in words:
        assert word in message
    stacks = (tmp_path / "run" / "stacks.txt").read_text()
    assert "MainThread" in stacks
    if place != "verdicts":
        assert "planted_hang (<string>" in message
        assert "planted_hang" in stacks
        planted = float(done.stdout.split()[-1])
        assert ended - planted < 2 * STALL_S, "named long after the deadline"
