"""One step's outcome in a single integer array, so that it costs one copy to the host.

Columns: token | valid | length | log-prob (float32 bits) | finish (0 running, 1 stop, 2 length).
The first three are JetStream's layout.

Axes: B slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

RUNNING, STOP, LENGTH = 0, 1, 2


@dataclass(frozen=True)
class ResultTokens:
    """Rows are slots; methods and the `_idx` fields are those of JetStream's class."""

    data: Int[Array | np.ndarray, "B 5"]
    tokens_idx: tuple[int, int] = (0, 1)
    valid_idx: tuple[int, int] = (1, 2)
    length_idx: tuple[int, int] = (2, 3)
    samples_per_slot: int = 1

    def copy_to_host_async(self) -> None:
        if isinstance(self.data, jax.Array):
            self.data.copy_to_host_async()

    def convert_to_numpy(self) -> "ResultTokens":
        return ResultTokens(np.asarray(self.data))

    @property
    def log_prob(self) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(self.data)[:, 3]).view(np.float32)

    def get_result_at_slot(self, slot: int) -> "SlotData":
        return self.get_result_at_slots([slot])

    def get_result_at_slots(self, slots: Sequence[int]) -> "SlotData":
        rows = np.asarray(self.data)[list(slots)]
        return SlotData(rows[:, 0:1], rows[:, 1:2], rows[:, 2], rows[:, 3:4].view(np.float32))


class SlotData(NamedTuple):
    tokens: np.ndarray
    valid: np.ndarray
    lengths: np.ndarray
    log_prob: np.ndarray


def pack_result(
    tokens: Array, valid: Array, lengths: Array, logprobs: Array, finish: Array
) -> Int[Array, "B 5"]:
    bits = jax.lax.bitcast_convert_type(logprobs.astype(jnp.float32), jnp.int32)
    columns = (tokens, valid.astype(jnp.int32), lengths, bits, finish)
    return jnp.stack(columns, axis=1)
