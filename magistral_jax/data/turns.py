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
            turns = self.turns[: at + 1]
            try:
                turn = tokenizer.turn(turns, self.tools)
            except Refused as refused:
                # Many templates want a text where a call of a tool stands alone.
                turns = tuple({**turn, "content": turn["content"] or ""} for turn in turns)
                again = None if turns == self.turns[: at + 1] else self._seen(turns, tokenizer)
                if again is None:
                    raise UserError(self._told(refused, at, tokenizer)) from refused
                turn = again
            for place in range(checked, at + 1):
                self._check(turns, place, tokenizer)
            if self.tools and self._seen(turns, tokenizer, ()) == turn:
                raise UserError(
                    f"{self.place}: the row holds 'tools', which the chat template does not write. "
                    "Describe them in a turn's content, or leave the row out."
                )
            checked = at + 1
            yield turn

    def _seen(
        self, turns: tuple[Message, ...], tokenizer: Tokenizer, tools: Tools | None = None
    ) -> Turn | None:
        try:
            return tokenizer.turn(turns, self.tools if tools is None else tools)
        except Refused:
            return None

    def _check(self, turns: tuple[Message, ...], place: int, tokenizer: Tokenizer) -> None:
        """Refuses a turn that holds what makes no difference: to it, if it is the assistant's,
        else to the prompt of the last one."""
        turn = turns[place]
        keys = _to_check(turn)
        if turn["role"] == "assistant":
            turns = turns[: place + 1]
        whole = self._seen(turns, tokenizer) if keys else None
        for key in keys:
            other = {k: v for k, v in turn.items() if k != key}
            if key == "content":
                other["content"] = f"{turn['content']}?"
            if self._seen((*turns[:place], other, *turns[place + 1 :]), tokenizer) == whole:
                raise UserError(
                    f"{self.place}: turn {place + 1} ({turn['role']}) holds {key!r}, which the "
                    f"chat template does not write here. {_advice(key)}"
                )

    def _told(self, refused: Refused, at: int, tokenizer: Tokenizer) -> str:
        told = f"{self.place}: the chat template refuses turns 1 to {at + 1}: {refused.why}."
        plain = tuple(turn for turn in self.turns[: at + 1] if turn["role"] != "system")
        if len(plain) <= at and self._seen(plain, tokenizer) is not None:
            return (
                f"{told} It takes them without the system turn: put its text at the beginning of "
                "the user's first turn."
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
    turns = tuple(_turn(place, number, turn) for number, turn in enumerate(messages, 1))
    answers = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    learned = tuple(at for at in answers if messages[at].get("weight") != 0)
    if not learned:
        raise UserError(
            f"{place}: messages holds no turn of the assistant"
            + (" with a weight above 0." if answers else ".")
        )
    return Dialogue(place=place, turns=turns, learned=learned, tools=tools)


def _turn(place: str, number: int, turn: Any) -> Message:
    """A turn without its weight, and without what is empty."""
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        raise UserError(f"{place}: a turn is {short(turn)}; its role must be one of {ROLES}.")
    role, weight = turn["role"], turn.get("weight")
    if weight is not None and weight not in (0, 1):
        raise UserError(
            f"{place}: weight of turn {number} is {short(weight)}; it must be 0 (not learned) or 1."
        )
    if role != "assistant" and weight == 1:
        raise UserError(
            f"{place}: turn {number} ({role}) has weight 1; only the assistant's are learned."
        )
    # What a Parquet file fills in for the keys of other rows says nothing.
    others = {
        key: value
        for key, value in turn.items()
        if key not in ("role", "content", "weight") and value not in (None, "", [], {})
    }
    if role == "assistant" and others and turn.get("content") is None:
        return {"role": role, "content": None, **others}
    content = text_in(place, turn, "content")
    if role == "assistant" and not others and not content.strip():
        raise UserError(f"{place}: content of turn {number} (assistant) is empty.")
    return {"role": role, "content": content, **others}


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
