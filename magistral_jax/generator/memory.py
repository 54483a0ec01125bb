"""Whose memory is whose: the host's half of the cache.

In slots each sequence has room for the longest one, and there is nothing to decide. In pages a
sequence has what its tokens fill. The pages that a prompt fills are shared by its completions; the
page in which it ends is copied for each. How many sequences are begun follows from what is free and
from how long completions have been: as they grow, fewer are in flight (Magistral, section 5).
Where that was too hopeful, the scheduler takes pages back from the youngest sequence.

Axes: B slots, n pages of the longest sequence, m pages of a prefix, G slots filled at once.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.programs import Places

REMEMBERED = 256
"""Completions whose mean length tells how long the next one may get."""


class SlotMemory:
    """Room for the longest sequence in each slot."""

    @property
    def used(self) -> float:
        """Share of the pages that are taken, where there are any."""
        return 0.0

    def spare(self) -> int:
        """How many sequences more there is memory for, if they are like the last ones."""
        return 2**30

    def most(self, group: int | None, length: int, limit: int) -> int:
        """How many sequences of so many tokens, which may get `limit` more, can be begun. Those of
        a group share what their prompt fills; None is a sequence of its own."""
        return 2**30

    def begin(
        self, slots: Sequence[int], group: int | None, length: int, limit: int
    ) -> Places | None:
        """Memory for a prefix of `length` tokens in each of these slots, and where it is."""

    def again(self, slot: int) -> Places | None:
        """Where a sequence that has its slot is written anew."""

    def oldest_first(self) -> Sequence[int]:
        """Slots whose memory must grow with them, in the order in which they began."""
        return ()

    def youngest(self) -> int:
        raise AssertionError("slots have room for all they may hold")

    def grow(self, slot: int, length: int) -> bool:
        """Room for `length` tokens in all; False if there is none."""
        return True

    def end(self, slot: int, *, sampled: int = 0) -> None:
        """The slot's memory is free; `sampled` tokens were what its completion got."""

    def let_go(self, group: int | None = None) -> None:
        """Keep a prompt's (or every prompt's) pages no longer for completions still to come."""

    def table(self) -> tuple[np.ndarray, np.ndarray] | None:
        """[B n] pages of each slot and [B] tokens in shared ones, if they have changed."""


