"""What a process that resumes gets from a checkpoint: all of it is read before any of it is used.

Everything is restored onto shapes: nothing is initialised, and no model is read that the run began
with, so that no more is ever held than what was saved.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, Meta, shapes_of
from magistral_jax.damage import Damaged
from magistral_jax.ledger import TRAINER
from magistral_jax.trainer.trainer import TrainState
from magistral_jax.types import Snapshot


@dataclass(frozen=True, kw_only=True)
class Restored:
    meta: Meta
    state: TrainState
    snapshot: Snapshot
    """What the generator goes on with."""
    arrays: dict[str, np.ndarray]
    """Of the frontier."""
    cache: Any
    """The generator's own state; None where it was not saved, or does not fit any more."""


def restored(run: Run, checkpoints: Checkpoints, meta: Meta, shapes: TrainState) -> Restored:
    """All that this checkpoint holds. `run` is that of its stage, `shapes` those of the trainer's
    state. Raises `Damaged` if something is not what was saved."""
    with run.ledger.doing(TRAINER, "start", f"reading the checkpoint of step {meta.step}"):
        state = checkpoints.restore(meta, "state", shapes)
        arrays = checkpoints.restore_host(meta, "host")
        snapshot = run.published(state.params, meta.step)
        # After a stop amid an update the trainer's weights are none that the generator had.
        if checkpoints.has(meta, "snapshot"):
            places = shapes_of(snapshot.params)
            del snapshot
            params = checkpoints.restore(meta, "snapshot", places)
            snapshot = Snapshot(version=meta.step, params=params)
        cache = _cache(run, checkpoints, meta)
    return Restored(meta=meta, state=state, snapshot=snapshot, arrays=arrays, cache=cache)


def _cache(run: Run, checkpoints: Checkpoints, meta: Meta) -> Any:
    if not checkpoints.has(meta, "decode"):
        return None
    places = shapes_of(run.main_engine.init_decode_state())
    try:
        return checkpoints.restore(meta, "decode", places)
    except (ValueError, Damaged) as fault:
        if run.config.deterministic:
            raise
        run.on_failure("checkpoint", f"the saved cache is not used: {fault}")
        return None
