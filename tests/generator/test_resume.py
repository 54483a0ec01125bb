"""Sequences that go on elsewhere: in a fresh scheduler, after a failure, with a cache or not."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest

from magistral_jax.types import Completion, InFlight, UserError, VersionSpan

TOLERANCE = 1e-4
LENGTHS = {0: 3, 1: 15, 2: 17, 3: 26, 4: 16, 5: 9}
"""Prompt lengths by group."""
SLOTS = 4
CUTS = [0, 1, 3, 6, 10, 14, 22, 34]


@pytest.fixture(scope="module")
def alone(policy):
    """All completions of all groups under the first weights, each with a slot from the start."""
    scheduler = policy.scheduler(32)
    submit(policy, scheduler, LENGTHS)
    return {name_of(c): c for c in drain(scheduler)}


def submit(policy, scheduler, groups):
    for group in groups:
        scheduler.submit(policy.prompt(group, LENGTHS[group]))


def drain(scheduler):
    done = []
    while scheduler.has_work:
        done += scheduler.step()
    return done


def begun(policy, steps, groups=(0, 1, 2, 3), slots=SLOTS, **more):
    """A scheduler amid its work, and what it has finished."""
    scheduler, done = policy.scheduler(slots, **more), []
    submit(policy, scheduler, groups)
    for _ in range(steps):
        done += scheduler.step()
    return scheduler, done


def name_of(completion):
    return completion.group, completion.index


def bits(record):
    """All there is to a completion or a draft, to the bit."""
    named = (
        name_of(record) if isinstance(record, Completion) else (record.prompt.group, record.index)
    )
    last = record.finish if isinstance(record, Completion) else (record.limit, record.slot)
    sequence = record.tokens.tobytes(), record.logprobs.tobytes(), record.spans, record.refills
    return named, sequence, last


def bits_in_flight(found):
    waiting = [(w.prompt.group, w.limit, w.next_index, w.count) for w in found.waiting]
    return [bits(d) for d in found.drafts], waiting, found.free


def play_on(policy, scheduler):
    """The rest of a run, with all that may come: finished completions of every step."""
    steps = []
    for step in range(60):
        if step == 2:
            scheduler.swap(policy.snapshot(1))
        if step == 5:
            submit(policy, scheduler, [4, 5])
        if scheduler.has_work:
            steps.append([bits(c) for c in scheduler.step()])
    return steps


def test_the_cuts_are_amid_all_kinds_of_work(policy):
    """Otherwise what follows would say less than it does."""
    found = [begun(policy, cut)[0].in_flight(cache=False) for cut in CUTS]
    assert {bool(f.drafts) for f in found} == {bool(f.waiting) for f in found} == {True, False}
    assert any(f.waiting and f.waiting[0].next_index > 0 for f in found)
    assert any(f.waiting and f.free for f in found), "slots freed, yet to be filled"
    assert any(f.free != tuple(sorted(f.free)) for f in found), "slots freed in another order"
    assert any(d.prompt.group >= 2 for f in found for d in f.drafts), "slots filled again"


@pytest.mark.parametrize("kv_on_update", ["keep", "recompute"])
@pytest.mark.parametrize("cut", CUTS)
def test_with_its_cache_a_generator_goes_on_as_if_nothing_had_been(policy, cut, kv_on_update):
    first, done = begun(policy, cut, kv_on_update=kv_on_update)
    found = first.in_flight(cache=True)
    assert len(done) + len(found.drafts) + sum(w.count - w.next_index for w in found.waiting) == 12
    before = bits_in_flight(found)
    whole = play_on(policy, first)
    # The first one's further steps have changed nothing of what was found.
    assert bits_in_flight(found) == before
    second = policy.scheduler(SLOTS, kv_on_update=kv_on_update)
    second.restore(found)
    assert bits_in_flight(second.in_flight(cache=False)) == before
    assert play_on(policy, second) == whole
    assert sum(map(len, whole), len(done)) == 18
    assert bits_in_flight(second.in_flight(cache=False)) == bits_in_flight(
        first.in_flight(cache=False)
    )


def test_a_picture_does_not_disturb_the_generator_it_is_of(policy):
    watched, done = begun(policy, 4)
    for _ in range(20):
        watched.in_flight(cache=True)
        done += watched.step() if watched.has_work else []
    unwatched, expected = begun(policy, 4)
    assert [bits(c) for c in done + drain(watched)] == [
        bits(c) for c in expected + drain(unwatched)
    ]


@pytest.mark.parametrize("cut", CUTS[1:])
def test_without_its_cache_sequences_are_prefilled_again_and_say_so(policy, alone, cut):
    """Under the same weights: the same tokens, as their randomness is of their place alone."""
    first, done = begun(policy, cut)
    found = first.in_flight(cache=False)
    assert found.cache is None
    second = policy.scheduler(SLOTS)
    second.restore(found)
    after = {name_of(c): c for c in drain(second)}
    assert len(after) + len(done) == 12
    was = {(d.prompt.group, d.index): d for d in found.drafts}
    for name, completion in after.items():
        count = len(was[name].tokens) if name in was else 0
        assert completion.tokens.tolist() == alone[name].tokens.tolist()
        assert completion.finish == alone[name].finish
        assert completion.refills == ((count,) if count else ())
        assert completion.spans == (VersionSpan(start=0, version=0),)
        kept = was[name].logprobs if name in was else np.zeros(0, np.float32)
        assert completion.logprobs[:count].tobytes() == kept.tobytes()
        expected = policy.full_forward(completion, version=0)
        np.testing.assert_allclose(completion.logprobs, expected, atol=TOLERANCE)


def test_new_weights_of_a_resume_sample_the_rest_on_a_cache_of_their_own(policy):
    """Nothing of the old weights' keys and values is left in the log-probs that follow."""
    first, _ = begun(policy, 5, stops=False)
    found = first.in_flight(cache=False)
    second = policy.scheduler(SLOTS, version=2, stops=False)
    second.restore(found)
    after = {name_of(c): c for c in drain(second)}
    for draft in found.drafts:
        completion, count = after[draft.prompt.group, draft.index], len(draft.tokens)
        assert 0 < count < len(completion.tokens)
        assert completion.spans == (
            VersionSpan(start=0, version=0),
            VersionSpan(start=count, version=2),
        )
        assert completion.refills == (count,)
        assert completion.tokens[:count].tolist() == draft.tokens.tolist()
        assert completion.logprobs[:count].tobytes() == draft.logprobs.tobytes()
        expected = policy.full_forward(completion, version=2)[count:]
        np.testing.assert_allclose(completion.logprobs[count:], expected, atol=TOLERANCE)
        stale = policy.full_forward(completion, version=0)[count:]
        assert np.abs(completion.logprobs[count:] - stale).max() > 1e-3
    for name in after.keys() - {(d.prompt.group, d.index) for d in found.drafts}:
        assert after[name].spans == (VersionSpan(start=0, version=2),)
        assert after[name].refills == ()


