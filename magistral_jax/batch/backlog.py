"""The ledger of groups between dispatch and training: their order, and the bound on staleness.

Two rules live here and nowhere else.

Order: a batch is the first groups in *dispatch* order that can be learned from. A group that
finished early never overtakes one still being sampled, so what is trained on has the lengths that
were sampled (Magistral 3.2: no length bias). The paper reaches this with a fixed permutation over
trainer ranks; waiting in order is the same promise on one queue.

Staleness: of P groups to a batch, at most (S + 1) P are outstanding: dispatched, and neither
dropped nor part of a weight version that the generator has applied. A group dispatched under
version v has fewer than (S + 1) P groups before it, so it is trained in batch v + S at the latest.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice

from magistral_jax.types import Completion, Cursor, Group, Prompt, Stalled, UserError, Verdict


class GroupCollector:
    """Turns completions, judged in any order, into whole groups. Safe to call from any thread."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._lock = threading.Lock()
        self._judged: dict[int, dict[int, tuple[Completion, Verdict]]] = {}

    def add(self, prompt: Prompt, completion: Completion, verdict: Verdict) -> Group | None:
        """The group, by index, if this was the last of its completions; else None."""
        assert completion.group == prompt.group, (completion.group, prompt.group)
        assert 0 <= completion.index < self._group_size, (completion.index, self._group_size)
        with self._lock:
            judged = self._judged.setdefault(prompt.group, {})
            assert completion.index not in judged, f"{prompt.group}/{completion.index} came twice"
            judged[completion.index] = (completion, verdict)
            if len(judged) < self._group_size:
                return None
            del self._judged[prompt.group]
        completions, verdicts = zip(*(judged[i] for i in range(self._group_size)), strict=True)
        return Group(prompt=prompt, completions=completions, verdicts=verdicts)

    def pending(self) -> list[int]:
        """Groups with some but not all completions judged, oldest first."""
        with self._lock:
            return sorted(self._judged)


