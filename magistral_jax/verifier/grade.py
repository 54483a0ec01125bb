"""What the content of an answer is worth, before format, length and language are added."""

from dataclasses import dataclass

from magistral_jax.types import Reason


@dataclass(frozen=True)
class Grade:
    """A share of the reward for correctness, between 0 and 1, and why."""

    share: float
    reason: Reason
    detail: str = ""


def shown(text: str, limit: int = 40) -> str:
    """The text, safe and short enough for a log: a completion may hold terminal escapes."""
    short = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else " " for c in short)
