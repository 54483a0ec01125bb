"""Pages: what they hold is what slots hold, prompts are there once, and shortage is no failure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.memory import PageMemory
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.attention import Kernels
from magistral_jax.model.pages import rounded
from magistral_jax.types import Problem, Prompt

SLOTS, ROOM, PAGE, GROUP = 6, 64, 8, 3
LONGEST = ROOM // PAGE
BOUND = 1e-4
PROBLEM = Problem(id="a", domain="math", question="", answer="")


@pytest.fixture(scope="module")
def engine_of(policy):
    """Engines by their pages: 0 is slots."""
    made = {}

    def engine(pages, *, slots=SLOTS, tokens=ROOM, page=PAGE, **more):
        name = (pages, slots, tokens, page, *more.items())
        if name not in made:
            made[name] = Engine(
                policy.arch,
                policy.mesh,
                slots=slots,
                tokens=tokens,
                stop_ids=policy.stop_ids,
                dtype=jnp.dtype("float32"),
                prefill_chunk=32,
                pages=pages,
                page_tokens=page,
                **more,
            )
        return made[name]

    return engine


def scheduler_of(policy, engine, **options):
    options = {"group_size": GROUP, "max_tokens": 30, "steps_at_once": 2, **options}
    return Scheduler(
        engine, policy.snapshot(0), key=jax.random.key(3), sampler=Sampler(), **options
    )


def prompt_of(policy, group, length):
    tokens = np.random.default_rng(group).integers(1, policy.arch.vocab, length, np.int32)
    return Prompt(group=group, problem=PROBLEM, tokens=tokens)


def prompts_of(policy, count=8):
    """Lengths around the borders of pages."""
    return [prompt_of(policy, g, n) for g, n in enumerate((8, 7, 9, 16, 1, 30, 23, 32)[:count])]


def assert_whole(memory):
    """Every page is free, or used by as many as say so."""
    uses = np.zeros(memory.count, int)
    for pages in (*memory._pages.values(), *memory._prompts.values()):
        assert len(set(pages)) == len(pages)
        uses[pages] += 1
    assert uses.tolist() == memory._uses.tolist()
    free = list(memory._free)
    assert len(set(free)) == len(free) and sorted(free) == np.flatnonzero(uses == 0).tolist()


def played(scheduler, prompts, *, at_step=lambda number: None):
    for prompt in prompts:
        scheduler.submit(prompt)
    done, number = {}, 0
    while scheduler.has_work:
        done |= {(c.group, c.index): c for c in scheduler.step()}
        if isinstance(scheduler.memory, PageMemory):
            assert_whole(scheduler.memory)
        at_step(number)
        number += 1
        assert number < 1000, "no end"
    return done


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, completion in found.items():
        assert completion.tokens.tolist() == expected[name].tokens.tolist(), name
        assert completion.finish == expected[name].finish, name
        gap = np.abs(completion.logprobs - expected[name].logprobs).max()
        assert gap < BOUND, (name, gap)


def test_pages_hold_what_slots_hold(policy, engine_of):
    paged = scheduler_of(policy, engine_of(SLOTS * LONGEST))
    prompts = prompts_of(policy)
    found = played(paged, prompts)
    assert_equal(found, played(scheduler_of(policy, engine_of(0)), prompts))
    assert paged.num_preempted == 0 and paged.memory.num_free == SLOTS * LONGEST


def test_what_is_sampled_in_pages_does_not_hang_on_the_order_to_the_bit(policy, engine_of):
    prompts = prompts_of(policy)
    found, again = (
        played(scheduler_of(policy, engine_of(SLOTS * LONGEST)), order)
        for order in (prompts, prompts[::-1])
    )
    assert_equal(found, again)
    for name, completion in found.items():
        assert completion.logprobs.tobytes() == again[name].logprobs.tobytes()


def test_short_of_pages_the_youngest_makes_room_and_resumes_as_it_was(policy, engine_of):
    paged = scheduler_of(policy, engine_of(LONGEST + 3))
    prompts = prompts_of(policy)
    found = played(paged, prompts)
    expected = played(scheduler_of(policy, engine_of(0)), prompts)
    assert_equal(found, expected)
    assert paged.num_preempted > 3
    # Their log-probs were taken on a cache computed anew, and that is written down.
    assert sum(len(c.refills) for c in found.values()) > 3
    assert paged.memory.num_free == LONGEST + 3


def test_the_oldest_sequence_is_never_the_one_that_makes_room(policy, engine_of):
    paged = scheduler_of(policy, engine_of(LONGEST))
    oldest = []
    begun = {}

    def note(_):
        taken = paged._slots.taken()
        for _, slot in taken:
            begun.setdefault((slot.prompt.group, slot.index), len(begun))
        if taken:
            oldest.append(min(begun[s.prompt.group, s.index] for _, s in taken))

    done = played(paged, prompts_of(policy), at_step=note)
    assert paged.num_preempted > 0
    # In the order in which they began, one after the other was the oldest, and stayed to its end.
    assert oldest == sorted(oldest)
    assert len(done) == 8 * GROUP


def test_a_group_has_its_prompt_once(policy, engine_of):
    """G = 16 of 512 tokens: one prompt, sixteen completions, rounded up to pages; one prefill."""
    engine = engine_of(200, slots=16, tokens=544, page=16)
    scheduler = scheduler_of(policy, engine, group_size=16, max_tokens=32)
    most = 0

    def note(_):
        nonlocal most
        most = max(most, scheduler.memory.count - scheduler.memory.num_free)

    done = played(scheduler, [prompt_of(policy, 0, 512)], at_step=note)
    assert len(done) == 16
    assert 32 < most <= 512 // 16 + 16 * (32 // 16)
    assert scheduler.prefiller.tokens == 512


def test_a_prompt_that_ends_within_a_page_is_shared_up_to_there(policy, engine_of):
    engine = engine_of(60, slots=4, tokens=64)
    scheduler = scheduler_of(policy, engine, group_size=4, max_tokens=24)
    scheduler.submit(prompt_of(policy, 3, 29))
    scheduler.step()
    assert scheduler.memory.count - scheduler.memory.num_free == 29 // PAGE + 4
    pages, shared = scheduler.memory._table, scheduler.memory._shared
    assert (pages[:, :3] == pages[0, :3]).all() and len(set(pages[:, 3].tolist())) == 4
    assert shared.tolist() == [24] * 4


def test_new_weights_get_a_prompt_of_their_own(policy, engine_of):
    """Completions still to come are what a fresh engine gives, beside those that go on."""
    scheduler = scheduler_of(policy, engine_of(40), group_size=2)
    prompt = prompt_of(policy, 1, 17)
    scheduler.submit(prompt, count=7)
    scheduler.step()
    assert scheduler.num_unplaced == 1
    scheduler.swap(policy.snapshot(1))
    done = {}
    while scheduler.has_work:
        done |= {c.index: c for c in scheduler.step()}
        assert_whole(scheduler.memory)
    fresh = scheduler_of(policy, engine_of(0), group_size=2)
    fresh.swap(policy.snapshot(1))
    fresh.submit(prompt, count=7)
    expected = {c.index: c for _ in range(40) for c in (fresh.step() if fresh.has_work else [])}
    assert [s.version for s in done[6].spans] == [1]
    assert done[6].tokens.tolist() == expected[6].tokens.tolist()
    assert np.abs(done[6].logprobs - expected[6].logprobs).max() < BOUND


@pytest.mark.parametrize("kv_on_update", ["keep", "recompute"])
def test_updates_in_the_middle_with_pages_are_those_with_slots(policy, engine_of, kv_on_update):
    def play(engine):
        scheduler = scheduler_of(policy, engine, kv_on_update=kv_on_update)

        def swap(number):
            if number in (3, 7):
                scheduler.swap(policy.snapshot(scheduler.version + 1))

        return played(scheduler, prompts_of(policy, 4), at_step=swap)

    assert_equal(play(engine_of(SLOTS * LONGEST)), play(engine_of(0)))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_kernels_sample_what_xla_samples(policy, engine_of, platform):
    """In interpret mode: prefill, decode, a page's borders, making room, resuming."""
    kernels = Kernels(platform, interpret=True)
    engine = engine_of(8, slots=4, page=16, kernels=kernels)
    paged = scheduler_of(policy, engine, group_size=2, max_tokens=14)
    prompts = [prompt_of(policy, g, n) for g, n in enumerate((16, 7, 33))]
    found = played(paged, prompts)
    plain = scheduler_of(policy, engine_of(0, slots=4), group_size=2, max_tokens=14)
    assert_equal(found, played(plain, prompts))


