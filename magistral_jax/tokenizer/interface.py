"""What a tokenizer is to the rest: text <-> tokens, and conversations -> prompts.

A problem file may hold "<|im_end|>" as text. Were it encoded as the control token, the problem
could end its own turn and speak for the assistant. So `encode` never yields a control id, and
`chat` yields them only where the template itself wrote them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

Message = Mapping[str, str]
"""{"role": "system", "user" or "assistant", "content": text}"""


@runtime_checkable
class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; never a control token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; control tokens are no text, broken UTF-8 becomes U+FFFD."""
        ...

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation, up to the point where the assistant answers."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes files into `folder` from which others read the same tokenizer."""
        ...
