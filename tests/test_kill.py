"""SIGKILL at random moments, in real processes: a deterministic run ends as if nothing had been."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints
from magistral_jax.metrics import untimed
from magistral_jax.pulse import read_pulse
from magistral_jax.settings import load

REPO = Path(__file__).resolve().parents[1]
STEPS = 30
CONFIG = f"""
name = "killed"
deterministic = true
deterministic_steps = 4
model.shape = {{layers = 2, width = 32, heads = 2, kv_heads = 1, head_dim = 16, ffn = 32}}
data = {{digits = 2, max_prompt_tokens = 12}}
generator = {{group_size = 4, in_flight = 16, max_tokens = 24}}
batch = {{completions = 16, max_lag = 2, row_tokens = 48, rows = 4}}
trainer = {{steps = {STEPS}, learning_rate = 3e-3}}
eval = {{problems = 0}}
metrics = {{probe_every = 5, tensorboard = false}}
checkpoint = {{every = 1, kv = "save"}}
"""

# A verdict that a network without any training earns now and then, given after a random while.
DRIVER = """
import random, sys, threading
from concurrent.futures import Future
import magistral_jax
from magistral_jax.build import Run
from magistral_jax.types import Verdict

def judge(self, prompt, completion):
    is_right = prompt.group % 5 != 0 and int(completion.tokens.sum()) % 2 == 0
    parts = {"format": 0.0, "correct": float(is_right), "length": 0.0, "language": 0.0}
    reason = "pass" if is_right else "wrong"
    verdict = Future()
    answer = Verdict(reward=float(is_right), parts=parts, reason=reason)
    threading.Timer(random.uniform(0, 0.01), verdict.set_result, [answer]).start()
    return verdict

Run.judge = judge
from magistral_jax.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the run in a folder; none outlives the test."""
    (tmp_path / "killed.toml").write_text(CONFIG)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(REPO),
    }
    started = []

    def run(folder, *options):
        command = [sys.executable, "-c", DRIVER, "train", "killed.toml", "--run-dir", folder]
        with (tmp_path / f"{folder}.log").open("a") as log:
            process = subprocess.Popen(
                [*command, *options], cwd=tmp_path, env=environment, stdout=log, stderr=log
            )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for_step(process, folder, step, deadline_s=180.0):
    """Until the run has made this many updates, or has ended."""
    deadline = time.monotonic() + deadline_s
    while process.poll() is None and time.monotonic() < deadline:
        pulse = read_pulse(folder)
        if pulse is not None and pulse.step >= step:
            return
        time.sleep(0.002)
    assert process.poll() is not None, f"no step {step} within {deadline_s} s"


def left_by(folder):
    """All that a run leaves behind, but for what the clock decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with gzip.open(folder / "completions.jsonl.gz", "rt") as file:
        samples = [json.loads(line) for line in file]
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    meta = checkpoints.latest()
    run = Run(load(folder.parent / "killed.toml"), devices=jax.devices()[:1])
    trainer = run.trainer(run.initial_params())
    arrays = {
        "state": checkpoints.restore(meta, "state", trainer.state),
        "decode": checkpoints.restore(meta, "decode", run.main_engine.init_decode_state()),
        "host": checkpoints.restore_host(meta, "host"),
    }
    in_flight = {
        name: meta.frontier[name] for name in ("queue", "in_flight", "counters", "tick", "due")
    }
    for entry in (*in_flight["queue"]["entries"], *in_flight["queue"]["judged"]):
        for _, verdict in entry["verdicts"]:
            verdict["seconds"] = 0.0
    timed = {"decode_s", "swap_s"}
    in_flight["counters"] = {n: v for n, v in in_flight["counters"].items() if n not in timed}
    return [untimed(row) for row in rows], samples, in_flight, jax.tree.map(np.asarray, arrays)


@pytest.mark.full
def test_killed_at_20_random_moments_a_deterministic_run_is_the_same_to_the_bit(start, tmp_path):
    assert start("whole").wait(300) == 0
    chance = random.Random(0)
    kills = spanning = 0
    while kills < 20:
        process = start("killed", "--resume") if kills else start("killed")
        pulse = read_pulse(tmp_path / "killed")
        at = (pulse.step if pulse else 0) + chance.choice([0, 1, 1, 1, 2])
        # Now and then before it has resumed at all.
        if chance.random() < 0.15:
            time.sleep(chance.uniform(0.5, 4))
        else:
            wait_for_step(process, tmp_path / "killed", min(at, STEPS - 1))
            time.sleep(chance.uniform(0, 0.15))
        process.kill()
        spanning += process.wait() == -9
        kills += 1
    assert start("killed", "--resume").wait(300) == 0
    assert spanning >= 18, "too many runs ended by themselves"

    rows, samples, in_flight, arrays = left_by(tmp_path / "killed")
    its_rows, its_samples, its_in_flight, its_arrays = left_by(tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows == its_rows
    assert samples == its_samples
    assert in_flight == its_in_flight
    assert in_flight["in_flight"]["drafts"], "nothing was in flight at the end"
    jax.tree.map(np.testing.assert_array_equal, arrays, its_arrays)
    assert any(len(sample["spans"]) > 1 for sample in samples), "no update came in flight"
