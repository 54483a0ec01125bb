"""A few numbers in a file that outlive their process: how far a run was when it was killed.

The file is mapped into memory, so that writing costs nothing and what was written stays when the
process is gone, whatever ended it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from magistral_jax.ledger import Ledger

NAME = "pulse"
_FIELDS = ("step", "tokens", "device_s", "saving", "pushing", "beat")


@dataclass(frozen=True, kw_only=True)
class Reading:
    step: int
    """Weight updates made."""
    tokens: int
    """Tokens sampled since the run began."""
    device_s: float
    """Device-seconds since the run began, when it last wrote them."""
    saving: bool
    """A checkpoint was being written."""
    pushing: bool
    """Weights were on their way to the generator."""
    beat: float
    """Monotonic time of the machine when it was last written."""


class Pulse:
    """The run's own side: assign to its attributes."""

    def __init__(self, folder: Path) -> None:
        self._values = np.memmap(folder / NAME, dtype=np.float64, mode="w+", shape=(len(_FIELDS),))

    def write(self, **values: float | int | bool) -> None:
        for name, value in {**values, "beat": monotonic()}.items():
            self._values[_FIELDS.index(name)] = value


def read_pulse(folder: Path) -> Reading | None:
    """What the run in this folder last wrote; None if it never did."""
    try:
        values = np.fromfile(folder / NAME, np.float64)
    except FileNotFoundError:
        return None
    if len(values) != len(_FIELDS):
        return None
    step, tokens, device_s, saving, pushing, beat = (float(value) for value in values)
    return Reading(
        step=int(step),
        tokens=int(tokens),
        device_s=device_s,
        saving=saving > 0,
        pushing=pushing > 0,
        beat=beat,
    )


def begin_pulse(
    folder: Path, ledger: Ledger, accounts: Mapping[str, Any], *, step: int, resume: bool
) -> Pulse:
    """The pulse of a process that starts a run, or goes on with it from a checkpoint's accounts.

    What the process before had done beyond them, by its own pulse, is lost.
    """
    past = read_pulse(folder) if resume else None
    if accounts:
        ledger.restore(accounts)
    if past is not None:
        known_s = sum(accounts["seconds"].values()) if accounts else 0.0
        known = accounts["tokens"]["sampled"] if accounts else 0.0
        ledger.lost(
            device_s=max(0.0, past.device_s - known_s), tokens=max(0.0, past.tokens - known)
        )
    pulse = Pulse(folder)
    # With what was lost before: a kill before the next checkpoint must not lose count of it.
    sampled = ledger.saved()["tokens"]["sampled"]
    pulse.write(step=step, tokens=sampled, device_s=ledger.device_s)
    ledger.listen(lambda tokens: pulse.write(tokens=tokens))
    return pulse
