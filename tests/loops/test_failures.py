"""What a run goes on after, what ends it, and what is said of either."""

import re
import threading
import time
from collections import Counter

import pytest

from magistral_jax.loops.moves import PUSHES, RESTARTS
from magistral_jax.loops.sync import run_sync
from magistral_jax.types import RunFailed, UserError

from .script import (
    ALL_LOOPS,
    Broken,
    Script,
    broken_after,
    lag_of,
    make_config,
    positions,
)


@pytest.fixture
def naps(monkeypatch):
    """How long was slept between pushes; nobody sleeps."""
    taken = []
    monkeypatch.setattr("magistral_jax.loops.moves.sleep", taken.append)
    return taken


def kinds(script):
    return [kind for kind, _ in script.failures]


def check_nothing_is_missing(script):
    assert script.steps == list(range(1, script.config.trainer.steps + 1))
    assert script.trained == list(range(len(script.trained)))
    assert max(lag_of(batch) for batch in script.batches) <= script.config.batch.max_lag


@ALL_LOOPS
def test_a_generator_that_fails_once_goes_on_with_what_was_in_flight(loop):
    delay = broken_after(7, times=1)
    script = Script(make_config(max_lag=1), length=lambda g, i: 3 + i, decode_delay=delay)
    script.play(loop)
    check_nothing_is_missing(script)
    [(kind, message)] = script.failures
    [(version, count)] = script.generator.restarts
    assert kind == "generator" and count > 0
    assert message == (
        f"the generator failed: Broken: Broken; it goes on with {count} unfinished sequences "
        f"under weights {version}"
    )
    # They go on from their tokens: nothing is sampled twice.
    refills = [c.refills for g in script.judged for c in g.completions if c.refills]
    assert refills and all(0 < place < 4 for (place,) in refills)
    sampled = script.ledger.tokens()
    assert sum(sampled.values()) == script.generator.num_sampled


@ALL_LOOPS
def test_a_generator_that_always_fails_ends_the_run(loop):
    script = Script(make_config(), decode_delay=broken_after(7))
    with pytest.raises(RunFailed, match=r"^the generator failed 4 times .* Broken: Broken$"):
        script.play(loop)
    assert len(script.generator.restarts) == RESTARTS == 3
    assert kinds(script) == ["generator"] * RESTARTS


@ALL_LOOPS
def test_failures_with_steps_between_them_do_not_add_up(loop):
    calls = [0]

    def every_third():
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise Broken
        return 0.0

    script = Script(make_config(), decode_delay=every_third).play(loop)
    check_nothing_is_missing(script)
    assert kinds(script).count("generator") > RESTARTS


@ALL_LOOPS
def test_a_prompt_with_which_the_generator_always_fails_is_set_aside(loop):
    tried = Counter()

    def place(prompt):
        if prompt.problem.id == "p3":
            tried[prompt.group] += 1
            raise Broken

    # The problem comes again; it is not tried again.
    config = make_config(steps=8, in_flight=4)
    script = Script(config, problem_of=lambda position: f"p{position % 6}", place=place)
    script.play(loop)
    assert script.steps == list(range(1, 9))
    assert script.trained == [g for g in range(100) if g % 6 != 3][: len(script.trained)]
    assert tried == {3: 2}
    assert ("prompts", "prompt 'p3' is set aside") in script.failures
    assert any("with prompt 'p3': Broken" in text for _, text in script.failures)
    assert not {3, 9, 15} & set(positions(script.judged))


@ALL_LOOPS
def test_a_generator_that_fails_with_every_prompt_ends_the_run(loop):
    def place(prompt):
        raise Broken

    script = Script(make_config(), place=place)
    with pytest.raises(RunFailed, match=r"^the generator failed 7 times .* Broken: Broken$"):
        script.play(loop)
    assert kinds(script).count("prompts") == RESTARTS


@ALL_LOOPS
def test_what_was_sampled_of_a_prompt_that_is_set_aside_is_left_behind(loop):
    # Its first completion has a slot, is done and with the verifier when the second one fails.
    placed = Counter()

    def place(prompt):
        placed[prompt.group] += 1
        if prompt.group == 1 and placed[1] > 1:
            raise Broken

    config = make_config(steps=4, in_flight=3, kv="save", deterministic_steps=6)
    script = Script(
        config,
        length=lambda group, index: 1 if group == 1 else 4,
        place=place,
        verify_delay=lambda: 0.005,
        wants_frontier=lambda step: True,
    )
    script.play(loop)
    assert script.steps == [1, 2, 3, 4]
    assert script.trained == [0, *range(2, 9)]
    assert ("prompts", "prompt '1' is set aside") in script.failures
    assert 1 not in [g for row in script.rows for g in positions(row.frontier.queue.entries)]
    after = script.resumed(script.rows[0].frontier, 1).play(loop)
    assert after.trained == script.trained[2:]


@ALL_LOOPS
def test_a_swap_that_fails_is_made_by_the_restart(loop):
    script = Script(make_config(steps=6))
    rooms_of, failing = script.rooms, broken_after(1, times=1)

    def rooms(loop):
        found = rooms_of(loop)
        swap = script.generator.swap
        script.generator.swap = lambda snapshot: (failing(), swap(snapshot))
        return found

    script.rooms = rooms
    script.play(loop)
    check_nothing_is_missing(script)
    assert kinds(script) == ["generator"]
    [(version, _)] = script.generator.restarts
    assert version not in [v for v, *_ in script.generator.swaps] and version >= 2


