"""The ledger of groups between dispatch and training: their order, and the bound on staleness.

Two rules live here and nowhere else.

Order: a batch is the first groups in *dispatch* order that can be learned from. A group that
finished early never overtakes one still being sampled, so what is trained on has the lengths that
were sampled (Magistral 3.2: no length bias). The paper reaches this with a fixed permutation over
trainer ranks; waiting in order is the same promise on one queue.

Staleness: of P groups to a batch, at most (S + 1) P are outstanding: dispatched, and neither
dropped nor part of a weight version that the generator has applied. A group dispatched under
version v has fewer than (S + 1) P groups before it, so it is trained in batch v + S at the latest.

Every change happens under one lock, and `queue` takes a picture under the same: a completion is in
it once, whether it is being judged, waits for the rest of its group, or waits to be trained on.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import islice

from magistral_jax.batch.opened import Opened, group_of
from magistral_jax.types import (
    Completion,
    Group,
    Made,
    OpenGroup,
    Prompt,
    Queue,
    Stalled,
    UserError,
    Verdict,
)

STRIKES = 2
"""Groups of one problem that may come to nothing by failures before it is set aside."""


class Backlog:
    """Admits prompts, drops groups without diversity, hands out batches in dispatch order.

    Any thread may call anything. Whoever dies calls `fail`, so that nobody waits for it.
    """

    def __init__(
        self,
        *,
        groups_per_batch: int,
        group_size: int,
        max_lag: int,
        stall_s: float,
        queue: Queue | None = None,
        max_dropped_in_a_row: int | None = None,
    ) -> None:
        """The ledger of a run that starts, or goes on from `queue`.

        Args:
            max_dropped_in_a_row: Give up at this many drops without a group to keep between
                them; by default, as many as 64 batches would hold.
        """
        queue = queue or Queue()
        self._groups_per_batch = groups_per_batch
        self._group_size = group_size
        self._max_outstanding = (max_lag + 1) * groups_per_batch
        self._stall_s = stall_s
        self._max_dropped = max_dropped_in_a_row or 64 * groups_per_batch
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._stopped = self._drain_asked = self._draining = False
        self._next = queue.next
        # In dispatch order.
        self._ledger: dict[int, Opened | Group] = {
            group_of(entry): Opened(entry) if isinstance(entry, OpenGroup) else entry
            for entry in queue.entries
        }
        self._judged = list(queue.judged)
        self._dropped_in_a_row = Counter(queue.dropped_in_a_row)
        self._strikes = Counter(queue.strikes)
        self._given_up: set[int] = set()
        self._untrained: deque[int] = deque()
        self._made = queue.made
        self._unreleased = 0

    @property
    def outstanding(self) -> int:
        """Groups dispatched and neither dropped nor released."""
        with self._changed:
            return self._count_outstanding()

    @property
    def is_stopped(self) -> bool:
        with self._changed:
            return self._stopped

    @property
    def is_drained(self) -> bool:
        """Whether `drain` is done: nothing is outstanding."""
        with self._changed:
            return self._draining and not self._ledger and self._unreleased == 0

    @property
    def is_batch_ready(self) -> bool:
        with self._changed:
            self._raise_failure()
            return self._num_ready() == self._groups_per_batch

    @property
    def misses_only_verdicts(self) -> bool:
        """Whether each of the next batch's groups is sampled: what it waits for is the verifier."""
        with self._changed:
            oldest = list(islice(self._ledger.values(), self._groups_per_batch))
            is_sampled = [
                isinstance(e, Group) or len(e.completions) == self._group_size for e in oldest
            ]
            return len(oldest) == self._groups_per_batch and all(is_sampled)

    def can_dispatch(self) -> bool:
        """Whether one more group keeps the staleness bound. Never, once stopped."""
        with self._changed:
            # Here, so that no drain begins between this answer and the dispatch that follows it.
            self._draining = self._drain_asked
            self._stop_if_drained()
            return self._has_room() and not self._stopped

    def dispatch(self, prompt: Prompt) -> None:
        """Enter a prompt. Call it before sampling starts, in the order of the prompt stream."""
        with self._changed:
            self._raise_failure()
            assert self._has_room(), f"group {prompt.group} would break the staleness bound"
            assert prompt.group >= self._next, f"{prompt.group} was dispatched before"
            self._next = prompt.group + 1
            self._ledger[prompt.group] = Opened(OpenGroup(prompt=prompt))
            self._changed.notify_all()

    def is_set_aside(self, prompt: Prompt) -> bool:
        """Whether the prompt's problem failed so often that it is passed over from now on.

        Raises `UserError` when nothing else comes for long.
        """
        with self._changed:
            if self._strikes[prompt.problem.id] < STRIKES:
                return False
            self._next = prompt.group + 1
            self._count_drop("set aside")
            return True

    def set_aside(self, group: int) -> OpenGroup:
        """Give a group up: the generator cannot sample it. Its place is free for a new prompt."""
        with self._changed:
            entry = self._ledger.pop(group)
            assert isinstance(entry, Opened), f"group {group} is finished"
            self._given_up.add(group)
            self._strikes[entry.prompt.problem.id] = STRIKES
            self._stop_if_drained()
            self._count_drop("set aside")
            self._changed.notify_all()
            return entry.picture()

    def sampled(self, completion: Completion) -> Prompt:
        """A completion is finished, and goes to be judged. Returns the prompt that it answers."""
        with self._changed:
            entry = self._open(completion.group)
            index = completion.index
            assert 0 <= index < self._group_size, (index, self._group_size)
            assert index not in entry.completions, f"{completion.group}/{index} was sampled twice"
            entry.completions[index] = completion
            return entry.prompt

    def judged(self, completion: Completion, verdict: Verdict) -> Group | None:
        """The whole group, if this was its last verdict. One without diversity is dropped, and its
        place is free for one new prompt.

        Raises `UserError` when so many were dropped in a row that there is nothing to learn.
        """
        with self._changed:
            self._raise_failure()
            if completion.group in self._given_up:
                return None
            entry = self._open(completion.group)
            index = completion.index
            assert index in entry.completions, f"{completion.group}/{index} was not sampled"
            assert index not in entry.verdicts, f"{completion.group}/{index} was judged twice"
            entry.verdicts[index] = verdict
            if len(entry.verdicts) < self._group_size:
                return None
            group = entry.whole()
            self._judged.append(group)
            if group.is_diverse:
                self._ledger[group.group] = group
                self._dropped_in_a_row.clear()
            else:
                del self._ledger[group.group]
                self._drop(group)
                self._stop_if_drained()
            self._changed.notify_all()
            return group

    def unjudged(self) -> list[tuple[Prompt, Completion]]:
        """Completions without a verdict, in dispatch order: a run that resumes judges them."""
        with self._changed:
            return [
                (entry.prompt, completion)
                for entry in self._ledger.values()
                if isinstance(entry, Opened)
                for index, completion in sorted(entry.completions.items())
                if index not in entry.verdicts
            ]

    def take_batch(self, timeout: float | None = None) -> tuple[Group, ...] | None:
        """The oldest groups, all of them finished, in dispatch order; None once stopped.

        Waits for them, and raises `Stalled` after `stall_s`. With a timeout, None at its end.
        """
        with self._changed:
            if not self._wait(self._is_ready, "trainer", "a batch", timeout):
                return None
            positions = tuple(islice(self._ledger, self._groups_per_batch))
            entries = [self._ledger.pop(position) for position in positions]
            self._untrained.append(len(positions))
            self._unreleased += len(positions)
            return tuple(entry for entry in entries if isinstance(entry, Group))

    @property
    def made(self) -> tuple[Made, ...]:
        """Optimizer steps of the batch taken last, or of the next one, that were made before."""
        with self._changed:
            return self._made

    def give_back(self, groups: Sequence[Group], made: Sequence[Made]) -> None:
        """The batch taken last is not trained on, but for the optimizer steps that were `made`: it
        is the next one again, in the picture as it was."""
        with self._changed:
            assert list(self._untrained) == [len(groups)], "another batch was taken"
            self._untrained.clear()
            self._unreleased -= len(groups)
            self._ledger = {group.group: group for group in groups} | self._ledger
            self._made = tuple(made)

    def trained(self) -> None:
        """The oldest batch taken is in the weights: from here on, no picture holds it."""
        with self._changed:
            assert self._untrained, "no batch was taken"
            self._untrained.popleft()
            self._made = ()

    def release(self, num_groups: int) -> None:
        """The generator has applied weights trained from this many more groups."""
        with self._changed:
            assert 0 <= num_groups <= self._unreleased, (num_groups, self._unreleased)
            self._unreleased -= num_groups
            self._stop_if_drained()
            self._changed.notify_all()

    def wait_admission(self, timeout: float | None = None) -> bool | None:
        """True once `can_dispatch`; None once stopped.

        Waits for it, and raises `Stalled` after `stall_s`. With a timeout, False at its end.
        """
        with self._changed:
            admitted = self._wait(self._has_room, "generator", "room for a group", timeout)
            return None if self._stopped else admitted

    def describe(self) -> str:
        """What the next batch waits for, in words."""
        with self._changed:
            pending = next(
                (p for p, entry in self._ledger.items() if isinstance(entry, Opened)), None
            )
            oldest = "no group pending" if pending is None else f"oldest pending group {pending}"
            unjudged = sum(
                len(e.completions) - len(e.verdicts)
                for e in self._ledger.values()
                if isinstance(e, Opened)
            )
            return (
                f"{self._num_ready()} of {self._groups_per_batch} groups ready, {oldest}, "
                f"{unjudged} completions with the verifier, "
                f"{self._count_outstanding()} of {self._max_outstanding} outstanding, "
                f"{self._unreleased} of these with the trainer or in weights not yet applied"
            )

    def report(self) -> list[Group]:
        """The groups judged since the last report, dropped ones included."""
        with self._changed:
            judged, self._judged = self._judged, []
            return judged

    def queue(self, *, report: bool) -> tuple[Queue, list[Group]]:
        """A picture to resume from; with `report` also what `report` would give, at that moment.

        Call it while no batch is with the trainer: what is in the weights is in no picture.
        """
        with self._changed:
            assert not self._untrained, "a batch is being trained on"
            judged, self._judged = (self._judged, []) if report else ([], self._judged)
            entries = tuple(
                e.picture() if isinstance(e, Opened) else e for e in self._ledger.values()
            )
            queue = Queue(
                next=self._next,
                entries=entries,
                judged=tuple(self._judged),
                made=self._made,
                dropped_in_a_row=dict(self._dropped_in_a_row),
                strikes=dict(self._strikes),
            )
            return queue, judged

    def fail(self, exception: BaseException) -> None:
        """Wake every waiter and raise the first such exception in it, and in later calls."""
        with self._changed:
            self._failure = self._failure or exception
            self._changed.notify_all()

    def drain(self) -> None:
        """Train on what is outstanding, to the last group, and then stop: a new prompt is admitted
        only where the last batch lacks one. From the next `can_dispatch` on."""
        with self._changed:
            self._drain_asked = True

    def stop(self) -> None:
        """Wake every waiter; it returns None. Nothing is admitted or handed out any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # What follows runs under the lock.

    def _open(self, group: int) -> "Opened":
        entry = self._ledger[group]
        assert isinstance(entry, Opened), f"group {group} is finished"
        return entry

    def _count_outstanding(self) -> int:
        return len(self._ledger) + self._unreleased

    def _stop_if_drained(self) -> None:
        if self.is_drained:
            self._stopped = True

    def _has_room(self) -> bool:
        if self._draining and len(self._ledger) % self._groups_per_batch == 0:
            return False
        return self._count_outstanding() < self._max_outstanding

    def _num_ready(self) -> int:
        oldest = islice(self._ledger.values(), self._groups_per_batch)
        return sum(isinstance(entry, Group) for entry in oldest)

    def _is_ready(self) -> bool:
        return self._num_ready() == self._groups_per_batch

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wait(
        self, is_ready: Callable[[], bool], owner: str, what: str, timeout: float | None
    ) -> bool:
        """Whether it got ready; False when stopped, or when the caller's timeout is over."""
        started = time.monotonic()
        self._changed.wait_for(
            lambda: self._failure is not None or self._stopped or is_ready(),
            self._stall_s if timeout is None else timeout,
        )
        self._raise_failure()
        if self._stopped or is_ready():
            return not self._stopped
        if timeout is not None:
            return False
        waited_s = time.monotonic() - started
        raise Stalled(f"{owner} waited {waited_s:.3g} s for {what}: {self.describe()}")

    def _drop(self, group: Group) -> None:
        if len(group.valid) < 2:
            self._strikes[group.prompt.problem.id] += 1
        self._count_drop(group.sameness)

    def _count_drop(self, kind: str) -> None:
        self._dropped_in_a_row[kind] += 1
        if self._dropped_in_a_row.total() >= self._max_dropped:
            counts = ", ".join(f"{n} {kind}" for kind, n in self._dropped_in_a_row.most_common())
            raise UserError(
                f"{self._dropped_in_a_row.total()} groups in a row had no diversity ({counts}): "
                "nothing to learn. Choose problems the model solves sometimes (data.path or "
                "data.digits), raise generator.group_size, or teach the format first (sft)."
            )
