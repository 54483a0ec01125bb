"""The policy objective.

Magistral, section 2.1, for generated token t of completion i:

    ratio_t   = p_new(t) / p_old(t)
    objective = min(ratio_t * A_i, clip(ratio_t, 1 - eps_low, 1 + eps_high) * A_i)

weighted by each token's share of the minibatch. p_old is the generator's own probability, recorded
when the token was drawn, so the ratio absorbs staleness. No KL term, no entropy bonus, no critic.

Axes: B rows, T tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from magistral_jax.arrays import Microbatch
from magistral_jax.model.logprobs import Scores


class LossStats(NamedTuple):
    """Sums over tokens; those of microbatches add up. The first four are weighted by share."""

    clipped_low: Float[Array, ""]
    """Share of tokens with ratio < 1 - eps_low and a negative advantage: no gradient."""
    clipped_high: Float[Array, ""]
    """Share of tokens with ratio > 1 + eps_high and a positive advantage: no gradient."""
    log_ratio: Float[Array, ""]
    entropy: Float[Array, ""]
    tokens: Float[Array, ""]
    ratio: Float[Array, ""]
    ratio_squared: Float[Array, ""]
    """With `tokens` and `ratio`: the effective sample size (sum w)^2 / (N sum w^2)."""
    log_ratio_abs_max: Float[Array, ""]
    """Largest |log ratio|; combined by max, not by sum."""

    def merge(self, other: "LossStats") -> "LossStats":
        sums = jax.tree.map(jnp.add, self, other)
        peak = jnp.maximum(self.log_ratio_abs_max, other.log_ratio_abs_max)
        return sums._replace(log_ratio_abs_max=peak)


def policy_loss(
    scores: Scores, batch: Microbatch, *, eps_low: float, eps_high: float
) -> tuple[Float[Array, ""], LossStats]:
    """This microbatch's part of the loss. Parts add up to the loss of the minibatch."""
    share_BT = jnp.asarray(batch.shares)
    on_BT = share_BT > 0
    # Zero the log-ratio off the mask before exp(): padding could overflow, and 0 * inf is nan.
    log_ratio_BT = jnp.where(on_BT, scores.logprobs - batch.behavior_logprobs, 0.0)
    ratio_BT = jnp.exp(log_ratio_BT)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - eps_low, 1.0 + eps_high)
    objective_BT = jnp.minimum(ratio_BT * batch.advantages, clipped_BT * batch.advantages)
    low_BT = (ratio_BT < 1.0 - eps_low) & (batch.advantages < 0)
    high_BT = (ratio_BT > 1.0 + eps_high) & (batch.advantages > 0)
    on_ratio_BT = jnp.where(on_BT, ratio_BT, 0.0)
    stats = LossStats(
        clipped_low=jnp.sum(jnp.where(low_BT, share_BT, 0.0)),
        clipped_high=jnp.sum(jnp.where(high_BT, share_BT, 0.0)),
        log_ratio=jnp.sum(share_BT * log_ratio_BT),
        entropy=jnp.sum(jnp.where(on_BT, share_BT * scores.entropy, 0.0)),
        tokens=jnp.sum(on_BT.astype(jnp.float32)),
        ratio=jnp.sum(on_ratio_BT),
        ratio_squared=jnp.sum(jnp.square(on_ratio_BT)),
        log_ratio_abs_max=jnp.max(jnp.abs(log_ratio_BT)),
    )
    return -jnp.sum(share_BT * objective_BT), jax.lax.stop_gradient(stats)
