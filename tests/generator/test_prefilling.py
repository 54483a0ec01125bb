"""Prompts in chunks and behind shared heads are what they are in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.prefilling import HEADS, SHORTEST_HEAD, common
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.types import Problem, Prompt

ROOM, PROMPT = 160, 140
BOUND = 1e-4
PROBLEM = Problem(id="a", domain="math", question="", answer="")


@pytest.fixture(scope="module")
def engines(policy):
    """By chunk: 0 is none."""

    def make(chunk):
        return Engine(
            policy.arch,
            policy.mesh,
            slots=4,
            tokens=ROOM,
            stop_ids=(-1,),
            dtype=jnp.dtype("float32"),
            prefill_chunk=chunk,
            prompt_tokens=PROMPT,
        )

    return {chunk: make(chunk) for chunk in (0, 32)}


def scheduler_of(policy, engine, version=0, **options):
    return Scheduler(
        engine,
        policy.snapshot(version),
        key=jax.random.key(7),
        sampler=Sampler(),
        group_size=2,
        max_tokens=12,
        **options,
    )


def prompt_of(policy, group, length, head=()):
    rng = np.random.default_rng(100 + group)
    tail = rng.integers(1, policy.arch.vocab, length - len(head), np.int32)
    return Prompt(group=group, problem=PROBLEM, tokens=np.array([*head, *tail], np.int32))


def head_of(policy, length, seed=5):
    return np.random.default_rng(seed).integers(1, policy.arch.vocab, length).tolist()


def played(scheduler, prompts):
    """Completions by name, one prompt after the other, so that each can learn from those before."""
    done = {}
    for prompt in prompts:
        scheduler.submit(prompt)
        while scheduler.has_work:
            done |= {(c.group, c.index): c for c in scheduler.step()}
    return done


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, completion in found.items():
        assert completion.tokens.tolist() == expected[name].tokens.tolist(), name
        gap = np.abs(completion.logprobs - expected[name].logprobs).max()
        assert gap < BOUND, (name, gap)


@pytest.mark.parametrize("length", [33, 64, 65, 95, 140])
def test_a_prompt_in_chunks_is_the_prompt_in_one_piece(policy, engines, length):
    prompts = [prompt_of(policy, length, length)]
    found = played(scheduler_of(policy, engines[32]), prompts)
    assert_equal(found, played(scheduler_of(policy, engines[0]), prompts))


def test_chunks_come_between_steps_of_those_that_are_decoded(policy, engines):
    scheduler = scheduler_of(policy, engines[32])
    scheduler.submit(prompt_of(policy, 0, 9), count=1)
    scheduler.step()
    scheduler.submit(prompt_of(policy, 1, 140), count=1)
    written = []
    for _ in range(5):
        scheduler.step()
        written.append((len(scheduler.written(0, 0)), len(scheduler.written(1, 0))))
    # 140 tokens are five chunks of 32; the fifth gives it its slot.
    assert written == [(2, 0), (3, 0), (4, 0), (5, 0), (6, 1)]


def test_with_nothing_else_to_do_a_long_prompt_is_prefilled_at_once(policy, engines):
    scheduler = scheduler_of(policy, engines[32])
    scheduler.submit(prompt_of(policy, 1, 140), count=1)
    scheduler.step()
    assert len(scheduler.written(1, 0)) == 1


def test_a_swap_between_two_chunks_starts_the_prompt_anew(policy, engines):
    scheduler = scheduler_of(policy, engines[32])
    scheduler.submit(prompt_of(policy, 0, 9), count=1)
    scheduler.step()
    long = prompt_of(policy, 1, 140)
    scheduler.submit(long)
    scheduler.step()
    scheduler.swap(policy.snapshot(1))
    done = {}
    while scheduler.has_work:
        done |= {(c.group, c.index): c for c in scheduler.step()}
    fresh = played(scheduler_of(policy, engines[0], version=1), [long])
    assert_equal({name: done[name] for name in fresh}, fresh)


@pytest.mark.parametrize("chunk", [0, 32])
@pytest.mark.parametrize("head", [SHORTEST_HEAD, 77, 100])
def test_prompts_behind_a_shared_head_are_what_they_are_alone(policy, engines, head, chunk):
    shared = head_of(policy, head)
    prompts = [prompt_of(policy, g, head + n, shared) for g, n in enumerate((9, 30, 1, 16, 40))]
    scheduler = scheduler_of(policy, engines[chunk])
    found = played(scheduler, prompts)
    assert_equal(found, played(scheduler_of(policy, engines[chunk], remembers=False), prompts))
    saved = scheduler.prefiller.tokens_saved
    # From the third on they are known, and used where that spares half of the work.
    assert saved == 0 if head == SHORTEST_HEAD else saved >= 2 * head, saved


def test_a_known_head_spares_its_prefill(policy, engines):
    shared = head_of(policy, 100)
    scheduler = scheduler_of(policy, engines[0])
    played(scheduler, [prompt_of(policy, g, 110, shared) for g in range(2)])
    before = scheduler.prefiller.tokens
    played(scheduler, [prompt_of(policy, g, 110, shared) for g in range(2, 12)])
    assert scheduler.prefiller.tokens - before == 10 * 10
    assert scheduler.prefiller.tokens_saved == 10 * 100


def test_heads_are_forgotten_with_their_weights(policy, engines):
    shared = head_of(policy, 100)
    prompts = [prompt_of(policy, g, 110, shared) for g in range(6)]
    scheduler = scheduler_of(policy, engines[0])
    played(scheduler, prompts[:3])
    assert scheduler.prefiller.tokens_saved > 0
    scheduler.swap(policy.snapshot(1))
    fresh = scheduler_of(policy, engines[0], version=1)
    after, expected = played(scheduler, prompts[3:]), played(fresh, prompts[3:])
    assert_equal(after, expected)
    for name, completion in after.items():
        # The first two are prefilled by the very programs of a fresh engine.
        if name[0] < 5:
            assert completion.logprobs.tobytes() == expected[name].logprobs.tobytes()


def test_few_heads_are_kept(policy, engines):
    scheduler = scheduler_of(policy, engines[0])
    for seed in range(HEADS + 3):
        shared = head_of(policy, 60, seed=seed)
        played(scheduler, [prompt_of(policy, 10 * seed + g, 70, shared) for g in range(2)])
    heads = [head.tokens.tolist() for head in scheduler.prefiller._heads]
    assert heads == [head_of(policy, 60, seed=seed) for seed in range(3, HEADS + 3)]


def test_completions_of_chunks_and_heads_have_the_log_probs_of_a_full_forward(policy, engines):
    """The trainer's view of them, within what is promised."""
    shared = head_of(policy, 20)
    prompts = [prompt_of(policy, g, 26, shared) for g in range(4)]
    for completion in played(scheduler_of(policy, engines[32]), prompts).values():
        gap = np.abs(policy.full_forward(completion, 0) - completion.logprobs)
        assert gap.max() < BOUND


def test_what_two_sequences_have_in_common():
    one = np.array([1, 2, 3, 4])
    assert common(one, np.array([1, 2, 9, 4])) == 2
    assert common(one, np.array([1, 2])) == 2 and common(one, one) == 4
    assert common(one, np.array([7])) == 0
