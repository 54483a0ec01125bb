"""The ledger under any interleaving: order, staleness, and a cursor that loses nothing.

`Journey` plays the generator, the verifier and the trainer in random order against a plain model:
lists of positions, and two version numbers.
"""

import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from magistral_jax.batch.backlog import Backlog, GroupCollector
from magistral_jax.types import (
    Completion,
    Cursor,
    Group,
    Problem,
    Prompt,
    Stalled,
    UserError,
    Verdict,
    VersionSpan,
)

G = 2
KEPT, RIGHT, WRONG, EQUAL, ERRORED = (1, 0), (1, 1), (0, 0), "equal", (1, None)


def make_prompt(position):
    problem = Problem(id=str(position), domain="math", question="", answer="")
    return Prompt(group=position, problem=problem, tokens=np.zeros(1, np.int32))


def make_pair(position, index, reward):
    completion = Completion(
        group=position,
        index=index,
        prompt=np.zeros(1, np.int32),
        tokens=np.ones(1, np.int32),
        logprobs=np.zeros(1, np.float32),
        sampled=np.ones(1, bool),
        spans=(VersionSpan(start=0, version=0),),
        finish="length",
    )
    if reward is None:
        return completion, Verdict(reward=0.0, parts={}, reason="error")
    reason = "pass" if reward > 0 else "wrong"
    return completion, Verdict(reward=float(reward), parts={}, reason=reason)


def make_group(position, rewards):
    """Two judged completions; EQUAL is one right and one wrong of the same reward."""
    pairs = [make_pair(position, i, r) for i, r in enumerate(KEPT if rewards == EQUAL else rewards)]
    completions, verdicts = zip(*pairs, strict=True)
    if rewards == EQUAL:
        verdicts = tuple(Verdict(reward=0.5, parts={}, reason=v.reason) for v in verdicts)
    return Group(prompt=make_prompt(position), completions=completions, verdicts=verdicts)


def make_backlog(*, groups_per_batch=2, max_lag=1, cursor=None, stall_s=5.0, **more):
    return Backlog(
        groups_per_batch=groups_per_batch,
        group_size=G,
        max_lag=max_lag,
        cursor=cursor or Cursor(next=0),
        stall_s=stall_s,
        **more,
    )


class Journey(RuleBasedStateMachine):
    @initialize(groups_per_batch=st.integers(1, 3), max_lag=st.integers(0, 3))
    def begin(self, groups_per_batch, max_lag):
        self.groups_per_batch, self.max_lag = groups_per_batch, max_lag
        self.settled = []
        self.to_dispatch, self.stream = [], 0
        self.trainer_version = self.generator_version = 0
        self.start(Cursor(next=0))

    def start(self, cursor):
        self.backlog = make_backlog(
            groups_per_batch=self.groups_per_batch, max_lag=self.max_lag, cursor=cursor
        )
        self.outcome = {}  # position -> kept, once judged; in dispatch order, drops removed
        self.born = {}
        self.untrained, self.unapplied = [], 0

    @property
    def outstanding(self):
        return len(self.outcome) + self.unapplied * self.groups_per_batch

    @property
    def bound(self):
        return (self.max_lag + 1) * self.groups_per_batch

    @property
    def pending(self):
        return [position for position, kept in self.outcome.items() if not kept]

    @rule(count=st.integers(1, 6))
    def dispatch(self, count):
        for _ in range(count):
            self.dispatch_one()

    def dispatch_one(self):
        assert self.backlog.can_dispatch() == (self.outstanding + 1 <= self.bound)
        assert self.backlog.wait_admission(0.0) is self.backlog.can_dispatch()
        if not self.backlog.can_dispatch():
            return
        position = self.to_dispatch.pop(0) if self.to_dispatch else self.stream
        self.stream = max(self.stream, position + 1)
        self.backlog.dispatch(make_prompt(position))
        self.outcome[position] = False
        self.born[position] = self.generator_version

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def finish(self, data):
        position = data.draw(st.sampled_from(self.pending))
        rewards = data.draw(st.sampled_from([KEPT, KEPT, KEPT, RIGHT, WRONG, EQUAL, ERRORED]))
        full = self.outstanding == self.bound
        kept = self.backlog.finish(make_group(position, rewards))
        assert kept is (rewards == KEPT)
        if kept:
            self.outcome[position] = True
            return
        del self.outcome[position]
        self.settled.append(position)
        if full:
            self.dispatch_one()
            assert not self.backlog.can_dispatch(), "one drop admitted two"

    @rule()
    def take(self):
        first = list(self.outcome)[: self.groups_per_batch]
        ready = len(first) == self.groups_per_batch and all(self.outcome[p] for p in first)
        batch = self.backlog.take_batch(timeout=0.0)
        if not ready:
            assert batch is None
            return
        assert batch is not None
        assert [g.group for g in batch] == first
        version = self.trainer_version + len(self.untrained)
        lag = max(version - self.born[p] for p in first)
        assert lag <= self.max_lag, f"lag {lag}"
        for position in first:
            del self.outcome[position]
        self.untrained.append(first)
        self.unapplied += 1

    @precondition(lambda self: self.untrained)
    @rule()
    def train(self):
        self.backlog.trained()
        self.settled += self.untrained.pop(0)
        self.trainer_version += 1

    @precondition(lambda self: self.generator_version < self.trainer_version)
    @rule(data=st.data())
    def apply(self, data):
        versions = data.draw(st.integers(1, self.trainer_version - self.generator_version))
        self.generator_version += versions
        self.unapplied -= versions
        self.backlog.release(versions * self.groups_per_batch)

    # Seldom, or no run would live long enough to have two batches on their way.
    @precondition(lambda self: self.stream % 5 == 4)
    @rule()
    def save_and_restore(self):
        cursor = self.backlog.cursor()
        self.to_dispatch, self.stream = list(cursor.pending), cursor.next
        self.generator_version = self.trainer_version
        self.start(cursor)

    @invariant()
    def every_position_is_settled_or_in_the_cursor_exactly_once(self):
        cursor = self.backlog.cursor()
        assert list(cursor.pending) == sorted(cursor.pending)
        assert sorted([*self.settled, *cursor.pending]) == list(range(cursor.next))

    @invariant()
    def outstanding_obeys_the_bound(self):
        assert self.backlog.outstanding == self.outstanding <= self.bound


