"""What a peer is asked, and how its process is started and listened to."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from magistral_jax.types import Stalled, UserError

PEERS = {
    "transformers": "transformers_generate.py",
    "llama.cpp": "llama_cpp.py",
}
TRAIN_PEERS = {"torch": "torch_train.py"}
PEER_S = 3600.0
"""Longest that one measurement of a peer may take."""
_SAID = 600


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What every engine is given."""

    prompts: Int32[np.ndarray, "requests prompt"]
    lengths: Int32[np.ndarray, " requests"]
    """New tokens of each."""
    at_once: int
    """Slots, or the size of a batch."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What every trainer is given: rows of one sequence each."""

    tokens: Int32[np.ndarray, "B T1"]
    """Of [B T + 1]: the first of a row is never predicted."""
    logprobs: Float32[np.ndarray, "B T"]
    """What the policy said of tokens[:, 1:] when it drew them."""
    advantages: Float32[np.ndarray, "B T"]
    microbatch_rows: int


def measure_peer(
    peer: str,
    model: Path,
    requests: Requests,
    *,
    dtype: str,
    threads: int,
    repeats: int,
    python: str = "",
) -> list[float]:
    """Completed tokens a second of each repeat, after one that is not counted.

    The peer is a script of this folder that needs nothing of ours, so `python` may be the
    interpreter of another environment.
    """
    arrays = {"prompts": requests.prompts, "lengths": requests.lengths}
    options = {"dtype": dtype, "at-once": requests.at_once, "threads": threads, "repeats": repeats}
    return _answer(peer, PEERS[peer], model, arrays, options, python)


def measure_train_peer(
    peer: str, model: Path, rows: Rows, *, dtype: str, threads: int, repeats: int, python: str = ""
) -> tuple[list[float], float]:
    """Seconds of each step, after one that is not counted, and the most memory, in bytes."""
    arrays = {name: np.asarray(value) for name, value in vars(rows).items()}
    options = {"dtype": dtype, "threads": threads, "repeats": repeats}
    seconds, peak = _answer(peer, TRAIN_PEERS[peer], model, arrays, options, python)
    return seconds, peak


def greedy_answers(
    model: Path,
    prompts: list[list[int]],
    *,
    new_tokens: int,
    stops: Sequence[int],
    python: str = "",
) -> list[list[int]]:
    """What transformers answers to each prompt, greedily in float32, up to a stop token."""
    longest = max(map(len, prompts))
    padded = np.full((len(prompts), longest), -1, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    threads = len(os.sched_getaffinity(0))
    options = {"new-tokens": new_tokens, "stops": json.dumps(list(stops)), "threads": threads}
    script = "transformers_greedy.py"
    return _answer("transformers", script, model, {"prompts": padded}, options, python)


def _answer(
    peer: str,
    script: str,
    model: Path,
    arrays: dict[str, np.ndarray],
    options: dict[str, Any],
    python: str,
) -> Any:
    """The last line that a peer's process writes, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
        command = [python or sys.executable, str(Path(__file__).parent / script), str(model)]
        command += [str(path), *(x for name in options for x in (f"--{name}", str(options[name])))]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PEER_S,
                env=os.environ | {"OMP_NUM_THREADS": str(options["threads"])},
            )
        except subprocess.TimeoutExpired:
            raise Stalled(f"bench: waited {PEER_S:.0f} s for the peer {peer}.") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"--peer {peer} cannot be measured: {said[-1][:_SAID]} Install it, or name the "
            "interpreter that has it with --peer-python."
        )
    return json.loads(done.stdout.splitlines()[-1])
