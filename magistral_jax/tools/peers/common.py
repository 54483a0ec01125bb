"""What a peer is asked, and how its process is started and listened to."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from magistral_jax.types import Stalled, UserError

PEERS = {
    "transformers": "transformers_generate.py",
    "llama.cpp": "llama_cpp.py",
}
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
    script = Path(__file__).parent / PEERS[peer]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.npz"
        np.savez(path, prompts=requests.prompts, lengths=requests.lengths)
        command = [
            python or sys.executable, str(script), str(model), str(path),
            "--dtype", dtype, "--at-once", str(requests.at_once),
            "--threads", str(threads), "--repeats", str(repeats),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PEER_S,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
        except subprocess.TimeoutExpired:
            raise Stalled(f"bench decode: waited {PEER_S:.0f} s for the peer {peer}.") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"--peer {peer} cannot be measured: {said[-1][:_SAID]} Install it, or name the "
            "interpreter that has it with --peer-python."
        )
    return json.loads(done.stdout.splitlines()[-1])
