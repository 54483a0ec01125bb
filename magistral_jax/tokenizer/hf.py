"""The tokenizer of a folder with tokenizer.json, as transformers would load it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from magistral_jax.tokenizer.bpe import BpeTokenizer, Names, is_control
from magistral_jax.tokenizer.interface import Message
from magistral_jax.tokenizer.template import ChatTemplate
from magistral_jax.tokenizer.thoughts import CLOSE, OPEN
from magistral_jax.types import UserError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""What others may read a tokenizer from; a folder rarely holds them all."""

_NAMED = tuple(f"{n}_token" for n in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTS = ("additional_special_tokens", "extra_special_tokens")

# Where tokens that do not keep to themselves would show: white space beside control tokens, words
# at a beginning, capitals, digits, a letter of two characters.
_USER: Message = {"role": "user", "content": "  What is 12 + 7?\nSay e\u0301 and É, please. "}
_SAMPLES = ([_USER], [_USER, {"role": "assistant", "content": "\n19 "}, _USER])


class HfTokenizer(BpeTokenizer):
    """tokenizer.json and a chat template. Its special tokens come from the template alone."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._spec = self._read_spec()
        config = self._read_config()
        whole = self._open(config)
        ids = whole.get_vocab(with_added_tokens=True)
        eos = config["eos_token"]
        if eos and eos not in ids:
            raise self._fault(f"its eos_token {eos!r} is in no vocabulary")
        self._added = whole.get_added_tokens_decoder()
        special = {t.content for t in self._added.values() if t.special} | set(_specials(config))
        # Thoughts' tags are text, whatever the files say: the format check must see them. But one
        # that is the pad or the eos token is that.
        special -= {OPEN, CLOSE} - {config[name] for name in _NAMED}
        self._special = {t: ids[t] for t in special if t in ids and is_control(t)}
        super().__init__(
            self._make,
            control=self._special,
            words=[t.content for t in self._added.values() if not t.normalized],
            vocab_size=max(ids.values()) + 1,
            stop_ids=self._read_stop_ids([ids[eos]] if eos else []),
            template=ChatTemplate(
                self._read_template(config),
                {name: config[name] for name in _NAMED if config[name]},
                self._fault,
            ),
        )
        self._check_samples(whole)

    def save(self, folder: str | Path) -> None:
        """The files it was read from, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, folder / name)

    # What the files say.

    def _read_spec(self) -> dict[str, Any]:
        """tokenizer.json, without what would cut or pad a text, or put tokens around it."""
        spec = self._read("tokenizer.json")
        if not spec:
            raise self._fault("it holds no tokenizer.json")
        model = spec.get("model")
        kind = model.get("type", "BPE") if isinstance(model, dict) else None
        if kind != "BPE":
            raise self._fault(f"the model in tokenizer.json is {kind!r}; only 'BPE' can be read")
        return {**spec, "truncation": None, "padding": None, "post_processor": None}

    def _read_config(self) -> dict[str, Any]:
        """tokenizer_config.json, every named token as its text, or None."""
        config = self._read("tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            config |= self._read("special_tokens_map.json")
        return config | {name: _text_of(config.get(name)) for name in _NAMED}

    def _read_template(self, config: Mapping[str, Any]) -> str:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return self._text(path)
        said = config.get("chat_template") or ""
        if isinstance(said, list):
            named = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
            said = named.get("default") or ""
        if not isinstance(said, str):
            raise self._fault(f"its chat_template is neither text nor a list: {said!r}")
        return said

    def _read_stop_ids(self, eos_ids: list[int]) -> tuple[int, ...]:
        found: list[Any] = []
        for name in ("generation_config.json", "config.json"):
            said = self._read(name)
            value = said.get("eos_token_id", (said.get("text_config") or {}).get("eos_token_id"))
            found += value if isinstance(value, list) else [] if value is None else [value]
        wrong = [i for i in found if type(i) is not int or i < 0]
        if wrong:
            raise self._fault(f"its eos_token_id holds {wrong[0]!r}, which is no token id")
        if not found + eos_ids:
            raise self._fault("no file in it names an eos_token, so no completion would ever end")
        return tuple(dict.fromkeys(found + eos_ids))

    def _read(self, name: str) -> dict[str, Any]:
        """What a JSON file says; nothing, if it is not there."""
        path = self._folder / name
        if not path.is_file():
            return {}
        try:
            value = json.loads(self._text(path))
        except (json.JSONDecodeError, RecursionError) as error:
            raise self._fault(f"{name} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise self._fault(f"{name} holds no JSON object")
        return value

    def _text(self, path: Path) -> str:
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self._fault(f"{path.name} cannot be read: {error}") from error

    # What they make.

    def _open(self, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
        """The tokenizer as transformers has it, to which control texts are control tokens."""
        whole = self._load(self._spec)
        claimed = {t["content"]: t["id"] for t in self._spec.get("added_tokens") or ()}
        for text, i in claimed.items():
            if whole.token_to_id(text) != i:
                raise self._fault(
                    f"tokenizer.json gives its added token {text!r} the id {i}, and its vocabulary "
                    f"{whole.token_to_id(text)}"
                )
        try:
            listed = config.get("added_tokens_decoder") or {}
            more = [AddedToken(**listed[i]) for i in sorted(listed, key=int)]
        except (TypeError, ValueError, AttributeError) as error:
            raise self._fault(f"its added_tokens_decoder cannot be read: {error}") from error
        whole.add_tokens([t for t in more if t.content not in claimed])
        known = {t.content for t in whole.get_added_tokens_decoder().values()}
        # One that is in no vocabulary would get an id that the model has no row for.
        named = [t for t in _specials(config) if whole.token_to_id(t) is not None]
        whole.add_special_tokens([AddedToken(t, normalized=False) for t in named if t not in known])
        return whole

    def _make(self, names: Names) -> tokenizers.Tokenizer:
        """The same tokenizer, its control tokens under these names."""
        model = self._spec["model"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        unknown = model.get("unk_token")
        added = [_described(i, t, names) for i, t in sorted(self._added.items())]
        added_texts = {t.content for t in self._added.values()}
        made = self._load(
            {
                **self._spec,
                "added_tokens": added,
                "model": {
                    **model,
                    "dropout": None,
                    "unk_token": names.get(unknown, unknown),
                    "vocab": {names.get(t, t): i for t, i in model["vocab"].items()},
                    # What merges could make is text, and so no control token.
                    "merges": [m for m in merges if names.keys().isdisjoint((*m, "".join(m)))],
                },
            }
        )
        wanted = {names.get(t, t): self._special[t] for t in self._special if t in added_texts}
        assert all(made.token_to_id(name) == i for name, i in wanted.items()), "an id has moved"
        return made

    def _load(self, spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
        try:
            return tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the package raises bare exceptions
            raise self._fault(f"tokenizer.json cannot be read: {error}") from error

    def _check_samples(self, whole: tokenizers.Tokenizer) -> None:
        """Refuses a tokenizer to which a control token under another name is not the same."""
        for messages in _SAMPLES:
            try:
                text = self._template.render(messages)
            except UserError:
                continue  # it wants other conversations; `chat` says so where it matters
            if self.chat(messages) != whole.encode(text, add_special_tokens=False).ids:
                raise self._fault(
                    "a conversation in it would become other tokens than in transformers, which "
                    f"makes {whole.encode(text, add_special_tokens=False).tokens} of {text!r}"
                )

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self._folder}: {what}. Choose another folder in model.source.")


def _specials(config: Mapping[str, Any]) -> Iterator[str]:
    """The texts of all tokens that the config calls special."""
    for name in _NAMED:
        if config[name]:
            yield config[name]
    for name in _LISTS:
        listed = config.get(name) or ()
        for token in listed.values() if isinstance(listed, dict) else listed:
            if text := _text_of(token):
                yield text


def _text_of(token: Any) -> str | None:
    """A token stands in these files as its text, or as {"content": its text, ...}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _described(i: int, token: AddedToken, names: Names) -> dict[str, Any]:
    """The token as an entry of tokenizer.json."""
    return {
        "id": i,
        "content": names.get(token.content, token.content),
        # Where the template wrote it, it stands as itself, whatever it touches.
        "single_word": token.single_word and token.content not in names,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": token.normalized,
        "special": token.content in names,
    }