def test_each_further_resume_is_told(policy):
    scheduler, _ = begun(policy, 3, groups=[0], stops=False)
    for version in (0, 1):
        found = scheduler.in_flight(cache=False)
        scheduler = policy.scheduler(SLOTS, version=version, stops=False)
        scheduler.restore(found)
        scheduler.step(), scheduler.step()
    for completion in drain(scheduler):
        assert completion.refills == (3, 5)
        assert completion.spans == (
            VersionSpan(start=0, version=0),
            VersionSpan(start=5, version=1),
        )


def test_with_fewer_slots_the_rest_waits_and_finishes(policy, alone):
    first, done = begun(policy, 4, slots=5)
    found = first.in_flight(cache=False)
    assert len(found.drafts) == 5 and found.waiting
    second = policy.scheduler(2)
    second.restore(found)
    waiting = sum(w.count - w.next_index for w in found.waiting)
    assert (second.num_active, second.num_unplaced) == (0, 5 + waiting)
    assert second.num_vacant == 2 - 5 - waiting
    finished = second.step()
    assert second.num_active == 2 - len(finished) and second.num_unplaced == 3 + waiting
    # A picture of that moment, with its cache: the sequences that wait are in it, too.
    again = second.in_flight(cache=True)
    assert [d.slot for d in again.drafts][-3:] == [-1, -1, -1]
    third = policy.scheduler(2)
    third.restore(again)
    rest = [bits(c) for c in drain(second)]
    assert [bits(c) for c in drain(third)] == rest
    after = {name: sequence for name, sequence, _ in [*map(bits, done + finished), *rest]}
    assert len(after) == len(done + finished) + len(rest) == 12
    assert all(after[name][0] == alone[name].tokens.tobytes() for name in after)


def test_sequences_that_wait_meet_the_weights_of_the_step_that_gives_them_a_slot(policy):
    first, _ = begun(policy, 3, groups=[0], stops=False)
    second = policy.scheduler(1, stops=False)
    second.restore(first.in_flight(cache=False))
    second.step()
    second.swap(policy.snapshot(1))
    spans = {c.index: c.spans for c in drain(second)}
    old = VersionSpan(start=0, version=0)
    assert spans == {
        0: (old, VersionSpan(start=4, version=1)),
        1: (old, VersionSpan(start=3, version=1)),
        2: (old, VersionSpan(start=3, version=1)),
    }