class PageMemory(SlotMemory):
    """Pages, counted by use: a page is free when nobody's table has it."""

    def __init__(self, engine: Engine) -> None:
        self.count, self.size = engine.pages, engine.page_tokens
        self._longest, self._pages_of = engine.max_prefill_length, engine.pages_of
        slots, width = engine.max_concurrent_decodes, self._pages_of(self._longest)
        assert self.count >= width, (self.count, width)
        self._free = deque(range(self.count))
        self._uses = np.zeros(self.count, np.int32)
        self._table = np.full((slots, width), self.count, np.int32)
        self._shared = np.zeros(slots, np.int32)
        self._is_new = True
        self._pages: dict[int, list[int]] = {}
        """Of each slot, in the order in which they began."""
        self._hoped: dict[int, int] = {}
        """Tokens that a slot's sequence is expected to have in the end."""
        self._prompts: dict[int, list[int]] = {}
        """Pages that prompts fill, kept for completions still to come."""
        self._sampled: deque[int] = deque(maxlen=REMEMBERED)
        self._prompt_tokens: deque[int] = deque(maxlen=REMEMBERED)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> float:
        return 1 - len(self._free) / self.count

    def spare(self) -> int:
        if not self._prompt_tokens:
            return 2**30
        length = round(float(np.mean(self._prompt_tokens)))
        each = self._pages_of(self._hoped_for(length, self._longest - length))
        return max(self._not_promised // each, 0 if self._pages else 1)

    def most(self, group: int | None, length: int, limit: int) -> int:
        if not self._pages:
            # A sequence that is alone gets all there is: it must be able to go on.
            self.let_go()
        full = length // self.size
        prompt = 0 if group in self._prompts else full
        each = max(1, self._pages_of(self._hoped_for(length, limit)) - full)
        return max((self._not_promised - prompt) // each, 0 if self._pages else 1)

    def begin(self, slots: Sequence[int], group: int | None, length: int, limit: int) -> Places:
        full, has_rest = divmod(length, self.size)
        prompt = np.full(self._pages_of(length), self.count, np.int32)
        if group is None:
            assert len(slots) == 1, slots
            self._pages[slots[0]] = self._take(len(prompt))
            prompt[:] = self._pages[slots[0]]
            self._enter(slots[0], length, limit)
            return Places(prompt, np.int32(0), np.zeros(0, np.int32))
        if group not in self._prompts:
            self._prompts[group] = self._take(full)
            prompt[:full] = self._prompts[group]
            self._prompt_tokens.append(length)
        own = np.full(len(slots), self.count, np.int32)
        for place, slot in enumerate(slots):
            self._pages[slot] = [*self._prompts[group]]
            self._uses[self._pages[slot]] += 1
            if has_rest:
                self._pages[slot] += self._take(1)
                own[place] = self._pages[slot][-1]
            self._shared[slot] = full * self.size
            self._enter(slot, length, limit)
        return Places(prompt, np.int32(min(full, len(prompt) - 1)), own)

    def again(self, slot: int) -> Places:
        # Shared pages are written by each who shares them: the same tokens, the same weights.
        pages = np.array(self._pages[slot], np.int32)
        return Places(pages, np.int32(0), np.zeros(0, np.int32))

    def oldest_first(self) -> Sequence[int]:
        return tuple(self._pages)

    def youngest(self) -> int:
        return next(reversed(self._pages))

    def grow(self, slot: int, length: int) -> bool:
        missing = self._pages_of(min(length, self._longest)) - len(self._pages[slot])
        if missing > len(self._free):
            self.let_go()
        if missing > len(self._free):
            return False
        if missing > 0:
            self._pages[slot] += self._take(missing)
            self._write(slot)
        if length > self._hoped[slot]:
            # It is longer than most: from here on, as long again as half of them.
            self._hoped[slot] = min(length + self._mean(length) // 2, self._longest)
        return True

    def end(self, slot: int, *, sampled: int = 0) -> None:
        self._give_back(self._pages.pop(slot))
        del self._hoped[slot]
        self._table[slot] = self.count
        self._shared[slot] = 0
        self._is_new = True
        if sampled:
            self._sampled.append(sampled)

    def let_go(self, group: int | None = None) -> None:
        for which in list(self._prompts) if group is None else [group]:
            self._give_back(self._prompts.pop(which, []))

    def table(self) -> tuple[np.ndarray, np.ndarray] | None:
        if not self._is_new:
            return None
        self._is_new = False
        return self._table.copy(), self._shared.copy()

    @property
    def _not_promised(self) -> int:
        """Free pages that no sequence in flight is expected to need."""
        promised = sum(
            max(0, self._pages_of(tokens) - len(self._pages[slot]))
            for slot, tokens in self._hoped.items()
        )
        return len(self._free) - promised

    def _mean(self, otherwise: int) -> int:
        return round(float(np.mean(self._sampled))) if self._sampled else otherwise

    def _hoped_for(self, length: int, limit: int) -> int:
        """Tokens of a sequence in the end, if its completion is like the last ones."""
        return min(length + min(limit, self._mean(limit // 2)), self._longest)

    def _enter(self, slot: int, length: int, limit: int) -> None:
        self._hoped[slot] = self._hoped_for(length, limit)
        self._write(slot)

    def _take(self, count: int) -> list[int]:
        """Free pages, each with one use."""
        assert count <= len(self._free), (count, len(self._free))
        taken = [self._free.popleft() for _ in range(count)]
        self._uses[taken] += 1
        return taken

    def _give_back(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._uses[page] -= 1
            if self._uses[page] == 0:
                self._free.append(page)

    def _write(self, slot: int) -> None:
        pages = self._pages[slot]
        self._table[slot, : len(pages)] = pages
        self._is_new = True


def memory_of(engine: Engine) -> SlotMemory:
    return PageMemory(engine) if engine.pages else SlotMemory()
