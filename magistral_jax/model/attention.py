"""Attention: over packed rows (training and prefill) and over the generator's cache (decode).

Both take queries in groups, so that K key/value heads serve N = K x R query heads, compute
scores in float32, and multiply in the compute dtype: the same arithmetic in the same order, which
is what makes sampler and trainer agree. On CPU in bf16 they agree to the bit, because
  - the softmax's sum is a product with ones, taken in the order of the products it divides
    (`jnp.sum` orders its additions by the shape of the array);
  - there are at least two rows to each product (a single row takes another code path);
  - a completion begins at an even place of its packed row (`batch.assemble`): products add up
    pairs of keys.

Axes: B rows or slots, T queries, S keys, K key/value heads, R query heads per K, H head size.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Bool, Float, Int

# Finite, so that a row of padding (all masked) gives a uniform average, not nan.
MASKED = -1e30

Platform = Literal["tpu", "gpu"]


class Kernels(NamedTuple):
    """That attention is computed by `kernels.py`, by the functions of this platform."""

    platform: Platform
    interpret: bool = False
    """On CPU, for tests."""


def packed_mask(segments: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where a query may see a key: same completion, not later.

    For segments 1 1 2 2 0 (0 is padding):
        1 . . . .
        1 1 . . .
        . . 1 . .
        . . 1 1 .
        . . . . .
    """
    same = segments[:, :, None] == segments[:, None, :]
    real = segments[:, :, None] > 0
    causal = positions[:, :, None] >= positions[:, None, :]
    return same & real & causal


def grouped_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Softmax attention in the dtype of its inputs, with float32 scores."""
    B, T, N, H = q.shape
    K = k.shape[2]
    batch, _, heads, _ = jax.typeof(q).sharding.spec
    # Heads in front, once: all four products of forward and backward are then plain batched
    # matrix products, which XLA's CPU backend runs up to 3x faster than with heads inside.
    q_BTKRH = jnp.reshape(q, (B, T, K, N // K, H), out_sharding=P(batch, None, heads, None, None))
    q_BKRTH = q_BTKRH.transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores_BKRTS = jnp.einsum(
        "BKRTH,BKSH->BKRTS", q_BKRTH, k_BKSH, preferred_element_type=jnp.float32
    )
    scores_BKRTS = jnp.where(mask[:, None, None, :, :], scores_BKRTS * H**-0.5, MASKED)
    weights_BKRTS, total_BKRT = softmax_parts(scores_BKRTS, v.dtype)
    out_BKRTH = jnp.einsum(
        "BKRTS,BKSH->BKRTH", weights_BKRTS, v_BKSH, preferred_element_type=jnp.float32
    )
    out_BTKRH = (out_BKRTH / total_BKRT[..., None]).astype(q.dtype).transpose(0, 3, 1, 2, 4)
    return jnp.reshape(out_BTKRH, (B, T, N, H), out_sharding=P(batch, None, heads, None))


def softmax_parts(
    scores: Float[Array, "*batch S"], dtype: jnp.dtype
) -> tuple[Float[Array, "*batch S"], Float[Array, "*batch"]]:
    """Unnormalised softmax weights in the compute dtype, and their float32 sum."""
    # Fused with the maximum, exp() rounds differently in a large array than in a small one.
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    peak = jax.lax.optimization_barrier(peak)
    weights = jnp.exp(scores - peak).astype(dtype)
    return weights, stable_sum(weights)


@jax.custom_vjp
def stable_sum(weights: Float[Array, "*batch S"]) -> Float[Array, "*batch"]:
    """Float32 sum over the last axis, in the order in which products over it add up."""
    ones = jnp.ones((weights.shape[-1], 2), weights.dtype)
    return jnp.einsum("...S,SX->...X", weights, ones, preferred_element_type=jnp.float32)[..., 0]


def _stable_sum_forward(weights: Array) -> tuple[Array, Array]:
    return stable_sum(weights), weights


def _stable_sum_backward(weights: Array, cotangent: Array) -> tuple[Array]:
    # Spelled out: jax's transpose would be a product again, and half of attention's backward.
    spread = jnp.broadcast_to(cotangent[..., None], weights.shape)
    return (spread.astype(weights.dtype),)


stable_sum.defvjp(_stable_sum_forward, _stable_sum_backward)


def cached_attention(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K H S"],
    v: Float[Array, "B K S H"],
    lengths: Int[Array, " B"],
    window: int | None = None,
) -> Float[Array, "B N H"]:
    """One query per slot over the first `lengths` cached tokens, or the last `window` of them.

    Keys lie with positions last: XLA's CPU backend runs this batched product 2-4x faster than
    with positions in front (baselines: 0.37 ms against 0.8-1.8 ms a layer).
    """
    B, N, H = q.shape
    K, S = v.shape[1], v.shape[2]
    q_BKRH = q.reshape(B, K, N // K, H)
    if N == K:
        q_BKRH = jnp.repeat(q_BKRH, 2, axis=2)  # at least two rows, as the module docstring says
    scores_BKRS = jnp.einsum("BKRH,BKHS->BKRS", q_BKRH, k, preferred_element_type=jnp.float32)
    seen_BS = jnp.arange(S)[None, :] < lengths[:, None]
    if window is not None:
        seen_BS &= jnp.arange(S)[None, :] >= lengths[:, None] - window
    scores_BKRS = jnp.where(seen_BS[:, None, None, :], scores_BKRS * H**-0.5, MASKED)
    weights_BKRS, total_BKR = softmax_parts(scores_BKRS, v.dtype)
    out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", weights_BKRS, v, preferred_element_type=jnp.float32)
    out_BKRH = (out_BKRH / total_BKR[..., None])[:, :, : N // K]
    return out_BKRH.reshape(B, N, H).astype(q.dtype)
