"""Several engines sample what one samples, and lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.fleet import Fleet, part_of, side_by_side
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.sharding import engine_meshes, make_mesh

SLOTS, ROOM = 8, 40


@pytest.fixture(scope="module")
def fleets(policy):
    """By (engines, tp): a policy on that mesh, and its engines."""

    def make(engines, tp):
        mesh = make_mesh(jax.devices(), fsdp=engines, tp=tp)
        here = type(policy)(mesh)
        made = [
            Engine(
                here.arch,
                each,
                slots=SLOTS // engines,
                tokens=ROOM,
                stop_ids=here.stop_ids,
                dtype=jnp.dtype("float32"),
            )
            for each in engine_meshes(mesh)
        ]
        return here, made

    return {shape: make(*shape) for shape in ((1, 1), (2, 1), (4, 1), (2, 2))}


def generator_of(fleets, shape, version=0, **options):
    policy, engines = fleets[shape]

    def make(snapshot, engine):
        return Scheduler(
            engine,
            snapshot,
            key=jax.random.key(7),
            sampler=Sampler(),
            group_size=3,
            max_tokens=12,
            **options,
        )

    return side_by_side(make, engines, policy.snapshot(version))


def prompts_of(policy, count=7):
    return [policy.prompt(group, 3 + 4 * group) for group in range(count)]


def drain(generator, done=None, *, steps=1000):
    done = {} if done is None else done
    while generator.has_work and steps:
        for completion in generator.step():
            assert (completion.group, completion.index) not in done
            done[completion.group, completion.index] = completion
        steps -= 1
    return done


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, completion in found.items():
        assert completion.tokens.tolist() == expected[name].tokens.tolist(), name
        assert completion.spans == expected[name].spans
        np.testing.assert_allclose(completion.logprobs, expected[name].logprobs, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def expected(fleets):
    policy, _ = fleets[1, 1]
    generator = generator_of(fleets, (1, 1))
    assert isinstance(generator, Scheduler)
    for prompt in prompts_of(policy):
        generator.submit(prompt)
    return drain(generator)


@pytest.mark.parametrize("shape", [(2, 1), (4, 1), (2, 2)])
def test_several_engines_sample_what_one_samples(fleets, expected, shape):
    generator = generator_of(fleets, shape)
    assert isinstance(generator, Fleet)
    for prompt in prompts_of(fleets[shape][0]):
        generator.submit(prompt)
    most, done = 0, {}
    while generator.has_work:
        drain(generator, done, steps=1)
        most = max(most, min(member.num_active for member in generator._members))
    assert_same(done, expected)
    assert most > 0, "one of them was always idle"
    assert generator.num_sampled == sum(len(c.tokens) for c in done.values())


def test_a_prompt_goes_where_most_slots_are_empty(fleets):
    generator = generator_of(fleets, (2, 1))
    assert generator.num_vacant == SLOTS
    for prompt in prompts_of(fleets[2, 1][0], 2):
        generator.submit(prompt)
    assert [member.num_unplaced for member in generator._members] == [3, 3]
    assert generator.num_vacant == 2
    generator.submit(fleets[2, 1][0].prompt(2, 3))
    # What one member has too much fills no slot of the other's.
    assert generator.num_vacant == 1


def test_all_are_started_before_any_is_waited_for(fleets, monkeypatch):
    calls = []
    for name in ("launch", "collect"):
        honest = getattr(Scheduler, name)

        def watched(self, name=name, honest=honest):
            calls.append(name)
            return honest(self)

        monkeypatch.setattr(Scheduler, name, watched)
    generator = generator_of(fleets, (4, 1))
    for prompt in prompts_of(fleets[4, 1][0], 4):
        generator.submit(prompt)
    generator.step()
    assert calls == ["launch"] * 4 + ["collect"] * 4
    assert generator.num_steps == 1


@pytest.mark.parametrize("shape", [(2, 1), (2, 2)])
def test_each_engine_has_the_weights_that_its_devices_had(fleets, shape):
    policy, engines = fleets[shape]
    snapshot = policy.snapshot(3)
    with jax.transfer_guard("disallow"):
        parts = [part_of(snapshot, engine.mesh) for engine in engines]
    for part, engine in zip(parts, engines, strict=True):
        assert part.version == 3
        for whole, own in zip(
            jax.tree.leaves(snapshot.params), jax.tree.leaves(part.params), strict=True
        ):
            assert own.sharding.device_set == set(engine.mesh.devices.flat)
            buffers = {s.data.unsafe_buffer_pointer() for s in whole.addressable_shards}
            assert {s.data.unsafe_buffer_pointer() for s in own.addressable_shards} <= buffers
            np.testing.assert_array_equal(np.asarray(own), np.asarray(whole))


def test_new_weights_reach_all_in_the_middle(fleets):
    def play(shape):
        policy, _ = fleets[shape]
        generator = generator_of(fleets, shape)
        for prompt in prompts_of(policy, 2):
            generator.submit(prompt)
        done = drain(generator, steps=3)
        generator.swap(policy.snapshot(1))
        assert generator.version == 1
        return drain(generator, done)

    found, alone = play((2, 1)), play((1, 1))
    assert_same(found, alone)
    assert any(len(c.spans) == 2 for c in found.values())


@pytest.mark.parametrize("before, after", [((2, 1), (1, 1)), ((1, 1), (2, 1)), ((2, 1), (4, 1))])
def test_what_was_in_flight_goes_on_with_any_number_of_engines(fleets, expected, before, after):
    first = generator_of(fleets, before)
    for prompt in prompts_of(fleets[before][0]):
        first.submit(prompt)
    done = drain(first, steps=4)
    found = first.in_flight(cache=False)
    assert found.drafts and found.waiting
    second = generator_of(fleets, after)
    second.restore(found)
    assert_same(drain(second, done), expected)


def test_a_failure_of_one_is_mended_and_a_cancelled_group_is_gone(fleets, expected, monkeypatch):
    generator = generator_of(fleets, (2, 1))
    policy, engines = fleets[2, 1]
    for prompt in prompts_of(policy):
        generator.submit(prompt)
    done = drain(generator, steps=3)

    def fail(*_):
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(engines[1], "generate_many", fail)
        with pytest.raises(RuntimeError, match="the device is gone"):
            generator.step()
    generator.cancel(5)
    generator.restart(policy.snapshot(0))
    assert_same(drain(generator, done), {n: c for n, c in expected.items() if n[0] != 5})


@pytest.mark.parametrize("shape", [(2, 1), (4, 1)])
def test_a_failure_when_results_are_fetched_loses_nothing(fleets, expected, monkeypatch, shape):
    """Where asynchronous device errors appear: here each member fails once, in a step in which
    another one finished something."""
    generator, honest = generator_of(fleets, shape), Scheduler.collect
    policy, _ = fleets[shape]
    for prompt in prompts_of(policy):
        generator.submit(prompt)
    finished, failed, restarts = [], [], 0

    def collect(self):
        if finished and finished[0] is not self and self not in failed:
            failed.append(self)
            raise RuntimeError("the device is gone")
        done = honest(self)
        if done:
            finished.append(self)
        return done

    monkeypatch.setattr(Scheduler, "collect", collect)
    done = {}
    for _ in range(200):
        finished.clear()
        try:
            drain(generator, done, steps=1)
        except RuntimeError:
            restarts += 1
            generator.restart(policy.snapshot(0))
    assert len(failed) >= len(generator._members) - 1 and restarts
    assert_same(done, expected)
    assert generator.num_sampled >= sum(len(c.tokens) for c in done.values())


def test_a_warm_up_counts_through_all_engines(fleets):
    told = []
    generator_of(fleets, (2, 1)).warm_up(16, lambda *at: told.append(at))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_generate_gives_each_prompt_its_completions(fleets, expected):
    prompts = prompts_of(fleets[2, 1][0], 3)
    answers = generator_of(fleets, (2, 1)).generate(prompts)
    assert [[c.index for c in group] for group in answers] == [[0, 1, 2]] * 3
    found = {(c.group, c.index): c for group in answers for c in group}
    assert_same(found, {name: c for name, c in expected.items() if name[0] < 3})
