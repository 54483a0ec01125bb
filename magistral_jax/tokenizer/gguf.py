"""The tokenizer that a GGUF file describes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from magistral_jax.tokenizer.bpe import BpeTokenizer, Names, is_control
from magistral_jax.tokenizer.saving import write_folder
from magistral_jax.tokenizer.template import ChatTemplate
from magistral_jax.tokenizer.thoughts import CLOSE, OPEN
from magistral_jax.types import UserError

_CONTROL_KIND, _USER_DEFINED_KIND = 3, 4  # values of tokenizer.ggml.token_type


@dataclass(frozen=True)
class _Cuts:
    """How text is cut into words before merging."""

    splits: Sequence[pre_tokenizers.PreTokenizer]
    whole: bool = False
    """Whether a word that is a token stays whole, though its merges would not make it."""
    composed: bool = False
    """Whether text is brought to Unicode's form NFC first. llama.cpp skips that; models do not."""


def _pattern(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

# Each as in the tokenizer.json of the models that llama.cpp knows by the name. Its "default" is
# not here on purpose: it is a pattern of its own, not GPT-2's, and the wrong one changes every
# prompt without a sound.
_CUTS: dict[str, _Cuts] = {
    "gpt-2": _Cuts([pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "smollm": _Cuts(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": _Cuts(
        _pattern(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"),
        whole=True,
    ),
    "qwen2": _Cuts(
        _pattern(rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"),
        composed=True,
    ),
    "tekken": _Cuts(
        _pattern(
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
            rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
        ),
        whole=True,
    ),
}


class GgufTokenizer(BpeTokenizer):
    """Byte-level BPE and the model's chat template, both out of one GGUF file.

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
        self._require(known, "eos_token_id")
        keys = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot")}
        special = {name: int(known[key]) for name, key in keys.items() if key in known}
        if not all(0 <= i < len(tokens) for i in special.values()):
            raise self._fault(f"its special tokens {special} are not all in its vocabulary")
        self._special_texts = {f"{name}_token": tokens[i] for name, i in special.items()}
        marked = _of_kind(tokens, kinds, _CONTROL_KIND)
        # Thoughts' tags are text, whatever the file says: the format check must see them.
        tags = [tag for tag in (OPEN, CLOSE) if tag in marked]
        control = {t: i for t, i in marked.items() if is_control(t) and t not in tags}
        words = [*_of_kind(tokens, kinds, _USER_DEFINED_KIND), *tags]
        self._open = partial(self._make, self._read_cuts(known), known, tokens, control, words)
        super().__init__(
            self._open,
            control=control,
            words=words,
            vocab_size=len(tokens),
            stop_ids=tuple(dict.fromkeys(special[n] for n in ("eos", "eot") if n in special)),
            template=ChatTemplate(
                known.get("tokenizer.chat_template", ""), self._special_texts, self._fault
            ),
        )

    def save(self, folder: str | Path) -> None:
        texts = {k: t for k, t in self._special_texts.items() if k in ("bos_token", "eos_token")}
        write_folder(
            folder,
            self._open({}),
            special_texts=texts,
            template=self._template.source,
            stop_ids=self.stop_ids,
        )

    def _read_cuts(self, known: Mapping[str, Any]) -> _Cuts:
        model, split = self._require(known, "model"), known.get("tokenizer.ggml.pre", "default")
        if model != "gpt2":
            raise self._fault(f"tokenizer.ggml.model is {model!r}; only 'gpt2' can be read")
        if split not in _CUTS:
            supported = ", ".join(map(repr, sorted(_CUTS)))
            raise self._fault(f"tokenizer.ggml.pre is {split!r}; only {supported} can be read")
        return _CUTS[split]

    def _make(
        self,
        cuts: _Cuts,
        known: Mapping[str, Any],
        tokens: Sequence[str],
        control: Iterable[str],
        user_defined: Iterable[str],
        names: Names,
    ) -> tokenizers.Tokenizer:
        """The file's tokenizer, its control tokens under these names, or else under their own."""
        merges = [tuple(merge.split(" ")) for merge in self._require(known, "merges")]
        vocab = {names.get(token, token): i for i, token in enumerate(tokens)}
        # What merges could make is text, and so no control token.
        merges = [merge for merge in merges if names.keys().isdisjoint((*merge, "".join(merge)))]
        try:
            bpe = tokenizers.Tokenizer(
                models.BPE(vocab=vocab, merges=merges, ignore_merges=cuts.whole)
            )
        except Exception as error:  # the package raises bare exceptions, and TypeError
            raise self._fault(f"its merges do not fit its vocabulary: {error}") from error
        if cuts.composed:
            bpe.normalizer = normalizers.NFC()
        bpe.pre_tokenizer = pre_tokenizers.Sequence(list(cuts.splits))
        bpe.decoder = decoders.ByteLevel()
        bpe.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in user_defined])
        bpe.add_special_tokens(
            [tokenizers.AddedToken(names.get(t, t), normalized=False) for t in control]
        )
        return bpe

    def _require(self, known: Mapping[str, Any], name: str) -> Any:
        key = f"tokenizer.ggml.{name}"
        if key not in known:
            raise self._fault(f"it has no {key}")
        return known[key]

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self._path}: {what}. Choose another file in model.source.")


def _of_kind(tokens: Iterable[str], kinds: Iterable[int], kind: int) -> dict[str, int]:
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return {token: i for i, (token, its_kind) in pairs if its_kind == kind}


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
