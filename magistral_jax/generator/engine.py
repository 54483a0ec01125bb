"""Jitted prefill, insert and generate over a fixed set of slots: a superset of JetStream's Engine.

Method and argument names are those of `jetstream.engine.engine_api.Engine` (HEAD); the additions
are what reinforcement learning needs: one prefill into many slots, a log-prob for each token, and
randomness named by (group, index, position). `params` is an argument of every call, which is what
lets the weights change between two steps while the cache stays.

Axes: B slots, G slots filled at once, T prompt tokens padded to a bucket, V vocabulary.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, Key

from magistral_jax.generator.programs import (
    Begun,
    DecodeState,
    Places,
    Prefix,
    extend,
    generate,
    insert,
    prefill,
)
from magistral_jax.generator.result import ResultTokens
from magistral_jax.generator.sampling import Sampler
from magistral_jax.model.attention import Kernels
from magistral_jax.model.cache import BY_HEAD, Cache, LayerCache, empty_cache, widen
from magistral_jax.model.pages import Table, empty_pages
from magistral_jax.model.params import Architecture, Params

SMALLEST_BUCKET = 16
TAIL = 32
"""Tokens behind a shared head that are prefilled at a time."""


class Engine:
    """Slots, a cache, and three jitted programs over them. Holds no request and no weights."""

    samples_per_slot = 1
    colocated_cpus = None
    use_chunked_prefill = False

    def __init__(
        self,
        arch: Architecture,
        mesh: Mesh,
        *,
        slots: int,
        tokens: int,
        stop_ids: Sequence[int],
        dtype: jnp.dtype,
        prefill_chunk: int = 0,
        prompt_tokens: int = 0,
        pages: int = 0,
        page_tokens: int = 32,
        in_8_bits: bool = False,
        kernels: Kernels | None = None,
        params: Params | None = None,
    ) -> None:
        """`slots` sequences of at most `tokens` tokens each, prompt included; prompts longer than
        `prefill_chunk` can be prefilled in pieces of it. `prompt_tokens`: the longest prompt, of
        which a beginning may be shared. With `pages` the cache is so many pages of `page_tokens`
        tokens, and a `memory.PageMemory` says whose they are; without, each slot has room for all.
        `in_8_bits` are pages of integers. `kernels` are for prefill, and for decoding in pages.
        """
        self.arch, self.mesh, self.dtype = arch, mesh, dtype
        self.max_concurrent_decodes = slots
        self.max_prefill_length = tokens
        self.prefill_chunk_size = min(prefill_chunk or tokens, tokens)
        self.head_room = self.bucket(min(prompt_tokens or tokens, tokens))
        self.tail_size = min(TAIL, self.head_room)
        self.pages, self.page_tokens = pages, page_tokens
        self.in_8_bits, self.kernels = in_8_bits, kernels
        self.stop_ids = tuple(stop_ids)
        self._params = params

    def load_params(self) -> Params:
        """The weights this engine was made with; a trainer's pushes replace them per call."""
        assert self._params is not None, "this engine was made without weights"
        return self._params

    def get_prefix_destination_sharding(self) -> Any:
        """Where each array of a `Prefix` belongs: heads split as in the cache."""
        by_head: Any = NamedSharding(self.mesh, BY_HEAD)
        layer = LayerCache(by_head, by_head)
        return Prefix((layer,) * self.arch.layers, *[NamedSharding(self.mesh, P())] * 3)  # pyright: ignore

    def bucket(self, length: int) -> int:
        """The padded size at which a prompt of `length` is prefilled."""
        return next(size for size in self.buckets if size >= length)

    @cached_property
    def buckets(self) -> tuple[int, ...]:
        """16, 24, 32, 48, 64, ... and all: a program each. With powers of two alone half the work
        would be padding at worst; so it is a third."""
        sizes, size = [], SMALLEST_BUCKET
        while size < self.max_prefill_length:
            sizes.append(size)
            # 2^k -> 3 x 2^(k-1) -> 2^(k+1)
            size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
        return (*sizes, self.max_prefill_length)

    def pages_of(self, tokens: int) -> int:
        """Pages that so many tokens fill."""
        return -(-tokens // self.page_tokens)

    def pad(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens padded to their bucket. The padding is masked, so its value is of no effect."""
        assert 0 < len(tokens) <= self.max_prefill_length, (len(tokens), self.max_prefill_length)
        return np.pad(tokens, (0, self.bucket(len(tokens)) - len(tokens))).astype(np.int32)

    def begin(self, tokens: np.ndarray) -> Begun:
        """A prompt longer than a chunk, before its first."""
        assert len(tokens) > self.prefill_chunk_size, (len(tokens), self.prefill_chunk_size)
        room = self.bucket(len(tokens))
        with jax.set_mesh(self.mesh):
            cache = empty_cache(self.arch, self.mesh, 1, room, self.dtype)
        return Begun(tokens, cache, self.prefill_chunk_size)

    def as_head(self, prefix: Prefix) -> Cache:
        """A prefix's keys and values with room for what may follow them in any prompt."""
        with jax.set_mesh(self.mesh):
            return self._widen(prefix.cache)

    def behind(self, head: Cache, tokens: np.ndarray, done: int) -> Begun:
        """A prompt of which `done` tokens are in the head."""
        assert self.tail_size <= len(tokens) <= self.head_room, (len(tokens), self.head_room)
        with jax.set_mesh(self.mesh):
            return Begun(tokens, self._copy(head), self.tail_size, done)

    def extend(self, params: Params, begun: Begun) -> None:
        """Prefill the next piece. The last one ends with the prompt, and repeats what of the one
        before it covers: equal keys and values, and no program of its own."""
        size = begun.piece
        first = min(begun.done, len(begun.tokens) - size)
        tokens = begun.tokens[None, first : first + size].astype(np.int32)
        with jax.set_mesh(self.mesh):
            begun.cache = self._extend(
                params, begun.cache, self.replicated(tokens), self.replicated(np.int32(first))
            )
        begun.done = first + size

    def finished(self, begun: Begun) -> Prefix:
        """The prompt prefilled, once it is whole."""
        assert begun.is_whole, (begun.done, len(begun.tokens))
        last = self.replicated(np.int32(begun.tokens[-1]))
        none = self.replicated(np.zeros(1, np.int32))
        return Prefix(begun.cache, last, none, self.replicated(np.int32(len(begun.tokens))))

    def prefill(
        self,
        *,
        params: Params,
        existing_prefix: Any = None,
        padded_tokens: np.ndarray | Array,
        true_length: int,
        sampler: Sampler | None = None,
        rng: Key[Array, ""] | None = None,
        request_id: Any = None,
    ) -> tuple[Prefix, ResultTokens]:
        """Keys and values of a prompt, and (for JetStream's callers) a first token."""
        return self.prefill_multisampling(
            params=params,
            existing_prefix=existing_prefix,
            padded_tokens=padded_tokens,
            true_length=true_length,
            sampler=sampler,
            rng=rng,
        )

    def prefill_multisampling(
        self,
        *,
        params: Params,
        existing_prefix: Any = None,
        padded_tokens: np.ndarray | Array,
        true_length: int,
        sampler: Sampler | None = None,
        rng: Key[Array, ""] | None = None,
        num_samples: int = 1,
    ) -> tuple[Prefix, ResultTokens]:
        """One prefill with `num_samples` first tokens. Equal `rng`s draw equal ones."""
        if existing_prefix is not None:
            raise NotImplementedError("existing_prefix: prefixes are not extended yet")
        with jax.set_mesh(self.mesh):
            prefix, data = self._prefill(
                params,
                self.replicated(np.asarray(padded_tokens, np.int32)[None]),
                self.replicated(np.int32(true_length)),
                sampler or Sampler(),
                self._key(rng),
                num_samples,
            )
        return prefix, ResultTokens(data)

    def insert(
        self, prefix: Prefix, decode_state: DecodeState, slot: int, request_id: Any = None
    ) -> DecodeState:
        """JetStream's insert: the slot continues after the prefill's own first token."""
        return self.bulk_insert(prefix, decode_state, [slot])

    def bulk_insert(
        self,
        prefix: Prefix,
        decode_state: DecodeState,
        slots: Sequence[int],
        *,
        groups: Sequence[int] | None = None,
        indices: Sequence[int] = (),
        limits: Sequence[int] = (),
        produced: int = 0,
        pad_to: int | None = None,
        places: Places | None = None,
    ) -> DecodeState:
        """One prefill into many slots (the G of a group); each draws its own next token.

        Of the prefilled tokens the last `produced` are the completion's own: a sequence that goes
        on. `pad_to` fixes the number of slots of the compiled program; the surplus is ignored.
        `places` (none: nowhere) matter where the cache is in pages. Without names it is
        JetStream's: slots go on after the prefill's own first tokens.
        """
        if groups is None:
            index, limit = range(len(slots)), [2**30] * len(slots)
            rows = (slots, slots, index, limit, [1] * len(slots))
            assert not self.pages, "JetStream's insert knows no pages"
            return self._insert(prefix, decode_state, rows, None, fed_first=True)
        surplus = (pad_to or len(slots)) - len(slots)
        slots = [*slots, *[self.max_concurrent_decodes] * surplus]
        groups, indices, limits = ([*x, *[0] * surplus] for x in (groups, indices, limits))
        rows = (slots, groups, indices, limits, [produced] * len(slots))
        return self._insert(prefix, decode_state, rows, places, fed_first=False)

    def generate(
        self,
        params: Params,
        decode_state: DecodeState,
        sampler: Sampler | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[DecodeState, ResultTokens]:
        """One token for each active slot. `decode_state` is donated."""
        with jax.set_mesh(self.mesh):
            state, data = self._generate(params, decode_state, sampler or Sampler(), self._key(rng))
        return state, ResultTokens(data)

    def generate_many(
        self,
        params: Params,
        decode_state: DecodeState,
        sampler: Sampler,
        rng: Key[Array, ""],
        steps: int,
    ) -> tuple[DecodeState, Int[Array, "steps B 5"]]:
        """`steps` times `generate` in one program, the results on top of each other: the host is
        asked for nothing in between. A sequence that ends leaves its slot idle for the rest."""
        with jax.set_mesh(self.mesh):
            return self._generate_many(params, decode_state, sampler, rng, steps)

    def copied(self, decode_state: DecodeState) -> DecodeState:
        """The state in buffers of its own, which the next step does not take."""
        with jax.set_mesh(self.mesh):
            return self._copy(decode_state)

    def free_resource(self, slot: int) -> None:
        """Nothing to free: a slot's memory is its own, and the next insert overwrites it."""

    def init_decode_state(self, rng: Key[Array, ""] | None = None) -> DecodeState:
        slots = self.max_concurrent_decodes
        zeros = np.zeros(slots, np.int32)
        room, table = self.max_prefill_length, None
        with jax.set_mesh(self.mesh):
            if self.pages:
                nowhere = np.full((slots, self.pages_of(room)), self.pages, np.int32)
                table = Table(self.replicated(nowhere), self.replicated(zeros.copy()))
                cache = self._empty_pages()
            else:
                cache = empty_cache(self.arch, self.mesh, slots, room, self.dtype)
            # One buffer each: the state is donated, and a donated buffer may not appear twice.
            tokens, lengths, produced, limits, groups, indices = (
                self.replicated(zeros.copy()) for _ in range(6)
            )
            active = self.replicated(np.zeros(slots, bool))
        return DecodeState(cache, tokens, lengths, produced, limits, groups, indices, active, table)

    def replicated(self, value: Any) -> Array:
        """The value whole on each of the engine's devices."""
        return jax.device_put(value, NamedSharding(self.mesh, P()))

    def _key(self, rng: Key[Array, ""] | None) -> Key[Array, ""]:
        return self._default_key if rng is None else rng

    @cached_property
    def _default_key(self) -> Key[Array, ""]:
        return self.replicated(jax.random.key(0))

    def _insert(
        self,
        prefix: Prefix,
        state: DecodeState,
        rows: Sequence[Sequence[int]],
        places: Places | None,
        *,
        fed_first: bool,
    ) -> DecodeState:
        if self.pages:
            places = self._padded(places, prefix.cache[0].v.shape[2], len(rows[0]))
        with jax.set_mesh(self.mesh):
            return self._insert_jit(
                prefix, state, self.replicated(np.array(rows, np.int32)), fed_first, places
            )

    def _padded(self, places: Places | None, prefix_tokens: int, slots: int) -> Places:
        """Places for as many pages as a prefix of this size can fill, and for all slots: one
        program for all prefixes of a size."""
        none = np.full(0, self.pages, np.int32)
        prompt, rest, own = places or (none, np.int32(0), none)
        most = self.pages_of(prefix_tokens)
        prompt, own = (
            np.pad(x, (0, size - len(x)), constant_values=self.pages).astype(np.int32)
            for x, size in ((prompt, most), (own, slots))
        )
        return Places(*map(self.replicated, (prompt, np.asarray(rest, np.int32), own)))

    @cached_property
    def _insert_jit(self) -> Any:
        put = partial(insert, keys_last=self.kernels is not None)
        return jax.jit(put, donate_argnums=1, static_argnums=3)

    @property
    def _empty_pages(self) -> Any:
        return empty_pages(
            self.arch,
            self.mesh,
            self.pages,
            self.page_tokens,
            self.dtype,
            in_8_bits=self.in_8_bits,
            keys_last=self.kernels is not None,
        )

    @cached_property
    def _copy(self) -> Any:
        return jax.jit(lambda state: jax.tree.map(partial(jnp.array, copy=True), state))

    @cached_property
    def _prefill(self) -> Any:
        begin = partial(prefill, arch=self.arch, dtype=self.dtype, kernels=self.kernels)
        return jax.jit(begin, static_argnums=5)

    @cached_property
    def _widen(self) -> Any:
        return jax.jit(partial(widen, tokens=self.head_room))

    @cached_property
    def _extend(self) -> Any:
        return jax.jit(partial(extend, arch=self.arch, dtype=self.dtype), donate_argnums=1)

    @cached_property
    def _generate(self) -> Any:
        return jax.jit(self._step, donate_argnums=1)

    @cached_property
    def _generate_many(self) -> Any:
        def many(
            params: Params, state: DecodeState, sampler: Sampler, key: Key[Array, ""], steps: int
        ) -> Any:
            # The cache is the loop's carry, written in place: no copy of it is made.
            return jax.lax.scan(
                lambda state, _: self._step(params, state, sampler, key), state, length=steps
            )

        return jax.jit(many, donate_argnums=1, static_argnums=4)

    @property
    def _step(self) -> Any:
        return partial(
            generate,
            arch=self.arch,
            stop_ids=self.stop_ids,
            tokens=self.max_prefill_length,
            dtype=self.dtype,
            kernels=self.kernels,
        )
