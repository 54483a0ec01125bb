"""One token a byte: the tokenizer of a model from scratch."""

import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from magistral_jax.tokenizer.interface import Message, Refused, Tools, Turn
from magistral_jax.tokenizer.saving import write_folder

_CONTROL = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_WORDS = ("<think>", "</think>", r"\boxed{")
_ID = {name: 256 + i for i, name in enumerate(_CONTROL + _WORDS)}
_WORD = re.compile("|".join(map(re.escape, _WORDS)))
_ROUND_TO = 8

# `ByteTokenizer.chat`, for other programs.
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class ByteTokenizer:
    """One token a byte, and one each for what every completion holds: short traces stay short."""

    vocab_size: int = -(-(256 + len(_ID)) // _ROUND_TO) * _ROUND_TO
    stop_ids: tuple[int, ...] = (_ID["<|end|>"],)
    end_ids = stop_ids

    def __init__(self) -> None:
        texts = [bytes([byte]) for byte in range(256)]
        texts += [name.encode() if name in _WORDS else b"" for name in _ID]
        self._texts = texts + [b""] * (self.vocab_size - len(texts))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for word in _WORD.finditer(text):
            ids += text[start : word.start()].encode()
            ids.append(_ID[word[0]])
            start = word.end()
        return ids + list(text[start:].encode())

    def decode(self, ids: Sequence[int]) -> str:
        assert min(ids, default=0) >= 0, "a token id is negative"
        return b"".join(self._texts[i] for i in ids).decode(errors="replace")

    def chat(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Each turn opens with its role; only the assistant's end, as its completions do."""
        ids: list[int] = []
        for message in messages:
            role = f"<|{message['role']}|>"
            if role not in _CONTROL:
                why = f"it knows no role {message['role']!r}"
                raise Refused.by(why, f"model.source random: {why}.")
            ids += [_ID[role], *self.encode(message.get("content") or "")]
            if message["role"] == "assistant":
                ids.append(_ID["<|end|>"])
        return [*ids, _ID["<|assistant|>"]]

    def turn(self, messages: Sequence[Message], tools: Tools = ()) -> Turn:
        *before, last = messages
        answer = self.encode(last.get("content") or "")
        return Turn(self.chat(before), [*answer, *self.end_ids])

    def save(self, folder: str | Path) -> None:
        """The same tokenizer as a BPE without merges; ids that stand for nothing are left out."""
        bpe = tokenizers.Tokenizer(models.BPE(vocab=_characters(), merges=[]))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.decoder = decoders.ByteLevel()
        # Ids count up in the order in which tokens are added.
        bpe.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in _CONTROL])
        bpe.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in _WORDS])
        write_folder(
            folder,
            bpe,
            special_texts={"bos_token": "<|bos|>", "eos_token": "<|end|>"},
            template=_TEMPLATE,
            stop_ids=self.stop_ids,
        )


def _characters() -> dict[str, int]:
    """The character that a byte-level vocabulary writes for each byte, and the byte.

    Latin-1's visible characters stand for themselves; the other bytes, in order, for U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
