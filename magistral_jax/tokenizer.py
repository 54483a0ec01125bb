"""Text <-> tokens, and conversations -> prompts. Text never becomes a control token.

A problem file may hold "<|im_end|>" as text. Were it encoded as the control token, the problem
could end its own turn and speak for the assistant. So `encode` never yields a control id, and
`chat` yields them only where the template itself wrote them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gguf
import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from magistral_jax.types import UserError

Message = Mapping[str, str]
"""{"role": "system", "user" or "assistant", "content": text}"""


@runtime_checkable
class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

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


_CONTROL = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_WORDS = ("<think>", "</think>", r"\boxed{")
_ID = {name: 256 + i for i, name in enumerate(_CONTROL + _WORDS)}
_WORD = re.compile("|".join(map(re.escape, _WORDS)))
_ROUND_TO = 8


class ByteTokenizer:
    """One token a byte, and one each for what every completion holds: short traces stay short."""

    vocab_size: int = -(-(256 + len(_ID)) // _ROUND_TO) * _ROUND_TO
    stop_ids: tuple[int, ...] = (_ID["<|end|>"],)

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

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Each turn opens with its role; only the assistant's end, as its completions do."""
        ids: list[int] = []
        for message in messages:
            ids += [_ID[f"<|{message['role']}|>"], *self.encode(message["content"])]
            if message["role"] == "assistant":
                ids.append(_ID["<|end|>"])
        return [*ids, _ID["<|assistant|>"]]


_CONTROL_KIND, _USER_DEFINED_KIND = 3, 4  # values of tokenizer.ggml.token_type

# How text is cut into words before merging. llama.cpp's "default" is not here on purpose: it is
# a pattern of its own, not GPT-2's, and the wrong one changes every prompt without a sound.
_WORD_SPLITS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
}


class GgufTokenizer:
    """The tokenizer that a GGUF file describes: byte-level BPE and the model's chat template.

    Bytes that the vocabulary lacks (SmolLM2: some control characters) are dropped, as the model's
    own tokenizer does.
    """

    def __init__(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Reads the file's metadata, unless whoever has done so already hands it in."""
        self._path = path
        known = _read_metadata(path) if metadata is None else metadata
        tokens, kinds = self._require(known, "tokens"), self._require(known, "token_type")
        if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
            raise self._fault("its vocabulary names a token twice, or not every token has a type")
        self.vocab_size: int = len(tokens)
        self._require(known, "eos_token_id")
        keys = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot")}
        special = {name: int(known[key]) for name, key in keys.items() if key in known}
        if not all(0 <= i < len(tokens) for i in special.values()):
            raise self._fault(f"its special tokens {special} are not all in its vocabulary")
        self.stop_ids: tuple[int, ...] = tuple(
            dict.fromkeys(special[name] for name in ("eos", "eot") if name in special)
        )
        self._special_texts = {f"{name}_token": tokens[i] for name, i in special.items()}
        self._bpe = self._build(known, tokens, _of_kind(tokens, kinds, _USER_DEFINED_KIND))
        self._control = {text: i for i, text in _of_kind(tokens, kinds, _CONTROL_KIND).items()}
        self._control_ids = frozenset(self._control.values())
        # Longest first: one control token may begin another. A single character is no control
        # token, for `_shield` could not break it apart.
        texts = sorted((t for t in self._control if len(t) > 1), key=len, reverse=True)
        either = "|".join(map(re.escape, texts)) or "(?!)"
        self._split = re.compile(f"({either})")
        self._first_character = re.compile(f"(?={either})(.)", re.DOTALL)
        self._source = known.get("tokenizer.chat_template", "")
        self._template = self._compile(self._source)

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._bpe.decode([i for i in ids if i not in self._control_ids])

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The file's template, rendered; control tokens come from the template alone.

        Contents are shielded with a character that occurs nowhere else, the result is split at
        the control tokens, and the shield is removed from the pieces before they are encoded. So
        a conversation without control texts becomes exactly what the model's own tokenizer makes
        of it, merges across the edges of a content included.
        """
        known = "".join([self._source, *(m["content"] for m in messages)])
        shield = next(c for c in map(chr, range(0xE000, 0x110000)) if c not in known)
        rendered = self._render(
            [{**m, "content": self._shield(m["content"], shield)} for m in messages]
        )
        ids: list[int] = []
        for place, piece in enumerate(self._split.split(rendered)):
            is_control = place % 2 == 1
            ids += [self._control[piece]] if is_control else self.encode(piece.replace(shield, ""))
        return ids

    def _shield(self, content: str, shield: str) -> str:
        """The content with every control text in it broken apart, and none possible at its edges.

        White space stays outside, so that a template's trim works.
        """
        core = content.strip()
        before, _, after = content.partition(core) if core else (content, "", "")
        broken = self._first_character.sub(rf"\1{shield}", core)
        return f"{before}{shield}{broken}{shield}{after}"

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._special_texts
            )
        except Exception as error:  # a template is a foreign program
            raise self._fault(f"its chat template refuses this conversation: {error}") from error

    def _compile(self, source: str) -> jinja2.Template:
        if not source:
            raise self._fault("it has no chat template; use an instruct model")
        # The template came with the file: it may format, and nothing else.
        sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        sandbox.globals["raise_exception"] = _raise_exception
        try:
            return sandbox.from_string(source)
        except jinja2.TemplateError as error:
            raise self._fault(f"its chat template cannot be read: {error}") from error

    def _build(
        self, known: Mapping[str, Any], tokens: Sequence[str], user_defined: Mapping[int, str]
    ) -> tokenizers.Tokenizer:
        model, split = self._require(known, "model"), known.get("tokenizer.ggml.pre", "default")
        if model != "gpt2":
            raise self._fault(f"tokenizer.ggml.model is {model!r}; only 'gpt2' can be read")
        if split not in _WORD_SPLITS:
            supported = ", ".join(map(repr, sorted(_WORD_SPLITS)))
            raise self._fault(f"tokenizer.ggml.pre is {split!r}; only {supported} can be read")
        merges = [tuple(merge.split(" ")) for merge in self._require(known, "merges")]
        try:
            vocab = {token: i for i, token in enumerate(tokens)}
            bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
        except Exception as error:  # the package raises bare exceptions, and TypeError
            raise self._fault(f"its merges do not fit its vocabulary: {error}") from error
        bpe.pre_tokenizer = pre_tokenizers.Sequence(_WORD_SPLITS[split])
        bpe.decoder = decoders.ByteLevel()
        bpe.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in user_defined.values()])
        return bpe

    def _require(self, known: Mapping[str, Any], name: str) -> Any:
        key = f"tokenizer.ggml.{name}"
        if key not in known:
            raise self._fault(f"it has no {key}")
        return known[key]

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self._path}: {what}. Choose another file in model.source.")


def _of_kind(tokens: Iterable[str], kinds: Iterable[int], kind: int) -> dict[int, str]:
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return {i: token for i, (token, its_kind) in pairs if its_kind == kind}


def _read_metadata(path: str | Path) -> dict[str, Any]:
    """The tokenizer's part of a GGUF file's metadata."""
    if not Path(path).is_file():
        raise UserError(f"model.source is {str(path)!r}; there is no such file.")
    try:
        fields = gguf.GGUFReader(path).fields
        return {k: f.contents() for k, f in fields.items() if k.startswith("tokenizer.")}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(
            f"model.source is {str(path)!r}; it is not a whole GGUF file: {error}"
        ) from error


def _raise_exception(message: str) -> None:
    """What chat templates call to refuse a conversation."""
    raise jinja2.TemplateError(message)
