"""log p of chosen tokens, and entropy: the one definition that sampler and trainer share.

The trainer's version walks over the tokens in chunks, so that the full [tokens, vocabulary]
array never exists, neither forward nor backward.

Axes: B rows or slots, T tokens, D width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Float, Int

from magistral_jax.model.attention import Kernels
from magistral_jax.model.params import Architecture, Params
from magistral_jax.model.transformer import LONG_ROW, attend_packed, head_weight, logits, transform


class Scores(NamedTuple):
    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    """Of the whole distribution, in nats; carries no gradient unless asked to."""


def tempered(
    logits_BTV: Float[Array, "*B V"], temperature: float | Float[Array, ""]
) -> Float[Array, "*B V"]:
    """Logits of the distribution that is sampled from, log-sum-exp still to be taken off."""
    return logits_BTV / temperature


def score_chunk(
    logits_BTV: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    temperature: float,
    *,
    entropy_gradient: bool = False,
) -> Scores:
    z_BTV = tempered(logits_BTV, temperature)
    normaliser_BT = jax.nn.logsumexp(z_BTV, axis=-1)
    # A masked sum instead of a gather: it fuses, and works with the vocabulary split over "tp".
    spec = jax.typeof(z_BTV).sharding.spec
    ids = jax.lax.broadcasted_iota(jnp.int32, z_BTV.shape, 2, out_sharding=P(*spec))
    chosen_BT = jnp.sum(jnp.where(ids == targets[..., None], z_BTV, 0.0), axis=-1)
    logprobs_BT = chosen_BT - normaliser_BT
    if not entropy_gradient:
        z_BTV, normaliser_BT = jax.lax.stop_gradient((z_BTV, normaliser_BT))
    probability_BTV = jnp.exp(z_BTV - normaliser_BT[..., None])
    entropy_BT = normaliser_BT - jnp.sum(probability_BTV * z_BTV, axis=-1)
    return Scores(logprobs_BT, entropy_BT)


def score(
    params: Params,
    arch: Architecture,
    inputs: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    *,
    temperature: float,
    dtype: jnp.dtype,
    remat: bool,
    head_tokens: int,
    kernels: Kernels | None = None,
    long_row: int = LONG_ROW,
    entropy_gradient: bool = False,
) -> Scores:
    """log p(targets) under the policy at `temperature`, for packed rows."""
    hidden, _ = transform(
        params,
        arch,
        inputs,
        positions,
        attend=attend_packed(segments, positions, kernels, long_row=long_row),
        dtype=dtype,
        remat=remat,
    )
    weight = head_weight(params, dtype)
    B, T, _ = hidden.shape
    rows, seq, _ = jax.typeof(hidden).sharding.spec
    # Tokens are chunked within what each device of "sp" has of a row.
    n = 1 if seq is None else jax.typeof(hidden).sharding.mesh.shape[seq]
    share = T // n
    t = chunk_size(share, max(1, head_tokens // (B * n)))

    @jax.checkpoint
    def chunk(_carry: None, xs: tuple[Array, Array]) -> tuple[None, Scores]:
        hidden_BtD, targets_Bt = xs
        logits_BtV = logits(hidden_BtD, weight, tied=arch.tie_embeddings)
        return None, score_chunk(
            logits_BtV, targets_Bt, temperature, entropy_gradient=entropy_gradient
        )

    def split(x: Array) -> Array:
        rest = x.shape[2:]
        nothing = [None] * len(rest)
        x = jnp.reshape(x, (B, n, share, *rest), out_sharding=P(rows, seq, None, *nothing))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -share % t), *[(0, 0)] * len(rest)))
        x = jnp.reshape(x, (B, n, -1, t, *rest), out_sharding=P(rows, seq, None, None, *nothing))
        x = jnp.moveaxis(x, 2, 0)
        return jnp.reshape(x, (-1, B, n * t, *rest), out_sharding=P(None, rows, seq, *nothing))

    def joined(x: Array) -> Array:
        x = jnp.reshape(x, (-1, B, n, t), out_sharding=P(None, rows, seq, None))
        x = jnp.reshape(jnp.moveaxis(x, 0, 2), (B, n, -1), out_sharding=P(rows, seq, None))
        return jnp.reshape(x[:, :, :share], (B, T), out_sharding=P(rows, seq))

    _, scores = jax.lax.scan(chunk, None, (split(hidden), split(targets)))
    return Scores(*map(joined, scores))


def chunk_size(tokens: int, at_most: int) -> int:
    """The largest divisor of `tokens` that is at most `at_most`; where that is less than half of
    what it may be (a prime number of tokens), the size of equal chunks of which the last is not
    full."""
    divisor = next(t for t in range(min(tokens, at_most), 0, -1) if tokens % t == 0)
    if 2 * divisor >= min(tokens, at_most):
        return divisor
    return -(-tokens // -(-tokens // at_most))
