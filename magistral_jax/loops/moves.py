"""The moves that all loops make: admit, decode, learn, report.

A failure that can be mended is mended here: a generator whose device state broke is given a new one
and goes on, a push is tried again, a prompt that always fails is set aside.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from time import monotonic, sleep

from magistral_jax.config import RunConfig
from magistral_jax.ledger import DECODE, GENERATOR, TRAINER
from magistral_jax.loops.rooms import Rooms
from magistral_jax.tally import group_metrics
from magistral_jax.types import (
    Completion,
    Frontier,
    GivenUp,
    Group,
    Prompt,
    RunFailed,
    Snapshot,
    Stalled,
    UserError,
    Verdict,
)

GRACE_S = 1.0
"""How long a run that failed lets its other thread finish what it is at, and how much longer than
the trainer the generator waits: the trainer can tell which group it misses."""
PUSHES = 4
"""Times that a push is tried; between them 0.1, 0.4 and 1.6 seconds."""
RESTARTS = 3
"""Times in a row that the generator may fail without having decoded a step in between."""

LOOK_S = 0.1
"""How often who waits for a verdict looks whether the run is to stop."""

Handed = tuple[Prompt, Completion, Future[Verdict]]


@dataclass(frozen=True)
class Picture:
    """What one moment of a run looks like."""

    frontier: Frontier | None
    groups: list[Group]
    """Judged since the last report."""
    sums: dict[str, float]
    latest: dict[str, float]


class Generation:
    """The generator's side of a run, whichever loop plays it."""

    def __init__(self, config: RunConfig, rooms: Rooms) -> None:
        self._config, self._rooms = config, rooms
        self._failures = self._set_aside = 0
        self._failed_on: int | None = None

    def admit(self) -> bool:
        """Dispatch prompts while there are slots and the staleness bound allows; whether any
        slot stays empty."""
        rooms = self._rooms
        while rooms.generator.num_vacant > 0 and rooms.backlog.can_dispatch():
            prompt = rooms.prompts.next()
            if rooms.backlog.is_set_aside(prompt):
                continue
            rooms.backlog.dispatch(prompt)
            rooms.tally.add("dispatched", 1)
            rooms.generator.submit(prompt)
        return rooms.generator.num_vacant > 0

    def decode(self) -> list[Handed]:
        """One decode step; what finished goes to the verifier at once."""
        rooms, generator = self._rooms, self._rooms.generator
        try:
            with rooms.ledger.doing(GENERATOR, DECODE, "a decode step") as step:
                steps, sampled = generator.num_steps, generator.num_sampled
                preempted = generator.num_preempted
                finished = generator.step()
        except (Stalled, UserError):
            raise
        except Exception as failure:
            self._recover(failure)
            return []
        self._failures = self._set_aside = 0
        steps, sampled = generator.num_steps - steps, generator.num_sampled - sampled
        preempted = generator.num_preempted - preempted
        rooms.ledger.sampled(sampled)
        empty = max(0.0, 1 - sampled / (steps * self._config.generator.in_flight))
        rooms.ledger.move(GENERATOR, DECODE, "padding", step.own_s * empty)
        rooms.tally.add("decode_s", step.own_s)
        rooms.tally.add("decode_steps", steps)
        rooms.tally.add("tokens", sampled)
        rooms.tally.add("generator/preempted", preempted)
        rooms.tally.add("cache_steps", steps * generator.cache_used)
        return [self._hand_over(completion) for completion in finished]

    def swap(self, snapshot: Snapshot) -> None:
        """Go on with newer weights. Only now may what was trained into them stop counting against
        the bound: a prompt dispatched before would start on the older version."""
        rooms = self._rooms
        began, before = monotonic(), rooms.generator.version
        try:
            with rooms.ledger.doing(GENERATOR, "push", "a swap of weights"):
                rooms.generator.swap(snapshot)
        except Exception as failure:
            self._recover(failure, snapshot)
        rooms.tally.add("swap_s", monotonic() - began)
        rooms.backlog.release((snapshot.version - before) * self._config.groups_per_batch)

    def take_newest(self) -> None:
        """Swap to what the trainer has left in the mailbox, if it has."""
        snapshot = self._rooms.mailbox.take()
        if snapshot is None:
            return
        self.swap(snapshot)
        self.begin_beside(snapshot)

    def begin_beside(self, snapshot: Snapshot) -> None:
        """Begin the measurements that are due at this version; one still under way goes on."""
        for one in self._rooms.beside:
            if not one.is_running and snapshot.version % one.every == 0:
                one.start(snapshot)

    def measure(self) -> None:
        """One step of each measurement under way."""
        ledger = self._rooms.ledger
        for one in self._rooms.beside:
            if not one.is_running:
                continue
            before = one.tokens
            with ledger.doing(GENERATOR, "evaluation", one.name):
                note(self._rooms, one.step() or {})
            ledger.sampled(one.tokens - before)
            ledger.fate("evaluation", one.tokens - before)

    def measure_to_the_end(self, snapshot: Snapshot) -> None:
        """All that is due at this version, while nothing else goes on."""
        self.begin_beside(snapshot)
        while any(one.is_running for one in self._rooms.beside):
            self.measure()

    def picture(self, *, frontier: bool, report: bool = True) -> Picture:
        """What was counted and judged since the last report and, with `frontier`, all that a
        resume goes on from, at one moment between two decode steps."""
        rooms = self._rooms
        if not frontier:
            return plain_picture(rooms)
        self.take_newest()
        with rooms.ledger.doing(GENERATOR, "checkpoint", "taking down what is in flight"):
            queue, judged = rooms.backlog.queue(report=report)
            count_dropped(rooms, judged)
            in_flight = rooms.generator.in_flight(cache=self._config.checkpoint.kv == "save")
            sums, latest = rooms.tally.drain()
            accounts = {**rooms.ledger.saved(), "lengths": rooms.tally.lengths.saved()}
        found = Frontier(
            queue=queue,
            in_flight=in_flight,
            counters={} if report else sums,
            accounts=accounts,
        )
        return Picture(found, judged, sums, latest)

    def _hand_over(self, completion: Completion) -> Handed:
        rooms = self._rooms
        rooms.tally.add("completions", 1)
        prompt = rooms.backlog.sampled(completion)
        return prompt, completion, rooms.judge(prompt, completion)

    def _give_up(self, group: int) -> None:
        """A prompt that the generator cannot sample: what was sampled of it comes to nothing."""
        rooms, drafts = self._rooms, self._rooms.generator.in_flight(cache=False).drafts
        begun = [len(draft.tokens) for draft in drafts if draft.prompt.group == group]
        rooms.generator.cancel(group)
        finished = rooms.backlog.set_aside(group).completions.values()
        rooms.ledger.fate("errored", sum(begun) + sum(len(c.tokens) for c in finished))

    def _recover(self, failure: Exception, snapshot: Snapshot | None = None) -> None:
        """A new device state under the newest weights; every sequence in flight goes on from its
        tokens. A prompt that fails twice is given up."""
        rooms, generator = self._rooms, self._rooms.generator
        self._failures += 1
        # Several prompts in a row: it is not the prompts.
        if self._failures > RESTARTS or self._set_aside >= RESTARTS:
            raise RunFailed(
                f"the generator failed {self._failures + 2 * self._set_aside} times without a "
                f"decode step in between, the last time with {brief(failure)}"
            ) from failure
        at, placing = "", generator.placing
        if placing is not None:
            at = f" with prompt {placing.problem.id!r}"
            if self._failed_on == placing.group:
                self._give_up(placing.group)
                rooms.on_failure("prompts", f"prompt {placing.problem.id!r} is set aside")
                self._failures, self._set_aside = 0, self._set_aside + 1
            self._failed_on = placing.group
        count = generator.num_active
        # Newer weights, if there are any, come at the next swap, before the next step.
        generator.restart(snapshot or generator.snapshot)
        rooms.on_failure(
            "generator",
            f"the generator failed{at}: {brief(failure)}; it goes on with {count} unfinished "
            f"sequences under weights {generator.version}",
        )


