"""Where an answer begins and ends, found in what a chat template writes.

No list of names: the template is rendered with and without the answer, and with another in its
place. What it writes behind the token that ends the turn (ChatML's line break) belongs to what
follows.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from magistral_jax.tokenizer.interface import Message, Refused
from magistral_jax.tokenizer.thoughts import CLOSE, OPEN, OPENED, UNFIT, rest_of

_TAGS = re.compile(f"{OPEN}|{CLOSE}")


@runtime_checkable
class Render(Protocol):
    def __call__(self, said: Sequence[Message], *, asks: bool) -> str:
        """The messages as text; and, if it `asks`, the beginning of the assistant's turn."""
        ...


class WrittenTurn(NamedTuple):
    """An answer in the template's text."""

    prompt: str
    answer: str
    """With the end of its turn."""


def end_in(tail: str, added: re.Pattern[str]) -> str:
    """The beginning of what follows an answer, through the first added token in it; "" without."""
    found = next((one for one in added.finditer(tail) if one[0].strip()), None)
    return tail[: found.end()] if found else ""


def written_turn(
    render: Render,
    messages: Sequence[Message],
    *,
    end: str,
    place: str,
    added: re.Pattern[str],
    plain: Callable[[str], str],
) -> WrittenTurn:
    """The last message as the template writes it, behind what the template asks it with.

    Where the template writes less than the message says (R1's leaves all thoughts out), what the
    message says is taken as it stands. Where it asks with open thoughts, and has none to write, the
    answer stands behind what the template writes there instead.

    Args:
        end: What ends a turn, as `end_in` found it.
        place: A text that occurs nowhere, to stand for the answer.
        added: Finds added tokens.
        plain: A text as its author wrote it, without what protects it.
    """
    *before, last = messages
    asked, whole = render(before, asks=True), render(messages, asks=False)
    content = last.get("content") or ""
    found = OPENED.search(asked)
    rest = rest_of(content, found[0] if found else "")
    other = render([*before, {"role": last["role"], "content": place}], asks=False)
    for beginning in (asked, other.partition(place)[0]):
        if whole.startswith(beginning):
            answer = _ended(whole[len(beginning) :], end, added)
            if _holds(plain(answer.removesuffix(end)), plain(content)):
                if beginning == asked or rest is None:
                    return WrittenTurn(beginning, answer)
                if not found:
                    # Mistral's writes a system text only where it asks: so it is asked.
                    return WrittenTurn(asked, answer)
    if len(last) > 2:
        why = "it does not write the content beside what else the turn holds"
        raise Refused.by(why, why)
    if rest is None:
        raise Refused.by(UNFIT, UNFIT)
    return WrittenTurn(asked, rest + end)


def _ended(text: str, end: str, added: re.Pattern[str]) -> str:
    """An answer without what the template writes behind the end of its turn."""
    if end and end in text:
        return text[: text.rindex(end) + len(end)]
    # A call of a tool may end in another way.
    last = max((found.end() for found in added.finditer(text)), default=0)
    return text[:last] if last and end else text.rstrip()


def _holds(answer: str, content: str) -> bool:
    """Whether the content is written, its parts one after the other; white space around it and
    the thoughts' tags may differ."""
    at = 0
    for part in map(str.strip, _TAGS.split(content)):
        found = answer.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True
