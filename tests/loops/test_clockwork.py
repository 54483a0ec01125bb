"""The loop by a logical clock: the same run every time, whatever is slow, stopped or not."""

import random
import time
from concurrent.futures import Future

import pytest

from magistral_jax.loops.clockwork import Clockwork
from magistral_jax.types import RunFailed, Stalled

from .script import (
    Broken,
    Script,
    delays_of,
    lag_of,
    make_config,
    uniform_where,
    versions_of,
)

STEPS, MAX_LAG = 12, 2


def make_script(seed=0, *, timing="chaos", max_lag=MAX_LAG, **changes):
    """Lengths and rewards are the same every time; only delays follow the seed."""
    config = make_config(max_lag=max_lag, steps=STEPS, in_flight=8, kv="save")
    script = Script(
        config,
        length=lambda group, index: random.Random(2 * group + index).choice([1, 3, 7, 16]),
        reward=uniform_where(lambda group: group % 5 == 2),
        wants_frontier=lambda step: step % 2 == 1,
        **delays_of(timing, seed),
    )
    for name, value in changes.items():
        setattr(script, name, value)
    return script


def seen(script, *, since=0):
    """All that must be the same: batches with the version of each token, rows, swaps."""
    return (
        [(batch.version, versions_of(batch)) for batch in script.batches if batch.version >= since],
        [(row.step, row.shown, row.groups) for row in script.rows if row.step > since],
        [swap for swap in script.generator.swaps if swap[0] > since],
    )


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert repr(x) == repr(y)


@pytest.fixture(scope="module")
def whole():
    return make_script().play(Clockwork)


@pytest.mark.parametrize("timing", ["slow trainer", "slow push", "slow verifiers", "chaos"])
def test_two_runs_are_the_same_whatever_is_slow(whole, timing):
    assert_same(seen(make_script(1, timing=timing).play(Clockwork)), seen(whole))


def test_it_keeps_what_all_loops_promise(whole):
    assert [batch.version for batch in whole.batches] == list(range(STEPS))
    assert whole.trained == [g for g in range(100) if g % 5 != 2][: len(whole.trained)]
    assert max(lag_of(batch) for batch in whole.batches) == MAX_LAG
    # Weights change amid sequences, as in the loop it stands for.
    assert any(len(c.spans) > 1 for b in whole.batches for g in b.groups for c in g.completions)


@pytest.mark.parametrize("step", [1, 5, 11])
def test_a_run_that_goes_on_from_a_step_is_the_same(whole, step):
    after = make_script(step).resumed(whole.rows[step - 1].frontier, step)
    assert_same(seen(after.play(Clockwork)), seen(whole, since=step))


@pytest.mark.parametrize("decode_steps", [0, 1, 6, 19, 28, 41])
def test_a_run_that_is_stopped_and_goes_on_is_the_same(whole, decode_steps):
    before = make_script(decode_steps)
    delay = before.decode_delay

    def decode():
        if before.generator.num_steps == decode_steps:
            before.clock.stop()
        return delay()

    before.decode_delay = decode
    before.play(Clockwork)
    step = len(before.rows)
    assert step < STEPS and before.generator.num_steps > decode_steps
    after = make_script(99).resumed(before.at_stop, step).play(Clockwork)
    both = [a + b for a, b in zip(seen(before), seen(after), strict=True)]
    assert_same(both, seen(whole))


def test_trainer_and_generator_work_at_once():
    script = make_script(train_delay=lambda: 0.02, decode_delay=lambda: 0.001)
    during = []

    def train(batch):
        before = script.generator.num_steps
        values = script.train(batch)
        during.append(script.generator.num_steps - before)
        return values

    script.play(Clockwork, train=train)
    delay = script.config.deterministic_steps
    # A batch is taken before its tick's decode step; the last of them is that of its weights.
    assert max(during) >= delay - 1 and sum(during) >= STEPS


def test_weights_that_are_ready_early_are_applied_at_their_tick(whole):
    # Sequences are in flight all the time, so that ticks between are decode steps.
    early = make_script(timing="slow decoding").play(Clockwork)
    assert seen(early)[2] == seen(whole)[2]
    first_full, delay = early.generator.swaps[0][2], early.config.deterministic_steps
    assert first_full >= delay


def test_with_nothing_left_to_decode_it_goes_to_the_next_event():
    # Bound 0: while a batch is judged or learned from, nothing can be admitted.
    script = make_script(max_lag=0, timing="slow trainer").play(Clockwork)
    assert script.steps == list(range(1, STEPS + 1))
    assert max(lag_of(batch) for batch in script.batches) == 0
    # And a resume from within such a wait is the same run.
    after = script.resumed(script.rows[4].frontier, 5).play(Clockwork)
    assert_same(seen(after), seen(script, since=5))


def test_a_verdict_that_never_comes_is_a_stall():
    script = make_script()
    script.config = make_config(stall_s=0.1, steps=STEPS, kv="save")

    def judge(prompt, completion):
        is_lost = (completion.group, completion.index) == (3, 1)
        return Future() if is_lost else script.threads.submit(script.verify, completion)

    with pytest.raises(Stalled, match=r"^trainer waited 0\.1 s for a verdict on group 3$"):
        script.play(Clockwork, judge=judge)


@pytest.mark.parametrize("room", ["train", "push"])
def test_an_update_that_does_not_end_is_a_stall(room):
    script = make_script(**{f"{room}_delay": lambda: 0.4 if script.batches else 0.0})
    script.config = make_config(stall_s=0.1, steps=STEPS, kv="save")
    update = 2 if room == "train" else 1
    with pytest.raises(Stalled, match=rf"^generator waited 0\.1 s for update {update}$"):
        script.play(Clockwork)


def test_a_trainer_that_fails_ends_the_run_with_what_it_said():
    def train(batch):
        raise Broken("no memory")

    with pytest.raises(RunFailed, match=r"^the trainer failed in update 1: Broken: no memory$"):
        make_script().play(Clockwork, train=train)


def test_a_late_update_is_waited_for_at_its_tick(whole):
    began = time.monotonic()
    late = make_script(timing="slow decoding", push_delay=lambda: 0.05).play(Clockwork)
    assert time.monotonic() - began > 0.05 * STEPS
    assert_same(seen(late), seen(whole))


def test_a_verdict_to_come_of_a_prompt_set_aside_is_in_no_frontier():
    # Group 1: one completion is with the verifier when the other cannot be placed.
    placed = []

    def place(prompt):
        placed.append(prompt.group)
        if prompt.group == 1 and placed.count(1) > 1:
            raise Broken

    config = make_config(steps=4, in_flight=3, kv="save", deterministic_steps=6)
    script = Script(config, length=lambda g, i: 1 if g == 1 else 4, place=place)

    def on_failure(kind, message):
        if kind == "prompts":
            script.clock.stop()

    script.play(Clockwork, on_failure=on_failure)
    assert script.at_stop.due == () and script.rows == []
    after = script.resumed(script.at_stop, 0).play(Clockwork)
    assert after.trained == [0, *range(2, 9)]