def count_dropped(rooms: Rooms, groups: Sequence[Group]) -> None:
    """Where the tokens of judged groups that were dropped have gone; those kept are trained on."""
    for group in groups:
        if group.is_diverse:
            continue
        is_valid = [i in group.valid and len(group.valid) >= 2 for i in range(len(group.verdicts))]
        lengths = [len(c.tokens) for c in group.completions]
        uniform = sum(n for n, valid in zip(lengths, is_valid, strict=True) if valid)
        rooms.ledger.fate("uniform", uniform)
        rooms.ledger.fate("errored", sum(lengths) - uniform)


def verdict_of(
    rooms: Rooms,
    waiting: Future[Verdict],
    prompt: Prompt,
    stall_s: float,
    may_stop: Callable[[], bool],
) -> Verdict | None:
    """The verdict, or what its check raised; None if it does not come before a stop, `Stalled` if
    it does not come at all."""
    began = monotonic()
    with rooms.ledger.doing(GENERATOR, "wait_verifier", f"a verdict on group {prompt.group}"):
        while not wait([waiting], timeout=min(LOOK_S, stall_s / 4)).done:
            if may_stop():
                return None
            if monotonic() - began > stall_s:
                raise Stalled(f"trainer waited {stall_s:g} s for a verdict on group {prompt.group}")
    return waiting.result()


