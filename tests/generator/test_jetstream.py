"""JetStream's own engine class over our engine. Skipped where google-jetstream is not installed."""

import importlib.util
import sys
from types import ModuleType

import jax
import numpy as np
import pytest

from magistral_jax.generator import jetstream
from magistral_jax.generator.jetstream import WeightsHandle, adapt
from magistral_jax.generator.sampling import Sampler

GREEDY = Sampler(temperature=0.0)

installed = pytest.mark.skipif(
    importlib.util.find_spec("jetstream") is None
    or importlib.util.find_spec("jetstream.engine") is None,
    reason="google-jetstream is not installed: pip install --no-deps google-jetstream==0.2.2",
)


def stub(name, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    return module


@pytest.fixture
def engine_api(monkeypatch):
    """JetStream's module, without the tokenizers that it imports (seqio brings TensorFlow)."""
    stubs = {
        "seqio": {},
        "seqio.vocabularies": dict.fromkeys(("Vocabulary", "SentencePieceVocabulary"), object),
        "tiktoken": {"Encoding": object},
        "tiktoken.load": {"load_tiktoken_bpe": None},
    }
    for name, contents in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub(name, **contents))
    # 0.2.2 calls it; jax removed it.
    monkeypatch.setattr(jax, "tree_map", jax.tree.map, raising=False)
    jetstream._adapter_class.cache_clear()
    yield importlib.import_module("jetstream.engine.engine_api")
    jetstream._adapter_class.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "jetstream"]:
        monkeypatch.delitem(sys.modules, name)


def start(adapter, params, prompt, state, slot):
    """As a JetStream 0.2.2 orchestrator does it: prefill, then insert."""
    engine = adapter.engine
    prefix = adapter.prefill(
        params=params,
        padded_tokens=engine.pad(prompt.tokens),
        true_length=len(prompt.tokens),
    )
    prefix = jax.device_put(prefix, adapter.get_prefix_destination_sharding())
    return adapter.insert(prefix, state, slot=slot)


def decode(adapter, params, state, slots, steps):
    tokens = {slot: [] for slot in slots}
    for _ in range(steps):
        state, result = adapter.generate(params, state)
        result.copy_to_host_async()
        host = result.convert_to_numpy()
        for slot in slots:
            data = host.get_result_at_slot(slot)
            assert data.valid[0, 0] == 1 and data.lengths[0] == len(tokens[slot]) + 1
            tokens[slot].append(int(data.tokens[0, 0]))
    return tokens, state


def greedy(policy, prompt, *, swap_at=None, version=0):
    scheduler = policy.scheduler(3, stops=False, max_tokens=8, sampler=GREEDY, version=version)
    scheduler.submit(prompt, count=1)
    for step in range(8):
        if step == swap_at:
            scheduler.swap(policy.snapshot(version + 1))
        done = scheduler.step()
    return done[0].tokens.tolist()


@installed
def test_an_adapter_is_jetstreams_engine_and_decodes_as_our_scheduler(policy, engine_api):
    adapter = adapt(policy.engine(3, stops=False), sampler=GREEDY)
    assert isinstance(adapter, engine_api.Engine)
    params, state = policy.snapshot(0).params, adapter.init_decode_state()
    prompts = {2: policy.prompt(0, 6), 0: policy.prompt(1, 21)}
    for slot, prompt in prompts.items():
        state = start(adapter, params, prompt, state, slot)
    tokens, _ = decode(adapter, params, state, prompts, steps=8)
    assert tokens == {slot: greedy(policy, prompt) for slot, prompt in prompts.items()}
    _, result = adapter.generate(params, adapter.init_decode_state())
    assert isinstance(result, engine_api.ResultTokens)


@installed
def test_weights_behind_a_handle_change_between_two_steps(policy, engine_api):
    adapter = adapt(policy.engine(3, stops=False), sampler=GREEDY)
    prompt, handle = policy.prompt(0, 6), WeightsHandle(policy.snapshot(0).params)
    state = start(adapter, handle, prompt, adapter.init_decode_state(), slot=1)
    before, state = decode(adapter, handle, state, [1], steps=3)
    handle.put(policy.snapshot(1).params)
    after = []
    for _ in range(5):
        state, result = adapter.generate(handle, state)
        after.append(int(result.get_result_at_slot(1).tokens[0, 0]))
    assert [*before[1], *after] == greedy(policy, prompt, swap_at=3)
    assert [*before[1], *after] != greedy(policy, prompt)


@installed
def test_properties_and_tokenizer_are_passed_on(policy, engine_api):
    engine = policy.engine(3, stops=False)
    adapter = adapt(engine, tokenizer="a tokenizer")
    assert (adapter.max_concurrent_decodes, adapter.max_prefill_length) == (3, 40)
    assert adapter.mesh == engine.mesh and adapter.samples_per_slot == 1
    assert adapter.colocated_cpus is None and adapter.prefill_chunk_size == 40
    assert adapter.build_tokenizer(adapter.get_tokenizer()) == "a tokenizer"
    with pytest.raises(ValueError, match="tokenizer="):
        adapt(engine).build_tokenizer(None)
    assert adapter.free_resource(1) is None


@installed
def test_two_requests_draw_differently_in_the_same_slot(policy, engine_api):
    adapter, params = adapt(policy.engine(3, stops=False)), policy.snapshot(0).params
    answers = []
    for _ in range(2):
        state = start(adapter, params, policy.prompt(0, 6), adapter.init_decode_state(), slot=1)
        answers.append(decode(adapter, params, state, [1], steps=8)[0][1])
    assert answers[0] != answers[1]


class HeadEngine:
    """JetStream's last version, as far as the adapter looks: prefill takes a sampler."""

    def prefill(self, *, params, padded_tokens, true_length, sampler=None, request_id=None): ...


def test_on_jetstreams_last_version_prefill_returns_the_first_token(policy, monkeypatch):
    def result(**fields):
        return np.asarray(fields["data"])

    api = stub("engine_api", Engine=HeadEngine, ResultTokens=result)
    kind = type("Adapted", (jetstream._Adapter, HeadEngine), {})
    monkeypatch.setattr(jetstream, "_adapter_class", lambda: (kind, api))
    adapter = adapt(policy.engine(3, stops=False), sampler=GREEDY)
    handle, prompt = WeightsHandle(policy.snapshot(0).params), policy.prompt(0, 6)
    prefix, first = adapter.prefill(
        params=handle,
        padded_tokens=adapter.engine.pad(prompt.tokens),
        true_length=6,
        sampler=None,
        request_id="a request",
    )
    state = adapter.insert(prefix, adapter.init_decode_state(), 1, request_id="a request")
    tokens = [int(first[0, 0])]
    for _ in range(7):
        state, data = adapter.generate(handle, state)
        tokens.append(int(data[1, 0]))
    assert tokens == greedy(policy, prompt)


def test_without_jetstream_the_extra_is_named(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "jetstream", None)
    monkeypatch.setitem(sys.modules, "jetstream.engine", None)
    jetstream._adapter_class.cache_clear()
    with pytest.raises(ImportError, match=r"magistral-jax\[jetstream\]"):
        adapt(policy.engine(3, stops=False))
