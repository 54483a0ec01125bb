"""The policy objective.

Magistral, section 2.1, for generated token t of completion i:

    ratio_t   = p_new(t) / p_old(t)
    objective = min(ratio_t * A_i, clip(ratio_t, 1 - eps_low, 1 + eps_high) * A_i)

weighted by each token's share of the minibatch. p_old is the generator's own probability, recorded
when the token was drawn, so the ratio absorbs staleness. No KL term, no entropy bonus, no critic.

Beside it, one config word each (papers.md, section 8), with p_old the generator's too:

    tis     sg[min(ratio_t, 2)] * A_i * log p_new(t)               truncated importance sampling
    cispo   sg[min(ratio_t, 1 + eps_high)] * A_i * log p_new(t)    MiniMax-M1
    gspo    min(s_i * A_i, clip(s_i) * A_i), s_i = exp(mean over t of log ratio_t)

And what the paper tried and reports as unsuccessful (its section 7), off unless asked for: an
entropy bonus, and a KL penalty towards an average of the weights (k3 of papers.md, 8.1).

Axes: B rows, T tokens.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from magistral_jax.arrays import Microbatch
from magistral_jax.model.logprobs import Scores

Objective = Literal["clip", "tis", "cispo", "gspo"]
TIS_CAP = 2.0
"""C of Yao et al. (2025)."""


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
    kl: Float[Array, ""]
    """From the reference of a KL term, weighted by share; 0 without one."""
    log_ratio_abs_max: Float[Array, ""]
    """Largest |log ratio|; combined by max, not by sum."""

    def merge(self, other: "LossStats") -> "LossStats":
        sums = jax.tree.map(jnp.add, self, other)
        peak = jnp.maximum(self.log_ratio_abs_max, other.log_ratio_abs_max)
        return sums._replace(log_ratio_abs_max=peak)


def policy_loss(
    scores: Scores,
    batch: Microbatch,
    *,
    eps_low: float,
    eps_high: float,
    objective: Objective = "clip",
    entropy_bonus: float = 0.0,
    kl_coefficient: float = 0.0,
    reference: Float[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], LossStats]:
    """This microbatch's part of the loss. Parts add up to the loss of the minibatch.

    `reference` holds the targets' log-probs under the weights that a KL term is measured against.
    """
    share_BT = jnp.asarray(batch.shares)
    on_BT = share_BT > 0
    # Zero the log-ratio off the mask before exp(): padding could overflow, and 0 * inf is nan.
    log_ratio_BT = jnp.where(on_BT, scores.logprobs - batch.behavior_logprobs, 0.0)
    if objective == "gspo":
        log_ratio_BT = of_sequence(log_ratio_BT, on_BT, jnp.asarray(batch.segments))
    ratio_BT = jnp.exp(log_ratio_BT)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - eps_low, 1.0 + eps_high)
    A_BT = batch.advantages
    if objective in ("clip", "gspo"):
        objective_BT = jnp.minimum(ratio_BT * A_BT, clipped_BT * A_BT)
        low_BT = (ratio_BT < 1.0 - eps_low) & (A_BT < 0)
        high_BT = (ratio_BT > 1.0 + eps_high) & (A_BT > 0)
    else:
        # Importance sampling: the capped ratio is a weight, and every token keeps a gradient.
        cap = TIS_CAP if objective == "tis" else 1.0 + eps_high
        weight_BT = jax.lax.stop_gradient(jnp.minimum(ratio_BT, cap))
        objective_BT = weight_BT * A_BT * jnp.where(on_BT, scores.logprobs, 0.0)
        low_BT, high_BT = jnp.zeros_like(on_BT), ratio_BT > cap
    entropy_BT = jnp.where(on_BT, scores.entropy, 0.0)
    kl_BT = jnp.zeros_like(entropy_BT)
    if reference is not None:
        behind_BT = jnp.where(on_BT, reference - scores.logprobs, 0.0)
        kl_BT = jnp.exp(behind_BT) - behind_BT - 1.0
    objective_BT += entropy_bonus * entropy_BT - kl_coefficient * kl_BT
    on_ratio_BT = jnp.where(on_BT, ratio_BT, 0.0)
    stats = LossStats(
        clipped_low=jnp.sum(jnp.where(low_BT, share_BT, 0.0)),
        clipped_high=jnp.sum(jnp.where(high_BT, share_BT, 0.0)),
        log_ratio=jnp.sum(share_BT * log_ratio_BT),
        entropy=jnp.sum(share_BT * entropy_BT),
        tokens=jnp.sum(on_BT.astype(jnp.float32)),
        ratio=jnp.sum(on_ratio_BT),
        ratio_squared=jnp.sum(jnp.square(on_ratio_BT)),
        kl=jnp.sum(share_BT * kl_BT),
        log_ratio_abs_max=jnp.max(jnp.abs(log_ratio_BT)),
    )
    return -jnp.sum(share_BT * objective_BT), jax.lax.stop_gradient(stats)


def likelihood_loss(scores: Scores, batch: Microbatch) -> tuple[Float[Array, ""], LossStats]:
    """Negative log-likelihood of the assistant's tokens, weighted by their shares."""
    _, stats = policy_loss(scores, batch, eps_low=0.2, eps_high=0.2)
    return -(scores.logprobs * batch.shares).sum(), stats


def of_sequence(
    x: Float[Array, "B T"], on: Bool[Array, "B T"], segments: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """At each token that is on, the mean of `x` over those of its completion; 0 elsewhere."""
    spec, most = jax.typeof(x).sharding.spec, x.shape[1] + 1

    def local(x: Array, on: Array, segments: Array) -> Array:
        def total(values: Array, segments: Array) -> Array:
            return jax.ops.segment_sum(values, segments, num_segments=most)

        sums, counts = (
            jax.vmap(total)(values, segments)
            for values in (jnp.where(on, x, 0.0), on.astype(jnp.float32))
        )
        if len(spec) == 2 and spec[1] is not None:
            # A completion may lie on several devices.
            sums, counts = (jax.lax.psum(values, spec[1]) for values in (sums, counts))
        means = sums / jnp.maximum(counts, 1.0)
        return jnp.where(on, jnp.take_along_axis(means, segments, axis=1), 0.0)

    if not jax.typeof(x).sharding.mesh.axis_names:
        return local(x, on, segments)
    return jax.shard_map(local, out_specs=spec, check_vma=False)(x, on, segments)
