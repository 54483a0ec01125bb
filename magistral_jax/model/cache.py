"""The generator's key/value cache in slots: each sequence has room for the longest one, in one
piece. `pages.py` has the other layout.

Each layer's arrays are separate, so that a decode step updates them in place: a stacked cache
that passes through a scan is copied, and doubles its memory (jax.md, section 4).

Axes: B slots, S cached tokens, K key/value heads, H head size.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from magistral_jax.model.attention import cached_attention, grouped_attention
from magistral_jax.model.params import Architecture
from magistral_jax.model.transformer import Attend

BY_HEAD: Any = P(None, "tp")
"""Where all that is cached lives, in slots or in pages: the second axis is the heads'."""


class LayerCache(NamedTuple):
    k: Float[Array, "B K H S"]
    v: Float[Array, "B K S H"]


Cache = tuple[LayerCache, ...]


def empty_cache(arch: Architecture, mesh: Mesh, slots: int, tokens: int, dtype: jnp.dtype) -> Cache:
    """Zeros for `slots` sequences of at most `tokens` tokens, heads split over "tp"."""
    return _empty_program(arch, mesh, slots, tokens, dtype)()


@cache
def _empty_program(
    arch: Architecture, mesh: Mesh, slots: int, tokens: int, dtype: jnp.dtype
) -> Callable[[], Cache]:
    """Compiled once: an evaluation and a probe make caches of the same shape again and again."""
    K, H = arch.kv_heads, arch.head_dim

    def make() -> Cache:
        return tuple(
            LayerCache(
                jnp.zeros((slots, K, H, tokens), dtype), jnp.zeros((slots, K, tokens, H), dtype)
            )
            for _ in range(arch.layers)
        )

    return jax.jit(make, out_shardings=NamedSharding(mesh, BY_HEAD))


def attend_cached(lengths: Int[Array, " B"]) -> Attend:
    """Write one token per slot at position `lengths`, then attend to all tokens up to it."""

    def local(
        cache: LayerCache, q: Array, k: Array, v: Array, lengths: Array, *, window: int | None
    ) -> tuple[Array, LayerCache]:
        slots = jnp.arange(q.shape[0])
        cache = LayerCache(
            cache.k.at[slots, :, :, lengths].set(k[:, 0]),
            cache.v.at[slots, :, lengths, :].set(v[:, 0]),
        )
        out = cached_attention(q[:, 0], cache.k, cache.v, lengths + 1, window)
        return out[:, None], cache

    return per_head(local, lengths)


def per_head(local: Callable[..., tuple[Array, Any]], places: Any) -> Attend:
    """`local` on each device's heads."""

    def attend(state: Any, q: Array, k: Array, v: Array, window: int | None) -> tuple[Array, Any]:
        sharded = jax.shard_map(
            partial(local, window=window),
            out_specs=(P(None, None, "tp", None), BY_HEAD),
            check_vma=False,
        )
        return sharded(state, q, k, v, places)

    return attend


def attend_extending(done: Int[Array, ""]) -> Attend:
    """Write a chunk of one sequence (B = 1) behind the `done` tokens before it, then let each of
    its tokens see all up to itself: what a prefill in one piece does, in several."""

    def local(
        cache: LayerCache, q: Array, k: Array, v: Array, done: Array, *, window: int | None
    ) -> tuple[Array, LayerCache]:
        cache = LayerCache(
            jax.lax.dynamic_update_slice_in_dim(cache.k, k.transpose(0, 2, 3, 1), done, axis=3),
            jax.lax.dynamic_update_slice_in_dim(cache.v, v.transpose(0, 2, 1, 3), done, axis=2),
        )
        back = done + jnp.arange(q.shape[1])[:, None] - jnp.arange(cache.v.shape[2])[None, :]
        seen = back >= 0 if window is None else (back >= 0) & (back < window)
        keys, values = cache.k.transpose(0, 3, 1, 2), cache.v.transpose(0, 2, 1, 3)
        return grouped_attention(q, keys, values, seen[None]), cache

    return per_head(local, done)


def widen(cache: Cache, tokens: int) -> Cache:
    """The cache with room for `tokens` tokens a sequence, or cut to as many."""

    def fitted(array: Array, axis: int) -> Array:
        array = jax.lax.slice_in_dim(array, 0, min(tokens, array.shape[axis]), axis=axis)
        pads = [(0, tokens - array.shape[axis] if i == axis else 0) for i in range(4)]
        return jnp.pad(array, pads)

    return tuple(LayerCache(fitted(layer.k, 3), fitted(layer.v, 2)) for layer in cache)


def insert_prefix(
    cache: Cache,
    prefix: tuple[LayerCache, ...],
    slots: Int[Array, " G"],
) -> Cache:
    """Copy one prefix (B = 1, S' <= S tokens) into each of `slots`; slots >= B are ignored."""

    def local(cache: Cache, prefix: Cache, slots: Array) -> Cache:
        return tuple(
            LayerCache(
                layer.k.at[slots, :, :, : new.k.shape[3]].set(new.k, mode="drop"),
                layer.v.at[slots, :, : new.v.shape[2], :].set(new.v, mode="drop"),
            )
            for layer, new in zip(cache, prefix, strict=True)
        )

    return jax.shard_map(local, out_specs=BY_HEAD, check_vma=False)(cache, prefix, slots)
