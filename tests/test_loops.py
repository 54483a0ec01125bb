"""The loops, with scripted rooms: no model, no jit, delays of milliseconds.

A scripted completion writes down the weights' version as its tokens, so that every batch tells
which weights sampled it.
"""

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest

from magistral_jax.arrays import Batch, Minibatch
from magistral_jax.batch.backlog import Backlog, GroupCollector
from magistral_jax.config import (
    BatchConfig,
    GeneratorConfig,
    MetricsConfig,
    RunConfig,
    TrainerConfig,
)
from magistral_jax.loops import Rooms, run_async, run_sync
from magistral_jax.tally import PARTS, Tally
from magistral_jax.types import (
    Completion,
    Cursor,
    Problem,
    Prompt,
    Snapshot,
    Stalled,
    Verdict,
    VersionSpan,
)
from magistral_jax.weights.mailbox import Mailbox

G = 2
GROUPS_PER_BATCH = 2
LOOPS = pytest.mark.parametrize("loop", [run_sync, run_async])


def make_config(*, max_lag=1, steps=5, in_flight=4, stall_s=5.0, update_at="step", probe_every=0):
    return RunConfig(
        stall_s=stall_s,
        generator=GeneratorConfig(group_size=G, in_flight=in_flight, update_at=update_at),
        batch=BatchConfig(completions=G * GROUPS_PER_BATCH, max_lag=max_lag),
        trainer=TrainerConfig(steps=steps),
        metrics=MetricsConfig(probe_every=probe_every),
    )


class Prompts:
    def __init__(self, delay=lambda: 0.0):
        self.given, self.delay = 0, delay

    def next(self):
        time.sleep(self.delay())
        problem = Problem(id=str(self.given), domain="math", question="", answer="")
        prompt = Prompt(group=self.given, problem=problem, tokens=np.zeros(3, np.int32))
        self.given += 1
        return prompt


class Generator:
    """Slots whose sequences grow by one token a step; a token is the version that sampled it."""

    def __init__(self, slots, *, length, delay=lambda: 0.0):
        self.slots, self.length, self.delay = slots, length, delay
        self.num_steps, self.version = 0, 0
        self.waiting, self.active, self.swaps = [], {}, []

    num_active = property(lambda self: len(self.active))
    num_vacant = property(lambda self: self.slots - len(self.active) - len(self.waiting))
    has_work = property(lambda self: bool(self.active or self.waiting))
    snapshot = property(lambda self: Snapshot(version=self.version, params=self.version))

    def submit(self, prompt):
        self.waiting += [(prompt, index) for index in range(G)]

    def swap(self, snapshot):
        assert snapshot.version > self.version and snapshot.params == snapshot.version
        self.version = snapshot.version
        self.swaps.append((snapshot.version, len(self.active), self.num_steps))

    def step(self):
        time.sleep(self.delay())
        while self.waiting and len(self.active) < self.slots:
            prompt, index = self.waiting.pop(0)
            self.active[prompt.group, index] = (prompt, [])
        self.num_steps += 1
        finished = []
        for (group, index), (prompt, tokens) in list(self.active.items()):
            tokens.append(self.version)
            if len(tokens) == self.length(group, index):
                del self.active[group, index]
                finished.append(completion_of(prompt, index, tokens))
        return finished

    def generate(self, prompts):
        for prompt in prompts:
            self.submit(prompt)
        done = {}
        while self.has_work:
            done |= {(c.group, c.index): c for c in self.step()}
        return [tuple(done[prompt.group, i] for i in range(G)) for prompt in prompts]


def completion_of(prompt, index, versions):
    starts = [0, *(t for t in range(1, len(versions)) if versions[t] != versions[t - 1])]
    return Completion(
        group=prompt.group,
        index=index,
        prompt=prompt.tokens,
        tokens=np.array(versions, np.int32),
        logprobs=np.zeros(len(versions), np.float32),
        sampled=np.ones(len(versions), bool),
        spans=tuple(VersionSpan(start=t, version=versions[t]) for t in starts),
        finish="length",
    )


def verdict_of(reward):
    parts = {**dict.fromkeys(PARTS, 0.0), "correct": float(reward)}
    reason = "pass" if reward > 0 else "wrong"
    return Verdict(reward=float(reward), parts=parts, reason=reason)


