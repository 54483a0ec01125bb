"""The pure programs of the engine: prefill, insert and generate, over the state they work on.

Axes: B slots, G slots filled at once, T prompt tokens padded to a bucket, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jaxtyping import Array, Bool, Int, Key

from magistral_jax.generator.result import LENGTH, RUNNING, STOP, pack_result
from magistral_jax.generator.sampling import Sampler, sample, uniforms
from magistral_jax.model.attention import Kernels
from magistral_jax.model.cache import (
    Cache,
    LayerCache,
    attend_cached,
    attend_extending,
    insert_prefix,
)
from magistral_jax.model.pages import Table, attend_paged, insert_pages
from magistral_jax.model.params import Architecture, Params
from magistral_jax.model.transformer import attend_packed, head_weight, logits, transform


class Prefix(NamedTuple):
    """A prefilled prompt, ready to be inserted into any number of slots."""

    cache: Cache
    """Keys and values of one sequence, padded to its bucket."""
    last_token: Int[Array, ""]
    first_tokens: Int[Array, " samples"]
    """What JetStream's `prefill` samples; a named `bulk_insert` lets each slot draw its own."""
    length: Int[Array, ""]
    """Prompt tokens, without padding."""


@dataclass
class Begun:
    """A prompt that is prefilled in pieces, and how far it is."""

    tokens: np.ndarray
    cache: Cache
    piece: int
    """Tokens prefilled at a time."""
    done: int = 0

    @property
    def is_whole(self) -> bool:
        return self.done == len(self.tokens)


class DecodeState(NamedTuple):
    """Everything a decode step reads and writes; donated to each step."""

    cache: Any
    """`Cache`, or `Pages` with a table."""
    tokens: Int[Array, " B"]
    """The next token to be fed."""
    lengths: Int[Array, " B"]
    """Tokens whose keys and values are in the cache."""
    produced: Int[Array, " B"]
    """Tokens sampled so far: the position of the next one within its completion."""
    limits: Int[Array, " B"]
    groups: Int[Array, " B"]
    indices: Int[Array, " B"]
    active: Bool[Array, " B"]
    table: Table | None = None
    """Where the cache is in pages: which are whose."""


def prefill(
    params: Params,
    tokens: Int[Array, "1 T"],
    length: Int[Array, ""],
    sampler: Sampler,
    key: Key[Array, ""],
    samples: int,
    *,
    arch: Architecture,
    dtype: jnp.dtype,
    kernels: Kernels | None = None,
) -> tuple[Prefix, Int[Array, "samples 5"]]:
    T = tokens.shape[1]
    positions = jnp.arange(T, dtype=jnp.int32)[None]
    segments = (positions < length).astype(jnp.int32)
    attend = attend_packed(segments, positions, kernels)
    hidden, states = transform(params, arch, tokens, positions, attend=attend, dtype=dtype)
    cache = tuple(LayerCache(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)) for k, v in states)
    # Two rows of which one is used: a product with a single row is slow on CPU.
    last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
    last = jnp.concatenate([last, last], axis=1)
    scores = logits(last, head_weight(params, dtype), tied=arch.tie_embeddings)[:, 0]
    scores = jnp.repeat(jax.reshard(scores, P(None, None)), samples, axis=0)
    zero = jnp.zeros(samples, jnp.int32)
    draws = uniforms(key, zero, jnp.arange(samples, dtype=jnp.int32), zero)
    token, logprob = sample(scores, draws, sampler)
    last_token = jax.lax.dynamic_index_in_dim(tokens[0], length - 1, keepdims=False)
    prefix = Prefix(cache, last_token, token, length)
    return prefix, pack_result(token, zero == 0, zero + 1, logprob, zero + RUNNING)


def extend(
    params: Params,
    cache: Cache,
    tokens: Int[Array, "1 T"],
    done: Int[Array, ""],
    *,
    arch: Architecture,
    dtype: jnp.dtype,
) -> Cache:
    """The next chunk of a prompt of which `done` tokens are in `cache`."""
    positions = done + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    _, cache = transform(
        params,
        arch,
        tokens,
        positions,
        attend=attend_extending(done),
        states=cache,
        dtype=dtype,
    )
    return cache


class Places(NamedTuple):
    """Which pages a prefix is written into, on the host or the device; P is none."""

    prompt: Any
    """[m] for each page of the prefix."""
    rest: Any
    """Which page of the prefix each slot has a copy of ..."""
    own: Any
    """[G] ... and where."""


def insert(
    prefix: Prefix,
    state: DecodeState,
    rows: Int[Array, "5 G"],
    fed_first: bool,
    places: Places | None = None,
    *,
    keys_last: bool = False,
) -> DecodeState:
    """Put the prefix into slots rows[0]; the rows below are groups, indices, limits and tokens
    produced so far. `places`: where, if the cache is in pages.

    With `fed_first` the slot goes on after the prefill's first token. Without, the last prompt
    token is fed once more: its keys and values are rewritten with equal ones, and every slot
    draws its own first token in the ordinary step.
    """
    slots, groups, indices, limits, produced = rows
    token = prefix.first_tokens if fed_first else prefix.last_token
    length = prefix.length if fed_first else prefix.length - 1

    def put(into: Array, value: Any) -> Array:
        return into.at[slots].set(value, mode="drop")

    if places is None:
        cache = insert_prefix(state.cache, prefix.cache, slots)
    else:
        cache = insert_pages(state.cache, prefix.cache, *places, keys_last=keys_last)
    return state._replace(
        cache=cache,
        tokens=put(state.tokens, token),
        lengths=put(state.lengths, length),
        produced=put(state.produced, produced),
        limits=put(state.limits, limits),
        groups=put(state.groups, groups),
        indices=put(state.indices, indices),
        active=put(state.active, True),
    )


def generate(
    params: Params,
    state: DecodeState,
    sampler: Sampler,
    key: Key[Array, ""],
    *,
    arch: Architecture,
    stop_ids: tuple[int, ...],
    tokens: int,
    dtype: jnp.dtype,
    kernels: Kernels | None = None,
) -> tuple[DecodeState, Int[Array, "B 5"]]:
    """Feed each slot's token, sample the next, and detect the end on the device. `tokens`: the
    most that a sequence may have."""
    if state.table is None:
        attend = attend_cached(state.lengths)
    else:
        attend = attend_paged(state.table, state.lengths, kernels=kernels)
    hidden, cache = transform(
        params,
        arch,
        state.tokens[:, None],
        state.lengths[:, None],
        attend=attend,
        states=state.cache,
        dtype=dtype,
    )
    scores = logits(hidden, head_weight(params, dtype), tied=arch.tie_embeddings)[:, 0]
    draws = uniforms(key, state.groups, state.indices, state.produced)
    token, logprob = sample(jax.reshard(scores, P(None, None)), draws, sampler)

    step = state.active.astype(jnp.int32)
    produced = state.produced + step
    is_stop = jnp.isin(token, jnp.array(stop_ids, jnp.int32))
    # An idle or full slot writes at its last position over and over, which nobody reads.
    room = tokens - 1
    is_full = (produced >= state.limits) | (state.lengths >= room)
    finish = jnp.where(is_stop, STOP, jnp.where(is_full, LENGTH, RUNNING))
    finish = jnp.where(state.active, finish, RUNNING).astype(jnp.int32)
    result = pack_result(token, state.active, produced, logprob, finish)
    state = state._replace(
        cache=cache,
        tokens=jnp.where(state.active, token, state.tokens),
        lengths=jnp.minimum(state.lengths + step, room),
        produced=produced,
        active=state.active & (finish == RUNNING),
    )
    return state, result
