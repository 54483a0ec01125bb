"""What a tokenizer is to the rest: text <-> tokens, and conversations -> prompts.

A problem file may hold "<|im_end|>" as text. Were it encoded as the control token, the problem
could end its own turn and speak for the assistant. So `encode` never yields a control id, and
`chat` yields them only where the template itself wrote them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from magistral_jax.types import UserError

Message = Mapping[str, Any]
"""{"role": "system", "user", "assistant" or "tool", "content": text}, and what else a template may
write: "reasoning_content", "tool_calls"."""
Tools = Sequence[Mapping[str, Any]]
"""Functions that a conversation may call, as JSON schemas."""


class Refused(UserError):
    """A conversation that the chat template does not take."""

    why = ""
    """What the template said."""

    @classmethod
    def by(cls, why: object, message: object) -> "Refused":
        refused = cls(str(message))
        refused.why = " ".join(str(why).split()).rstrip(".")
        return refused


class Turn(NamedTuple):
    """An answer of the assistant, as the template writes it."""

    prompt: list[int]
    """All that stands before the answer."""
    answer: list[int]
    """The answer and the end of its turn; what the template writes after that is not in it."""


@runtime_checkable
class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion; the last of `end_ids` is among them."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """What the template writes behind an answer, up to the token that ends the turn."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; never a control token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; control tokens are no text, broken UTF-8 becomes U+FFFD."""
        ...

    def chat(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """A conversation, up to the point where the assistant answers. Raises `Refused`."""
        ...

    def turn(self, messages: Sequence[Message], tools: Tools = ()) -> Turn:
        """A conversation whose last message is the assistant's. Raises `Refused`."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes files into `folder` from which others read the same tokenizer."""
        ...
