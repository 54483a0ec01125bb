"""Host side of the generator: which completion sits in which slot, and what is finished.

Continuous batching: a slot is refilled the step after it frees. Weights are swapped between two
steps; sequences in flight go on, on the stale cache ("keep", the paper) or on a cache prefilled
again ("recompute"). Every token is recorded with its log-prob and its weight version.

What is known of a sequence lives on the host; the device holds its cache and counters, which can be
made anew from that. So a run that resumes, an engine that failed, or a sequence that had to make
room for older ones, goes on where it was.

Axes: B slots, G completions in a group.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Int32, Key

from magistral_jax.generator.answers import Answers
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.memory import memory_of
from magistral_jax.generator.prefilling import Prefiller
from magistral_jax.generator.programs import DecodeState, Places, Prefix
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.sequences import Request, Slot, Slots, continued
from magistral_jax.model.pages import Table
from magistral_jax.types import (
    Completion,
    Draft,
    InFlight,
    Prompt,
    Snapshot,
    UserError,
    VersionSpan,
)


class Scheduler(Answers):
    """Slots and a queue of requests over one engine and one decode state."""

    def __init__(
        self,
        engine: Engine,
        snapshot: Snapshot,
        *,
        key: Key[Array, ""],
        sampler: Sampler,
        group_size: int,
        max_tokens: int,
        kv_on_update: Literal["keep", "recompute"] = "keep",
        steps_at_once: int = 1,
        remembers: bool = True,
        doing: Callable[[str], AbstractContextManager[object]] = lambda what: nullcontext(),
    ) -> None:
        """`doing("prefill")` and `doing("prefill_repeated")` are entered around such work."""
        self.engine, self.snapshot, self.sampler = engine, snapshot, sampler
        self.key = engine.replicated(key)
        self.group_size, self.max_tokens, self.kv_on_update = group_size, max_tokens, kv_on_update
        self.steps_at_once, self._doing = steps_at_once, doing
        self.prefiller = Prefiller(engine, remembers=remembers)
        self.memory = memory_of(engine)
        self.state = engine.init_decode_state()
        self.num_steps = self.num_sampled = self.num_preempted = 0
        self._slots = Slots(engine.max_concurrent_decodes, max_tokens)
        self._drafts: deque[Draft] = deque()
        self._waiting: deque[Request] = deque()
        self._placing: Prompt | None = None

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def num_active(self) -> int:
        return self.engine.max_concurrent_decodes - len(self._slots.free)

    @property
    def num_unplaced(self) -> int:
        """Completions submitted that have no slot yet."""
        waiting = sum(request.count - request.next_index for request in self._waiting)
        return waiting + len(self._drafts)

    @property
    def num_vacant(self) -> int:
        """Slots that would stay empty at the next step although there is memory for them."""
        return min(len(self._slots.free), self.memory.spare()) - self.num_unplaced

    @property
    def cache_used(self) -> float:
        """Share of the cache's memory that is taken."""
        return self.memory.used or self.num_active / self.engine.max_concurrent_decodes

    @property
    def placing(self) -> Prompt | None:
        """The prompt whose prefill or insertion has begun and is not done: it may be what fails."""
        return self._placing

    @property
    def has_work(self) -> bool:
        return self.num_active > 0 or bool(self._waiting or self._drafts)

    def warm_up(
        self, longest: int, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Compile what prefills of at most `longest` tokens need, and the decode step, before any
        is submitted; `tell(done, total)` is called before each."""
        assert not self.has_work, "this generator has work"
        nowhere = [self.engine.max_concurrent_decodes]
        insert = partial(self._insert, slots=nowhere, places=None, group=0, indices=[0], limit=1)
        self.prefiller.warm_up(self.snapshot.params, longest, insert, tell)
        self.state, results = self._decode()
        results.block_until_ready()

    def submit(self, prompt: Prompt, *, count: int | None = None, limit: int | None = None) -> None:
        """Queue `count` completions (G by default) of at most `limit` tokens of a prompt."""
        room = self.engine.max_prefill_length - len(prompt.tokens)
        limit = min(limit or self.max_tokens, self.max_tokens, room)
        assert limit > 0, f"prompt {prompt.problem.id} fills the cache"
        self._waiting.append(
            Request(prompt=prompt, limit=limit, next_index=0, count=count or self.group_size)
        )

    def swap(self, snapshot: Snapshot) -> None:
        """Continue with new weights from the next step on. Versions only go up."""
        assert snapshot.version > self.version, (snapshot.version, self.version)
        self.snapshot = snapshot
        self.prefiller.forget()
        self.memory.let_go()
        for request in self._waiting:
            request.prefix = request.begun = None  # a new sequence starts as on a fresh engine
        for number, slot in self._slots.taken():
            slot.spans = continued(slot.spans, int(self._slots.count[number]), snapshot.version)
        if self.kv_on_update == "recompute":
            self._refill()

    def in_flight(self, *, cache: bool) -> InFlight:
        """What this generator is at; with `cache` its device state too, in buffers of its own."""
        return InFlight(
            drafts=(
                *(self._slots.draft(number) for number, _ in self._slots.taken()),
                *self._drafts,
            ),
            waiting=tuple(request.waiting for request in self._waiting),
            free=tuple(self._slots.free),
            cache=self.engine.copied(self.state) if cache else None,
        )

    def restore(self, found: InFlight) -> None:
        """Go on with what another generator was at. Only for one that has not been used.

        With its cache everything is as it was there. Without, each sequence is prefilled again
        under the weights of the step that gives it a slot, which its completion tells.
        """
        assert not self.has_work, "this generator has work of its own"
        for begun in (*found.drafts, *found.waiting):
            if begun.limit > self.max_tokens:
                raise UserError(
                    f"a completion begun before may take {begun.limit} tokens, and "
                    f"generator.max_tokens is {self.max_tokens}. Resume with at least as many."
                )
        if found.cache is not None:
            assert not self.engine.pages, "whose pages are whose is not saved"
            self.state = found.cache
            self._slots.free = deque(found.free)
        for draft in found.drafts:
            if found.cache is not None and draft.slot >= 0:
                self._write_down(draft, draft.slot)
            else:
                self._drafts.append(replace(draft, slot=-1))
        self._waiting = deque(Request.of(waiting) for waiting in found.waiting)

    def restart(self, snapshot: Snapshot) -> None:
        """Go on with a fresh device state and these weights, after a failure of the old ones."""
        found = self.in_flight(cache=False)
        self.state = self.engine.init_decode_state()
        self.memory = memory_of(self.engine)
        self._slots = Slots(self.engine.max_concurrent_decodes, self.max_tokens)
        self._placing = None
        self.prefiller.forget()
        self._drafts.clear()
        self._waiting.clear()
        if snapshot.version > self.version:
            self.snapshot = snapshot
        self.restore(found)

    def step(self) -> list[Completion]:
        """Fill free slots, decode `steps_at_once` tokens everywhere, return what finished."""
        self.launch()
        return self.collect()

    def launch(self) -> None:
        """The part of a step that does not wait for what it decodes."""
        self._fill()
        self._placing = None
        self._make_room()
        self.state, self._results = self._decode()

    def collect(self) -> list[Completion]:
        """The part that does."""
        self.num_steps += self.steps_at_once
        return [done for result in np.asarray(self._results) for done in self._record(result)]

    def written(self, group: int, index: int) -> Int32[np.ndarray, " tokens"]:
        """The tokens sampled so far of a completion; none before it has a slot."""
        for number, slot in self._slots.taken():
            if (slot.prompt.group, slot.index) == (group, index):
                return self._slots.written(number)[0]
        return np.zeros(0, np.int32)

    def cancel(self, group: int) -> None:
        """Forget a prompt and what was sampled of its completions; its slots are free again."""
        self._waiting = deque(r for r in self._waiting if r.prompt.group != group)
        self._drafts = deque(d for d in self._drafts if d.prompt.group != group)
        self._placing = None
        for number, slot in self._slots.taken():
            if slot.prompt.group == group:
                self._vacate(number)
        self.memory.let_go(group)
        self._deactivate()

    def _fill(self) -> None:
        """Give free slots to sequences begun elsewhere, then to the oldest requests."""
        if self._slots.free and self._drafts:
            with self._doing("prefill_repeated"):
                while self._slots.free and self._drafts and self._resume(self._drafts[0]):
                    pass
                self.state.tokens.block_until_ready()
        if self._drafts or not (self._slots.free and self._waiting):
            return
        with self._doing("prefill"):
            while self._slots.free and self._waiting and self._prefilled(self._waiting[0]):
                if not self._place(self._waiting[0]):
                    break
            # Waited for here, or the time of the prefills would be taken for that of the step.
            self.state.tokens.block_until_ready()

    def _make_room(self) -> None:
        """Memory for the next tokens of every sequence; where it is short, that of the youngest,
        which goes on from its record when there is some again."""
        for number in self.memory.oldest_first():
            while (slot := self._slots[number]) is not None:
                next_tokens = int(self._slots.count[number]) - 1 + self.steps_at_once
                length = len(slot.prompt.tokens) + min(next_tokens, slot.limit)
                if self.memory.grow(number, length):
                    break
                self._preempt(self.memory.youngest())

    def _preempt(self, number: int) -> None:
        self._drafts.appendleft(replace(self._slots.draft(number), slot=-1))
        self._vacate(number)
        self._deactivate()
        self.num_preempted += 1

    def _vacate(self, number: int, *, sampled: int = 0) -> None:
        self._slots.vacate(number)
        self.memory.end(number, sampled=sampled)
        self.engine.free_resource(number)

    def _deactivate(self) -> None:
        """Slots that the host has emptied are empty on the device too."""
        # Nothing is read from the device: after a failure its arrays may be gone.
        self.state = self.state._replace(active=self.engine.replicated(self._slots.active))

    def _prefilled(self, request: Request) -> bool:
        self._placing, is_urgent = request.prompt, self.num_active == 0
        return self.prefiller.advance(self.snapshot.params, request, is_urgent=is_urgent)

    def _place(self, request: Request) -> bool:
        """Put as many completions of a request into slots as there is room for; whether any.
        Nothing is noted before the device has taken them, so that a failure leaves the request as
        it was."""
        prompt, prefix = request.prompt, request.prefix
        assert prefix is not None
        self._placing, length = prompt, len(prompt.tokens)
        # Programs are compiled for whole groups; larger requests go in as several.
        most = self.memory.most(prompt.group, length, request.limit)
        most = min(most, len(self._slots.free), self.group_size)
        indices = range(request.next_index, min(request.count, request.next_index + most))
        if not indices:
            return False
        slots = [self._slots.free[i] for i in range(len(indices))]
        places = self.memory.begin(slots, prompt.group, length, request.limit)
        self._insert(
            prefix, slots, places, group=prompt.group, indices=indices, limit=request.limit
        )
        for number, index in zip(slots, indices, strict=True):
            self._slots.free.popleft()
            span = VersionSpan(start=0, version=self.version)
            self._slots.take(number, Slot(prompt, index, request.limit, [span]))
        request.next_index += len(slots)
        if request.next_index == request.count:
            self._waiting.popleft()
            self.memory.let_go(prompt.group)
        return True

    def _record(self, data: np.ndarray) -> list[Completion]:
        self.num_sampled += int(data[:, 1].sum())
        return [self._finish(number, finish) for number, finish in self._slots.record(data)]

    def _finish(self, number: int, finish: int) -> Completion:
        completion = self._slots.completion(number, finish)
        self._vacate(number, sampled=len(completion.tokens))
        return completion

    def _resume(self, draft: Draft) -> bool:
        """Put a sequence begun elsewhere into a slot, if there is memory for it."""
        number, length = self._slots.free[0], len(draft.prompt.tokens) + len(draft.tokens)
        limit = draft.limit - len(draft.tokens)
        if not self.memory.most(None, length, limit):
            return False
        places = self.memory.begin([number], None, length, limit)
        self._prefill_again(number, draft, draft.tokens, places)
        self._slots.free.popleft()
        self._drafts.popleft()
        slot = self._write_down(draft, number)
        if len(draft.tokens):
            slot.refills.append(len(draft.tokens))
        return True

    def _write_down(self, draft: Draft, number: int) -> Slot:
        """A sequence takes a slot, on the host."""
        slot = Slot.of(draft, self.version)
        self._slots.take(number, slot, draft.tokens, draft.logprobs)
        return slot

    def _insert(
        self,
        prefix: Prefix,
        slots: Sequence[int],
        places: Places | None,
        *,
        group: int,
        indices: Sequence[int],
        limit: int,
        produced: int = 0,
    ) -> None:
        self.state = self.engine.bulk_insert(
            prefix,
            self.state,
            slots,
            groups=[group] * len(slots),
            indices=indices,
            limits=[limit] * len(slots),
            produced=produced,
            # One program for whole groups, parts of them and single sequences.
            pad_to=self.group_size,
            places=places,
        )

    def _decode(self) -> tuple[DecodeState, Array]:
        table = self.memory.table()
        if table is not None:
            self.state = self.state._replace(table=Table(*map(self.engine.replicated, table)))
        return self.engine.generate_many(
            self.snapshot.params, self.state, self.sampler, self.key, self.steps_at_once
        )

    def _refill(self) -> None:
        """Prefill every sequence in flight again, prompt and completion, under the new weights."""
        with self._doing("prefill_repeated"):
            for number, slot in self._slots.taken():
                tokens, _ = self._slots.written(number)
                self._prefill_again(number, slot, tokens, self.memory.again(number))
                if len(tokens):
                    slot.refills.append(len(tokens))
            self.state.tokens.block_until_ready()

    def _prefill_again(
        self, number: int, begun: Slot | Draft, tokens: np.ndarray, places: Places | None
    ) -> None:
        """The device state of a sequence, from what is known of it on the host."""
        self._placing = begun.prompt
        sequence: Any = np.concatenate([begun.prompt.tokens, tokens])
        self._insert(
            self.prefiller.whole(self.snapshot.params, sequence),
            [number],
            places,
            group=begun.prompt.group,
            indices=[begun.index],
            limit=begun.limit,
            produced=len(tokens),
        )
        self._placing = None
