"""Our engine as JetStream's own `Engine`, so that its server can drive it.

Needs the extra `magistral-jax[jetstream]`; nothing else in this package imports this file. The
release on the package index (0.2.2) and JetStream's last commit differ in one point:

    0.2.2   prefill returns a prefix; the first token is sampled by the first `generate`
    HEAD    prefill returns a prefix and the first token; `generate` goes on from the second

The installed version decides which of the two the adapter does.
"""

import importlib
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.programs import DecodeState, Prefix
from magistral_jax.generator.result import ResultTokens
from magistral_jax.generator.sampling import Sampler
from magistral_jax.model.params import Params


class WeightsHandle:
    """What a JetStream driver holds as `params`: it reads them once, this is read at every step."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def get(self) -> Params:
        return self._params

    def put(self, params: Params) -> None:
        """The next prefill or step uses these weights; caches stay."""
        self._params = params


def adapt(
    engine: Engine, *, sampler: Sampler | None = None, seed: int = 0, tokenizer: Any = None
) -> Any:
    """A `jetstream.engine.engine_api.Engine` that computes on `engine`.

    Args:
        tokenizer: A `jetstream.engine.tokenizer_api.Tokenizer`, for JetStream's orchestrator.
    """
    adapter, api = _adapter_class()
    return adapter(engine, api, sampler or Sampler(), seed, tokenizer)


@cache
def _adapter_class() -> tuple[Any, Any]:
    """The class, and JetStream's module: imported here, where it is wanted, and nowhere else."""
    try:
        from jetstream.engine import engine_api  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"JetStream cannot be imported ({error}). It is an extra: "
            "pip install 'magistral-jax[jetstream]'"
        ) from error
    return type("JetStreamEngine", (_Adapter, engine_api.Engine), {}), engine_api


class _Adapter:
    """Each of JetStream's methods, by one of ours. Every call draws new random numbers."""

    samples_per_slot = 1
    colocated_cpus = None
    use_chunked_prefill = False

    def __init__(
        self, engine: Engine, api: Any, sampler: Sampler, seed: int, tokenizer: Any
    ) -> None:
        self.engine, self._api, self._sampler, self._tokenizer = engine, api, sampler, tokenizer
        self._key = engine.replicated(jax.random.key(seed))
        self._calls = 0
        self._prefill_samples = "sampler" in inspect.signature(api.Engine.prefill).parameters

    def prefill(self, **request: Any) -> Any:
        """A prefix; on HEAD, a prefix and its first token."""
        request.pop("request_id", None)
        prefix, first = self.prefill_multisampling(**request)
        return (prefix, first) if self._prefill_samples else prefix

    def prefill_multisampling(
        self, *, params: Any, sampler: Any = None, rng: Any = None, **request: Any
    ) -> tuple[Prefix, Any]:
        prefix, first = self.engine.prefill_multisampling(
            params=_current(params),
            sampler=sampler or self._sampler,
            rng=self._next_key() if rng is None else rng,
            **request,
        )
        return prefix, self._result(first)

    def insert(
        self, prefix: Prefix, decode_state: DecodeState, slot: int, request_id: Any = None
    ) -> DecodeState:
        return self.bulk_insert(prefix, decode_state, [slot])

    def bulk_insert(
        self, prefix: Prefix, decode_state: DecodeState, slots: Sequence[int]
    ) -> DecodeState:
        if self._prefill_samples:
            return self.engine.bulk_insert(prefix, decode_state, slots)
        # Nobody has seen a first token: each slot draws its own in the first step.
        names, limits = range(len(slots)), [2**30] * len(slots)
        return self.engine.bulk_insert(
            prefix, decode_state, slots, groups=slots, indices=names, limits=limits
        )

    def generate(
        self, params: Any, decode_state: DecodeState, sampler: Any = None, rng: Any = None
    ) -> tuple[DecodeState, Any]:
        rng = self._next_key() if rng is None else rng
        state, result = self.engine.generate(
            _current(params), decode_state, sampler or self._sampler, rng
        )
        return state, self._result(result)

    def load_params(self, *_: Any, **__: Any) -> WeightsHandle:
        return WeightsHandle(self.engine.load_params())

    def get_prefix_destination_sharding(self) -> Any:
        return self.engine.get_prefix_destination_sharding()

    def get_tokenizer(self) -> Any:
        module = importlib.import_module("jetstream.engine.tokenizer_pb2")
        return module.TokenizerParameters(path="", extra_ids=0)

    def build_tokenizer(self, metadata: Any) -> Any:
        if self._tokenizer is None:
            raise ValueError("this adapter has no tokenizer; pass one as adapt(..., tokenizer=...)")
        return self._tokenizer

    def init_decode_state(self, *_: Any, **__: Any) -> DecodeState:
        return self.engine.init_decode_state()

    def free_resource(self, slot: int) -> None:
        self.engine.free_resource(slot)

    @property
    def max_concurrent_decodes(self) -> int:
        return self.engine.max_concurrent_decodes

    @property
    def max_prefill_length(self) -> int:
        return self.engine.max_prefill_length

    @property
    def prefill_chunk_size(self) -> int:
        return self.engine.prefill_chunk_size

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self.engine.mesh

    def _next_key(self) -> Any:
        self._calls += 1
        return jax.random.fold_in(self._key, self._calls)

    def _result(self, result: ResultTokens) -> Any:
        return self._api.ResultTokens(
            data=result.data,
            tokens_idx=result.tokens_idx,
            valid_idx=result.valid_idx,
            length_idx=result.length_idx,
            samples_per_slot=result.samples_per_slot,
        )


def _current(params: Any) -> Params:
    """The weights themselves, or those a handle holds now. (A dict has a `get`, too.)"""
    return params if isinstance(params, dict) else params.get()
