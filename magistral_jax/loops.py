"""How values move between rooms: in turn (`run_sync`), or all at once (`run_async`).

    prompt -> generator -> verifier -> batch -> trainer -> weights -> generator

`run_sync` is the specification. `run_async` moves the same values through the same rooms and
changes nothing but the timing: with batch.max_lag = 0 it gives the same batches, losses and
weights.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, runtime_checkable

from magistral_jax.arrays import Batch
from magistral_jax.config import RunConfig
from magistral_jax.tally import Tally, group_metrics
from magistral_jax.types import Completion, Cursor, Group, Prompt, Snapshot, Stalled, Verdict

# How long the generator sleeps when it has nothing to decode and nothing to admit.
POLL_S = 0.002
# How long a run that failed lets its generator finish a decode step, and how much longer than the
# trainer the generator waits: the trainer can tell which group it misses.
GRACE_S = 1.0


@runtime_checkable
class Prompts(Protocol):
    def next(self) -> Prompt: ...


@runtime_checkable
class Generator(Protocol):
    num_steps: int

    @property
    def version(self) -> int: ...
    @property
    def num_active(self) -> int: ...
    @property
    def num_vacant(self) -> int: ...
    @property
    def has_work(self) -> bool: ...
    def submit(self, prompt: Prompt) -> None: ...
    def swap(self, snapshot: Snapshot) -> None: ...
    def step(self) -> list[Completion]: ...
    def generate(self, prompts: Sequence[Prompt]) -> list[tuple[Completion, ...]]: ...


@runtime_checkable
class Backlog(Protocol):
    def can_dispatch(self) -> bool: ...
    def dispatch(self, prompt: Prompt) -> None: ...
    def prompt(self, group: int) -> Prompt: ...
    def finish(self, group: Group) -> bool: ...
    def take_batch(self, timeout: float | None = None) -> tuple[Group, ...] | None: ...
    def trained(self) -> None: ...
    def release(self, num_groups: int) -> None: ...
    def wait_admission(self, timeout: float | None = None) -> bool | None: ...
    def cursor(self) -> Cursor: ...
    def fail(self, exception: BaseException) -> None: ...
    def stop(self) -> None: ...


@runtime_checkable
class Collector(Protocol):
    def add(self, prompt: Prompt, completion: Completion, verdict: Verdict) -> Group | None: ...


@runtime_checkable
class Mailbox(Protocol):
    def put(self, snapshot: Snapshot) -> None: ...
    def take(self) -> Snapshot | None: ...


@runtime_checkable
class Probe(Protocol):
    """Measures the sampler-trainer difference at one pinned version, beside the decoding."""

    def start(self, snapshot: Snapshot) -> None: ...
    def step(self) -> dict[str, float] | None: ...
    @property
    def is_running(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """Everything a loop needs. `build.py` makes it; tests make it from scripted fakes."""

    prompts: Prompts
    generator: Generator
    judge: Callable[[Prompt, Completion], Future[Verdict]]
    collector: Collector
    backlog: Backlog
    assemble: Callable[[Sequence[Group], int], Batch]
    """Groups in dispatch order and the version they will update -> Batch."""
    train: Callable[[Batch], dict[str, float]]
    """All optimizer steps of a batch; returns their metrics when they are done."""
    push: Callable[[int], Snapshot]
    """The trainer's weights as this version, complete on the generator's devices."""
    mailbox: Mailbox
    probe: Probe | None
    tally: Tally
    on_step: Callable[[int, dict[str, float], list[Group], Cursor], None]
    """After each weight update: its number from 1, its metrics, the groups judged since the one
    before, and where a run that resumes with these weights goes on."""
    waiting: Callable[[str, str | None], None]
    """Who waits for what, for the console; None: no longer."""


def run_sync(config: RunConfig, rooms: Rooms, *, start: int = 0) -> None:
    """Generate, judge, learn, publish, repeat, on one thread.

    A step's prompts are submitted together; a group whose rewards are all equal is dropped and
    replaced by exactly one new prompt.
    """
    for version in range(start, config.trainer.steps):
        missing = config.groups_per_batch
        while missing:
            prompts = [rooms.prompts.next() for _ in range(missing)]
            for prompt in prompts:
                rooms.backlog.dispatch(prompt)
                rooms.tally.add("dispatched", 1)
            for prompt, completions in zip(prompts, rooms.generator.generate(prompts), strict=True):
                waiting = [rooms.judge(prompt, c) for c in completions]
                verdicts = tuple(verdict_of(v, prompt, config.stall_s) for v in waiting)
                group = Group(prompt=prompt, completions=completions, verdicts=verdicts)
                rooms.tally.group(group)
                missing -= rooms.backlog.finish(group)
        groups = rooms.backlog.take_batch()
        if groups is None:  # stopped by a signal
            return
        snapshot = _learn(rooms, groups, version)
        rooms.generator.swap(snapshot)
        rooms.backlog.release(len(groups))
        if rooms.probe is not None and snapshot.version % config.metrics.probe_every == 0:
            _probe_to_the_end(rooms, snapshot)
        _report(rooms, version)


def verdict_of(waiting: Future[Verdict], prompt: Prompt, stall_s: float) -> Verdict:
    """The verdict, or what its check raised; `Stalled` if it does not come."""
    done, _ = wait([waiting], timeout=stall_s)
    if not done:
        raise Stalled(f"trainer waited {stall_s:g} s for a verdict on group {prompt.group}")
    return waiting.result()


def run_async(config: RunConfig, rooms: Rooms, *, start: int = 0) -> None:
    """Generate and learn at once, on two threads; verifiers are processes beside them.

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
    done = threading.Event()

    def generate() -> None:
        try:
            generate_loop(config, rooms, done)
        except BaseException as failure:
            rooms.backlog.fail(failure)

    thread = threading.Thread(target=generate, name="generator", daemon=True)
    thread.start()
    try:
        train_loop(config, rooms, start=start)
    except BaseException:
        # Its own failure is what is told; a generator that hangs as well is a daemon.
        done.set()
        thread.join(timeout=GRACE_S)
        raise
    done.set()
    thread.join(timeout=config.stall_s)
    if thread.is_alive():
        raise Stalled(f"trainer waited {config.stall_s:g} s for the generator to stop")


