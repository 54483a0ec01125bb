"""Packed attention in blocks: for rows too long to hold all scores, whole or split over devices.

The scores of T x S tokens never exist; those of one block of queries and one of keys do, and blocks
that lie wholly in other completions, or behind the queries, are skipped: with short completions in
a long row the work grows with T, not with T^2. Forward and backward are FlashAttention's (Dao 2023,
algorithms 1 and 2), as loops that XLA runs anywhere.

With the tokens of a row split over "sp" (context parallel), each device gathers the keys and values
of the whole row and computes its own queries, as Llama 3 does (section 3.3.2): the gather is small
beside the scores where few key/value heads serve many query heads.

Axes: B rows, T queries, S keys, N = K x R query heads, K key/value heads, H head size; i blocks of
Q queries, j blocks of C keys.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Float, Int

from magistral_jax.model.attention import MASKED

BLOCK = 256


def blocked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    positions: Int[Array, "B T"],
    window: Any,
) -> Float[Array, "B T N H"]:
    """Causal attention within each packed completion, whose tokens are neighbours and whose places
    are counted in `positions`; padding (0) sees itself. `window`: None, or tokens seen, maybe
    traced. Rows may be split over "fsdp", their tokens over "sp", heads over "tp"."""
    spec = jax.typeof(q).sharding.spec
    by = spec[1]

    def local(q: Array, k: Array, v: Array, positions: Array, window: Array) -> Array:
        start = 0
        if by is not None:
            start = jax.lax.axis_index(by) * q.shape[1]
            k, v = (jax.lax.all_gather(x, by, axis=1, tiled=True) for x in (k, v))
        at = start + jnp.arange(q.shape[1], dtype=jnp.int32)[None]
        first = at - jnp.minimum(positions, window - 1)
        return _rows(q, k, v, first, jnp.broadcast_to(at, first.shape))

    seen = jnp.asarray(2**30 if window is None else window, jnp.int32)
    return jax.shard_map(local, out_specs=P(*spec), check_vma=False)(q, k, v, positions, seen)


class _Blocks(NamedTuple):
    """One row, cut: heads in front, so that each product is a plain batched one."""

    q: Float[Array, "i K RQ H"]
    k: Float[Array, "K S H"]
    v: Float[Array, "K S H"]
    first: Int[Array, "i Q"]
    """The first key that each query sees ..."""
    last: Int[Array, "i Q"]
    """... and the last: itself."""


def _rows(q: Array, k: Array, v: Array, first: Array, last: Array) -> Array:
    """Row by row: the loops of a row are as long as its completions make them."""
    return jax.lax.map(lambda row: _row(*row), (q, k, v, first, last))


@jax.custom_vjp
def _row(
    q: Float[Array, "T N H"],
    k: Float[Array, "S K H"],
    v: Float[Array, "S K H"],
    first: Int[Array, " T"],
    last: Int[Array, " T"],
) -> Float[Array, "T N H"]:
    return _forward(q, k, v, first, last)[0]


def _forward(q: Array, k: Array, v: Array, first: Array, last: Array) -> tuple[Array, Any]:
    blocks = _cut(q, k, v, first, last)
    out, lse = jax.lax.map(lambda block: _of_queries(block, blocks), (blocks.q, *blocks[3:]))
    return _joined(out, q), (q, k, v, first, last, out, lse)


def _backward(saved: Any, d_out: Float[Array, "T N H"]) -> tuple[Any, ...]:
    q, k, v, first, last, out, lse = saved
    blocks = _cut(q, k, v, first, last)
    d_blocks = _queries(d_out, k.shape[1])
    # The softmax's own part of the gradient, once for each query.
    delta = jnp.sum(d_blocks.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def of_queries(carry: Any, block: Any) -> tuple[Any, Array]:
        return _gradient(carry, block, blocks)

    zeros = jnp.zeros(blocks.k.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(
        of_queries, (zeros, zeros), (blocks.q, *blocks[3:], d_blocks, lse, delta)
    )
    S = k.shape[0]
    dk, dv = (x[:, :S].transpose(1, 0, 2) for x in (dk, dv))
    return _joined(dq, q), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_row.defvjp(_forward, _backward)


def _cut(q: Array, k: Array, v: Array, first: Array, last: Array) -> _Blocks:
    """Padded to whole blocks: a query of padding sees one key, a key of padding is seen by none."""
    T, S = q.shape[0], k.shape[0]
    Q, C = min(BLOCK, T), min(BLOCK, S)

    def whole(x: Array, size: int) -> Array:
        return jnp.pad(x, ((0, -x.shape[0] % size), *[(0, 0)] * (x.ndim - 1)))

    keys, values = (whole(x, C).transpose(1, 0, 2) for x in (k, v))
    # The last place of the row repeated, so that padding lengthens no loop.
    first, last = (jnp.pad(x, (0, -T % Q), mode="edge").reshape(-1, Q) for x in (first, last))
    return _Blocks(_queries(q, k.shape[1]), keys, values, first, last)


def _queries(x: Float[Array, "T N H"], kv_heads: int) -> Float[Array, "i K RQ H"]:
    T, N, H = x.shape
    Q = min(BLOCK, T)
    x = jnp.pad(x, ((0, -T % Q), (0, 0), (0, 0)))
    x = x.reshape(-1, Q, kv_heads, N // kv_heads, H).transpose(0, 2, 3, 1, 4)
    return x.reshape(x.shape[0], kv_heads, -1, H)


def _joined(x: Float[Array, "i K RQ H"], like: Float[Array, "T N H"]) -> Float[Array, "T N H"]:
    T, N, H = like.shape
    i, K, RQ, _ = x.shape
    R = N // K
    x = x.reshape(i, K, R, RQ // R, H).transpose(0, 3, 1, 2, 4)
    return x.reshape(-1, N, H)[:T].astype(like.dtype)


def _span(first: Array, last: Array, block: int) -> tuple[Array, Array]:
    """Which blocks of keys a block of queries sees any of."""
    return jnp.min(first) // block, jnp.max(last) // block + 1


def _keys(blocks: _Blocks, j: Array, C: int) -> tuple[Array, Array]:
    return tuple(jax.lax.dynamic_slice_in_dim(x, j * C, C, axis=1) for x in (blocks.k, blocks.v))  # pyright: ignore


def _scores(q: Array, k: Array, first: Array, last: Array, j: Array) -> Float[Array, "K RQ C"]:
    C = k.shape[1]
    scores = jnp.einsum("KTH,KCH->KTC", q, k, preferred_element_type=jnp.float32)
    at = j * C + jnp.arange(C, dtype=jnp.int32)[None]
    is_seen = (at >= first[:, None]) & (at <= last[:, None])
    is_seen = jnp.tile(is_seen, (q.shape[1] // first.shape[0], 1))
    return jnp.where(is_seen[None], scores * q.shape[-1] ** -0.5, MASKED)


def _of_queries(block: Any, blocks: _Blocks) -> tuple[Array, Array]:
    """Output and log-sum-exp of one block of queries."""
    q, first, last = block
    C = min(BLOCK, blocks.k.shape[1])
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def see(j: Array, so_far: Any) -> Any:
        out, total, peak = so_far
        k, v = _keys(blocks, j, C)
        scores = _scores(q, k, first, last, j)
        new = jnp.maximum(peak, jnp.max(scores, axis=-1))
        keep, weights = jnp.exp(peak - new), jnp.exp(scores - new[..., None])
        # A query that sees nothing of this block: exp(MASKED - MASKED) would be 1.
        weights = jnp.where(scores > MASKED / 2, weights, 0.0).astype(v.dtype)
        out = out * keep[..., None] + product("KTC,KCH->KTH", weights, v)
        return out, total * keep + jnp.sum(weights.astype(jnp.float32), axis=-1), new

    rows = q.shape[:2]
    nothing = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.full(rows, MASKED, jnp.float32),
    )
    out, total, peak = jax.lax.fori_loop(*_span(first, last, C), see, nothing)
    return (out / total[..., None]).astype(q.dtype), peak + jnp.log(total)


def _gradient(carry: Any, block: Any, blocks: _Blocks) -> tuple[Any, Array]:
    """What one block of queries adds to the gradients of keys and values, and its own."""
    q, first, last, d_out, lse, delta = block
    C, scale = min(BLOCK, blocks.k.shape[1]), q.shape[-1] ** -0.5
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def see(j: Array, so_far: Any) -> Any:
        dk, dv, dq = so_far
        k, v = _keys(blocks, j, C)
        weights = jnp.exp(_scores(q, k, first, last, j) - lse[..., None])
        d_weights = product("KTH,KCH->KTC", d_out, v)
        d_scores = (weights * (d_weights - delta[..., None]) * scale).astype(q.dtype)
        dv_j = product("KTC,KTH->KCH", weights.astype(v.dtype), d_out)
        dk_j = product("KTC,KTH->KCH", d_scores, q)
        return (
            _added(dk, dk_j, j * C),
            _added(dv, dv_j, j * C),
            dq + product("KTC,KCH->KTH", d_scores, k),
        )

    start = (*carry, jnp.zeros(q.shape, jnp.float32))
    dk, dv, dq = jax.lax.fori_loop(*_span(first, last, C), see, start)
    return (dk, dv), dq


def _added(into: Array, part: Array, at: Array) -> Array:
    old = jax.lax.dynamic_slice_in_dim(into, at, part.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(into, old + part, at, axis=1)
