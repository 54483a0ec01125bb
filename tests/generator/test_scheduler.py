"""Continuous batching: what a completion depends on, when a slot is refilled, what is recorded."""

import gc
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.types import VersionSpan

ROOM = 40
"""Cache positions of a slot, as in conftest.py."""
LENGTHS = {0: 3, 1: 15, 2: 17, 3: 26, 4: 16}
"""Prompt lengths by group."""
GROUP = 3


def drain(scheduler):
    """Every completion still to come, by name."""
    done = {}
    while scheduler.has_work:
        done |= {(c.group, c.index): c for c in scheduler.step()}
    return done


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tokens.tolist() == other[name].tokens.tolist(), name
        assert one[name].finish == other[name].finish
        np.testing.assert_allclose(one[name].logprobs, other[name].logprobs, atol=1e-5)


@pytest.fixture(scope="module")
def alone(policy):
    """All completions of all groups, each in an engine with a slot for everyone."""
    scheduler = policy.scheduler(16)
    for group, length in LENGTHS.items():
        scheduler.submit(policy.prompt(group, length))
    return drain(scheduler)


def test_the_reference_holds_completions_of_both_kinds_and_many_lengths(alone):
    assert {c.finish for c in alone.values()} == {"stop", "length"}
    assert len({len(c.tokens) for c in alone.values()}) >= 5
    assert len(alone) == GROUP * len(LENGTHS)


@settings(max_examples=10)
@given(
    st.sampled_from([1, 5]),
    st.permutations(sorted(LENGTHS)),
    st.lists(st.integers(0, 6), min_size=len(LENGTHS), max_size=len(LENGTHS)),
)
def test_a_completion_depends_on_its_name_alone(policy, alone, slots, order, waits):
    """Not on slots, neighbours, order of admission or refills: tokens equal, log-probs to 1e-5."""
    scheduler, done = policy.scheduler(slots), {}
    for group, wait in zip(order, waits, strict=True):
        scheduler.submit(policy.prompt(group, LENGTHS[group]))
        for _ in range(wait):
            done |= {(c.group, c.index): c for c in scheduler.step()}
    assert_same(done | drain(scheduler), alone)


def test_log_probs_are_those_of_a_full_forward(policy, alone):
    """At every bucket size, and across the border between two."""
    for completion in alone.values():
        expected = policy.full_forward(completion, version=0)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 39])
def test_prompts_of_every_bucket_are_understood(policy, length):
    scheduler = policy.scheduler(5)
    prompt = policy.prompt(100 + length, length)
    ((completion,),) = scheduler.generate([prompt], count=1)
    np.testing.assert_allclose(
        completion.logprobs, policy.full_forward(completion, version=0), atol=1e-4
    )
    assert completion.prompt.tolist() == prompt.tokens.tolist()


def shortest(lengths, slots):
    """Steps of first-come-first-served decoding in which no slot ever waits."""
    free_at = [0] * slots
    for length in lengths:
        heapq.heapreplace(free_at, free_at[0] + length)
    return max(free_at)


@pytest.mark.parametrize("lengths", [[6, 4, 5, 2, 3, 4], [12, 1, 1, 1, 1, 1, 5], [2, 9, 2, 2]])
def test_a_slot_is_refilled_the_step_after_it_frees(policy, lengths):
    slots = 3
    scheduler = policy.scheduler(slots, stops=False)
    for group, length in enumerate(lengths):
        scheduler.submit(policy.prompt(group, 4), count=1, limit=length)
    done = drain(scheduler)
    assert [len(done[group, 0].tokens) for group in range(len(lengths))] == lengths
    assert scheduler.num_steps == shortest(lengths, slots)


def test_evenly_filled_slots_take_no_step_too_many(policy):
    scheduler = policy.scheduler(3, stops=False)
    for group, length in enumerate([6, 4, 5, 2, 3, 2, 2]):
        scheduler.submit(policy.prompt(group, 4), count=1, limit=length)
    drain(scheduler)
    assert scheduler.num_steps == 24 // 3


def test_a_stop_token_ends_a_completion_and_belongs_to_it(policy, alone):
    for completion in alone.values():
        stops = np.isin(completion.tokens, policy.stop_ids)
        assert not stops[:-1].any()
        assert (completion.finish == "stop") == stops[-1]
        assert len(completion.tokens) == len(completion.logprobs) == len(completion.sampled)
        assert completion.sampled.all()