@dataclass
class Script:
    """What each room does, and what it was seen to do. Delays are in seconds."""

    config: RunConfig
    length: object = lambda group, index: 3
    is_uniform: object = lambda group: False
    prompt_delay: object = lambda: 0.0
    decode_delay: object = lambda: 0.0
    verify_delay: object = lambda: 0.0
    train_delay: object = lambda: 0.0
    push_delay: object = lambda: 0.0
    on_step: object = lambda step: None
    batches: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    judged: list = field(default_factory=list)
    cursors: list = field(default_factory=list)
    waits: list = field(default_factory=list)

    def rooms(self):
        config = self.config
        self.prompts = Prompts(self.prompt_delay)
        self.generator = Generator(
            config.generator.in_flight, length=self.length, delay=self.decode_delay
        )
        self.backlog = Backlog(
            groups_per_batch=config.groups_per_batch,
            group_size=G,
            max_lag=config.batch.max_lag,
            cursor=Cursor(next=0),
            stall_s=config.stall_s,
        )
        self.threads = ThreadPoolExecutor(4)
        return Rooms(
            prompts=self.prompts,
            generator=self.generator,
            judge=lambda prompt, completion: self.threads.submit(self.verify, completion),
            collector=GroupCollector(G),
            backlog=self.backlog,
            assemble=self.assemble,
            train=self.train,
            push=self.push,
            mailbox=Mailbox(),
            probe=None,
            tally=Tally(),
            on_step=self.note_step,
            waiting=lambda owner, what: self.waits.append((owner, what)),
        )

    def verify(self, completion):
        time.sleep(self.verify_delay())
        return verdict_of(0 if self.is_uniform(completion.group) else completion.index)

    def assemble(self, groups, version):
        nothing = Minibatch(microbatches=(), padding=0.0)
        return Batch(groups=tuple(groups), minibatches=(nothing,), version=version)

    def train(self, batch):
        time.sleep(self.train_delay())
        self.batches.append(batch)
        return {"loss": float(batch.version)}

    def push(self, version):
        time.sleep(self.push_delay())
        return Snapshot(version=version, params=version)

    def note_step(self, step, values, groups, cursor):
        self.rows.append((step, values))
        self.judged += groups
        self.cursors.append(cursor)
        self.on_step(step)

    def play(self, loop, **changes):
        """Run the loop to its end; what it raised, if anything, passes through."""
        rooms = replace(self.rooms(), **changes)
        try:
            loop(self.config, rooms)
        finally:
            self.threads.shutdown(wait=False, cancel_futures=True)
        return self

    @property
    def trained(self):
        return [group.group for batch in self.batches for group in batch.groups]


@LOOPS
def test_uniform_groups_are_measured_but_never_trained_on(loop):
    script = Script(make_config(steps=4), is_uniform=lambda group: group % 3 == 0).play(loop)
    assert script.trained == [1, 2, 4, 5, 7, 8, 10, 11]
    judged = sorted(group.group for group in script.judged)
    assert judged == list(range(len(judged))) and len(judged) >= 12
    uniform = sum(values["batch/uniform_groups"] * len(script.judged) for _, values in script.rows)
    assert uniform > 0
    # An even mix of 0 and 1 in what is kept; the dropped zeros pull the mean below it.
    assert script.rows[0][1]["reward/mean"] < 0.5


@LOOPS
def test_a_dropped_group_is_replaced_by_exactly_one_new_prompt(loop):
    # Bound 0: nothing is sampled ahead, so what is dispatched is what was trained or dropped.
    config = make_config(max_lag=0, steps=4)
    script = Script(config, is_uniform=lambda group: group in (0, 1, 5, 6)).play(loop)
    assert script.trained == [2, 3, 4, 7, 8, 9, 10, 11]
    assert sum(values["dispatched"] for _, values in script.rows) == 12
    assert script.rows[0][1]["dispatched"] == 4
    assert script.cursors[0] == Cursor(next=4)


def test_sync_samples_each_batch_from_the_weights_the_step_before_published():
    script = Script(make_config(steps=5), is_uniform=lambda group: group % 4 == 1).play(run_sync)
    assert [step for step, _ in script.rows] == [1, 2, 3, 4, 5]
    for version, batch in enumerate(script.batches):
        assert batch.version == version
        assert {int(t) for g in batch.groups for c in g.completions for t in c.tokens} == {version}
    assert [version for version, *_ in script.generator.swaps] == [1, 2, 3, 4, 5]


