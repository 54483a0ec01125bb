"""What `run_sync` and `run_async` promise, with scripted rooms."""

import random
import threading
import time
from concurrent.futures import Future
from itertools import pairwise

import numpy as np
import pytest

from magistral_jax.loops.asynchronous import run_async
from magistral_jax.loops.sync import run_sync
from magistral_jax.types import RunFailed, Stalled

from .script import (
    ALL_LOOPS,
    GROUPS_PER_BATCH,
    LOOPS,
    TIMINGS,
    Broken,
    Script,
    delays_of,
    lag_of,
    make_config,
    positions,
    uniform_where,
    versions_in,
)


@LOOPS
def test_uniform_groups_are_measured_but_never_trained_on(loop):
    script = Script(make_config(steps=4), reward=uniform_where(lambda group: group % 3 == 0))
    script.play(loop)
    assert script.trained == [1, 2, 4, 5, 7, 8, 10, 11]
    judged = sorted(positions(script.judged))
    assert judged == list(range(len(judged))) and len(judged) >= 12
    uniform = sum(row.values["batch/uniform_groups"] * len(script.judged) for row in script.rows)
    assert uniform > 0
    # An even mix of 0 and 1 in what is kept; the dropped zeros pull the mean below it.
    assert script.rows[0].values["reward/mean"] < 0.5


@LOOPS
def test_a_dropped_group_is_replaced_by_exactly_one_new_prompt(loop):
    # Bound 0: nothing is sampled ahead, so what is dispatched is what was trained or dropped.
    config = make_config(max_lag=0, steps=4)
    script = Script(config, reward=uniform_where(lambda group: group in (0, 1, 5, 6))).play(loop)
    assert script.trained == [2, 3, 4, 7, 8, 9, 10, 11]
    assert sum(row.values["dispatched"] for row in script.rows) == 12
    assert script.rows[0].values["dispatched"] == 4


def test_sync_samples_each_batch_from_the_weights_the_step_before_published():
    script = Script(make_config(steps=5), reward=uniform_where(lambda group: group % 4 == 1))
    script.play(run_sync)
    assert script.steps == [1, 2, 3, 4, 5]
    for version, batch in enumerate(script.batches):
        assert batch.version == version
        assert versions_in(batch) == {version}
    assert [version for version, *_ in script.generator.swaps] == [1, 2, 3, 4, 5]


@ALL_LOOPS
def test_a_loop_that_starts_later_makes_only_the_steps_that_are_left(loop):
    script = Script(make_config(steps=5), start=3).play(loop)
    assert script.steps == [4, 5]
    assert [batch.version for batch in script.batches] == [3, 4]


@pytest.mark.parametrize("max_lag", range(4))
@pytest.mark.parametrize("timing", TIMINGS)
def test_lag_never_exceeds_its_bound_whatever_is_slow(timing, max_lag):
    config = make_config(max_lag=max_lag, steps=8, in_flight=4 * (max_lag + 1))
    script = Script(
        config,
        length=lambda group, index: random.Random(2 * group + index).choice([1, 2, 3, 12]),
        reward=uniform_where(lambda group: group % 5 == 2),
        **delays_of(timing, seed=max_lag),
    )
    script.play(run_async)

    assert [batch.version for batch in script.batches] == list(range(8))
    for batch, row in zip(script.batches, script.rows, strict=True):
        assert 0 <= lag_of(batch) <= max_lag
        assert row.values["policy/lag_max"] == lag_of(batch)
        for completion in (c for group in batch.groups for c in group.completions):
            assert (np.diff(completion.tokens) >= 0).all()
            np.testing.assert_array_equal(completion.versions(), completion.tokens)
    # Dispatch order, nothing skipped but what was uniform, each once.
    assert script.trained == [g for g in range(100) if g % 5 != 2][: len(script.trained)]
    if timing == "slow trainer":
        # A bound that is never reached would prove nothing.
        assert max(row.values["policy/lag_max"] for row in script.rows) == max_lag


def test_versions_that_the_generator_skipped_count_as_applied():
    # Eight groups end at one step, and the trainer makes four updates during the next one.
    config = make_config(max_lag=3, steps=12, in_flight=16)
    script = Script(config, length=lambda group, index: 1, decode_delay=lambda: 0.02)
    script.play(run_async)
    versions = [version for version, *_ in script.generator.swaps]
    assert len(versions) < versions[-1]
    unapplied = script.backlog.outstanding - len(script.backlog.queue(report=False)[0].entries)
    assert unapplied == (12 - script.generator.version) * GROUPS_PER_BATCH


def test_no_update_waits_for_a_sequence_to_end():
    # The last groups are long: while they are sampled, earlier ones are trained in many updates.
    config = make_config(max_lag=3, steps=4, in_flight=16)
    script = Script(
        config,
        length=lambda group, index: 200 if group == 7 else 2,
        decode_delay=lambda: 0.001,
        train_delay=lambda: 0.02,
    ).play(run_async)
    swaps = script.generator.swaps
    assert [version for version, *_ in swaps] == [1, 2, 3]
    assert all(num_active > 0 for _, num_active, _ in swaps)
    long = script.batches[3].groups[1].completions[0]
    assert [span.version for span in long.spans] == [0, 1, 2, 3]


def test_the_generator_decodes_while_the_trainer_trains():
    # No two groups end together, so that some are in flight whenever a batch is full.
    config = make_config(max_lag=1, steps=3, in_flight=8)
    script = Script(config, length=lambda group, index: 20 + 40 * group, decode_delay=lambda: 0.001)
    during = []

    def train(batch):
        before = script.generator.num_steps
        time.sleep(0.02)
        during.append(script.generator.num_steps - before)
        return script.train(batch)

    script.play(run_async, train=train)
    assert min(during) >= 3


