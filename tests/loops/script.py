"""A run's rooms, scripted: no model, no jit, delays of milliseconds.

A scripted completion writes down the weights' version as its tokens, so that every batch tells
which weights sampled it.
"""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from magistral_jax.arrays import Batch, Minibatch
from magistral_jax.batch.backlog import Backlog
from magistral_jax.config import (
    BatchConfig,
    CheckpointConfig,
    GeneratorConfig,
    MetricsConfig,
    RunConfig,
    TrainerConfig,
)
from magistral_jax.ledger import GENERATOR, TRAINER, Ledger
from magistral_jax.loops.asynchronous import run_async
from magistral_jax.loops.clockwork import Clockwork
from magistral_jax.loops.moves import Generation
from magistral_jax.loops.rooms import Rooms
from magistral_jax.loops.sync import run_sync
from magistral_jax.metrics import GLOSSARY, untimed
from magistral_jax.tally import PARTS, Tally, rates
from magistral_jax.types import (
    Frontier,
    Group,
    OpenGroup,
    Snapshot,
    Verdict,
)
from magistral_jax.weights.mailbox import Mailbox

from .generator import Generator, Prompts

G = 2
GROUPS_PER_BATCH = 2
LOOPS = pytest.mark.parametrize("loop", [run_sync, run_async])
ALL_LOOPS = pytest.mark.parametrize("loop", [run_sync, run_async, Clockwork])


def make_config(
    *,
    max_lag=1,
    steps=5,
    in_flight=4,
    stall_s=5.0,
    group_size=G,
    groups_per_batch=GROUPS_PER_BATCH,
    kv="refill",
    deterministic_steps=4,
):
    return RunConfig(
        stall_s=stall_s,
        deterministic_steps=deterministic_steps,
        generator=GeneratorConfig(group_size=group_size, in_flight=in_flight),
        batch=BatchConfig(completions=group_size * groups_per_batch, max_lag=max_lag),
        trainer=TrainerConfig(steps=steps),
        metrics=MetricsConfig(probe_every=0),
        checkpoint=CheckpointConfig(kv=kv),
    )


class Broken(Exception):
    """A room's own failure."""


def verdict_of(reward):
    """A reward of None is a check that failed."""
    parts = {**dict.fromkeys(PARTS, 0.0), "correct": float(reward or 0)}
    reason = "error" if reward is None else "pass" if reward > 0 else "wrong"
    return Verdict(reward=float(reward or 0), parts=parts, reason=reason)


@dataclass
class Row:
    """One call of `on_step`; `shown` is what a run would write of it, the clock's part left out."""

    step: int
    values: dict
    groups: list
    frontier: Frontier | None
    shown: dict


