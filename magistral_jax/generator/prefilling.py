"""How a prompt becomes a prefix: in one piece, in chunks, or behind a head that others began with.

Prompts of one run often begin alike: a system prompt, worked examples. The keys and values of what
several had in common are kept, and the next prompt that begins so is prefilled from there on. They
belong to one weight version: with the next they are forgotten, so that a new sequence is what it
would be on a fresh engine.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from magistral_jax.generator.engine import Engine
from magistral_jax.generator.programs import Begun, Prefix
from magistral_jax.generator.sequences import Request
from magistral_jax.model.params import Params

HEADS = 4
"""Most heads kept: the prompts of a run begin in one way, or in a few."""
SHORTEST_HEAD = 32
RECENT = 4
"""Prompts that a new one is compared with to find a head."""


@dataclass
class Head:
    """The beginning that prompts share, and its keys and values."""

    tokens: np.ndarray
    cache: Any


class Prefiller:
    """Prefills for one scheduler. What it remembers between two calls can be forgotten at any time
    and changes no more than the last bits of a result."""

    def __init__(self, engine: Engine, *, remembers: bool) -> None:
        """Without `remembers` every prompt is prefilled in one call and from its beginning: what
        comes out is then a function of the prompt and the weights alone, bit for bit."""
        self.engine, self._remembers = engine, remembers
        self._heads: deque[Head] = deque(maxlen=HEADS)
        self._recent: deque[np.ndarray] = deque(maxlen=RECENT)
        self.tokens = self.tokens_saved = 0

    def forget(self) -> None:
        """The weights have changed."""
        self._heads.clear()
        self._recent.clear()

    def advance(self, params: Params, request: Request, *, is_urgent: bool) -> bool:
        """Go on with a request's prefill; whether it is done. Of a long prompt one chunk is
        prefilled at a time, unless it `is_urgent`: there is nothing else to do."""
        if request.prefix is not None:
            return True
        tokens = request.prompt.tokens
        begun = request.begun or self._behind_a_head(tokens)
        if begun is None and len(tokens) > self.engine.prefill_chunk_size:
            begun = self.engine.begin(tokens)
        if begun is None:
            request.prefix = self._in_one_piece(params, tokens)
        else:
            request.begun = begun
            self._extend(params, begun, to_the_end=is_urgent or not self._remembers)
            if not begun.is_whole:
                return False
            request.prefix, request.begun = self.engine.finished(begun), None
        self._learn(tokens, request.prefix)
        return True

    def whole(self, params: Params, tokens: np.ndarray) -> Prefix:
        """The prefix of any tokens, now."""
        if len(tokens) <= self.engine.prefill_chunk_size:
            return self._in_one_piece(params, tokens)
        begun = self.engine.begin(tokens)
        self._extend(params, begun, to_the_end=True)
        return self.engine.finished(begun)

    def warm_up(
        self,
        params: Params,
        longest: int,
        insert: Callable[[Prefix], None],
        tell: Callable[[int, int], None],
    ) -> None:
        """Run every program that prompts of at most `longest` tokens can need."""
        engine = self.engine
        sizes = [size for size in engine.buckets if size <= engine.bucket(longest)]
        for number, size in enumerate(sizes):
            tell(number, len(sizes) + 1)
            prefix = self.whole(params, np.ones(size, np.int32))
            insert(prefix)
            if self._remembers and size <= engine.head_room:
                tokens = np.ones(engine.head_room, np.int32)
                begun = engine.behind(engine.as_head(prefix), tokens, len(tokens) - 1)
                engine.extend(params, begun)
                insert(engine.finished(begun))
        tell(len(sizes), len(sizes) + 1)

    def _in_one_piece(self, params: Params, tokens: np.ndarray) -> Prefix:
        self.tokens += len(tokens)
        prefix, _ = self.engine.prefill(
            params=params, padded_tokens=self.engine.pad(tokens), true_length=len(tokens)
        )
        return prefix

    def _extend(self, params: Params, begun: Begun, *, to_the_end: bool) -> None:
        before = begun.done
        self.engine.extend(params, begun)
        while to_the_end and not begun.is_whole:
            self.engine.extend(params, begun)
        self.tokens += begun.done - before

    def _behind_a_head(self, tokens: np.ndarray) -> Begun | None:
        """The prompt begun with the longest head that it has, if that spares half of the work."""
        engine = self.engine
        if len(tokens) > engine.head_room:
            return None
        fitting = [head for head in self._heads if common(head.tokens, tokens) == len(head.tokens)]
        head = max(fitting, key=lambda head: len(head.tokens), default=None)
        if head is None:
            return None
        # The last token is always prefilled: there must be something left to do.
        done = min(len(head.tokens), len(tokens) - 1)
        pieces = -(-(len(tokens) - done) // engine.tail_size)
        is_worth_it = 2 * pieces * engine.tail_size <= engine.bucket(len(tokens))
        if len(tokens) < engine.tail_size or not is_worth_it:
            return None
        self.tokens_saved += done
        return engine.behind(head.cache, tokens, done)

    def _learn(self, tokens: np.ndarray, prefix: Prefix) -> None:
        """Keep what this prompt has in common with one before it, if nothing as long is kept."""
        if not self._remembers or len(tokens) > self.engine.head_room:
            return
        shared = max((common(other, tokens) for other in self._recent), default=0)
        known = max((common(head.tokens, tokens) for head in self._heads), default=0)
        if shared >= SHORTEST_HEAD and shared > known:
            self._heads.append(Head(tokens[:shared].copy(), self.engine.as_head(prefix)))
        self._recent.append(tokens)


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    size = min(len(one), len(other))
    unlike = np.flatnonzero(one[:size] != other[:size])
    return int(unlike[0]) if len(unlike) else size