def test_the_limit_cuts_and_a_stop_token_at_the_limit_still_stops(policy, alone):
    stopped = next(c for c in alone.values() if c.finish == "stop" and len(c.tokens) > 3)
    n, prompt = len(stopped.tokens), policy.prompt(stopped.group, LENGTHS[stopped.group])
    for limit, finish in ((n, "stop"), (n - 1, "length"), (1, "length")):
        scheduler = policy.scheduler(5)
        scheduler.submit(prompt, limit=limit)
        cut = drain(scheduler)[stopped.group, stopped.index]
        assert cut.finish == finish
        assert cut.tokens.tolist() == stopped.tokens[:limit].tolist()


def test_a_completion_ends_where_its_cache_does(policy):
    scheduler = policy.scheduler(3, stops=False)
    prompt = policy.prompt(0, 36)
    ((completion,),) = scheduler.generate([prompt], count=1)
    assert completion.finish == "length"
    assert len(prompt.tokens) + len(completion.tokens) == scheduler.engine.max_prefill_length
    with pytest.raises(AssertionError, match="fills the cache"):
        scheduler.submit(policy.prompt(1, 40))


def test_vacant_slots_and_unplaced_completions_are_counted(policy):
    scheduler = policy.scheduler(3, stops=False)

    def counts():
        return scheduler.num_vacant, scheduler.num_unplaced, scheduler.num_active

    assert counts() == (3, 0, 0) and not scheduler.has_work
    scheduler.submit(policy.prompt(0, 4), count=2, limit=2)
    assert counts() == (1, 2, 0) and scheduler.has_work
    scheduler.step()
    assert counts() == (1, 0, 2)
    scheduler.submit(policy.prompt(1, 4), count=2, limit=2)
    assert counts() == (-1, 2, 2)
    scheduler.step()  # one of group 1 finds a slot; group 0 ends
    assert counts() == (1, 1, 1)
    drain(scheduler)
    assert counts() == (3, 0, 0)


def test_a_request_larger_than_a_group_is_sampled_whole(policy, alone):
    scheduler = policy.scheduler(5)
    (completions,) = scheduler.generate([policy.prompt(2, LENGTHS[2])], count=7)
    assert [c.index for c in completions] == list(range(7))
    assert_same({(2, i): completions[i] for i in range(3)}, {(2, i): alone[2, i] for i in range(3)})


def test_generate_returns_each_prompts_completions_in_order_and_tells_progress(policy, alone):
    scheduler, told = policy.scheduler(5), []
    prompts = [policy.prompt(group, LENGTHS[group]) for group in (3, 1)]
    by_prompt = scheduler.generate(prompts, on_step=told.append)
    got = {(c.group, c.index): c for completions in by_prompt for c in completions}
    assert list(got) == [(group, index) for group in (3, 1) for index in range(GROUP)]
    assert_same(got, {name: alone[name] for name in got})
    assert told == sorted(told) and told[-1] == 6 and len(told) == scheduler.num_steps


def spans(*starts_and_versions):
    return tuple(
        VersionSpan(start=start, version=version) for start, version in starts_and_versions
    )


def test_spans_say_which_weights_sampled_which_token(policy):
    """Scripted swaps, two of them between the same two steps."""
    scheduler = policy.scheduler(3, stops=False, max_tokens=9)
    swaps = {2: [1], 4: [2, 3], 5: [4], 11: [5]}
    submits = {0: (0, 2), 3: (1, 2), 4: (2, 3)}
    version_of_step, admitted, done = [], {}, {}
    for step in range(40):
        for version in swaps.get(step, ()):
            scheduler.swap(policy.snapshot(version))
        if step in submits:
            group, count = submits[step]
            scheduler.submit(policy.prompt(group, 5), count=count)
        finished = scheduler.step()
        version_of_step.append(scheduler.version)
        for slot in scheduler._slots:
            if slot is not None:
                admitted.setdefault((slot.prompt.group, slot.index), step)
        done |= {(c.group, c.index): c for c in finished}
    assert len(done) == 7
    for name, completion in done.items():
        start = admitted[name]
        expected = version_of_step[start : start + len(completion.tokens)]
        assert completion.versions().tolist() == expected
        starts = [span.start for span in completion.spans]
        versions = [span.version for span in completion.spans]
        assert starts[0] == 0 and starts == sorted(set(starts))
        assert versions == sorted(set(versions))
        assert starts[-1] < len(completion.tokens)
    assert done[0, 0].spans == spans((0, 0), (2, 1), (4, 3), (5, 4))
    assert done[1, 0].spans == spans((0, 1), (1, 3), (2, 4), (8, 5))


