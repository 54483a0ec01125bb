"""Host side of the generator: which completion sits in which slot, and what is finished.

Continuous batching: a slot is refilled the step after it frees. Weights are swapped between two
steps; sequences in flight go on, on the stale cache ("keep", the paper) or on a cache prefilled
again ("recompute"). Every token is recorded with its log-prob and its weight version.

What is known of a sequence lives on the host; the device holds its cache and counters, which can be
made anew from that. So a run that resumes, or an engine that failed, goes on where it was.

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

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.prefilling import Prefiller
from magistral_jax.generator.programs import DecodeState, Prefix
from magistral_jax.generator.result import LENGTH, RUNNING, STOP
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.sequences import Request, Slot, continued
from magistral_jax.types import (
    Completion,
    Draft,
    InFlight,
    Prompt,
    Snapshot,
    UserError,
    VersionSpan,
)


class Scheduler:
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
        self.state = engine.init_decode_state()
        self.num_steps = self.num_sampled = 0
        num_slots = engine.max_concurrent_decodes
        self._slots: list[Slot | None] = [None] * num_slots
        self._free = deque(range(num_slots))
        self._drafts: deque[Draft] = deque()
        self._waiting: deque[Request] = deque()
        self._placing: Prompt | None = None
        self._tokens = np.zeros((num_slots, max_tokens), np.int32)
        self._logprobs = np.zeros((num_slots, max_tokens), np.float32)
        self._count = np.zeros(num_slots, np.int32)

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def num_active(self) -> int:
        return len(self._slots) - len(self._free)

    @property
    def num_unplaced(self) -> int:
        """Completions submitted that have no slot yet."""
        waiting = sum(request.count - request.next_index for request in self._waiting)
        return waiting + len(self._drafts)

    @property
    def num_vacant(self) -> int:
        """Slots that would stay empty at the next step."""
        return len(self._free) - self.num_unplaced

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
        insert = partial(self._insert, slots=nowhere, group=0, indices=[0], limit=1)
        self.prefiller.warm_up(self.snapshot.params, longest, insert, tell)
        self.state, results = self._decode()
        results.block_until_ready()

    def submit(self, prompt: Prompt, *, count: int | None = None, limit: int | None = None) -> None:
        """Queue `count` completions (G by default) of at most `limit` tokens of a prompt."""
        room = self.engine.max_prefill_length - len(prompt.tokens)
        limit = min(limit or self.max_tokens, self.max_tokens, room)
        assert limit > 0, (
            f"prompt {prompt.problem.id} fills the cache ({len(prompt.tokens)} tokens)"
        )
        self._waiting.append(
            Request(prompt=prompt, limit=limit, next_index=0, count=count or self.group_size)
        )

    def swap(self, snapshot: Snapshot) -> None:
        """Continue with new weights from the next step on. Versions only go up."""
        assert snapshot.version > self.version, (snapshot.version, self.version)
        self.snapshot = snapshot
        self.prefiller.forget()
        for request in self._waiting:
            request.prefix = request.begun = None  # a new sequence starts as on a fresh engine
        for number, slot in enumerate(self._slots):
            if slot is not None:
                slot.spans = continued(slot.spans, int(self._count[number]), snapshot.version)
        if self.kv_on_update == "recompute":
            self._refill()

    def in_flight(self, *, cache: bool) -> InFlight:
        """What this generator is at; with `cache` its device state too, in buffers of its own."""
        drafts = [
            slot.draft(
                number,
                self._tokens[number, : self._count[number]],
                self._logprobs[number, : self._count[number]],
            )
            for number, slot in enumerate(self._slots)
            if slot is not None
        ]
        return InFlight(
            drafts=(*drafts, *self._drafts),
            waiting=tuple(request.waiting for request in self._waiting),
            free=tuple(self._free),
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
            self.state = found.cache
            self._free = deque(found.free)
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
        self._slots = [None] * len(self._slots)
        self._free = deque(range(len(self._slots)))
        self._placing = None
        self.prefiller.forget()
        self._drafts.clear()
        self._waiting.clear()
        if snapshot.version > self.version:
            self.snapshot = snapshot
        self.restore(found)

    def step(self) -> list[Completion]:
        """Fill free slots, decode `steps_at_once` tokens everywhere, return what finished."""
        self._fill()
        self.state, results = self._decode()
        self.num_steps += self.steps_at_once
        return [done for result in np.asarray(results) for done in self._record(result)]

    def written(self, group: int, index: int) -> Int32[np.ndarray, " tokens"]:
        """The tokens sampled so far of a completion; none before it has a slot."""
        for number, slot in enumerate(self._slots):
            if slot is not None and (slot.prompt.group, slot.index) == (group, index):
                return self._tokens[number, : self._count[number]].copy()
        return np.zeros(0, np.int32)

    def cancel(self, group: int) -> None:
        """Forget a prompt and what was sampled of its completions; its slots are free again."""
        self._waiting = deque(r for r in self._waiting if r.prompt.group != group)
        self._drafts = deque(d for d in self._drafts if d.prompt.group != group)
        self._placing = None
        for number, slot in enumerate(self._slots):
            if slot is not None and slot.prompt.group == group:
                self._slots[number] = None
                self._free.append(number)
                self.engine.free_resource(number)
        # Nothing is read from the device: after a failure its arrays may be gone.
        active = np.array([slot is not None for slot in self._slots])
        self.state = self.state._replace(active=self.engine.replicated(active))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        count: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """All completions of the prompts, submitted together; per prompt, ordered by index."""
        for prompt in prompts:
            self.submit(prompt, count=count)
        done: dict[int, dict[int, Completion]] = {prompt.group: {} for prompt in prompts}
        finished = 0
        while self.has_work:
            for completion in self.step():
                done[completion.group][completion.index] = completion
                finished += 1
            if on_step is not None:
                on_step(finished)
        return [tuple(done[p.group][i] for i in sorted(done[p.group])) for p in prompts]

    def _fill(self) -> None:
        """Give free slots to sequences begun elsewhere, then to the oldest requests."""
        if self._free and self._drafts:
            with self._doing("prefill_repeated"):
                while self._free and self._drafts:
                    self._resume(self._drafts[0])
                self.state.tokens.block_until_ready()
        if not (self._free and self._waiting):
            return
        with self._doing("prefill"):
            while self._free and self._waiting and self._prefilled(self._waiting[0]):
                self._place(self._waiting[0])
            # Waited for here, or the time of the prefills would be taken for that of the step.
            self.state.tokens.block_until_ready()

    def _prefilled(self, request: Request) -> bool:
        self._placing, is_urgent = request.prompt, self.num_active == 0
        return self.prefiller.advance(self.snapshot.params, request, is_urgent=is_urgent)

    def _place(self, request: Request) -> None:
        """Put as many completions of a request into slots as there are. Nothing is noted before
        the device has taken them, so that a failure leaves the request as it was."""
        self._placing = request.prompt
        assert request.prefix is not None
        indices = range(
            request.next_index, min(request.count, request.next_index + len(self._free))
        )
        # Programs are compiled for whole groups; larger requests go in as several.
        indices = indices[: self.group_size]
        slots = [self._free[i] for i in range(len(indices))]
        self._insert(
            request.prefix,
            slots,
            group=request.prompt.group,
            indices=indices,
            limit=request.limit,
        )
        self._placing = None
        for number, index in zip(slots, indices, strict=True):
            self._free.popleft()
            span = VersionSpan(start=0, version=self.version)
            self._slots[number] = Slot(
                prompt=request.prompt, index=index, limit=request.limit, spans=[span]
            )
            self._count[number] = 0
        request.next_index += len(slots)
        if request.next_index == request.count:
            self._waiting.popleft()

    def _record(self, data: np.ndarray) -> list[Completion]:
        valid = np.flatnonzero(data[:, 1])
        self.num_sampled += len(valid)
        self._tokens[valid, self._count[valid]] = data[valid, 0]
        self._logprobs[valid, self._count[valid]] = (
            np.ascontiguousarray(data[valid, 3]).view(np.float32)
        )  # fmt: skip
        self._count[valid] += 1
        return [self._finish(int(n), int(data[n, 4])) for n in valid if data[n, 4] != RUNNING]

    def _finish(self, number: int, finish: int) -> Completion:
        slot, count = self._slots[number], int(self._count[number])
        assert slot is not None and finish in (STOP, LENGTH)
        self._slots[number] = None
        self._free.append(number)
        self.engine.free_resource(number)
        return Completion(
            group=slot.prompt.group,
            index=slot.index,
            prompt=slot.prompt.tokens,
            tokens=self._tokens[number, :count].copy(),
            logprobs=self._logprobs[number, :count].copy(),
            sampled=np.ones(count, bool),
            spans=tuple(slot.spans),
            finish="stop" if finish == STOP else "length",
            refills=tuple(slot.refills),
        )

    def _resume(self, draft: Draft) -> None:
        """Put a sequence begun elsewhere into a slot."""
        number = self._free[0]
        self._prefill_again(number, draft, draft.tokens)
        self._free.popleft()
        self._drafts.popleft()
        self._write_down(draft, number)
        if len(draft.tokens):
            slot = self._slots[number]
            assert slot is not None
            slot.refills.append(len(draft.tokens))

    def _write_down(self, draft: Draft, number: int) -> None:
        """A sequence takes a slot, on the host."""
        count = len(draft.tokens)
        is_older = draft.spans[-1].version < self.version
        spans = continued(draft.spans, count, self.version) if is_older else list(draft.spans)
        self._slots[number] = Slot(
            prompt=draft.prompt,
            index=draft.index,
            limit=draft.limit,
            spans=spans,
            refills=list(draft.refills),
        )
        self._tokens[number, :count] = draft.tokens
        self._logprobs[number, :count] = draft.logprobs
        self._count[number] = count

    def _insert(
        self,
        prefix: Prefix,
        slots: Sequence[int],
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
        )

    def _decode(self) -> tuple[DecodeState, Array]:
        return self.engine.generate_many(
            self.snapshot.params, self.state, self.sampler, self.key, self.steps_at_once
        )

    def _refill(self) -> None:
        """Prefill every sequence in flight again, prompt and completion, under the new weights."""
        with self._doing("prefill_repeated"):
            for number, slot in enumerate(self._slots):
                if slot is not None:
                    tokens = self._tokens[number, : self._count[number]]
                    self._prefill_again(number, slot, tokens)
                    if len(tokens):
                        slot.refills.append(len(tokens))
            self.state.tokens.block_until_ready()

    def _prefill_again(self, number: int, begun: Slot | Draft, tokens: np.ndarray) -> None:
        """The device state of a sequence, from what is known of it on the host."""
        self._placing = begun.prompt
        sequence: Any = np.concatenate([begun.prompt.tokens, tokens])
        self._insert(
            self.prefiller.whole(self.snapshot.params, sequence),
            [number],
            group=begun.prompt.group,
            indices=[begun.index],
            limit=begun.limit,
            produced=len(tokens),
        )
        self._placing = None
