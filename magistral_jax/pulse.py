"""A few numbers in a file that outlive their process: how far a run was when it was killed.

The file is mapped into memory, so that writing costs nothing and what was written stays when the
process is gone, whatever ended it.
"""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np

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