def test_in_8_bits_log_probs_are_near_and_memory_is_a_quarter(policy, engine_of):
    """A quarter of float32, and the scales."""
    exact, rough = (engine_of(24, in_8_bits=in_8_bits) for in_8_bits in (False, True))
    size = [
        sum(x.nbytes for x in jax.tree.leaves(e.init_decode_state().cache)) for e in (exact, rough)
    ]
    assert size[1] == size[0] / 4 * (1 + 4 / policy.arch.head_dim)
    scheduler = scheduler_of(policy, rough, max_tokens=12)
    prompts = [prompt_of(policy, g, n) for g, n in enumerate((8, 5, 20))]
    gaps = [
        np.abs(policy.full_forward(c, 0) - c.logprobs).max()
        for c in played(scheduler, prompts).values()
    ]
    assert BOUND < max(gaps) < 0.1


def test_rounding_to_8_bits_is_off_by_half_a_step_at_most(rng):
    x = jnp.asarray(
        rng.normal(size=(5, 3, 16)) * 10.0 ** rng.integers(-6, 6, (5, 3, 1)), jnp.float32
    )
    x = x.at[2, 1].set(0.0)
    numbers, scale = rounded(x)
    assert numbers.dtype == jnp.int8 and np.abs(np.asarray(numbers)).max() == 127
    off = np.abs(np.asarray(numbers) * np.asarray(scale)[..., None] - np.asarray(x))
    assert (off <= np.asarray(scale)[..., None] * 0.5001).all()


