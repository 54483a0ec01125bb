"""The generator's key/value cache in pages: each sequence has as many as its tokens fill.

A table says which pages are whose, and the pages that a prompt fills are in the tables of all its
completions. A decode step gathers the pages of a sequence into one piece and computes on that as on
a slot (`cache.py`); with `Kernels` it reads them where they are.

In 8 bits a token's key (or value) in a head is H integers and one scale, the largest magnitude over
127. Keys and values are then rounded, so log-probs are no longer the trainer's within the bound
(docs/BENCHMARKS.md says by how much).

Axes: B slots, G slots filled at once, K key/value heads, H head size; P pages of `page` tokens, n
pages of the longest sequence, m pages of a prefix.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, Shaped

from magistral_jax.model.attention import Kernels, cached_attention
from magistral_jax.model.cache import BY_HEAD, Cache, per_head, widen
from magistral_jax.model.params import Architecture
from magistral_jax.model.transformer import Attend


class Scales(NamedTuple):
    """What the integers of an 8-bit layer are multiplied with."""

    k: Float[Array, "P K page"]
    v: Float[Array, "P K page"]


class LayerPages(NamedTuple):
    k: Shaped[Array, "P K H page"]
    """With `Kernels` [P K page H], as they want it."""
    v: Shaped[Array, "P K page H"]
    scales: Scales | None = None


Pages = tuple[LayerPages, ...]


class Table(NamedTuple):
    """Which pages a sequence's tokens are in."""

    pages: Int[Array, "B n"]
    """Numbers of pages in the order of their tokens; P where there is none."""
    shared: Int[Array, " B"]
    """Tokens at the front whose pages belong to others too, and are never written."""


@cache
def empty_pages(
    arch: Architecture,
    mesh: Mesh,
    pages: int,
    page_tokens: int,
    dtype: jnp.dtype,
    *,
    in_8_bits: bool = False,
    keys_last: bool = False,
) -> Callable[[], Pages]:
    """A program, compiled once, for zeros with heads split over "tp". `keys_last`: for kernels."""
    K, H = arch.kv_heads, arch.head_dim
    held = jnp.dtype(jnp.int8) if in_8_bits else dtype
    flat, last = (pages, K, page_tokens), (pages, K, page_tokens, H)

    def layer() -> LayerPages:
        k = jnp.zeros(last if keys_last else (pages, K, H, page_tokens), held)
        scales = Scales(*(jnp.zeros(flat, jnp.float32) for _ in "kv")) if in_8_bits else None
        return LayerPages(k, jnp.zeros(last, held), scales)

    return jax.jit(
        lambda: tuple(layer() for _ in range(arch.layers)),
        out_shardings=NamedSharding(mesh, BY_HEAD),
    )


