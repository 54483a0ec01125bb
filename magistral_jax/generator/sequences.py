"""What the host knows of a request that waits and of a sequence that has a slot."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from magistral_jax.generator.engine import Prefix
from magistral_jax.types import Prompt, VersionSpan


@dataclass
class Request:
    """A prompt of which some completions have not found a slot yet."""

    prompt: Prompt
    limit: int
    next_index: int
    count: int
    prefix: Prefix | None = None
    """Prefilled under the current weights, or None."""


@dataclass
class Slot:
    """A completion being decoded."""

    prompt: Prompt
    index: int
    limit: int
    spans: list[VersionSpan]
    refills: list[int] = field(default_factory=list)


def continued(spans: Sequence[VersionSpan], start: int, version: int) -> list[VersionSpan]:
    """The spans of a sequence whose tokens from `start` on are sampled under `version`."""
    return [*(s for s in spans if s.start < start), VersionSpan(start=start, version=version)]