Journey.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestJourney = Journey.TestCase


def dispatched(count, **more):
    backlog = make_backlog(**more)
    for position in range(count):
        backlog.dispatch(make_prompt(position))
    return backlog


def take_now(backlog):
    batch = backlog.take_batch(timeout=0.0)
    assert batch is not None
    return [group.group for group in batch]


def test_a_finished_group_never_overtakes_an_earlier_one_still_pending():
    backlog = dispatched(4)
    for position in (3, 2, 1):
        assert backlog.finish(make_group(position, KEPT))
        assert backlog.take_batch(timeout=0.0) is None
    backlog.finish(make_group(0, KEPT))
    assert take_now(backlog) == [0, 1]
    assert take_now(backlog) == [2, 3]


def test_short_groups_finishing_first_leave_trained_lengths_unbiased():
    """Lengths 9, 8, ... 1: the short end finishes first, yet batches are the dispatched order."""
    backlog = dispatched(8, max_lag=3)
    lengths = {position: 9 - position for position in range(8)}
    trained = []
    for position in sorted(lengths, key=lengths.__getitem__):
        backlog.finish(make_group(position, KEPT))
        while (batch := backlog.take_batch(timeout=0.0)) is not None:
            trained += [lengths[g.group] for g in batch]
    assert trained == list(lengths.values())


def test_batches_leave_the_cursor_in_the_order_they_were_taken():
    backlog = dispatched(4)
    for position in range(4):
        backlog.finish(make_group(position, KEPT))
    assert (take_now(backlog), take_now(backlog)) == ([0, 1], [2, 3])
    backlog.trained()
    assert backlog.cursor() == Cursor(next=4, pending=(2, 3))


@pytest.mark.parametrize("max_lag", [0, 2])
def test_the_lag_reaches_its_bound_and_not_more(max_lag):
    """A generator that never hears of new weights gets S + 1 batches out, then must wait."""
    backlog = make_backlog(max_lag=max_lag)
    position = 0
    while backlog.can_dispatch():
        backlog.dispatch(make_prompt(position))
        backlog.finish(make_group(position, KEPT))
        position += 1
        if backlog.take_batch(timeout=0.0):
            backlog.trained()
    assert position == 2 * (max_lag + 1)
    backlog.release(2)
    assert backlog.can_dispatch()


def test_each_drop_admits_exactly_one():
    backlog = dispatched(4)
    assert not backlog.can_dispatch()
    assert not backlog.finish(make_group(2, WRONG))
    backlog.dispatch(make_prompt(4))
    assert not backlog.can_dispatch()


def test_drops_are_counted_by_their_reason():
    backlog = dispatched(4)
    for position, rewards in enumerate([RIGHT, ERRORED, EQUAL, KEPT]):
        backlog.finish(make_group(position, rewards))
    assert (backlog.uniform, backlog.errored) == (2, 1)