class Backlog:
    """Admits prompts, drops groups without diversity, hands out batches in dispatch order.

    Any thread may call anything. Whoever dies calls `fail`, so that nobody waits for it.
    """

    uniform: int
    """Groups dropped because all their rewards were equal."""
    errored: int
    """Groups dropped because fewer than two of their verdicts could be trusted."""

    def __init__(
        self,
        *,
        groups_per_batch: int,
        group_size: int,
        max_lag: int,
        cursor: Cursor,
        stall_s: float,
        max_dropped_in_a_row: int | None = None,
    ) -> None:
        """An empty ledger. Positions that were pending at `cursor` must be dispatched first.

        Args:
            max_dropped_in_a_row: Give up at this many drops without a group to keep between
                them; by default, as many as 64 batches would hold.
        """
        self.uniform = 0
        self.errored = 0
        self._groups_per_batch = groups_per_batch
        self._group_size = group_size
        self._max_outstanding = (max_lag + 1) * groups_per_batch
        self._stall_s = stall_s
        self._max_dropped = max_dropped_in_a_row or 64 * groups_per_batch
        self._dropped_in_a_row: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._stopped = False

        self._next = cursor.next
        self._again = deque(cursor.pending)
        # In dispatch order. A group still being sampled or judged is there as its prompt.
        self._ledger: dict[int, Prompt | Group] = {}
        self._untrained: deque[tuple[int, ...]] = deque()
        self._unreleased = 0

    @property
    def outstanding(self) -> int:
        """Groups dispatched and neither dropped nor released."""
        with self._changed:
            return self._count_outstanding()

    def can_dispatch(self) -> bool:
        """Whether one more group keeps the staleness bound. Never, once stopped."""
        with self._changed:
            return self._has_room() and not self._stopped

    def dispatch(self, prompt: Prompt) -> None:
        """Enter a prompt. Call it before sampling starts, in the order of the prompt stream."""
        with self._changed:
            self._raise_failure()
            assert self._has_room(), f"group {prompt.group} would break the staleness bound"
            if self._again:
                expected = self._again.popleft()
                assert prompt.group == expected, f"dispatched {prompt.group} before {expected}"
            else:
                assert prompt.group >= self._next, f"{prompt.group} was dispatched before"
                self._next = prompt.group + 1
            self._ledger[prompt.group] = prompt
            self._changed.notify_all()

    def prompt(self, group: int) -> Prompt:
        """The prompt of a group that is being sampled or judged."""
        with self._changed:
            entry = self._ledger[group]
            assert isinstance(entry, Prompt), f"group {group} is finished"
            return entry

    def finish(self, group: Group) -> bool:
        """Whether a judged group was kept. If not, its place is free for one new prompt.

        Raises `UserError` when so many were dropped in a row that there is nothing to learn.
        """
        got, size = len(group.completions), self._group_size
        assert got == size, f"group {group.group} has {got} of {size} completions"
        with self._changed:
            self._raise_failure()
            assert isinstance(self._ledger[group.group], Prompt), f"{group.group} finished twice"
            if group.is_diverse:
                self._ledger[group.group] = group
                self._dropped_in_a_row.clear()
            else:
                del self._ledger[group.group]
                self._count_drop(group)
            self._changed.notify_all()
            return group.is_diverse

    def take_batch(self, timeout: float | None = None) -> tuple[Group, ...] | None:
        """The oldest groups, all of them finished, in dispatch order; None once stopped.

        Waits for them, and raises `Stalled` after `stall_s`. With a timeout, None at its end.
        """
        with self._changed:
            if not self._wait(self._is_batch_ready, "trainer", "a batch", timeout):
                return None
            positions = tuple(islice(self._ledger, self._groups_per_batch))
            entries = [self._ledger.pop(position) for position in positions]
            self._untrained.append(positions)
            self._unreleased += len(positions)
            return tuple(entry for entry in entries if isinstance(entry, Group))

    def trained(self) -> None:
        """The oldest batch taken is in the weights: from here on, no cursor holds it."""
        with self._changed:
            assert self._untrained, "no batch was taken"
            self._untrained.popleft()

    def release(self, num_groups: int) -> None:
        """The generator has applied weights trained from this many more groups."""
        with self._changed:
            assert 0 <= num_groups <= self._unreleased, (num_groups, self._unreleased)
            self._unreleased -= num_groups
            self._changed.notify_all()

    def wait_admission(self, timeout: float | None = None) -> bool | None:
        """True once `can_dispatch`; None once stopped.

        Waits for it, and raises `Stalled` after `stall_s`. With a timeout, False at its end.
        """
        with self._changed:
            admitted = self._wait(self._has_room, "generator", "room for a group", timeout)
            return None if self._stopped else admitted

    def cursor(self) -> Cursor:
        """Where a run that resumes with the weights of now must go on.

        The position is counted here, under the lock that dispatch takes, so that a prompt
        dispatched meanwhile is neither lost nor counted twice.
        """
        with self._changed:
            untrained = [position for batch in self._untrained for position in batch]
            return Cursor(next=self._next, pending=(*untrained, *self._ledger, *self._again))

    def fail(self, exception: BaseException) -> None:
        """Wake every waiter and raise the first such exception in it, and in later calls."""
        with self._changed:
            self._failure = self._failure or exception
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake every waiter; it returns None. Nothing is admitted or handed out any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # What follows runs under the lock.

    def _count_outstanding(self) -> int:
        return len(self._ledger) + self._unreleased

    def _has_room(self) -> bool:
        return self._count_outstanding() < self._max_outstanding

    def _num_ready(self) -> int:
        oldest = islice(self._ledger.values(), self._groups_per_batch)
        return sum(isinstance(entry, Group) for entry in oldest)

    def _is_batch_ready(self) -> bool:
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
        raise Stalled(f"{owner} waited {waited_s:.3g} s for {what}: {self._describe()}")

    def _describe(self) -> str:
        pending = next((p for p, entry in self._ledger.items() if isinstance(entry, Prompt)), None)
        oldest = "no group pending" if pending is None else f"oldest pending group {pending}"
        return (
            f"{self._num_ready()} of {self._groups_per_batch} groups ready, {oldest}, "
            f"{self._count_outstanding()} of {self._max_outstanding} outstanding, "
            f"{self._unreleased} of these with the trainer or in weights not yet applied"
        )

    def _count_drop(self, group: Group) -> None:
        outcomes = {group.verdicts[i].outcome for i in group.valid}
        if len(group.valid) < 2:
            self.errored += 1
            kind = "checks failed"
        else:
            self.uniform += 1
            kind = f"all {outcomes.pop()}" if len(outcomes) == 1 else "equal rewards"
        self._dropped_in_a_row[kind] += 1
        if self._dropped_in_a_row.total() >= self._max_dropped:
            counts = ", ".join(f"{n} {kind}" for kind, n in self._dropped_in_a_row.most_common())
            raise UserError(
                f"{self._dropped_in_a_row.total()} groups in a row had no diversity ({counts}): "
                "nothing to learn. Choose problems the model solves sometimes (data.path or "
                "data.digits), or raise generator.group_size."
            )
