"""Magistral's loop: generate and learn at once, on two threads, with verifiers beside them.

    prompt -> generator -> verifier -> batch -> trainer -> weights -> generator

It moves the same values through the same rooms as `run_sync` and changes nothing but the timing:
with batch.max_lag = 0 it gives the same batches, losses and weights.
"""

import threading
from concurrent.futures import Future
from queue import SimpleQueue
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
)
from magistral_jax.loops.rooms import Rooms
from magistral_jax.types import Group, Stalled, Verdict

# How long the generator sleeps when it has nothing to decode and nothing to admit.
POLL_S = 0.002
# How long the trainer waits for a batch before it looks again at who it waits for: the account of
# its waits is as fine as this.
LOOK_S = 0.005


def run_async(config: RunConfig, rooms: Rooms, *, start: int = 0) -> None:
    """Until the last step, or a stop.

    loop      consumes              produces             waits for                unblocked by
    generate  prompts, newest       completions          room under the           weights trained
              weights                                    staleness bound          from older groups
    verify    a completion          a verdict, a group   a free process           a check ending
    train     the oldest full       new weights          every group of the       verdicts
              batch                                      batch, judged

    The generator never waits for a step or for another sequence: it takes new weights between
    two decode steps and goes on. Staleness is bounded by admission: a prompt is dispatched only
    while the completions dispatched and not yet trained or dropped are at most (S + 1) x n_batch,
    and groups are trained in dispatch order.
    """
    generator = GeneratorLoop(config, rooms)
    thread = threading.Thread(target=generator.run, name=GENERATOR, daemon=True)
    thread.start()
    try:
        train_loop(config, rooms, generator, start=start)
    except BaseException:
        # Its own failure is what is told; a generator that hangs as well is a daemon.
        generator.done.set()
        thread.join(timeout=GRACE_S)
        raise
    generator.done.set()
    thread.join(timeout=config.stall_s)
    if thread.is_alive():
        raise Stalled(f"trainer waited {config.stall_s:g} s for the generator to stop")


class GeneratorLoop:
    """Swap, admit, decode, hand on; until `done`."""

    def __init__(self, config: RunConfig, rooms: Rooms) -> None:
        self.done = threading.Event()
        self._config, self._rooms = config, rooms
        self._generation = Generation(config, rooms)
        self._asked: SimpleQueue[Future[Picture]] = SimpleQueue()

    def frontier(self) -> Picture:
        """For the trainer: all there is at this moment, taken down between two decode steps."""
        asked: Future[Picture] = Future()
        self._asked.put(asked)
        try:
            return asked.result(timeout=self._config.stall_s)
        except TimeoutError:
            raise Stalled(
                f"trainer waited {self._config.stall_s:g} s for the generator to take down "
                "what is in flight, for a checkpoint"
            ) from None

    def run(self) -> None:
        """On its thread. When the loop is over, the trainer may still ask for the frontier."""
        try:
            self._loop()
            while not self.done.wait(POLL_S):
                self._answer()
        except BaseException as failure:
            self._rooms.backlog.fail(failure)
            while not self.done.wait(POLL_S):
                while not self._asked.empty():
                    self._asked.get().set_exception(failure)

    def _answer(self) -> None:
        while not self._asked.empty():
            asked = self._asked.get()
            try:
                asked.set_result(self._generation.picture(frontier=True))
            except BaseException as failure:
                asked.set_exception(failure)
                raise

    def _loop(self) -> None:
        config, rooms, generation = self._config, self._rooms, self._generation
        generator, ledger = rooms.generator, rooms.ledger
        busy, is_waiting = monotonic(), False
        generation.begin_beside(generator.snapshot)
        for prompt, completion in rooms.backlog.unjudged():
            self._hand_on((prompt, completion, rooms.judge(prompt, completion)))
        while not self.done.is_set():
            began = monotonic()
            self._answer()
            generation.take_newest()
            is_closed = generation.admit()
            if is_waiting == generator.has_work:
                is_waiting = not is_waiting
                what = "weights trained from older groups" if is_waiting else None
                rooms.waiting(GENERATOR, what)
            if generator.has_work and not rooms.backlog.is_stopped:
                busy = monotonic()
                for handed in generation.decode():
                    self._hand_on(handed)
            else:
                with ledger.doing(GENERATOR, "wait_admission", "weights of older groups"):
                    if rooms.backlog.wait_admission(POLL_S) is None:
                        return  # stopped
                if min(monotonic() - busy, ledger.still_s) > config.stall_s + GRACE_S:
                    raise Stalled(
                        f"generator waited {config.stall_s:g} s for the trainer to use "
                        "the groups dispatched so far"
                    )
            generation.measure()
            if is_closed:
                rooms.tally.add("time/wait_admission", monotonic() - began)

    def _hand_on(self, handed: Handed) -> None:
        _, completion, verdict = handed
        began = monotonic()

        def on_verdict(verdict: Future[Verdict]) -> None:
            """On the verifier's thread; a failure there must reach those who wait."""
            waited = monotonic() - began
            self._rooms.tally.add("time/verify", waited)
            try:
                judged = verdict.result()
                self._rooms.tally.add("time/verify_queue", max(0.0, waited - judged.seconds))
                self._rooms.backlog.judged(completion, judged)
            except BaseException as failure:
                self._rooms.backlog.fail(failure)

        verdict.add_done_callback(on_verdict)


def train_loop(config: RunConfig, rooms: Rooms, generator: GeneratorLoop, *, start: int) -> None:
    """Take the oldest batch, learn from it, publish; until the last step or a stop."""
    for version in range(start, config.trainer.steps):
        groups = take_batch(config, rooms)
        if groups is None:  # stopped
            return
        snapshot = learn(rooms, groups, version)
        if snapshot is None:  # stopped
            return
        rooms.mailbox.put(snapshot)
        step = version + 1
        if rooms.wants_frontier(step):
            with rooms.ledger.doing(TRAINER, "checkpoint", "what is in flight"):
                picture = generator.frontier()
        else:
            picture = plain_picture(rooms)
        report(rooms, step, picture)


def take_batch(config: RunConfig, rooms: Rooms) -> tuple[Group, ...] | None:
    """The oldest batch; the time until then is told apart by who it is that keeps it waiting."""
    backlog, ledger = rooms.backlog, rooms.ledger
    rooms.waiting(TRAINER, "a batch")
    began, groups = monotonic(), None
    while groups is None and not backlog.is_stopped:
        # A batch may take as long as it likes, while somebody comes forward with it.
        waited_s = monotonic() - began
        if min(waited_s, ledger.still_s) > config.stall_s:
            raise Stalled(f"trainer waited {waited_s:.3g} s for a batch: {backlog.describe()}")
        bin = "wait_verifier" if backlog.misses_only_verdicts else "wait_batch"
        with ledger.doing(TRAINER, bin, "a batch"):
            groups = backlog.take_batch(min(LOOK_S, config.stall_s / 4))
    rooms.tally.add("time/wait_batch", monotonic() - began)
    rooms.waiting(TRAINER, None)
    return groups