def test_versions_never_go_back(policy):
    scheduler = policy.scheduler(3, version=1, stops=False)
    for version in (0, 1):
        with pytest.raises(AssertionError):
            scheduler.swap(policy.snapshot(version))


@pytest.mark.parametrize("kv_on_update", ["keep", "recompute"])
def test_what_waited_while_weights_changed_is_sampled_as_on_a_fresh_engine(policy, kv_on_update):
    """Three of four completions start under the old weights; a prefill of then is not reused."""
    scheduler = policy.scheduler(3, stops=False, kv_on_update=kv_on_update)
    scheduler.submit(policy.prompt(0, 18), count=4, limit=3)
    scheduler.submit(policy.prompt(1, 7), count=2, limit=6)
    scheduler.step()
    assert scheduler.num_unplaced == 3
    scheduler.swap(policy.snapshot(1))
    done = drain(scheduler)
    fresh = policy.scheduler(3, version=1, stops=False)
    fresh.submit(policy.prompt(0, 18), count=4, limit=3)
    fresh.submit(policy.prompt(1, 7), count=2, limit=6)
    expected = drain(fresh)
    for name in ((0, 3), (1, 0), (1, 1)):
        assert done[name].spans == spans((0, 1))
        assert done[name].tokens.tolist() == expected[name].tokens.tolist()
        assert done[name].logprobs.tolist() == expected[name].logprobs.tolist()
    assert done[0, 0].spans == spans((0, 0), (1, 1))


@pytest.fixture
def compiled():
    """A list that grows with every compilation."""
    found = []

    def listen(event, _seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.jit(lambda x: x + 2)(np.float32(1))
    jax.monitoring.unregister_event_duration_listener(listen)
    assert found, "the listener hears compilations"


@pytest.mark.parametrize("pages", [0, 9])
@pytest.mark.parametrize("kv_on_update", ["keep", "recompute"])
def test_nothing_is_compiled_after_the_warm_up(policy, compiled, kv_on_update, pages):
    """200 requests of any length, any count, any limit, through swaps, at any temperature."""
    versions = [policy.snapshot(version) for version in range(4)]
    # An engine of its own: the others have been used, and are warm.
    engine = Engine(
        policy.arch,
        policy.mesh,
        slots=7,
        tokens=ROOM,
        stop_ids=policy.stop_ids,
        dtype=jnp.dtype("float32"),
        pages=pages,
        page_tokens=8,
    )

    def scheduler(temperature, version):
        return Scheduler(
            engine,
            versions[version],
            key=jax.random.key(9),
            sampler=Sampler(temperature=temperature),
            group_size=3,
            max_tokens=16,
            kv_on_update=kv_on_update,
        )

    told = []
    scheduler(1.0, 0).warm_up(ROOM, tell=lambda *at: told.append(at))
    assert told == [(i, 5) for i in range(5)]
    assert compiled, "the warm-up compiles"
    compiled.clear()
    rng, number = np.random.default_rng(4), 0
    for temperature in (0.7, 1.0):
        begun = scheduler(temperature, 0)
        for version in range(1, 5):
            for _ in range(25):
                prompt = policy.prompt(number, int(rng.integers(1, ROOM)))
                limit = int(rng.integers(1, 17))
                begun.submit(prompt, count=int(rng.integers(1, 6)), limit=limit)
                number += 1
            for _ in range(10):
                begun.step()
            if version < 4:
                begun.swap(versions[version])
        drain(begun)
        assert (begun.num_preempted > 0) == (pages > 0)
    assert number == 200 and compiled == []


def test_memory_stands_still_over_2000_requests(policy):
    """Arrays alive on the device, and objects of ours, after 500 and after 2,000."""
    scheduler = policy.scheduler(8, max_tokens=4, group_size=2)
    rng = np.random.default_rng(6)

    def play(groups):
        for group in groups:
            scheduler.submit(policy.prompt(group, int(rng.integers(1, 30))), count=2)
            while scheduler.num_vacant <= 0:
                scheduler.step()
        drain(scheduler)
        gc.collect()
        alive = [array for array in jax.live_arrays() if not array.is_deleted()]
        return len(alive), sum(a.nbytes for a in alive), len(gc.get_objects())

    arrays, size, objects = play(range(500))
    later = play(range(500, 1000)), play(range(1000, 1500)), play(range(1500, 2000))
    assert {found[:2] for found in later} == {(arrays, size)}
    assert later[-1][2] < objects + 1000
