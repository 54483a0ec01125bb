"""The turns of a conversation, as they stand in a row of a file: every key is used, or refused."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from magistral_jax.rows import short, text_in
from magistral_jax.tokenizer.interface import Message, Refused, Tokenizer, Tools, Turn
from magistral_jax.types import UserError

ROLES = ("system", "user", "assistant", "tool")
_NAMES = ("name", "tool_call_id")
"""What a tool's turn may be called: it pairs answers with calls, and says nothing itself."""
_ELSEWHERE = ("chat_template_kwargs", "documents", "functions")
"""Columns of other frameworks that would change what the template writes."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """One row's conversation."""

    place: str
    turns: tuple[Message, ...]
    learned: tuple[int, ...]
    """Places of the answers to learn."""
    tools: Tools

    def answers(self, tokenizer: Tokenizer) -> Iterator[Turn]:
        """The answers to learn as the chat template writes them. Raises UserError where it does
        not take the conversation, or leaves out something that a turn holds."""
        checked = 0
        for at in self.learned:
            try:
                turn = tokenizer.turn(self.turns[: at + 1], self.tools)
            except Refused as refused:
                self._check(range(checked, at + 1), at, tokenizer)
                raise UserError(self._told(refused, at, tokenizer)) from refused
            self._check(range(checked, at + 1), at, tokenizer)
            checked = at + 1
            yield turn

    def _check(self, places: range, at: int, tokenizer: Tokenizer) -> None:
        """Refuses what makes no difference to the answer at `at`, or to its prompt."""

        def seen(turns: tuple[Message, ...], tools: Tools) -> Turn | None:
            try:
                return tokenizer.turn(turns[: at + 1], tools)
            except Refused:
                return None

        whole = None
        for place in places:
            turn = self.turns[place]
            for key in _to_check(turn):
                other = {k: v for k, v in turn.items() if k != key}
                if key == "content":
                    other["content"] = f"{turn['content']}?"
                turns = (*self.turns[:place], other, *self.turns[place + 1 :])
                whole = whole or seen(self.turns, self.tools)
                if seen(turns, self.tools) == whole:
                    raise UserError(
                        f"{self.place}: turn {place + 1} ({turn['role']}) holds {key!r}, which the "
                        f"chat template does not write here. {_advice(key)}"
                    )
        if self.tools and seen(self.turns, ()) == seen(self.turns, self.tools):
            raise UserError(
                f"{self.place}: the row holds 'tools', which the chat template does not write. "
                "Describe them in a turn's content, or leave the row out."
            )

    def _told(self, refused: Refused, at: int, tokenizer: Tokenizer) -> str:
        told = f"{self.place}: the chat template refuses turns 1 to {at + 1}: {refused.why}."
        plain = tuple(turn for turn in self.turns[: at + 1] if turn["role"] != "system")
        if len(plain) <= at and plain:
            try:
                tokenizer.turn(plain, self.tools)
            except Refused:
                pass
            else:
                return (
                    f"{told} It takes them without the system turn: put its text at the beginning "
                    "of the user's first turn."
                )
        return f"{told} Change the row or leave it out."


def dialogue_of(place: str, row: Mapping[str, Any]) -> Dialogue:
    """The conversation under "messages". Raises UserError, naming the place."""
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: messages is {short(messages)}; it must be a list of turns.")
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{place}: tools is {short(tools)}; it must be a list of objects.")
    for key in _ELSEWHERE:
        if row.get(key):
            raise UserError(
                f"{place}: {key} is {short(row[key])}, which nothing here reads. Take it out of "
                "the row, or leave the row out."
            )
    turns, weights = zip(*(_turn(place, n, m) for n, m in enumerate(messages, 1)), strict=True)
    answers = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    learned = tuple(at for at in answers if weights[at])
    if not learned:
        raise UserError(
            f"{place}: messages holds no turn of the assistant"
            + (" with a weight above 0." if answers else ".")
        )
    return Dialogue(place=place, turns=turns, learned=learned, tools=tools)


def _turn(place: str, number: int, turn: Any) -> tuple[Message, float]:
    """A turn without what is empty, and its weight."""
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        raise UserError(f"{place}: a turn is {short(turn)}; its role must be one of {ROLES}.")
    # What a Parquet file fills in for the keys of other rows says nothing.
    held = {key: value for key, value in turn.items() if value not in (None, "", [], {})}
    role, weight = held["role"], turn.get("weight")
    held.pop("weight", None)
    if weight is not None and weight not in (0, 1):
        raise UserError(
            f"{place}: weight of turn {number} is {short(weight)}; it must be 0 (not learned) or 1."
        )
    if role != "assistant" and weight == 1:
        raise UserError(
            f"{place}: turn {number} ({role}) has weight 1; only the assistant's are learned."
        )
    if role != "assistant" or not held.keys() - {"role"}:
        text_in(place, turn, "content")
    held["content"] = text_in(place, held, "content", "")
    if role == "assistant" and not held["content"].strip() and len(held) == 2:
        raise UserError(f"{place}: content of turn {number} (assistant) is empty.")
    return held, 1 if weight is None else weight


def _to_check(turn: Message) -> list[str]:
    """The keys of a turn that a template might leave out without a word."""
    role = turn["role"]
    known = {"role", "content", *(_NAMES if role == "tool" else ())}
    said = ["content"] if role in ("system", "tool") else []
    return said + sorted(turn.keys() - known)


def _advice(key: str) -> str:
    if key in ("reasoning_content", "reasoning", "thinking"):
        return "Write the thoughts into content, as <think>...</think>."
    return "Write it into a content, take it out, or leave the row out."