def generate_loop(config: RunConfig, rooms: Rooms, done: threading.Event) -> None:
    """Swap, admit, decode, hand on; until `done`."""
    generator, backlog, tally = rooms.generator, rooms.backlog, rooms.tally
    busy, is_waiting = monotonic(), False
    if rooms.probe is not None:
        rooms.probe.start(snapshot_of(generator))
    while not done.is_set():
        began = monotonic()
        if config.generator.update_at == "step" or not generator.has_work:
            apply_newest(config, rooms)
        while generator.num_vacant > 0 and backlog.can_dispatch():
            prompt = rooms.prompts.next()
            backlog.dispatch(prompt)
            tally.add("dispatched", 1)
            generator.submit(prompt)
        is_closed = generator.num_vacant > 0
        if is_waiting == generator.has_work:
            is_waiting = not is_waiting
            what = "weights trained from older groups" if is_waiting else None
            rooms.waiting("generator", what)
        if generator.has_work:
            busy = monotonic()
            decode(rooms)
        else:
            if backlog.wait_admission(POLL_S) is None:
                return  # stopped
            if monotonic() - busy > config.stall_s + GRACE_S:
                raise Stalled(
                    f"generator waited {config.stall_s:g} s for the trainer to use "
                    "the groups dispatched so far"
                )
        if rooms.probe is not None and rooms.probe.is_running:
            note_probe(rooms, rooms.probe.step())
        if is_closed:
            tally.add("time/wait_admission", monotonic() - began)


def snapshot_of(generator: Any) -> Snapshot:
    """The weights that a scheduler decodes with."""
    return generator.snapshot


