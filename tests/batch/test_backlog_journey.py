"""The ledger under any interleaving: order, staleness, and a picture that loses nothing.

`Journey` plays the generator, the verifier and the trainer in random order against a plain model:
lists of positions, and two version numbers. Now and then a second ledger is made from a picture of
the first; from there on both see the same, and must answer the same. `Crowd` plays them in threads.
"""

import sys
import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from magistral_jax.batch.backlog import STRIKES
from magistral_jax.types import (
    Group,
    OpenGroup,
)

from .groups import (
    EQUAL,
    ERRORED,
    KEPT,
    RIGHT,
    WRONG,
    G,
    contents,
    judge,
    make_backlog,
    make_completion,
    make_prompt,
    make_verdict,
    numbers,
    picture,
)

PROBLEMS = 7
"""They come again, so that some are set aside."""


class Journey(RuleBasedStateMachine):
    @initialize(groups_per_batch=st.integers(1, 3), max_lag=st.integers(0, 3))
    def begin(self, groups_per_batch, max_lag):
        self.options = {"groups_per_batch": groups_per_batch, "max_lag": max_lag}
        # Few problems, which may all be set aside: that it gives up then is another test's.
        self.options["max_dropped_in_a_row"] = 10**6
        self.groups_per_batch, self.max_lag = groups_per_batch, max_lag
        # More than one after a picture was taken: each event is seen by all, with one answer.
        self.lives = [make_backlog(**self.options)]
        self.stream = 0
        self.trainer_version = self.generator_version = 0
        self.kind, self.born = {}, {}
        # In dispatch order; what is dropped or taken goes.
        self.sampled, self.verdicts = {}, {}
        self.strikes = Counter()
        self.settled, self.judged, self.told, self.late = [], [], [], []
        self.untrained, self.unapplied = [], 0

    def all(self, call):
        answers = [call(life) for life in self.lives]
        assert all(answer == answers[0] for answer in answers), answers
        return answers[0]

    @property
    def outstanding(self):
        return len(self.sampled) + self.unapplied * self.groups_per_batch

    @property
    def bound(self):
        return (self.max_lag + 1) * self.groups_per_batch

    def is_whole(self, position):
        return len(self.verdicts[position]) == G

    @property
    def unsampled(self):
        return [(p, i) for p in self.sampled for i in range(G) if i not in self.sampled[p]]

    @property
    def unjudged(self):
        return [(p, i) for p in self.sampled for i in sorted(self.sampled[p] - self.verdicts[p])]

    @property
    def oldest(self):
        return list(self.sampled)[: self.groups_per_batch]

    @rule(count=st.integers(1, 6), data=st.data())
    def dispatch(self, count, data):
        for _ in range(count):
            self.dispatch_one(data)

    def dispatch_one(self, data):
        admitted = self.all(lambda life: life.can_dispatch())
        assert admitted == (self.outstanding + 1 <= self.bound)
        assert self.all(lambda life: life.wait_admission(0.0)) is admitted
        if not admitted:
            return
        position, problem = self.stream, self.stream % PROBLEMS
        prompt = make_prompt(position, problem)
        self.stream += 1
        passed = self.all(lambda life: life.is_set_aside(prompt))
        assert passed == (self.strikes[problem] >= STRIKES)
        if passed:
            self.settled.append(position)
            return
        self.all(lambda life: life.dispatch(prompt))
        self.kind[position] = data.draw(
            st.sampled_from([KEPT, KEPT, KEPT, KEPT, RIGHT, WRONG, EQUAL, ERRORED])
        )
        self.born[position] = self.generator_version
        self.sampled[position], self.verdicts[position] = set(), set()

    @precondition(lambda self: self.unsampled)
    @rule(data=st.data())
    def sample(self, data):
        count = data.draw(st.integers(1, 6))
        for position, index in data.draw(st.permutations(self.unsampled))[:count]:
            prompt = self.all(lambda life: life.sampled(make_completion(position, index)).group)  # noqa: B023
            assert prompt == position
            self.sampled[position].add(index)

    @precondition(lambda self: self.unjudged)
    @rule(data=st.data())
    def judge(self, data):
        count = data.draw(st.integers(1, 6))
        for position, index in data.draw(st.permutations(self.unjudged))[:count]:
            self.judge_one(position, index, data)

    def judge_one(self, position, index, data):
        rewards, full = self.kind[position], self.outstanding == self.bound
        group = self.all(lambda life: numbers_of(judge(life, position, rewards, [index])))
        self.verdicts[position].add(index)
        assert (group is not None) == self.is_whole(position)
        if group is None:
            return
        assert group == (position, list(range(G)))
        self.judged.append(position)
        if rewards == KEPT:
            return
        self.strikes[position % PROBLEMS] += rewards == ERRORED
        self.settle(position)
        if full:
            before = self.stream
            self.dispatch_one(data)
            if self.stream - 1 in self.sampled and self.stream > before:
                assert not self.all(lambda life: life.can_dispatch()), "one drop admitted two"

    @precondition(lambda self: any(len(found) < G for found in self.verdicts.values()))
    @rule(data=st.data(), is_time=st.integers(0, 3))
    def give_up(self, data, is_time):
        """Seldom, or all problems would soon be set aside."""
        if is_time:
            return
        position = data.draw(st.sampled_from([p for p in self.sampled if not self.is_whole(p)]))
        given_up = self.all(lambda life: contents(life.set_aside(position)))
        assert given_up == (position, sorted(self.sampled[position]), self.verdicts[position])
        self.late += [
            (life, position, index)
            for index in self.sampled[position] - self.verdicts[position]
            for life in self.lives
        ]
        self.strikes[position % PROBLEMS] = STRIKES
        self.settle(position)

    @precondition(lambda self: self.late)
    @rule()
    def judge_what_was_given_up(self):
        life, position, index = self.late.pop()
        assert judge(life, position, KEPT, [index]) is None

    def settle(self, position):
        del self.sampled[position], self.verdicts[position]
        self.settled.append(position)

    @rule()
    def take(self):
        first = self.oldest
        ready = len(first) == self.groups_per_batch and all(self.is_whole(p) for p in first)
        assert self.all(lambda life: life.is_batch_ready) == ready
        batch = self.all(lambda life: numbers(life.take_batch(timeout=0.0)))
        if not ready:
            assert batch is None
            return
        assert batch == first
        version = self.trainer_version + len(self.untrained)
        lag = max(version - self.born[p] for p in first)
        assert lag <= self.max_lag, f"lag {lag}"
        for position in first:
            del self.sampled[position], self.verdicts[position]
        self.untrained.append(first)
        self.unapplied += 1

    @precondition(lambda self: self.untrained)
    @rule()
    def train(self):
        self.all(lambda life: life.trained())
        self.settled += self.untrained.pop(0)
        self.trainer_version += 1

    @precondition(lambda self: self.generator_version < self.trainer_version)
    @rule(data=st.data())
    def apply(self, data):
        self.apply_versions(
            data.draw(st.integers(1, self.trainer_version - self.generator_version))
        )

    def apply_versions(self, versions):
        self.generator_version += versions
        self.unapplied -= versions
        self.all(lambda life: life.release(versions * self.groups_per_batch))

    @rule()
    def report(self):
        self.told += self.all(lambda life: numbers(life.report()))

    # Seldom, or no run would live long enough to have two batches on their way.
    @precondition(lambda self: self.stream % 5 == 4 and not self.untrained)
    @rule(report=st.booleans())
    def resume(self, report):
        """A generator that resumes has the newest weights."""
        if self.trainer_version > self.generator_version:
            self.apply_versions(self.trainer_version - self.generator_version)
        first = self.lives[-1]
        queue, told = first.queue(report=report)
        self.told += numbers(told)
        self.lives = [first, make_backlog(**self.options, queue=queue)]

    @invariant()
    def each_judged_group_is_told_or_to_be_told_once(self):
        if not self.untrained:
            untold = self.all(lambda life: numbers(picture(life).judged))
            assert self.told + untold == self.judged

    @invariant()
    def every_position_is_settled_or_in_the_picture_exactly_once(self):
        if self.untrained:
            return
        found = self.all(lambda life: [contents(entry) for entry in picture(life).entries])
        assert self.all(lambda life: picture(life).next) == self.stream
        assert found == [(p, sorted(self.sampled[p]), self.verdicts[p]) for p in self.sampled]
        assert sorted([*self.settled, *self.sampled]) == list(range(self.stream))

    @invariant()
    def what_is_to_be_judged_is_known_in_dispatch_order(self):
        found = self.all(lambda life: [(p.group, c.index) for p, c in life.unjudged()])
        assert found == self.unjudged
        waits_for_verdicts = len(self.oldest) == self.groups_per_batch and all(
            len(self.sampled[p]) == G for p in self.oldest
        )
        assert self.all(lambda life: life.misses_only_verdicts) == waits_for_verdicts

    @invariant()
    def outstanding_obeys_the_bound(self):
        assert self.all(lambda life: life.outstanding) == self.outstanding <= self.bound


