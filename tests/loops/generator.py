"""A generator without a model, and the prompts it is given."""

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from magistral_jax.types import (
    Completion,
    Draft,
    InFlight,
    Problem,
    Prompt,
    Snapshot,
    VersionSpan,
    Waiting,
)

LONGEST = 10_000


class Prompts:
    def __init__(self, first, problem_of, delay):
        self.next_position, self.problem_of, self.delay = first, problem_of, delay

    def next(self):
        time.sleep(self.delay())
        position = self.next_position
        self.next_position += 1
        problem = Problem(id=self.problem_of(position), domain="math", question="", answer="")
        return Prompt(group=position, problem=problem, tokens=np.zeros(3, np.int32))


@dataclass
class Sequence:
    prompt: Prompt
    index: int
    tokens: list = field(default_factory=list)
    refills: tuple = ()


class Generator:
    """Slots whose sequences grow by one token a step; a token is the version that sampled it.

    `place(prompt)` is called for every sequence that gets a slot, `decode()` at every step.
    """

    def __init__(self, slots, *, group_size, version, length, decode, place):
        self.num_slots, self.group_size, self.version = slots, group_size, version
        self.length, self.decode, self.place = length, decode, place
        self.num_steps = self.num_sampled = self.num_preempted = 0
        self.cache_used = 1.0
        self.swaps, self.restarts, self.placing = [], [], None
        self._empty()

    def _empty(self):
        self._slots, self._free = {}, deque(range(self.num_slots))
        self._drafts, self._waiting = deque(), deque()

    num_active = property(lambda self: len(self._slots))
    snapshot = property(lambda self: Snapshot(version=self.version, params=self.version))

    @property
    def num_vacant(self):
        unplaced = sum(self.group_size - begun for _, begun in self._waiting) + len(self._drafts)
        return len(self._free) - unplaced

    @property
    def has_work(self):
        return bool(self._slots or self._drafts or self._waiting)

    def submit(self, prompt):
        self._waiting.append((prompt, 0))

    def swap(self, snapshot):
        assert snapshot.version > self.version and snapshot.params == snapshot.version
        self.version = snapshot.version
        self.swaps.append((snapshot.version, self.num_active, self.num_steps))

    def step(self):
        self._fill()
        self.decode()
        self.num_steps += 1
        self.num_sampled += self.num_active
        finished = []
        for number, sequence in sorted(self._slots.items()):
            sequence.tokens.append(self.version)
            if len(sequence.tokens) == self.length(sequence.prompt.group, sequence.index):
                finished.append(completion_of(sequence))
                del self._slots[number]
                self._free.append(number)
        return finished

    def _fill(self):
        while self._free and self._drafts:
            self._place(self._drafts[0])
            self._drafts.popleft()
        while self._free and self._waiting:
            prompt, index = self._waiting[0]
            self._place(Sequence(prompt, index))
            self._waiting.popleft()
            if index + 1 < self.group_size:
                self._waiting.appendleft((prompt, index + 1))

    def _place(self, sequence):
        self.placing = sequence.prompt
        self.place(sequence.prompt)
        self.placing = None
        if sequence.tokens:
            sequence.refills += (len(sequence.tokens),)
        self._slots[self._free.popleft()] = sequence

    def in_flight(self, *, cache):
        held = [*sorted(self._slots.items()), *((-1, sequence) for sequence in self._drafts)]
        return InFlight(
            drafts=tuple(
                Draft(
                    prompt=s.prompt,
                    index=s.index,
                    limit=LONGEST,
                    slot=number,
                    tokens=np.array(s.tokens, np.int32),
                    logprobs=np.zeros(len(s.tokens), np.float32),
                    spans=spans_of(s.tokens or [self.version]),
                    refills=s.refills,
                )
                for number, s in held
            ),
            waiting=tuple(
                Waiting(prompt=prompt, limit=LONGEST, next_index=begun, count=self.group_size)
                for prompt, begun in self._waiting
            ),
            free=tuple(self._free),
            cache=(self.num_steps,) if cache else None,
        )

    def restore(self, found):
        if found.cache is not None:
            (self.num_steps,) = found.cache
            self._free = deque(found.free)
        for draft in found.drafts:
            tokens = [int(token) for token in draft.tokens]
            sequence = Sequence(draft.prompt, draft.index, tokens, draft.refills)
            if found.cache is not None and draft.slot >= 0:
                self._slots[draft.slot] = sequence
            else:
                self._drafts.append(sequence)
        self._waiting = deque((w.prompt, w.next_index) for w in found.waiting)

    def restart(self, snapshot):
        assert snapshot.version >= self.version
        self.restarts.append((snapshot.version, self.num_active))
        found = self.in_flight(cache=False)
        self._empty()
        self.placing, self.version = None, snapshot.version
        self.restore(found)

    def cancel(self, group):
        self._waiting = deque(w for w in self._waiting if w[0].group != group)
        self._drafts = deque(s for s in self._drafts if s.prompt.group != group)
        for number in [n for n, s in self._slots.items() if s.prompt.group == group]:
            del self._slots[number]
            self._free.append(number)
        self.placing = None


def spans_of(versions):
    starts = [0, *(t for t in range(1, len(versions)) if versions[t] != versions[t - 1])]
    return tuple(VersionSpan(start=t, version=versions[t]) for t in starts)


def completion_of(sequence):
    count = len(sequence.tokens)
    return Completion(
        group=sequence.prompt.group,
        index=sequence.index,
        prompt=sequence.prompt.tokens,
        tokens=np.array(sequence.tokens, np.int32),
        logprobs=np.zeros(count, np.float32),
        sampled=np.ones(count, bool),
        spans=spans_of(sequence.tokens),
        finish="length",
        refills=sequence.refills,
    )
