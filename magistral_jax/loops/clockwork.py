"""The asynchronous loop by a logical clock: the same run every time, bit for bit.

What `run_async` leaves to timing, this one counts in decode steps. `deterministic_steps` after a
batch is full its weights are applied, and as many after a completion's end its verdict counts; who
is not ready by then is waited for. Between, generator and trainer work at once.
"""

import threading
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from time import monotonic

from magistral_jax.config import RunConfig
from magistral_jax.ledger import GENERATOR, TRAINER
from magistral_jax.loops.moves import (
    GRACE_S,
    Generation,
    Handed,
    Picture,
    learn,
    plain_picture,
    report,
    verdict_of,
)
from magistral_jax.loops.rooms import Rooms
from magistral_jax.types import Frontier, Snapshot, Stalled


@dataclass(frozen=True)
class _Update:
    """A weight update under way, and the tick at which it is applied."""

    at: int
    version: int
    snapshot: Future[Snapshot | None]

    @property
    def is_given_up(self) -> bool:
        """Whether a stop came in its middle."""
        done = self.snapshot.done() and self.snapshot.exception() is None
        return done and self.snapshot.result() is None


class Clockwork:
    """One run by the clock."""

    def __init__(self, config: RunConfig, rooms: Rooms, frontier: Frontier) -> None:
        self._config, self._rooms = config, rooms
        self._generation = Generation(config, rooms)
        self._tick, self._update_at = frontier.tick, frontier.update_at
        self._update: _Update | None = None
        self._trainer: threading.Thread | None = None
        self._stopped = False
        unjudged = {(c.group, c.index): (p, c) for p, c in rooms.backlog.unjudged()}
        awaited = [(tick, (group, index)) for tick, group, index in frontier.due]
        keys = {key for _, key in awaited}
        # A run that was stopped in another mode awaits verdicts at no tick.
        awaited = [(self._tick, key) for key in unjudged if key not in keys] + awaited
        self._due: deque[tuple[int, Handed]] = deque()
        for tick, key in awaited:
            prompt, completion = unjudged[key]
            self._due.append((tick, (prompt, completion, rooms.judge(prompt, completion))))

    def run(self, *, start: int) -> None:
        """Until the last step or, after a stop, until no update is under way or it is given up."""
        try:
            self._run(start)
        except BaseException:
            if self._trainer is not None:
                self._trainer.join(timeout=GRACE_S)
            raise

    def _run(self, start: int) -> None:
        backlog, delay = self._rooms.backlog, self._config.deterministic_steps
        self._rooms.ledger.phase("wait_batch", TRAINER)
        version = start
        if self._update_at is not None and backlog.is_batch_ready:
            self._update = _Update(self._update_at, version, self._begin_to_learn(version))
        while version < self._config.trainer.steps:
            if self._may_stop():
                return
            if self._update is not None and self._tick + 1 >= self._update.at:
                if not self._apply(self._update):
                    return
                version += 1
                continue
            self._tick += 1
            if not self._consume_verdicts():
                self._tick -= 1
                return
            if self._update is None and backlog.is_batch_ready:
                self._update = _Update(self._tick + delay, version, self._begin_to_learn(version))
            self._generation.admit()
            if self._rooms.generator.has_work:
                handed = self._generation.decode()
                self._due += [(self._tick + delay, one) for one in handed]
            else:
                self._skip()

    def stop(self) -> None:
        """Stop at the next moment that a resume can go on from: until then all goes on as ever."""
        self._stopped = True

    def picture(self, *, report: bool) -> Picture:
        """As `Generation.picture`, with the clock."""
        found = self._generation.picture(frontier=True, report=report)
        assert found.frontier is not None
        # Prompts set aside are in no frontier, nor are the verdicts still to come of them.
        known = {(c.group, c.index) for _, c in self._rooms.backlog.unjudged()}
        awaited = [(tick, c.group, c.index) for tick, (_, c, _) in self._due]
        due = tuple(one for one in awaited if one[1:] in known)
        at = self._update.at if self._update is not None else None
        frontier = replace(found.frontier, tick=self._tick, update_at=at, due=due)
        return replace(found, frontier=frontier)

    def _begin_to_learn(self, version: int) -> Future[Snapshot | None]:
        """The next update, on a thread of its own: a daemon, so that one that hangs is left."""
        groups = self._rooms.backlog.take_batch()
        assert groups is not None, "this loop has a stop of its own"
        snapshot: Future[Snapshot | None] = Future()

        def work() -> None:
            try:
                snapshot.set_result(learn(self._rooms, groups, version))
            except BaseException as failure:
                snapshot.set_exception(failure)

        self._trainer = threading.Thread(target=work, name=TRAINER, daemon=True)
        self._trainer.start()
        return snapshot

    def _apply(self, update: _Update) -> bool:
        """The weights whose time has come, and the step's row; False if the update was given up."""
        config, rooms = self._config, self._rooms
        with rooms.ledger.doing(GENERATOR, "wait_admission", f"update {update.version + 1}"):
            began = monotonic()
            while not wait([update.snapshot], timeout=config.stall_s / 4).done:
                if min(monotonic() - began, rooms.ledger.still_s) > config.stall_s:
                    raise Stalled(
                        f"generator waited {config.stall_s:g} s for update {update.version + 1}"
                    )
            snapshot = update.snapshot.result()
        if snapshot is None:
            return False
        self._tick += 1
        self._update = None
        self._generation.swap(snapshot)
        self._generation.measure_to_the_end(snapshot)
        step = update.version + 1
        wanted = rooms.wants_frontier(step)
        report(rooms, step, self.picture(report=True) if wanted else plain_picture(rooms))
        return True

    def _may_stop(self) -> bool:
        """Whether a stop was asked for, and no update is under way."""
        is_between = self._update is None or self._update.is_given_up
        return (self._stopped or self._rooms.backlog.is_stopped) and is_between

    def _consume_verdicts(self) -> bool:
        """Those that are due; False if a stop comes first."""
        while self._due and self._due[0][0] <= self._tick:
            _, (prompt, completion, waiting) = self._due[0]
            verdict = verdict_of(self._rooms, waiting, prompt, self._config.stall_s, self._may_stop)
            if verdict is None:
                return False
            self._due.popleft()
            self._rooms.backlog.judged(completion, verdict)
        return True

    def _skip(self) -> None:
        """Nothing to decode: to the tick before the next event."""
        events = [tick for tick, _ in self._due] + ([self._update.at] if self._update else [])
        if not events and self._rooms.backlog.is_stopped:
            return
        if not events:
            # The groups that could be admitted depend on nothing that is still to come.
            raise Stalled(f"nothing is left to wait for: {self._rooms.backlog.describe()}")
        self._tick = max(self._tick, min(events) - 1)