def apply_newest(config: RunConfig, rooms: Rooms) -> None:
    """Swap to the newest weights, if there are new ones, between two decode steps."""
    snapshot = rooms.mailbox.take()
    if snapshot is None:
        return
    began, before = monotonic(), rooms.generator.version
    rooms.generator.swap(snapshot)
    rooms.tally.add("swap_s", monotonic() - began)
    # Only now may what was trained into these weights stop counting against the bound: a prompt
    # dispatched before the swap would start on the older version.
    rooms.backlog.release((snapshot.version - before) * config.groups_per_batch)
    every = config.metrics.probe_every
    if rooms.probe is not None and not rooms.probe.is_running and snapshot.version % every == 0:
        rooms.probe.start(snapshot)


def decode(rooms: Rooms) -> None:
    """One decode step; what finished goes to the verifier at once."""
    generator, tally = rooms.generator, rooms.tally
    began = monotonic()
    finished = generator.step()
    active = generator.num_active + len(finished)
    tally.add("decode_s", monotonic() - began)
    tally.add("decode_steps", 1)
    tally.add("tokens", active)
    for completion in finished:
        tally.add("completions", 1)
        prompt = rooms.backlog.prompt(completion.group)
        verdict = rooms.judge(prompt, completion)
        handed = monotonic()
        verdict.add_done_callback(
            lambda f, p=prompt, c=completion, t=handed: _on_verdict(rooms, p, c, t, f)
        )


def _on_verdict(
    rooms: Rooms, prompt: Prompt, completion: Completion, handed: float, verdict: Future[Verdict]
) -> None:
    """Runs on the verifier's thread; a failure there must reach those who wait."""
    waited = monotonic() - handed
    rooms.tally.add("time/verify", waited)
    try:
        judged = verdict.result()
        rooms.tally.add("time/verify_queue", max(0.0, waited - judged.seconds))
        rooms.tally.add(f"verifier/{judged.reason}", 1)
        group = rooms.collector.add(prompt, completion, judged)
        if group is not None:
            rooms.tally.group(group)
            rooms.backlog.finish(group)
    except BaseException as failure:
        rooms.backlog.fail(failure)


def train_loop(config: RunConfig, rooms: Rooms, *, start: int) -> None:
    """Take the oldest batch, learn from it, publish; until the last step or a stop."""
    for version in range(start, config.trainer.steps):
        rooms.waiting("trainer", "a batch")
        with rooms.tally.timed("time/wait_batch"):
            groups = rooms.backlog.take_batch()
        rooms.waiting("trainer", None)
        if groups is None:  # stopped by a signal
            return
        snapshot = _learn(rooms, groups, version)
        rooms.mailbox.put(snapshot)
        _report(rooms, version)


def _learn(rooms: Rooms, groups: Sequence[Group], version: int) -> Snapshot:
    """One weight update: from judged groups to weights on the generator's devices."""
    tally = rooms.tally
    with tally.timed("time/assemble"):
        batch = rooms.assemble(groups, version)
    with tally.timed("time/train"):
        values = rooms.train(batch)
    with tally.timed("push/seconds"):
        snapshot = rooms.push(version + 1)
    rooms.backlog.trained()
    for name, value in values.items():
        tally.note(name, value)
    tally.note("policy/lag_max", batch.lag_max)
    tally.note("batch/padding", sum(m.padding for m in batch.minibatches) / len(batch.minibatches))
    rows = (c for g in batch.groups for c in g.completions)
    tally.add("train_tokens", sum(len(c.prompt) + len(c.tokens) - 1 for c in rows))
    return snapshot


def _report(rooms: Rooms, version: int) -> None:
    """Turn what was counted since the last update into its row of metrics."""
    # The cursor first: what is not in it by now was judged and counted, so that a run resumed
    # from it finds every dropped group in the record.
    cursor = rooms.backlog.cursor()
    sums, latest, groups = rooms.tally.drain()
    rooms.on_step(version + 1, {**group_metrics(groups), **sums, **latest}, groups, cursor)


def _probe_to_the_end(rooms: Rooms, snapshot: Snapshot) -> None:
    assert rooms.probe is not None
    rooms.probe.start(snapshot)
    while rooms.probe.is_running:
        note_probe(rooms, rooms.probe.step())


def note_probe(rooms: Rooms, values: dict[str, float] | None) -> None:
    for name, value in (values or {}).items():
        rooms.tally.note(name, value)
