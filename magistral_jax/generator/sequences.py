"""What the host knows of a request that waits, of a sequence that has a slot, and what it wrote."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int32

from magistral_jax.generator.programs import Begun, Prefix
from magistral_jax.generator.result import LENGTH, RUNNING, STOP
from magistral_jax.types import Completion, Draft, Prompt, VersionSpan, Waiting


@dataclass
class Request:
    """A prompt of which some completions have not found a slot yet."""

    prompt: Prompt
    limit: int
    next_index: int
    count: int
    prefix: Prefix | None = None
    """Prefilled under the current weights, or None."""
    begun: Begun | None = None
    """A long prompt on its way to become the prefix."""

    @staticmethod
    def of(waiting: Waiting) -> "Request":
        return Request(
            prompt=waiting.prompt,
            limit=waiting.limit,
            next_index=waiting.next_index,
            count=waiting.count,
        )

    @property
    def waiting(self) -> Waiting:
        """What another generator needs to go on with it."""
        return Waiting(
            prompt=self.prompt, limit=self.limit, next_index=self.next_index, count=self.count
        )


@dataclass
class Slot:
    """A completion being decoded, without its tokens."""

    prompt: Prompt
    index: int
    limit: int
    spans: list[VersionSpan]
    refills: list[int] = field(default_factory=list)

    @staticmethod
    def of(draft: Draft, version: int) -> "Slot":
        """A sequence begun elsewhere, which goes on under `version`."""
        is_older = draft.spans[-1].version < version
        spans = continued(draft.spans, len(draft.tokens), version) if is_older else draft.spans
        return Slot(draft.prompt, draft.index, draft.limit, list(spans), list(draft.refills))


class Slots:
    """B places for sequences: who is in which, and what was sampled of it so far."""

    def __init__(self, count: int, max_tokens: int) -> None:
        self._entries: list[Slot | None] = [None] * count
        self.free = deque(range(count))
        """In the order in which they are filled."""
        self._tokens = np.zeros((count, max_tokens), np.int32)
        self._logprobs = np.zeros((count, max_tokens), np.float32)
        self.count = np.zeros(count, np.int32)
        """Tokens sampled."""

    def __getitem__(self, number: int) -> Slot | None:
        return self._entries[number]

    def taken(self) -> list[tuple[int, Slot]]:
        return [(number, slot) for number, slot in enumerate(self._entries) if slot is not None]

    @property
    def active(self) -> Bool[np.ndarray, " B"]:
        return np.array([slot is not None for slot in self._entries])

    def take(
        self,
        number: int,
        slot: Slot,
        tokens: Sequence[int] | np.ndarray = (),
        logprobs: Sequence[float] | np.ndarray = (),
    ) -> None:
        """A sequence takes a place, with what was sampled of it elsewhere."""
        self._entries[number] = slot
        self._tokens[number, : len(tokens)] = tokens
        self._logprobs[number, : len(tokens)] = logprobs
        self.count[number] = len(tokens)

    def vacate(self, number: int) -> None:
        self._entries[number] = None
        self.free.append(number)

    def written(self, number: int) -> tuple[Int32[np.ndarray, " t"], Float32[np.ndarray, " t"]]:
        """A sequence's tokens and log-probs, in arrays of their own."""
        count = self.count[number]
        return self._tokens[number, :count].copy(), self._logprobs[number, :count].copy()

    def record(self, result: Int32[np.ndarray, "B 5"]) -> list[tuple[int, int]]:
        """Write one step's tokens down; who has ended with it, and how."""
        valid = np.flatnonzero(result[:, 1])
        self._tokens[valid, self.count[valid]] = result[valid, 0]
        self._logprobs[valid, self.count[valid]] = (
            np.ascontiguousarray(result[valid, 3]).view(np.float32)
        )  # fmt: skip
        self.count[valid] += 1
        return [(int(n), int(result[n, 4])) for n in valid if result[n, 4] != RUNNING]

    def draft(self, number: int) -> Draft:
        """What another generator needs to go on with a sequence."""
        slot, (tokens, logprobs) = self._entries[number], self.written(number)
        assert slot is not None, number
        return Draft(
            prompt=slot.prompt,
            index=slot.index,
            limit=slot.limit,
            slot=number,
            tokens=tokens,
            logprobs=logprobs,
            spans=tuple(slot.spans),
            refills=tuple(slot.refills),
        )

    def completion(self, number: int, finish: int) -> Completion:
        """The record of a sequence that has ended."""
        slot, (tokens, logprobs) = self._entries[number], self.written(number)
        assert slot is not None and finish in (STOP, LENGTH), (number, finish)
        return Completion(
            group=slot.prompt.group,
            index=slot.index,
            prompt=slot.prompt.tokens,
            tokens=tokens,
            logprobs=logprobs,
            sampled=np.ones(len(tokens), bool),
            spans=tuple(slot.spans),
            finish="stop" if finish == STOP else "length",
            refills=tuple(slot.refills),
        )


def continued(spans: Sequence[VersionSpan], start: int, version: int) -> list[VersionSpan]:
    """The spans of a sequence whose tokens from `start` on are sampled under `version`."""
    return [*(s for s in spans if s.start < start), VersionSpan(start=start, version=version)]