def test_a_sequence_without_a_token_begins_anew(policy):
    first, _ = begun(policy, 1, groups=[0], stops=False)
    drafts = [
        replace(d, tokens=d.tokens[:0], logprobs=d.logprobs[:0])
        for d in first.in_flight(cache=False).drafts
    ]
    second = policy.scheduler(SLOTS, version=1, stops=False)
    second.restore(InFlight(drafts=tuple(drafts)))
    fresh, _ = begun(policy, 0, groups=[0], version=1, stops=False)
    done, expected = drain(second), drain(fresh)
    assert [c.tokens.tolist() for c in done] == [c.tokens.tolist() for c in expected]
    assert all(c.refills == () for c in done)
    assert all(c.spans == (VersionSpan(start=0, version=1),) for c in done)


def test_only_an_unused_generator_takes_over(policy):
    scheduler, _ = begun(policy, 2)
    with pytest.raises(AssertionError, match="has work of its own"):
        scheduler.restore(InFlight())


@pytest.mark.parametrize("steps", [0, 2])
def test_a_sequence_that_may_become_longer_than_ours_is_refused(policy, steps):
    """Begun already, or waiting: its tokens would have no place."""
    found = begun(policy, steps, groups=[0])[0].in_flight(cache=False)
    for max_tokens in (11, 12, 13):
        scheduler = policy.scheduler(SLOTS, max_tokens=max_tokens)
        if max_tokens >= 12:
            scheduler.restore(found)
            continue
        with pytest.raises(UserError, match=r"may take 12 tokens.*generator\.max_tokens is 11\."):
            scheduler.restore(found)


class Broken(RuntimeError):
    pass


@contextmanager
def failing(engine, place, call):
    """This call of an engine's method fails, after the device has taken the state it was given."""
    honest, count = getattr(engine, place), 0

    def method(*args, **options):
        nonlocal count
        count += 1
        result = honest(*args, **options)
        if count == call:
            raise Broken(place)
        return result

    setattr(engine, place, method)
    try:
        yield
    finally:
        delattr(engine, place)


def play_through_a_failure(scheduler, place, call, snapshot):
    """All completions, what was in flight at the failure, and the prompt that it was at."""
    done, found, placing = [], None, None
    with failing(scheduler.engine, place, call):
        while scheduler.has_work:
            try:
                done += scheduler.step()
            except Broken:
                found, placing = scheduler.in_flight(cache=False), scheduler.placing
                scheduler.restart(snapshot)
                assert scheduler.placing is None
    assert found is not None, f"{place} was called less than {call} times"
    return done, found, placing


PLACES = [
    *[("generate_many", call) for call in (1, 2, 9)],
    *[("prefill", call) for call in (1, 2, 3)],
    *[("bulk_insert", call) for call in (1, 2, 5)],
]


@pytest.mark.parametrize(("place", "call"), PLACES)
def test_after_a_failure_every_completion_still_comes_once(policy, alone, place, call):
    scheduler, _ = begun(policy, 0)
    done, found, placing = play_through_a_failure(scheduler, place, call, scheduler.snapshot)
    named = {name_of(c): c for c in done}
    assert len(named) == len(done) == 12
    was = {(d.prompt.group, d.index): d for d in found.drafts}
    for name, completion in named.items():
        assert completion.tokens.tolist() == alone[name].tokens.tolist()
        assert completion.spans == (VersionSpan(start=0, version=0),)
        if name in was:
            count = len(was[name].tokens)
            assert completion.refills == ((count,) if count else ())
            assert completion.logprobs[:count].tobytes() == was[name].logprobs.tobytes()
        else:
            assert completion.refills == ()
    if place == "generate_many":
        assert placing is None
    else:
        assert found.waiting[0].prompt is placing, "not the prompt that it failed with"


def test_a_restart_takes_newer_weights_and_no_older_ones(policy):
    for version, expected in ((0, 1), (2, 2)):
        scheduler, _ = begun(policy, 3, groups=[0], version=1, stops=False)
        scheduler.restart(policy.snapshot(version))
        assert scheduler.version == expected
        for completion in drain(scheduler):
            assert completion.newest_version == expected


