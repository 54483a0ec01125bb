"""What the host knows of a request that waits and of a sequence that has a slot."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from magistral_jax.generator.programs import Begun, Prefix
from magistral_jax.types import Draft, Prompt, VersionSpan, Waiting


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
    """A completion being decoded."""

    prompt: Prompt
    index: int
    limit: int
    spans: list[VersionSpan]
    refills: list[int] = field(default_factory=list)

    def draft(self, number: int, tokens: np.ndarray, logprobs: np.ndarray) -> Draft:
        """What another generator needs to go on with it, in arrays of its own."""
        return Draft(
            prompt=self.prompt,
            index=self.index,
            limit=self.limit,
            slot=number,
            tokens=tokens.copy(),
            logprobs=logprobs.copy(),
            spans=tuple(self.spans),
            refills=tuple(self.refills),
        )


def continued(spans: Sequence[VersionSpan], start: int, version: int) -> list[VersionSpan]:
    """The spans of a sequence whose tokens from `start` on are sampled under `version`."""
    return [*(s for s in spans if s.start < start), VersionSpan(start=start, version=version)]