def test_a_trainer_that_dies_is_told_even_when_the_generator_hangs(monkeypatch):
    monkeypatch.setattr("magistral_jax.loops.asynchronous.GRACE_S", 0.05)
    release = threading.Event()

    def hang():
        if script.generator.num_steps >= 3:
            release.wait(5)
        return 0.0

    def train(batch):
        raise Broken

    script = Script(
        make_config(max_lag=3, in_flight=16),
        length=lambda group, index: 3 if group < 2 else 30,
        decode_delay=hang,
    )
    try:
        with pytest.raises(RunFailed, match="the trainer failed in update 1: Broken"):
            script.play(run_async, train=train)
    finally:
        release.set()


@LOOPS
def test_a_stop_ends_the_loop_at_a_step_boundary(loop):
    script = Script(make_config(steps=50), train_delay=lambda: 0.002)
    script.on_step = lambda row: script.backlog.stop() if row.step == 3 else None
    threads = threading.active_count()
    script.play(loop)
    script.threads.shutdown(wait=True)
    assert script.steps == [1, 2, 3]
    assert len(script.batches) == 3
    assert threading.active_count() <= threads


def test_a_stop_wakes_a_trainer_that_waits():
    judging, judged = threading.Event(), threading.Event()

    def verify():
        judging.set()
        judged.wait(10)
        return 0.0

    def stop():
        judging.wait(10)
        script.backlog.stop()

    script = Script(make_config(steps=50, stall_s=30.0), verify_delay=verify)
    threading.Thread(target=stop).start()
    began = time.monotonic()
    try:
        script.play(run_async)
        assert time.monotonic() - began < 1.0
    finally:
        judged.set()
    assert script.rows == []


@LOOPS
def test_a_verdict_that_never_comes_is_a_stall_of_the_trainer(loop):
    script = Script(make_config(stall_s=0.15))
    # A last completion of group 1 that nobody judges.
    never = Future()
    calls = []

    def judge(prompt, completion):
        calls.append(1)
        is_lost = (completion.group, completion.index) == (1, 1)
        return never if is_lost else script.threads.submit(script.verify, completion)

    with pytest.raises(Stalled, match=r"^trainer waited 0\.\d+ s for .* group") as stall:
        script.play(loop, judge=judge)
    assert "group 1" in str(stall.value)


def test_a_trainer_that_hangs_is_a_stall_that_the_generator_tells(monkeypatch):
    monkeypatch.setattr("magistral_jax.loops.asynchronous.GRACE_S", 0.0)
    script = Script(make_config(max_lag=1, stall_s=0.1), train_delay=lambda: 0.4)
    with pytest.raises(Stalled, match=r"^generator waited 0\.1 s for the trainer"):
        script.play(run_async)


def test_a_run_may_last_longer_than_any_of_its_waits(monkeypatch):
    monkeypatch.setattr("magistral_jax.loops.asynchronous.GRACE_S", 0.0)
    config = make_config(max_lag=0, steps=10, stall_s=1.0)
    script = Script(config, train_delay=lambda: 0.12).play(run_async)
    assert len(script.rows) == 10


def test_time_is_counted_while_admission_is_closed_and_only_then():
    # Closed: slots for all, a bound of one batch, and a trainer that takes 30 ms.
    closed = Script(make_config(max_lag=0, steps=4, in_flight=4), train_delay=lambda: 0.03)
    closed.play(run_async)
    waited = [row.values.get("time/wait_admission", 0.0) for row in closed.rows]
    assert sum(waited) > 0.05
    # Open: one group's slots, so that they and not the bound hold prompts back.
    config = make_config(max_lag=20, steps=4, in_flight=2)
    opened = Script(config, decode_delay=lambda: 0.002).play(run_async)
    assert sum(row.values.get("time/wait_admission", 0.0) for row in opened.rows) == 0


def test_one_wait_is_told_once():
    script = Script(make_config(max_lag=0, steps=3), train_delay=lambda: 0.03).play(run_async)
    told = [what for owner, what in script.waits if owner == "generator"]
    assert len(told) <= 8  # four waits: before each update, and after the last
    assert told[0] is not None
    assert all((a is None) != (b is None) for a, b in pairwise(told))
    trainer = [what for owner, what in script.waits if owner == "trainer"]
    assert trainer == ["a batch", None] * 3


class Probe:
    """Takes three of the generator's steps, whatever else goes on."""

    name, every = "the probe", 2

    def __init__(self):
        self.started, self.left, self.tokens = [], 0, 0

    is_running = property(lambda self: self.left > 0)

    def start(self, snapshot):
        assert not self.is_running
        self.started.append(snapshot.version)
        self.left = 3

    def step(self):
        self.left, self.tokens = self.left - 1, self.tokens + 5
        return {"mismatch/logprob_abs_max": float(self.started[-1])} if not self.left else None


def test_a_probe_starts_with_the_run_and_then_every_so_many_updates():
    config = make_config(max_lag=1, steps=6)
    probe = Probe()
    script = Script(config, train_delay=lambda: 0.02).play(run_async, beside=(probe,))
    assert probe.started[0] == 0
    assert set(probe.started[1:]) <= {2, 4, 6} and 4 in probe.started
    assert any("mismatch/logprob_abs_max" in row.values for row in script.rows)