@ALL_LOOPS
@pytest.mark.parametrize("times", [1, 2, PUSHES - 1])
def test_a_push_that_fails_leaves_the_old_weights_until_it_succeeds(loop, times, naps):
    script = Script(make_config(max_lag=1, steps=4), push_delay=broken_after(2, times=times))
    newest = []

    def push(version):
        newest.append((version, script.generator.version))
        return script.push(version)

    script.play(loop, push=push)
    check_nothing_is_missing(script)
    assert kinds(script) == ["push"] * times
    assert script.failures[0][1] == (
        "the push of weights 3 failed (Broken: Broken); version 2 stays, and it is tried again "
        "(1 of 3)"
    )
    assert naps == pytest.approx([0.1, 0.4, 1.6][:times])
    assert [version for version, _ in newest].count(3) == times + 1
    assert all(old < version for version, old in newest)


@ALL_LOOPS
def test_a_push_that_always_fails_ends_the_run(loop, naps):
    script = Script(make_config(steps=4), push_delay=broken_after(2))
    with pytest.raises(RunFailed, match=r"^the push of weights 3 failed 4 times: Broken: Broken$"):
        script.play(loop)
    assert kinds(script) == ["push"] * (PUSHES - 1) and len(naps) == PUSHES - 1
    assert script.steps == [1, 2]


@ALL_LOOPS
def test_the_generator_decodes_while_a_push_is_tried_again(loop):
    script = Script(
        make_config(max_lag=2, steps=3, in_flight=8, deterministic_steps=30),
        length=lambda group, index: 10 * (1 + group),
        decode_delay=lambda: 0.001,
        push_delay=broken_after(0, times=1),
    )
    steps = []

    def push(version):
        steps.append(script.generator.num_steps)
        return script.push(version)

    script.play(loop, push=push)
    decoded = steps[1] - steps[0]  # in the 0.1 s between
    assert decoded == 0 if loop is run_sync else decoded > 5


@ALL_LOOPS
@pytest.mark.parametrize("update", [1, 3])
def test_a_trainer_that_fails_ends_the_run_and_says_in_which_update(loop, update):
    script = Script(make_config(steps=9), train_delay=broken_after(update - 1))
    told = rf"^the trainer failed in update {update}: Broken: Broken$"
    with pytest.raises(RunFailed, match=told) as failed:
        script.play(loop)
    assert isinstance(failed.value.__cause__, Broken)
    assert script.steps == list(range(1, update))


@ALL_LOOPS
@pytest.mark.parametrize("room", ["prompt", "verify"])
@pytest.mark.parametrize("calls", [0, 5])
def test_a_room_that_dies_ends_the_run_with_its_own_exception(loop, room, calls):
    config = make_config(max_lag=1, steps=50, stall_s=30.0)
    script = Script(config, **{f"{room}_delay": broken_after(calls)})
    began, threads = time.monotonic(), threading.active_count()
    with pytest.raises(Broken):
        script.play(loop)
    script.threads.shutdown(wait=True)
    assert time.monotonic() - began < 1.0
    assert threading.active_count() <= threads
    assert len(script.batches) < 50


@ALL_LOOPS
@pytest.mark.parametrize("room", ["decode", "train", "push"])
def test_no_thread_outlives_a_run_that_failed(loop, room, naps):
    script = Script(make_config(steps=50, stall_s=30.0), **{f"{room}_delay": broken_after(5)})
    began, threads = time.monotonic(), threading.active_count()
    with pytest.raises(RunFailed):
        script.play(loop)
    script.threads.shutdown(wait=True)
    assert time.monotonic() - began < 1.0
    assert threading.active_count() <= threads


@ALL_LOOPS
def test_data_that_teach_nothing_are_the_users_to_change(loop):
    rewards = {0: 0, 1: 1, 2: None}
    script = Script(
        make_config(),
        length=lambda group, index: 1,
        reward=lambda group, index: rewards[group % 3],
    )
    with pytest.raises(UserError, match=r"^\d+ groups in a row had no diversity") as told:
        script.play(loop)
    # Kinds stand in the order of their counts, and which is first of equal ones is up to timing.
    kinds = ("all wrong", "all right", "checks failed")
    found = re.findall(rf"(\d+) ({'|'.join(kinds)})[,)]", str(told.value))
    dropped = positions(script.backlog.report())
    assert {name: int(count) for count, name in found} == {
        kinds[kind]: sum(group % 3 == kind for group in dropped) for kind in rewards
    }
    assert len(dropped) == 64 * script.config.groups_per_batch
    assert "Choose problems the model solves sometimes" in str(told.value)
    assert script.batches == []


@ALL_LOOPS
def test_a_problem_whose_checks_always_fail_is_set_aside_after_two_groups(loop):
    # One bound, so that nothing of it is dispatched before it is known.
    config = make_config(max_lag=0, steps=9)
    script = Script(
        config,
        problem_of=lambda position: f"p{position % 5}",
        reward=lambda group, index: None if group % 5 == 3 else index,
    )
    script.play(loop)
    assert script.steps == list(range(1, 10))
    judged = positions(script.judged)
    assert [g for g in judged if g % 5 == 3] == [3, 8] and max(judged) > 18
    assert script.trained == [g for g in range(100) if g % 5 != 3][: len(script.trained)]


@ALL_LOOPS
def test_a_check_that_fails_now_and_then_sets_nothing_aside(loop):
    config = make_config(max_lag=0, steps=9, group_size=3)
    script = Script(
        config,
        problem_of=lambda position: f"p{position % 5}",
        reward=lambda group, index: None if group % 5 == 3 and index == 0 else index % 2,
    )
    script.play(loop)
    assert script.trained == list(range(18))
    errored = 3 * len([g for g in script.trained if g % 5 == 3])
    assert script.ledger.tokens()["errored"] == errored