def test_a_group_cancelled_and_a_restart_give_pages_back(policy, engine_of):
    scheduler = scheduler_of(policy, engine_of(40))
    for prompt in prompts_of(policy, 4):
        scheduler.submit(prompt)
    done = {(c.group, c.index): c for c in scheduler.step() if c.group > 0}
    scheduler.cancel(0)
    assert_whole(scheduler.memory)
    scheduler.restart(policy.snapshot(0))
    assert scheduler.memory.num_free == 40
    done |= played(scheduler, [])
    expected = played(scheduler_of(policy, engine_of(0)), prompts_of(policy, 4))
    assert_equal(done, {name: c for name, c in expected.items() if name[0] > 0})


def test_as_completions_grow_fewer_are_in_flight(policy, engine_of):
    """The same pages: first after short completions, then after long ones."""

    def begun(sampled):
        scheduler = scheduler_of(policy, engine_of(24))
        scheduler.memory._sampled.extend([sampled] * 50)
        for prompt in prompts_of(policy, 8):
            scheduler.submit(prompt)
        scheduler._fill()
        return scheduler.num_active

    assert begun(2) == SLOTS
    assert 2 <= begun(30) < begun(12) <= SLOTS


def test_no_more_prompts_are_asked_for_than_memory_holds(policy, engine_of):
    scheduler = scheduler_of(policy, engine_of(LONGEST + 2), max_tokens=32)
    scheduler.memory._sampled.extend([30] * 50)
    scheduler.submit(prompt_of(policy, 0, 30), count=1)
    scheduler._fill()
    assert len(scheduler._slots.free) == SLOTS - 1 and scheduler.num_vacant == 0
    assert scheduler.cache_used == pytest.approx(1 - scheduler.memory.num_free / (LONGEST + 2))


def test_log_probs_in_pages_are_those_of_a_full_forward(policy, engine_of):
    prompts = [prompt_of(policy, g, n) for g, n in enumerate((8, 5, 20))]
    scheduler = scheduler_of(policy, engine_of(LONGEST + 2), max_tokens=12)
    for completion in played(scheduler, prompts).values():
        gap = np.abs(policy.full_forward(completion, 0) - completion.logprobs)
        assert gap.max() < BOUND
