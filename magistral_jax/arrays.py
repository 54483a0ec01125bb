"""What one optimizer step consumes. `Microbatch` is the only type of ours that enters jit.

Axes: B rows, T tokens in a row.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from magistral_jax.types import Group, Made


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Packed rows for one forward-backward pass. Position t predicts `targets[:, t]`.

    Example, a row of 8 with prompt "P p" answered "a b ." and prompt "Q" answered "c .":
        inputs    P p a b Q c 0 0        targets  p a b . c . 0 0
        segments  1 1 1 1 2 2 0 0        shares   0 s s s s s 0 0
    """

    inputs: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]
    positions: Int[Array | np.ndarray, "B T"]
    """Place within the completion's own sequence, prompt included; 0 in padding."""
    segments: Int[Array | np.ndarray, "B T"]
    """Which completion a token belongs to: 1, 2, ... within a row, 0 for padding."""
    behavior_logprobs: Float[Array | np.ndarray, "B T"]
    """The generator's logprob of each target when it was sampled; 0 where `shares` is 0."""
    advantages: Float[Array | np.ndarray, "B T"]
    shares: Float[Array | np.ndarray, "B T"]
    """How much each target counts in the loss: 0 unless the policy sampled it, and 1 in total
    over a minibatch. Built from completion lengths, never by comparing tokens with a pad id."""


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """What one optimizer step consumes: microbatches whose gradients are added up."""

    microbatches: tuple[Microbatch, ...]
    padding: float
    """Share of row tokens that hold nothing."""
    names: tuple[tuple[tuple[tuple[int, int], ...], ...], ...] = ()
    """(group, index) of each segment of each row of each microbatch."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one weight update consumes: `n_batch` completions in `n_batch / n_minibatch` steps."""

    groups: tuple[Group, ...]
    """In dispatch order."""
    minibatches: tuple[Minibatch, ...]
    version: int
    """Weight version of the trainer that this batch will update."""
    made: tuple[Made, ...] = ()
    """The first minibatches' steps, where they were made before a stop."""

    @property
    def lag_max(self) -> int:
        """Updates between the oldest token of the batch and the weights it trains."""
        oldest = min(g.completions[i].oldest_version for g in self.groups for i in g.valid)
        return self.version - oldest