def test_a_sequence_whose_prefill_fails_again_is_named_and_goes_on_waiting(policy, alone):
    first, done = begun(policy, 4)
    found = first.in_flight(cache=False)
    second = policy.scheduler(SLOTS)
    second.restore(found)
    for call in (1, 2):
        with failing(second.engine, "prefill", call), pytest.raises(Broken):
            second.step()
        assert second.placing is found.drafts[call - 1].prompt
        second.restart(second.snapshot)
    done += second.step()
    assert second.placing is None, "what fails from here on is nobody's"
    after = done + drain(second)
    assert len({name_of(c) for c in after}) == len(after) == 12
    assert all(c.tokens.tolist() == alone[name_of(c)].tokens.tolist() for c in after)


def test_a_failure_amid_a_recomputation_loses_nothing(policy):
    scheduler, done = begun(policy, 3, kv_on_update="recompute", stops=False)
    with failing(scheduler.engine, "prefill", 2), pytest.raises(Broken):
        scheduler.swap(policy.snapshot(1))
    scheduler.restart(scheduler.snapshot)
    after = done + drain(scheduler)
    assert len({name_of(c) for c in after}) == len(after) == 12
    for completion in after:
        on = completion.versions() == 1
        expected = policy.full_forward(completion, version=1)
        np.testing.assert_allclose(completion.logprobs[on], expected[on], atol=TOLERANCE)


@pytest.mark.parametrize("group", [0, 1, 3])
def test_a_prompt_given_up_makes_room_and_changes_no_other(policy, alone, group):
    """Group 0 is in slots, 1 is split between a slot and the queue, 3 waits."""
    scheduler, done = begun(policy, 2)
    assert not done
    scheduler.cancel(group)
    vacant = scheduler.num_vacant
    assert len(scheduler.written(group, 0)) == 0
    done = {name_of(c): c for c in drain(scheduler)}
    assert done.keys() == {(g, i) for g in range(4) for i in range(3) if g != group}
    for name, completion in done.items():
        assert completion.tokens.tolist() == alone[name].tokens.tolist()
        assert completion.refills == ()
    assert vacant == SLOTS - 9 and scheduler.num_vacant == SLOTS


def test_slots_given_up_rest_where_nobody_waits_for_them(policy):
    scheduler, _ = begun(policy, 2, groups=[0], stops=False)
    scheduler.submit(policy.prompt(1, LENGTHS[1]), count=1)
    scheduler.step()
    scheduler.cancel(0)
    assert (scheduler.num_active, scheduler.num_vacant) == (1, SLOTS - 1)
    assert [name_of(c) for c in drain(scheduler)] == [(1, 0)]


@pytest.mark.parametrize("place", ["prefill", "bulk_insert"])
def test_a_prompt_given_up_after_a_failure_is_forgotten(policy, place):
    scheduler, _ = begun(policy, 0)
    with failing(scheduler.engine, place, 2), pytest.raises(Broken):
        scheduler.step()
    assert scheduler.placing.group == 1
    # The device may have nothing left to be told.
    scheduler.cancel(1)
    assert scheduler.placing is None
    scheduler.restart(scheduler.snapshot)
    assert {c.group for c in drain(scheduler)} == {0, 2, 3}
    # Sequences that wait for a slot, too.
    first, _ = begun(policy, 3)
    second = policy.scheduler(1)
    second.restore(first.in_flight(cache=False))
    second.cancel(0)
    assert {c.group for c in drain(second)} == {1, 2, 3}


def test_what_is_written_so_far_can_be_read(policy, alone):
    scheduler, _ = begun(policy, 3)
    written = scheduler.written(0, 1)
    assert written.tolist() == alone[0, 1].tokens[:3].tolist()
    assert scheduler.written(3, 0).tolist() == [] == scheduler.written(77, 0).tolist()
    drain(scheduler)
    assert written.tolist() == alone[0, 1].tokens[:3].tolist(), "another took its place"


def test_prefills_are_told_by_whether_they_were_done_before(policy):
    told = []

    def doing(what):
        told.append(what)
        return nullcontext()

    first, _ = begun(policy, 3, groups=[0], stops=False, doing=doing, kv_on_update="recompute")
    assert told == ["prefill"]
    first.swap(policy.snapshot(1))
    assert told == ["prefill", "prefill_repeated"]
    assert [d.refills for d in first.in_flight(cache=False).drafts] == [(3,)] * 3
    told.clear()
    second = policy.scheduler(SLOTS, version=1, stops=False, doing=doing)
    second.restore(first.in_flight(cache=False))
    submit(policy, second, [1])
    drain(second)
    assert told[0] == "prefill_repeated" and set(told[1:]) == {"prefill"}
