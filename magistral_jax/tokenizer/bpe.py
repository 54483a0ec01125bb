"""A byte-pair tokenizer and a chat template: what GGUF and tokenizer.json have in common.

Text cannot become a control token, for the tokenizer that sees it does not know their names. In
it they bear others, which hold a character - the mark - that the text at hand does not hold.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import tokenizers

from magistral_jax.tokenizer.interface import Message
from magistral_jax.tokenizer.template import ChatTemplate

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
        one is meant, as in the model's own tokenizer.
        """
        self.vocab_size = vocab_size
        self.stop_ids = stop_ids
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

    def encode(self, text: str) -> list[int]:
        return self._under(self._mark_outside(text)).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens. Ids beyond the vocabulary, which a padded model has, are no text."""
        assert min(ids, default=0) >= 0, "a token id is negative"
        return self._sealed.decode(list(ids), skip_special_tokens=True)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The template, rendered; control tokens come from the template alone.

        Wherever a content holds a control text, or could make one together with what stands next
        to it, a mark breaks it apart. Then the template's own control texts get their names, the
        marks are removed, and the whole is encoded at once. So a conversation without control
        texts becomes exactly what the model's own tokenizer makes of it.
        """
        mark = self._mark_outside("".join(text for m in messages for text in m.values()))
        rendered = self._template.render(
            [{k: v if k == "role" else self._shield(v, mark) for k, v in m.items()}
             for m in messages]
        )  # fmt: skip
        names = self._names(mark)
        text = "".join(
            names.get(piece) or piece.replace(mark, "") for piece in self._split.split(rendered)
        )
        return self._under(mark).encode(text, add_special_tokens=False).ids

    def _shield(self, content: str, mark: str) -> str:
        """The content with every control text in it broken apart, and none possible at its edges.

        White space stays outside the marks at the edges, so that a template's trim works. A
        content that cannot be part of a control text stays as it is: templates look at contents.
        """
        broken = self._first_character.sub(rf"\g<1>{mark}", content)
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

    def _mark_outside(self, text: str) -> str:
        return next(c for c in map(chr, _MARKS) if c not in text and c not in self._known)

    def _under(self, mark: str) -> tokenizers.Tokenizer:
        """The tokenizer whose names hold this mark. Only a text with a mark in it needs another."""
        return self._sealed if mark == self._mark else self._build(self._names(mark))


def is_control(text: str) -> bool:
    """A single character cannot be broken apart, so as a token it is text like any other."""
    return len(text) > 1


def _any_of(texts: Iterable[str]) -> str:
    """A pattern of these texts. Longest first: one may begin another."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"