def learn(rooms: Rooms, groups: Sequence[Group], version: int) -> Snapshot | None:
    """One weight update: from judged groups to weights on the generator's devices. None if a stop
    came in the middle: the groups are in the backlog again."""
    tally, ledger = rooms.tally, rooms.ledger
    with tally.timed("time/assemble"):
        batch = replace(rooms.assemble(groups, version), made=rooms.backlog.made)
    padding = sum(m.padding for m in batch.minibatches) / len(batch.minibatches)
    try:
        with ledger.doing(TRAINER, "trained", f"update {version + 1}") as update:
            values = rooms.train(batch)
    except GivenUp as stop:
        rooms.backlog.give_back(groups, stop.made)
        return None
    except Exception as failure:
        raise RunFailed(
            f"the trainer failed in update {version + 1}: {brief(failure)}"
        ) from failure
    ledger.move(TRAINER, "trained", "padding", update.own_s * padding)
    tally.add("time/train", update.own_s)
    with tally.timed("push/seconds"), ledger.doing(TRAINER, "push", f"the push of {version + 1}"):
        snapshot = _pushed(rooms, version + 1)
    rooms.backlog.trained()
    note(rooms, values)
    tally.note("policy/lag_max", batch.lag_max)
    tally.note("batch/padding", padding)
    tally.note("batch/first_group", batch.groups[0].group)
    tally.note("batch/last_group", batch.groups[-1].group)
    rows = [(c, i in g.valid) for g in batch.groups for i, c in enumerate(g.completions)]
    tally.add("train_tokens", sum(len(c.prompt) + len(c.tokens) - 1 for c, _ in rows))
    ledger.fate("trained", sum(len(c.tokens) for c, is_valid in rows if is_valid))
    ledger.fate("errored", sum(len(c.tokens) for c, is_valid in rows if not is_valid))
    tally.lengths.trained(groups)
    return snapshot


def plain_picture(rooms: Rooms) -> Picture:
    """What was counted and judged since the last report."""
    judged = rooms.backlog.report()
    count_dropped(rooms, judged)
    return Picture(None, judged, *rooms.tally.drain())


def report(rooms: Rooms, step: int, picture: Picture) -> None:
    """Turn what was counted since the last update into its row of metrics."""
    values = {**group_metrics(picture.groups), **picture.sums, **picture.latest}
    used, steps = values.pop("cache_steps", 0.0), values.get("decode_steps", 0.0)
    if steps > 0:
        values["generator/cache_used"] = used / steps
    rooms.on_step(step, values, picture.groups, picture.frontier)


def note(rooms: Rooms, values: dict[str, float]) -> None:
    for name, value in values.items():
        rooms.tally.note(name, value)


def brief(failure: BaseException) -> str:
    """An exception in one line."""
    first = (str(failure) or type(failure).__name__).splitlines()[0]
    return f"{type(failure).__name__}: {first}"


def _pushed(rooms: Rooms, version: int) -> Snapshot:
    """The push, again where it fails: until it succeeds the generator decodes on as it was."""
    attempt = 0
    while True:
        attempt += 1
        try:
            return rooms.push(version)
        except Exception as failure:
            if attempt == PUSHES:
                raise RunFailed(
                    f"the push of weights {version} failed {PUSHES} times: {brief(failure)}"
                ) from failure
            rooms.on_failure(
                "push",
                f"the push of weights {version} failed ({brief(failure)}); version {version - 1} "
                f"stays, and it is tried again ({attempt} of {PUSHES - 1})",
            )
            sleep(0.1 * 4 ** (attempt - 1))
