"""The engine itself: its layout, its programs, and what ends a slot on the device."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.jetstream import _Adapter
from magistral_jax.generator.result import LENGTH, RUNNING, ResultTokens
from magistral_jax.generator.sampling import Sampler
from magistral_jax.model.sharding import make_mesh

GREEDY = Sampler(temperature=0.0)

# jetstream/engine/engine_api.py, class Engine, at the repository's last commit (2026-01-05).
HEAD = {
    "prefill": [
        "params", "existing_prefix", "padded_tokens", "true_length", "sampler", "request_id"
    ],
    "prefill_multisampling": [
        "params", "existing_prefix", "padded_tokens", "true_length", "sampler", "rng", "num_samples"
    ],
    "generate": ["params", "decode_state", "sampler"],
    "insert": ["prefix", "decode_state", "slot", "request_id"],
    "bulk_insert": ["prefix", "decode_state", "slots"],
    "free_resource": ["slot"],
    "load_params": [],
    "get_prefix_destination_sharding": [],
    "init_decode_state": [],
}  # fmt: skip
HEAD_PROPERTIES = [
    "max_concurrent_decodes", "samples_per_slot", "max_prefill_length", "mesh", "colocated_cpus",
    "use_chunked_prefill", "prefill_chunk_size",
]  # fmt: skip


@pytest.mark.parametrize("method", HEAD)
def test_a_call_written_for_jetstream_is_understood(method):
    """Every argument exists, in JetStream's order, and none of ours is missing from the call."""
    arguments = dict.fromkeys(HEAD[method])
    signature = inspect.signature(getattr(Engine, method))
    signature.bind(None, **arguments)
    if method.startswith("prefill"):
        return  # keywords only
    assert [name for name in signature.parameters if name in arguments] == list(arguments)
    signature.bind(None, *arguments.values())


def test_properties_of_jetstreams_engine_are_there(policy):
    for name in HEAD_PROPERTIES:
        assert hasattr(policy.engine(3, stops=False), name), name
    for name in (*HEAD, *HEAD_PROPERTIES, "get_tokenizer", "build_tokenizer"):
        assert name in dir(_Adapter) or name == "mesh", name


def prefill(policy, prompt, version=0, **more):
    engine = policy.engine(3, stops=False)
    return engine.prefill(
        params=policy.snapshot(version).params,
        padded_tokens=engine.pad(prompt.tokens),
        true_length=len(prompt.tokens),
        **more,
    )


def test_a_step_is_one_array_in_jetstreams_layout(policy):
    engine = policy.engine(3, stops=False)
    prefix, _ = prefill(policy, policy.prompt(0, 5))
    state = engine.bulk_insert(
        prefix, engine.init_decode_state(), [2, 0], groups=[4, 4], indices=[0, 1], limits=[9, 1]
    )
    _, result = engine.generate(policy.snapshot(0).params, state)
    assert isinstance(result.data, jax.Array)
    assert result.data.shape == (3, 5) and result.data.dtype == jnp.int32
    host = result.convert_to_numpy()
    column = {
        "valid": host.data[:, slice(*host.valid_idx)][:, 0].tolist(),
        "length": host.data[:, slice(*host.length_idx)][:, 0].tolist(),
    }
    assert column == {"valid": [1, 0, 1], "length": [1, 0, 1]}
    assert host.data[:, 4].tolist() == [LENGTH, RUNNING, RUNNING]
    assert (host.log_prob[[0, 2]] < 0).all()
    one = host.get_result_at_slot(2)
    assert one.tokens.shape == (1, 1) and one.lengths.shape == (1,)
    assert one.tokens[0, 0] == host.data[2, 0] and one.log_prob[0, 0] == host.log_prob[2]
    assert host.get_result_at_slots((0, 2)).tokens[:, 0].tolist() == host.data[[0, 2], 0].tolist()