@LOOPS
def test_a_loop_that_starts_later_makes_only_the_steps_that_are_left(loop):
    config = make_config(steps=5)
    script = Script(config)
    rooms = script.rooms()
    script.generator.version = 3
    loop(config, rooms, start=3)
    assert [step for step, _ in script.rows] == [4, 5]
    assert [batch.version for batch in script.batches] == [3, 4]


# How slow each room is: the most milliseconds it takes.
TIMINGS = {
    "slow trainer": {"train": 12},
    "slow push": {"push": 12},
    "slow verifiers": {"verify": 15},
    "slow decoding": {"decode": 4},
    "slow prompts": {"prompt": 6, "train": 1},
    "chaos": {"prompt": 3, "decode": 2, "verify": 9, "train": 9, "push": 9},
}


def delays_of(timing, seed):
    chance = random.Random(seed)

    def delay(most_ms):
        return lambda: chance.uniform(most_ms / 4, most_ms) / 1000

    return {f"{room}_delay": delay(ms) for room, ms in TIMINGS[timing].items()}


@pytest.mark.parametrize("max_lag", range(4))
@pytest.mark.parametrize("timing", TIMINGS)
def test_lag_never_exceeds_its_bound_whatever_is_slow(timing, max_lag):
    config = make_config(max_lag=max_lag, steps=8, in_flight=4 * (max_lag + 1))
    script = Script(
        config,
        length=lambda group, index: random.Random(2 * group + index).choice([1, 2, 3, 12]),
        is_uniform=lambda group: group % 5 == 2,
        **delays_of(timing, seed=max_lag),
    )
    script.play(run_async)

    assert [batch.version for batch in script.batches] == list(range(8))
    for batch, (_, values) in zip(script.batches, script.rows, strict=True):
        versions = [c.tokens for g in batch.groups for c in g.completions]
        lag = max(batch.version - int(v.min()) for v in versions)
        assert 0 <= lag <= max_lag
        assert values["policy/lag_max"] == lag
        for completion, written in zip(
            (c for g in batch.groups for c in g.completions), versions, strict=True
        ):
            assert (np.diff(written) >= 0).all()
            np.testing.assert_array_equal(completion.versions(), written)
    # Dispatch order, nothing skipped but what was uniform, each once.
    assert script.trained == [g for g in range(100) if g % 5 != 2][: len(script.trained)]
    if timing == "slow trainer":
        # A bound that is never reached would prove nothing.
        assert max(values["policy/lag_max"] for _, values in script.rows) == max_lag


def test_versions_that_the_generator_skipped_count_as_applied():
    # Eight groups end at one step, and the trainer makes four updates during the next one.
    config = make_config(max_lag=3, steps=12, in_flight=16)
    script = Script(config, length=lambda group, index: 1, decode_delay=lambda: 0.02)
    script.play(run_async)
    versions = [version for version, *_ in script.generator.swaps]
    assert len(versions) < versions[-1]
    unapplied = script.backlog.outstanding - len(script.backlog.cursor().pending)
    assert unapplied == (12 - script.generator.version) * GROUPS_PER_BATCH


def test_what_is_trained_on_has_the_lengths_that_were_sampled():
    # Every third group is ten times as long; short ones are always finished first.
    config = make_config(max_lag=3, steps=6, in_flight=16)
    script = Script(
        config,
        length=lambda group, index: 20 if group % 3 == 0 else 2,
        is_uniform=lambda group: group % 5 == 0,
        decode_delay=lambda: 0.0002,
    ).play(run_async)
    lengths = [len(c.tokens) for b in script.batches for g in b.groups for c in g.completions]
    kept = [group for group in range(100) if group % 5 != 0][: len(script.trained)]
    assert lengths == [20 if group % 3 == 0 else 2 for group in kept for _ in range(G)]


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


def test_with_update_at_batch_every_completion_has_one_version():
    config = make_config(max_lag=0, steps=5, update_at="batch")
    script = Script(config, is_uniform=lambda group: group % 3 == 0, train_delay=lambda: 0.003)
    script.play(run_async)
    assert all(num_active == 0 for _, num_active, _ in script.generator.swaps)
    for batch in script.batches:
        assert {int(t) for g in batch.groups for c in g.completions for t in c.tokens} == {
            batch.version
        }


