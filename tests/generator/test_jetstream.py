"""JetStream's own engine class and driver over our engine. Skipped where it is not installed."""

import asyncio
import importlib.util
import logging
import sys
from types import ModuleType

import jax
import numpy as np
import pytest

from magistral_jax.generator import jetstream
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.jetstream import WeightsHandle, adapt
from magistral_jax.generator.sampling import Sampler
from magistral_jax.types import Problem, Prompt

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


class IdTokenizer:
    """As JetStream's server needs one where clients send and receive token ids."""

    bos_id, eos_id, pad_id, stop_tokens = 1, -1, 0, frozenset({-1})


@pytest.fixture
def orchestrator(engine_api, monkeypatch):
    """JetStream's driver. Importing it redirects the root logger, and a thread of it that fails
    kills the process."""
    collector = {"JetstreamMetricsCollector": object}
    name = "jetstream.core.metrics.prometheus"
    monkeypatch.setitem(sys.modules, name, stub(name, **collector))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    module = importlib.import_module("jetstream.core.orchestrator")
    root.handlers, root.level = handlers, level
    # Its generate thread may fail an assertion of its own when the last slots fall free, with all
    # answers given. One that fails before leaves a request without its answer.
    monkeypatch.setattr(module.os, "kill", lambda *which: None)
    return module


@installed
def test_jetstreams_own_driver_returns_what_our_scheduler_returns(policy, orchestrator):
    """Six requests over three slots, prefilled, inserted and decoded by its threads."""
    room = 64  # One of JetStream's own sizes.
    engine = Engine(
        policy.arch, policy.mesh, slots=3, tokens=room, stop_ids=(-1,), dtype=np.dtype("float32")
    )
    adapter = adapt(engine, sampler=GREEDY, tokenizer=IdTokenizer())
    snapshot = policy.snapshot(0)
    rng = np.random.default_rng(5)
    problem = Problem(id="a", domain="math", question="", answer="")
    prompts = [
        # JetStream puts the first token in front itself.
        Prompt(
            group=group,
            problem=problem,
            tokens=np.concatenate([[1], rng.integers(1, 300, length)]).astype(np.int32),
        )
        for group, length in enumerate((3, 20, 15, 7, 25, 16))
    ]
    wanted = (8, 3, 12, 1, 9, 6)
    pb2 = orchestrator.jetstream_pb2
    driver = orchestrator.Driver(
        prefill_engines=[adapter],
        generate_engines=[adapter],
        prefill_params=[snapshot.params],
        generate_params=[snapshot.params],
        interleaved_mode=True,
    )
    client = orchestrator.LLMOrchestrator(driver=driver)

    async def decoded(prompt, count):
        content = pb2.DecodeRequest.TokenContent(token_ids=prompt.tokens[1:].tolist())
        request = pb2.DecodeRequest(token_content=content, priority=1, max_tokens=count)
        found = []
        async for answer in client.Decode(request):
            for one in answer.stream_content.samples:
                found += one.token_ids
        return found

    async def all_of_them():
        waiting = [decoded(p, n) for p, n in zip(prompts, wanted, strict=True)]
        return await asyncio.wait_for(asyncio.gather(*waiting), timeout=120)

    try:
        answers = asyncio.run(all_of_them())
    finally:
        driver.stop()
    assert len({answer[0] for answer in answers}) > 2, "these prompts tell nothing apart"
    for prompt, count, answer in zip(prompts, wanted, answers, strict=True):
        scheduler = policy.scheduler(3, stops=False, max_tokens=count, sampler=GREEDY, version=0)
        scheduler.submit(prompt, count=1)
        (done,) = [c for _ in range(count) for c in scheduler.step()]
        assert answer == done.tokens.tolist()


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