def drop(backlog, positions, rewards):
    for position in positions:
        backlog.dispatch(make_prompt(position))
        backlog.finish(make_group(position, rewards))


def test_nothing_to_learn_ends_the_run_in_the_users_words():
    backlog = make_backlog(max_dropped_in_a_row=5)
    drop(backlog, [0, 1], WRONG)
    drop(backlog, [2], ERRORED)
    drop(backlog, [3], EQUAL)
    words = (
        r"5 groups in a row had no diversity \(2 all wrong, 1 checks failed, 1 equal rewards, "
        r"1 all right\): nothing to learn.*data.path.*generator.group_size"
    )
    with pytest.raises(UserError, match=words):
        drop(backlog, [4], RIGHT)


def test_one_group_to_learn_from_starts_the_count_of_drops_again():
    backlog = make_backlog(max_dropped_in_a_row=3, groups_per_batch=4)
    for first in (0, 3, 6):
        drop(backlog, [first, first + 1], WRONG)
        drop(backlog, [first + 2], KEPT)
    assert backlog.uniform == 6


def test_the_default_patience_is_64_batches():
    backlog = make_backlog(groups_per_batch=1)
    drop(backlog, range(63), WRONG)
    with pytest.raises(UserError, match="64 groups in a row"):
        drop(backlog, [63], WRONG)


def test_a_cursor_holds_a_batch_until_it_is_trained_whatever_was_released():
    backlog = dispatched(3)
    for position in (0, 1):
        backlog.finish(make_group(position, KEPT))
    backlog.take_batch(timeout=0.0)
    assert backlog.cursor() == Cursor(next=3, pending=(0, 1, 2))
    backlog.release(2)
    assert backlog.cursor() == Cursor(next=3, pending=(0, 1, 2))
    backlog.trained()
    assert backlog.cursor() == Cursor(next=3, pending=(2,))


def test_a_resumed_run_dispatches_what_was_pending_first():
    cursor = Cursor(next=9, pending=(4, 7))
    backlog = make_backlog(cursor=cursor)
    assert backlog.cursor() == cursor
    with pytest.raises(AssertionError, match="dispatched 9 before 4"):
        backlog.dispatch(make_prompt(9))
    backlog = make_backlog(cursor=cursor)
    backlog.dispatch(make_prompt(4))
    assert backlog.cursor() == cursor
    backlog.dispatch(make_prompt(7))
    with pytest.raises(AssertionError, match="7 was dispatched before"):
        backlog.dispatch(make_prompt(7))
    backlog.dispatch(make_prompt(9))
    assert backlog.cursor() == Cursor(next=10, pending=(4, 7, 9))


def test_a_prompt_can_be_looked_up_until_its_group_is_finished():
    backlog = dispatched(1)
    assert backlog.prompt(0).problem.id == "0"
    backlog.finish(make_group(0, KEPT))
    with pytest.raises(AssertionError, match="group 0 is finished"):
        backlog.prompt(0)


def test_broken_promises_are_caught_where_they_are_made():
    backlog = dispatched(4)
    with pytest.raises(AssertionError, match="staleness bound"):
        backlog.dispatch(make_prompt(4))
    backlog.finish(make_group(0, KEPT))
    with pytest.raises(AssertionError, match="finished twice"):
        backlog.finish(make_group(0, KEPT))
    whole = make_group(1, KEPT)
    half = Group(
        prompt=whole.prompt, completions=whole.completions[:1], verdicts=whole.verdicts[:1]
    )
    with pytest.raises(AssertionError, match="group 1 has 1 of 2 completions"):
        backlog.finish(half)
    with pytest.raises(AssertionError, match="no batch"):
        backlog.trained()
    with pytest.raises(AssertionError):
        backlog.release(1)


def test_a_trainer_without_a_batch_stalls_with_what_it_waited_for():
    backlog = dispatched(3, groups_per_batch=3, stall_s=0.02)
    backlog.finish(make_group(0, KEPT))
    backlog.finish(make_group(2, KEPT))
    words = r"trainer waited 0.0\d+ s for a batch: 2 of 3 groups ready, oldest pending group 1"
    with pytest.raises(Stalled, match=words):
        backlog.take_batch()


def test_a_generator_without_room_stalls_with_who_holds_it():
    backlog = dispatched(2, max_lag=0, stall_s=0.02)
    for position in (0, 1):
        backlog.finish(make_group(position, KEPT))
    backlog.take_batch()
    words = r"generator waited .* for room for a group: .* 2 of 2 outstanding, 2 of these with the"
    with pytest.raises(Stalled, match=words):
        backlog.wait_admission()