def test_log_probs_travel_as_bits():
    values = np.array([-0.125, -1e-30, -88.5], np.float32)
    data = np.zeros((3, 5), np.int32)
    data[:, 3] = values.view(np.int32)
    assert ResultTokens(data).log_prob.tolist() == values.tolist()


def test_prompts_are_padded_by_at_most_half_or_to_the_whole_slot(policy):
    engine = policy.engine(3, stops=False)
    assert [engine.bucket(n) for n in (1, 16, 17, 25, 33, 40)] == [16, 16, 24, 32, 40, 40]
    assert engine.pad(np.arange(1, 4)).tolist() == [1, 2, 3] + [0] * 13


def decode(policy, state, slot, steps=100):
    """Greedy tokens of a slot until it ends, and how it ended."""
    engine, tokens = policy.engine(3, stops=False), []
    for _ in range(steps):
        state, result = engine.generate(policy.snapshot(0).params, state, GREEDY)
        row = np.asarray(result.data)[slot]
        tokens.append(int(row[0]))
        if row[4] != RUNNING:
            return tokens, int(row[4])
    raise AssertionError("the slot never ended")


def test_jetstreams_insert_goes_on_after_the_prefills_own_token_until_the_cache_is_full(policy):
    engine, prompt = policy.engine(3, stops=False), policy.prompt(1, 30)
    prefix, first = prefill(policy, prompt, sampler=GREEDY)
    after, finish = decode(policy, engine.insert(prefix, engine.init_decode_state(), 1), slot=1)
    assert finish == LENGTH
    # The last token that is sampled need not be cached.
    assert len(prompt.tokens) + 1 + len(after) == engine.max_prefill_length + 1
    state = engine.bulk_insert(
        prefix, engine.init_decode_state(), [0], groups=[0], indices=[0], limits=[99]
    )
    whole, _ = decode(policy, state, slot=0)
    assert whole == [int(first.data[0, 0]), *after]


def test_one_prefill_gives_each_slot_a_first_token_of_its_own(policy):
    engine = policy.engine(3, stops=False)
    prompt = policy.prompt(2, 9)
    prefix, first = engine.prefill_multisampling(
        params=policy.snapshot(0).params,
        padded_tokens=engine.pad(prompt.tokens),
        true_length=len(prompt.tokens),
        rng=jax.random.key(5),
        num_samples=3,
    )
    tokens = np.asarray(first.data)[:, 0].tolist()
    assert len(set(tokens)) == 3
    state = engine.bulk_insert(prefix, engine.init_decode_state(), [2, 0, 1])
    assert np.asarray(state.tokens).tolist() == [tokens[1], tokens[2], tokens[0]]
    assert np.asarray(state.lengths).tolist() == [9, 9, 9]
    assert np.asarray(state.produced).tolist() == [1, 1, 1]


def test_a_prefix_moved_to_where_jetstream_would_move_it_can_be_inserted(policy):
    """Generator split in two: the transfer thread puts prefixes on this sharding."""
    mesh = make_mesh(jax.devices()[2:], fsdp=1, tp=2)
    policy_of_two = type(policy)(mesh)
    engine, prompt = policy_of_two.engine(3, stops=False), policy.prompt(1, 30)
    prefix, _ = prefill(policy_of_two, prompt, sampler=GREEDY)
    moved = jax.device_put(prefix, engine.get_prefix_destination_sharding())
    tokens, _ = decode(policy_of_two, engine.insert(moved, engine.init_decode_state(), 1), slot=1)
    one, _ = prefill(policy, prompt, sampler=GREEDY)
    whole = policy.engine(3, stops=False)
    assert tokens == decode(policy, whole.insert(one, whole.init_decode_state(), 1), slot=1)[0]


def test_extending_a_prefix_is_refused(policy):
    with pytest.raises(NotImplementedError, match="existing_prefix"):
        prefill(policy, policy.prompt(0, 5), existing_prefix=object())