def attend_paged(table: Table, lengths: Int[Array, " B"], *, kernels: Kernels | None) -> Attend:
    """Write one token per slot at position `lengths`, then attend to all tokens up to it."""

    def local(
        layer: LayerPages, q: Array, k: Array, v: Array, places: Any, *, window: int | None
    ) -> tuple[Array, LayerPages]:
        assert not (layer.scales and kernels), "the kernels read no 8-bit pages"
        table, lengths = places
        P_, K, page, H = layer.v.shape
        n = table.pages.shape[1]
        number = jnp.take_along_axis(
            table.pages, (lengths // page)[:, None], axis=1, mode="fill", fill_value=P_
        )[:, 0]
        number = jnp.where(lengths < table.shared, P_, number)
        layer = _written(layer, number, lengths % page, k[:, 0], v[:, 0], keys_last=bool(kernels))
        if kernels:
            from magistral_jax.model.kernels import paged_decode  # as in `packed_attention`

            # An idle slot has no page, and reads one that is there.
            pages = jnp.minimum(table.pages, P_ - 1)
            out = paged_decode(
                q[:, 0],
                layer.k,
                layer.v,
                lengths + 1,
                pages,
                window=window,
                platform=kernels.platform,
                interpret=kernels.interpret,
            )
            return out[:, None], layer
        k_BnKHp, v_BnKpH = (x.at[table.pages].get(mode="clip") for x in (layer.k, layer.v))
        if layer.scales is not None:
            k_BnKp, v_BnKp = (x.at[table.pages].get(mode="clip") for x in layer.scales)
            k_BnKHp = (k_BnKHp.astype(jnp.float32) * k_BnKp[:, :, :, None, :]).astype(k.dtype)
            v_BnKpH = (v_BnKpH.astype(jnp.float32) * v_BnKp[..., None]).astype(v.dtype)
        keys = k_BnKHp.transpose(0, 2, 3, 1, 4).reshape(-1, K, H, n * page)
        values = v_BnKpH.transpose(0, 2, 1, 3, 4).reshape(-1, K, n * page, H)
        return cached_attention(q[:, 0], keys, values, lengths + 1, window)[:, None], layer

    return per_head(local, (table, lengths))


def _written(
    layer: LayerPages,
    number: Int[Array, " B"],
    at: Int[Array, " B"],
    k: Float[Array, "B K H"],
    v: Float[Array, "B K H"],
    *,
    keys_last: bool,
) -> LayerPages:
    """One token of each slot at place `at` of page `number`; P is nowhere."""
    scales = layer.scales
    if scales is not None:
        (k, k_scale), (v, v_scale) = rounded(k), rounded(v)
        scales = Scales(
            scales.k.at[number, :, at].set(k_scale, mode="drop"),
            scales.v.at[number, :, at].set(v_scale, mode="drop"),
        )
    place = (number, slice(None), at, slice(None)) if keys_last else (number, ..., at)
    return LayerPages(
        layer.k.at[place].set(k, mode="drop"),
        layer.v.at[number, :, at, :].set(v, mode="drop"),
        scales,
    )


def rounded(x: Float[Array, "*batch H"]) -> tuple[Int[Array, "*batch H"], Float[Array, "*batch"]]:
    """Integers of 8 bits, and what to multiply them with."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, 1e-30)[..., None]).astype(jnp.int8), scale


def insert_pages(
    pool: Pages,
    prefix: Cache,
    prompt: Int[Array, " m"],
    rest: Int[Array, ""],
    own: Int[Array, " G"],
    *,
    keys_last: bool,
) -> Pages:
    """Write a prefix (B = 1) into pages: its i-th page into `prompt[i]`, and page `rest` of it into
    each of `own`. Numbers of P and above are ignored."""

    def local(pool: Pages, prefix: Cache, prompt: Array, rest: Array, own: Array) -> Pages:
        page, m = pool[0].v.shape[2], prompt.shape[0]

        def put(into: Array, new: Array) -> Array:
            part = jax.lax.dynamic_index_in_dim(new, rest)
            return into.at[prompt].set(new, mode="drop").at[own].set(part, mode="drop")

        layers = []
        for layer, new in zip(pool, widen(prefix, m * page), strict=True):
            _, K, H, _ = new.k.shape
            k_mKpH = new.k[0].reshape(K, H, m, page).transpose(2, 0, 3, 1)
            v_mKpH = new.v[0].reshape(K, m, page, H).transpose(1, 0, 2, 3)
            scales = layer.scales
            if scales is not None:
                (k_mKpH, k_scale), (v_mKpH, v_scale) = rounded(k_mKpH), rounded(v_mKpH)
                scales = Scales(put(scales.k, k_scale), put(scales.v, v_scale))
            k = k_mKpH if keys_last else k_mKpH.transpose(0, 1, 3, 2)
            layers.append(LayerPages(put(layer.k, k), put(layer.v, v_mKpH), scales))
        return tuple(layers)

    return jax.shard_map(local, out_specs=BY_HEAD, check_vma=False)(pool, prefix, prompt, rest, own)