def results_of_waiters(backlog, wake):
    """What a waiting trainer and a waiting generator get when `wake` is called."""
    results = {}

    def call(name, method):
        try:
            results[name] = method()
        except Exception as exception:
            results[name] = exception

    threads = [
        threading.Thread(target=call, args=("trainer", backlog.take_batch)),
        threading.Thread(target=call, args=("generator", backlog.wait_admission)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    wake()
    for thread in threads:
        thread.join(2)
        assert not thread.is_alive(), "a waiter slept on"
    return results["trainer"], results["generator"]


def test_a_death_anywhere_wakes_every_waiter_with_its_cause():
    backlog = dispatched(4)
    first = RuntimeError("the verifier died")
    assert results_of_waiters(backlog, lambda: backlog.fail(first)) == (first, first)
    backlog.fail(RuntimeError("the generator died of it"))
    for call in (lambda: backlog.dispatch(make_prompt(4)), backlog.take_batch):
        with pytest.raises(RuntimeError, match="verifier"):
            call()
    with pytest.raises(RuntimeError, match="verifier"):
        backlog.finish(make_group(0, KEPT))


def test_stopping_wakes_every_waiter_with_nothing():
    backlog = dispatched(4)
    assert results_of_waiters(backlog, backlog.stop) == (None, None)
    backlog.finish(make_group(0, WRONG))
    assert not backlog.can_dispatch()
    for position in (1, 2):
        backlog.finish(make_group(position, KEPT))
    assert backlog.take_batch() is None


def test_release_wakes_a_waiting_generator_and_finish_a_waiting_trainer():
    backlog = dispatched(1, groups_per_batch=1, max_lag=0)

    def wake():
        backlog.finish(make_group(0, KEPT))
        time.sleep(0.02)
        backlog.release(1)

    batch, admitted = results_of_waiters(backlog, wake)
    assert [g.group for g in batch] == [0]
    assert admitted is True


def test_threads_train_the_first_diverse_groups_in_order_without_a_hang():
    """Three threads; every third group is uniform; verdicts arrive newest first."""
    backlog, batches, finished = make_backlog(max_lag=1), [], []
    condition, inbox = threading.Condition(), []

    def generate():
        position = 0
        while backlog.wait_admission():
            backlog.dispatch(make_prompt(position))
            with condition:
                inbox.append(position)
                condition.notify()
            position += 1

    def judge():
        while True:
            with condition:
                assert condition.wait_for(lambda: inbox, 5)
                position = inbox.pop()
            if position < 0:
                return
            backlog.finish(make_group(position, WRONG if position % 3 == 0 else KEPT))

    def train():
        while len(batches) < 20:
            batch = backlog.take_batch()
            assert batch is not None
            batches.append([g.group for g in batch])
            backlog.trained()
            backlog.release(2)
        backlog.stop()
        with condition:
            inbox.append(-1)
            condition.notify()

    def guarded(target):
        try:
            target()
            finished.append(target)
        except BaseException as exception:
            backlog.fail(exception)

    threads = [threading.Thread(target=guarded, args=(t,)) for t in (generate, judge, train)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(finished) == 3
    assert [p for batch in batches for p in batch] == [p for p in range(60) if p % 3][:40]


def test_a_collector_gives_each_group_once_whole_and_in_order_of_index():
    collector = GroupCollector(3)
    assert collector.add(make_prompt(5), *make_pair(5, 2, 0)) is None
    assert collector.add(make_prompt(4), *make_pair(4, 0, 1)) is None
    assert collector.add(make_prompt(5), *make_pair(5, 0, 1)) is None
    assert collector.pending() == [4, 5]
    group = collector.add(make_prompt(5), *make_pair(5, 1, None))
    assert group is not None
    assert [c.index for c in group.completions] == [0, 1, 2]
    assert [v.outcome for v in group.verdicts] == ["right", "error", "wrong"]
    assert (group.group, collector.pending()) == (5, [4])


def test_a_collector_refuses_strangers_and_doubles():
    collector = GroupCollector(2)
    collector.add(make_prompt(0), *make_pair(0, 1, 0))
    with pytest.raises(AssertionError, match="0/1 came twice"):
        collector.add(make_prompt(0), *make_pair(0, 1, 0))
    with pytest.raises(AssertionError):
        collector.add(make_prompt(0), *make_pair(0, 2, 0))
    with pytest.raises(AssertionError):
        collector.add(make_prompt(1), *make_pair(0, 0, 0))