class Broken(Exception):
    """A room's own failure."""


def broken_after(calls):
    remaining = [calls]

    def check():
        remaining[0] -= 1
        if remaining[0] < 0:
            raise Broken
        return 0.0

    return check


ROOMS = ["prompt", "decode", "verify", "train", "push"]


@LOOPS
@pytest.mark.parametrize("room", ROOMS)
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


def test_a_trainer_that_dies_is_told_even_when_the_generator_hangs(monkeypatch):
    monkeypatch.setattr("magistral_jax.loops.GRACE_S", 0.05)
    release = threading.Event()
    is_second = broken_after(3)

    def hang():
        try:
            return is_second()
        except Broken:
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
        with pytest.raises(Broken):
            script.play(run_async, train=train)
    finally:
        release.set()


@LOOPS
def test_a_stop_ends_the_loop_at_a_step_boundary(loop):
    script = Script(make_config(steps=50), train_delay=lambda: 0.002)
    script.on_step = lambda step: script.backlog.stop() if step == 3 else None
    threads = threading.active_count()
    script.play(loop)
    script.threads.shutdown(wait=True)
    assert [step for step, _ in script.rows] == [1, 2, 3]
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
    monkeypatch.setattr("magistral_jax.loops.GRACE_S", 0.0)
    script = Script(make_config(max_lag=1, stall_s=0.1), train_delay=lambda: 0.4)
    with pytest.raises(Stalled, match=r"^generator waited 0\.1 s for the trainer"):
        script.play(run_async)


def test_a_run_may_last_longer_than_any_of_its_waits(monkeypatch):
    monkeypatch.setattr("magistral_jax.loops.GRACE_S", 0.0)
    config = make_config(max_lag=0, steps=10, stall_s=1.0)
    script = Script(config, train_delay=lambda: 0.12).play(run_async)
    assert len(script.rows) == 10


def test_time_is_counted_while_admission_is_closed_and_only_then():
    # Closed: slots for all, a bound of one batch, and a trainer that takes 30 ms.
    closed = Script(make_config(max_lag=0, steps=4, in_flight=4), train_delay=lambda: 0.03)
    closed.play(run_async)
    waited = [values.get("time/wait_admission", 0.0) for _, values in closed.rows]
    assert sum(waited) > 0.05
    # Open: one group's slots, so that they and not the bound hold prompts back.
    config = make_config(max_lag=20, steps=4, in_flight=2)
    opened = Script(config, decode_delay=lambda: 0.002).play(run_async)
    assert sum(values.get("time/wait_admission", 0.0) for _, values in opened.rows) == 0


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

    def __init__(self):
        self.started, self.left = [], 0

    is_running = property(lambda self: self.left > 0)

    def start(self, snapshot):
        assert not self.is_running
        self.started.append(snapshot.version)
        self.left = 3

    def step(self):
        self.left -= 1
        return {"mismatch/logprob_abs_max": float(self.started[-1])} if not self.left else None


def test_a_probe_starts_with_the_run_and_then_every_so_many_updates():
    config = make_config(max_lag=1, steps=6, probe_every=2)
    probe = Probe()
    script = Script(config, train_delay=lambda: 0.02).play(run_async, probe=probe)
    assert probe.started[0] == 0
    assert set(probe.started[1:]) <= {2, 4, 6} and 4 in probe.started
    assert any("mismatch/logprob_abs_max" in values for _, values in script.rows)


def test_a_group_dropped_by_the_cursor_of_a_step_is_in_the_record_of_that_step():
    # Judged all the time, and above all while the trainer counts.
    class SlowTally(Tally):
        def drain(self):
            drained = super().drain()
            time.sleep(0.01)
            return drained

    config = make_config(max_lag=3, steps=12, in_flight=16)
    script = Script(config, length=lambda g, i: 1, is_uniform=lambda group: group % 2 == 0)
    told = []

    def on_step(step, values, groups, cursor):
        script.note_step(step, values, groups, cursor)
        told.append(({g.group for g in script.judged}, set(script.trained), cursor))

    script.play(run_async, on_step=on_step, tally=SlowTally())
    for judged, trained, cursor in told:
        dropped = set(range(cursor.next)) - trained - set(cursor.pending)
        assert dropped <= judged
        assert all(group % 2 == 0 for group in dropped)