@dataclass(repr=False)
class Script:
    """What each room does, and what it was seen to do. Delays are in seconds.

    A run begins at `frontier` and `start`, where another one ended.
    """

    config: RunConfig
    length: object = lambda group, index: 3
    reward: object = lambda group, index: index % 2
    problem_of: object = str
    prompt_delay: object = lambda: 0.0
    decode_delay: object = lambda: 0.0
    verify_delay: object = lambda: 0.0
    train_delay: object = lambda: 0.0
    push_delay: object = lambda: 0.0
    place: object = lambda prompt: None
    wants_frontier: object = lambda step: False
    on_step: object = lambda row: None
    make_backlog: object = Backlog
    frontier: Frontier = field(default_factory=Frontier)
    start: int = 0
    batches: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    at_stop: Frontier | None = None

    def rooms(self, loop):
        config, frontier = self.config, self.frontier
        self.prompts = Prompts(frontier.queue.next, self.problem_of, self.prompt_delay)
        self.generator = Generator(
            config.generator.in_flight,
            group_size=config.generator.group_size,
            version=self.start,
            length=self.length,
            decode=lambda: time.sleep(self.decode_delay()),
            place=self.place,
        )
        self.generator.restore(frontier.in_flight)
        self.backlog = self.make_backlog(
            groups_per_batch=config.groups_per_batch,
            group_size=config.generator.group_size,
            # As in build.py: the specification trains on what the newest weights sampled.
            max_lag=0 if loop is run_sync else config.batch.max_lag,
            stall_s=config.stall_s,
            queue=frontier.queue,
        )
        self.threads = ThreadPoolExecutor(4)
        self.tally, self.ledger = Tally(), Ledger({GENERATOR: 1.0, TRAINER: 1.0})
        for name, value in frontier.counters.items():
            self.tally.add(name, value)
        if frontier.accounts:
            self.ledger.restore(frontier.accounts)
            self.tally.lengths.restore(frontier.accounts["lengths"])
        self.ledger.phase("idle")
        return Rooms(
            prompts=self.prompts,
            generator=self.generator,
            judge=lambda prompt, completion: self.threads.submit(self.verify, completion),
            backlog=self.backlog,
            assemble=self.assemble,
            train=self.train,
            push=self.push,
            mailbox=Mailbox(),
            beside=(),
            tally=self.tally,
            ledger=self.ledger,
            wants_frontier=self.wants_frontier,
            on_step=self.note_step,
            on_failure=lambda kind, message: self.failures.append((kind, message)),
            waiting=lambda owner, what: self.waits.append((owner, what)),
        )

    def verify(self, completion):
        time.sleep(self.verify_delay())
        return verdict_of(self.reward(completion.group, completion.index))

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

    def note_step(self, step, values, groups, frontier):
        shown = {name: value for name, value in values.items() if name in GLOSSARY}
        shown |= rates(values, slots=self.generator.num_slots, step_s=1.0)
        shown |= self.tally.lengths.shares()
        shown |= {f"tokens/{fate}": count for fate, count in self.ledger.tokens().items()}
        row = Row(step, values, groups, frontier, untimed(shown))
        self.rows.append(row)
        self.on_step(row)

    def play(self, loop, **changes):
        """Run the loop to its end; what it raised, if anything, passes through."""
        rooms = replace(self.rooms(loop), **changes)
        try:
            if loop is Clockwork:
                self.clock = Clockwork(self.config, rooms, self.frontier)
                self.clock.run(start=self.start)
                picture = self.clock.picture
            else:
                loop(self.config, rooms, start=self.start)
                picture = partial(Generation(self.config, rooms).picture, frontier=True)
            if self.start + len(self.rows) < self.config.trainer.steps:
                self.at_stop = picture(report=False).frontier
        finally:
            self.threads.shutdown(wait=False, cancel_futures=True)
        return self

    def resumed(self, frontier, start):
        """The same script, to be played on from there."""
        return replace(
            self,
            frontier=frontier,
            start=start,
            batches=[],
            rows=[],
            waits=[],
            failures=[],
            at_stop=None,
        )

    @property
    def steps(self):
        return [row.step for row in self.rows]

    @property
    def judged(self):
        return [group for row in self.rows for group in row.groups]

    @property
    def trained(self):
        return positions(group for batch in self.batches for group in batch.groups)


def positions(groups):
    return [group.prompt.group for group in groups]


def versions_of(batch):
    """(group, index) -> the version that sampled each token."""
    return {
        (c.group, c.index): [int(token) for token in c.tokens]
        for group in batch.groups
        for c in group.completions
    }


def versions_in(batch):
    return {version for versions in versions_of(batch).values() for version in versions}


def lag_of(batch):
    return batch.version - min(versions_in(batch))


def uniform_where(is_uniform):
    """Rewards that are all equal in these groups."""
    return lambda group, index: 0 if is_uniform(group) else index % 2


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


def broken_after(calls, times=1_000_000):
    """A delay of nothing that raises `times` times, after so many calls."""
    made = [0]

    def check():
        made[0] += 1
        if calls < made[0] <= calls + times:
            raise Broken
        return 0.0

    return check


def is_whole(entry):
    return isinstance(entry, Group)


def open_in(frontier):
    return positions(e for e in frontier.queue.entries if isinstance(e, OpenGroup))


def indices_in(frontier):
    """(group, index) of the completions of open groups, wherever the frontier has them."""
    found = [
        (entry.prompt.group, index)
        for entry in frontier.queue.entries
        if isinstance(entry, OpenGroup)
        for index in entry.completions
    ]
    found += [(draft.prompt.group, draft.index) for draft in frontier.in_flight.drafts]
    for waiting in frontier.in_flight.waiting:
        found += [(waiting.prompt.group, i) for i in range(waiting.next_index, waiting.count)]
    return found
