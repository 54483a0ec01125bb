"""Mistral's own tokenizer, by Mistral's own package."""

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magistral_jax.tokenizer.interface import Message, Refused, Tools, Turn
from magistral_jax.types import UserError


class TekkenTokenizer:
    """tekken.json. Control tokens come from mistral-common's chat format alone."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"model.source: there is no file {str(path)!r}.")
        self._chats = _module("tokens.tokenizers.mistral", self._path)
        self._protocol = _module("protocol.instruct.messages", self._path)
        self._request = _module("protocol.instruct.request", self._path).ChatCompletionRequest
        try:
            self._mistral = self._chats.MistralTokenizer.from_file(str(self._path))
        except Exception as error:  # a damaged file fails its assertions, lookups and types
            raise self._fault(f"it is no tekken.json: {type(error).__name__} {error}") from error
        self._tekken = self._mistral.instruct_tokenizer.tokenizer
        self.vocab_size: int = self._tekken.n_words
        self.stop_ids: tuple[int, ...] = (self._tekken.eos_id,)
        self.end_ids = self.stop_ids

    def encode(self, text: str) -> list[int]:
        return self._tekken.encode(text, bos=False, eos=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids beyond the vocabulary are no text."""
        assert min(ids, default=0) >= 0, "a token id is negative"
        return self._tekken.decode([i for i in ids if i < self.vocab_size])

    def chat(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        kinds = {
            "system": self._protocol.SystemMessage,
            "user": self._protocol.UserMessage,
            "assistant": self._protocol.AssistantMessage,
            "tool": self._protocol.ToolMessage,
        }
        try:
            spoken = [
                kinds[m["role"]](**{k: v for k, v in m.items() if k != "role"}) for m in messages
            ]
            request = self._request(messages=spoken, tools=[dict(t) for t in tools] or None)
            return self._mistral.encode_chat_completion(request).tokens
        except Exception as error:  # the package has a class of errors for every rule of its own
            fault = self._fault(f"mistral-common refuses this conversation: {error}")
            raise Refused.by(error, fault) from error

    def turn(self, messages: Sequence[Message], tools: Tools = ()) -> Turn:
        """The answer's text and the end of its turn; nothing else that it holds is written."""
        *before, last = messages
        answer = self.encode(last.get("content") or "")
        return Turn(self.chat(before, tools), [*answer, *self.end_ids])

    def save(self, folder: str | Path) -> None:
        """The file it was read from, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._path, folder / "tekken.json")

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self._path}: {what}. Choose another model in model.source.")


def _module(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(f"mistral_common.{name}")
    except ImportError as error:
        raise UserError(
            f"{path}: a tekken.json is read by the package mistral-common, which cannot be "
            f"imported ({error}). Install it: pip install 'magistral-jax[mistral]'"
        ) from error
