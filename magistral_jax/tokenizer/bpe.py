"""A byte-pair tokenizer and a chat template: what GGUF and tokenizer.json have in common.

Text cannot become a control token, for the tokenizer that sees it does not know their names. In
it they bear others, which hold a character - the mark - that the text at hand does not hold.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from magistral_jax.tokenizer.interface import Message, Refused, Tools, Turn
from magistral_jax.tokenizer.template import ChatTemplate
from magistral_jax.tokenizer.turns import end_in, written_turn

Names = Mapping[str, str]
"""{a control token's text: the name that it bears}"""

# Private to whoever uses them, so hardly any text holds one.
_MARKS = range(0x10FFFD, 0xFFFFF, -1)


class BpeTokenizer:
    """Tokens of text never control anything; those of a conversation do where its template says.

    One exception: a vocabulary may have no bytes to fall back on, and stand its "unknown" token
    for a character that it lacks.
    """

    def __init__(
        self,
        build: Callable[[Names], tokenizers.Tokenizer],
        *,
        control: Mapping[str, int],
        words: Iterable[str],
        vocab_size: int,
        stop_ids: tuple[int, ...],
        template: ChatTemplate,
    ) -> None:
        """`build` makes the tokenizer in which control tokens bear other names.

        `words` are the added tokens that are text: where one holds a control text, the longer
        one is meant, as in the model's own tokenizer. `stop_ids` are those that the model's files
        name; the one that ends a turn, as the template writes it, is found here.
        """
        self.vocab_size = vocab_size
        self._build, self._template = build, template
        self._control = {text: i for text, i in control.items() if is_control(text)}
        self._words = frozenset(words) - self._control.keys()
        self._split = re.compile(f"({_any_of([*self._control, *self._words])})")
        self._first_character = re.compile(f"(?={_any_of(self._control)})(.)", re.DOTALL)
        self._longest = max(map(len, self._control), default=0)
        self._beginnings = {text[:n] for text in self._control for n in range(1, len(text))}
        self._ends = {text[n:] for text in self._control for n in range(1, len(text))}
        # The names a mark makes must be no text of the vocabulary either.
        self._known = "".join([template.source, *self._control, *self._words])
        self._mark = self._mark_outside("")
        self._sealed = build(self._names(self._mark))
        self._end = self._end_of_turn()
        written = self._encode_written(self._end, self._mark)
        self.end_ids: tuple[int, ...] = tuple(written) or stop_ids[:1]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*stop_ids, self.end_ids[-1])))

    def encode(self, text: str) -> list[int]:
        return self._under(self._mark_outside(text)).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens. Ids beyond the vocabulary, which a padded model has, are no text."""
        assert min(ids, default=0) >= 0, "a token id is negative"
        return self._sealed.decode(list(ids), skip_special_tokens=True)

    def chat(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """The template, rendered; control tokens come from the template alone.

        Wherever a content holds a control text, or could make one together with what stands next
        to it, a mark breaks it apart. Then the template's own control texts get their names, the
        marks are removed, and the whole is encoded at once. So a conversation without control
        texts becomes exactly what the model's own tokenizer makes of it.
        """
        mark = self._mark_outside(*_texts_in([messages, tools]))
        shielded = self._shielded(messages, tools, mark)
        return self._encode_written(self._template.render(*shielded), mark)

    def turn(self, messages: Sequence[Message], tools: Tools = ()) -> Turn:
        """See `turns.written_turn`, whose text is encoded at once as `chat` does; where that would
        change the prompt's tokens, its two parts are encoded by themselves."""
        texts = list(_texts_in([messages, tools]))
        mark = self._mark_outside(*texts)
        shielded, tools = self._shielded(messages, tools, mark)

        def render(said: Sequence[Message], *, asks: bool) -> str:
            return self._template.render(said, tools, asks=asks)

        written = written_turn(
            render, shielded, end=self._end, place=self._mark_outside(mark, *texts),
            added=self._split, plain=lambda text: text.replace(mark, ""),
        )  # fmt: skip
        prompt = self._encode_written(written.prompt, mark)
        whole = self._encode_written(written.prompt + written.answer, mark)
        is_whole = whole[: len(prompt)] == prompt
        answer = whole[len(prompt) :] if is_whole else self._encode_written(written.answer, mark)
        return Turn(prompt, answer if self._end else [*answer, *self.end_ids])

    def _end_of_turn(self) -> str:
        """What the template writes behind an answer, up to the token that ends the turn; "" if
        there is no such token, or the template does not take the simplest of conversations."""
        spoken = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": self._mark},
        ]
        try:
            text = self._template.render(spoken, asks=False)
        except Refused:
            return ""
        return end_in(text.rpartition(self._mark)[2], self._split)

    def _encode_written(self, text: str, mark: str) -> list[int]:
        """Tokens of a text that the template wrote around shielded contents."""
        names = self._names(mark)
        text = "".join(
            names.get(piece) or piece.replace(mark, "") for piece in self._split.split(text)
        )
        return self._under(mark).encode(text, add_special_tokens=False).ids

    def _shielded(
        self, messages: Sequence[Message], tools: Tools, mark: str
    ) -> tuple[Sequence[Message], Tools]:
        """The same with no control text in any of them but for roles."""

        def shield(value: Any) -> Any:
            if isinstance(value, str):
                return self._shield(value, mark)
            if isinstance(value, Mapping):
                # Templates look things up by their keys: only a whole control text is broken.
                return {self._broken(str(key), mark): shield(v) for key, v in value.items()}
            if isinstance(value, list | tuple):
                return [shield(one) for one in value]
            return value

        spoken = [{k: v if k == "role" else shield(v) for k, v in m.items()} for m in messages]
        return spoken, shield(tools)

    def _broken(self, text: str, mark: str) -> str:
        return self._first_character.sub(rf"\g<1>{mark}", text)

    def _shield(self, content: str, mark: str) -> str:
        """The content with every control text in it broken apart, and none possible at its edges.

        White space stays outside the marks at the edges, so that a template's trim works. A
        content that cannot be part of a control text stays as it is: templates look at contents.
        """
        broken = self._broken(content, mark)
        core = content.strip()
        if not core:
            return broken
        lengths = range(1, min(len(core), self._longest) + 1)
        inside = len(core) < self._longest and any(core in text for text in self._control)
        before = after = ""
        if inside or any(core[:n] in self._ends for n in lengths):
            before = mark
        if inside or any(core[-n:] in self._beginnings for n in lengths):
            after = mark
        left = len(broken) - len(broken.lstrip())
        right = len(broken.rstrip())
        return f"{broken[:left]}{before}{broken[left:right]}{after}{broken[right:]}"

    def _names(self, mark: str) -> dict[str, str]:
        return {text: f"{mark}{i}{mark}" for text, i in self._control.items()}

    def _mark_outside(self, *texts: str) -> str:
        taken = "".join([self._known, *texts])
        return next(c for c in map(chr, _MARKS) if c not in taken)

    def _under(self, mark: str) -> tokenizers.Tokenizer:
        """The tokenizer whose names hold this mark. Only a text with a mark in it needs another."""
        return self._sealed if mark == self._mark else self._build(self._names(mark))


def is_control(text: str) -> bool:
    """A single character cannot be broken apart, so as a token it is text like any other."""
    return len(text) > 1


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in lists and mappings of them, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern of these texts. Longest first: one may begin another."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"