def numbers_of(group):
    return group and (group.group, [completion.index for completion in group.completions])


Journey.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestJourney = Journey.TestCase


@pytest.fixture
def eager_threads():
    """Threads that give way to each other all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def flat(batches):
    return [position for batch in batches for position in batch]


class Crowd:
    """Threads that generate, judge (newest first), train, and take pictures; every third group is
    uniform."""

    steps = 40

    def __init__(self):
        self.backlog, self.batches, self.pictures = make_backlog(max_lag=2), [], []
        self.condition, self.inbox = threading.Condition(), []
        # No picture may be taken while a batch is with the trainer.
        self.training = threading.Lock()
        self.over, self.finished = threading.Event(), []

    def generate(self):
        position = 0
        while self.backlog.wait_admission():
            self.backlog.dispatch(make_prompt(position))
            for index in range(G):
                completion = make_completion(position, index)
                assert self.backlog.sampled(completion).group == position
                with self.condition:
                    self.inbox.append(completion)
                    self.condition.notify()
            position += 1

    def judge(self):
        while not self.over.is_set():
            with self.condition:
                if not self.condition.wait_for(lambda: self.inbox, 0.05):
                    continue
                completion = self.inbox.pop()
            rewards = KEPT if completion.group % 3 else WRONG
            self.backlog.judged(completion, make_verdict(rewards, completion.index))

    def train(self):
        while len(self.batches) < self.steps:
            with self.training:
                batch = self.backlog.take_batch(timeout=0.01)
                if batch is not None:
                    self.batches.append(numbers(batch))
                    self.backlog.trained()
            if batch is not None:
                self.backlog.release(2)
        self.over.set()
        self.backlog.stop()

    def look(self):
        while not self.over.is_set():
            with self.training:
                trained = flat(self.batches)
                self.pictures.append((trained, *self.backlog.queue(report=True)))
            self.over.wait(0.001)

    def play(self):
        def guarded(target):
            try:
                target()
                self.finished.append(target)
            except BaseException as exception:
                self.over.set()
                self.backlog.fail(exception)
                raise

        targets = [self.generate, self.judge, self.judge, self.judge, self.train, self.look]
        threads = [threading.Thread(target=guarded, args=(t,), daemon=True) for t in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(self.finished) == len(targets)


def test_threads_train_the_first_diverse_groups_in_order_without_a_hang(eager_threads):
    crowd = Crowd()
    crowd.play()
    diverse = [p for p in range(1000) if p % 3]
    assert flat(crowd.batches) == diverse[: 2 * crowd.steps]


def test_no_picture_among_threads_misses_a_group_or_holds_one_twice(eager_threads):
    crowd = Crowd()
    crowd.play()
    told = []
    for trained, queue, report in crowd.pictures:
        told += numbers(report)
        whole = [e.prompt.group for e in queue.entries if isinstance(e, Group)]
        open_groups = [e.prompt.group for e in queue.entries if isinstance(e, OpenGroup)]
        assert sorted(told + open_groups) == list(range(queue.next))
        assert sorted(p for p in told if p % 3) == trained + whole
        for entry in queue.entries:
            _, sampled, judged = contents(entry)
            assert judged <= set(sampled)
            assert isinstance(entry, Group) or len(judged) < G
    # Otherwise the threads were never amid their work.
    assert any(isinstance(e, OpenGroup) for _, queue, _ in crowd.pictures for e in queue.entries)
    assert len(crowd.pictures) > 3
