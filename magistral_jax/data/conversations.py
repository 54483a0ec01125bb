"""What supervised training is shown: conversations, as tokens with the assistant's marked.

A row of a file is one of

    {"id", "messages": [{"role", "content"}, ...]}      every answer of the assistant is learned
    {"id", "problem", "response"}                       one question, in the run's prompt format
    the same with "prompt_tokens", "tokens", "tokenizer"   as `traces` writes it

Where a trace brings its tokens and they are of this tokenizer, they are taken as they are: text is
not tokenised again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from magistral_jax.rows import short, text_in
from magistral_jax.tokenizer.interface import Message, Tokenizer
from magistral_jax.types import Completion, Problem, UserError, VersionSpan

ROLES = ("system", "user", "assistant")
_PROBE = "Thinking: 12 + 7 = 19.\n\tNaïve 数学 \U0001f642"


def tokenizer_mark(tokenizer: Tokenizer) -> str:
    """A short digest that two tokenizers share only if they read text alike."""
    read = [tokenizer.vocab_size, list(tokenizer.stop_ids), tokenizer.encode(_PROBE)]
    return hashlib.blake2b(json.dumps(read).encode(), digest_size=8).hexdigest()


def conversations(
    rows: Iterable[tuple[str, Mapping[str, Any] | UserError]],
    tokenizer: Tokenizer,
    prompt_of: Callable[[Problem], Sequence[int] | np.ndarray],
    *,
    longest: int,
    tell: Callable[[str], None],
) -> list[Completion]:
    """The rows' conversations, in order; one that cannot be used is told, with its place, and
    left out.

    Args:
        prompt_of: A problem as the run's prompt.
        longest: Tokens that a row of a batch holds.
    """
    mark = tokenizer_mark(tokenizer)
    return list(_usable(rows, tokenizer, prompt_of, mark, longest, tell))


def _usable(
    rows: Iterable[tuple[str, Mapping[str, Any] | UserError]],
    tokenizer: Tokenizer,
    prompt_of: Callable[[Problem], Sequence[int] | np.ndarray],
    mark: str,
    longest: int,
    tell: Callable[[str], None],
) -> Iterator[Completion]:
    for place, row in rows:
        try:
            if isinstance(row, UserError):
                raise row
            prompt, tokens, learned = _tokens(place, row, tokenizer, prompt_of, mark)
            if len(prompt) + len(tokens) > longest:
                raise UserError(
                    f"{place}: {len(prompt) + len(tokens)} tokens; batch.row_tokens is {longest}."
                )
            yield shown(prompt, tokens, learned)
        except UserError as fault:
            tell(str(fault))


def shown(
    prompt: Sequence[int] | np.ndarray,
    tokens: Sequence[int],
    learned: Sequence[bool] | np.ndarray,
    group: int = 0,
) -> Completion:
    """A trace in the form of a completion, so that packing treats it like any."""
    return Completion(
        group=group,
        index=0,
        prompt=np.asarray(prompt, np.int32),
        tokens=np.asarray(tokens, np.int32),
        logprobs=np.zeros(len(tokens), np.float32),
        sampled=np.asarray(learned, bool),
        spans=(VersionSpan(start=0, version=0),),
        finish="stop",
    )


def _tokens(
    place: str,
    row: Mapping[str, Any],
    tokenizer: Tokenizer,
    prompt_of: Callable[[Problem], Sequence[int] | np.ndarray],
    mark: str,
) -> tuple[Sequence[int] | np.ndarray, list[int], list[bool]]:
    """Prompt, what follows it, and which of that is learned."""
    if "tokens" in row and row.get("tokenizer") == mark:
        ids = {
            key: _ids(place, row, key, tokenizer.vocab_size) for key in ("prompt_tokens", "tokens")
        }
        return ids["prompt_tokens"], ids["tokens"], [True] * len(ids["tokens"])
    if "messages" in row:
        return _of_messages(place, row["messages"], tokenizer)
    problem = Problem(
        id=text_in(place, row, "id", place),
        domain="code" if row.get("domain") == "code" else "math",
        question=text_in(place, row, "problem"),
        answer="",
    )
    answer = [*tokenizer.encode(text_in(place, row, "response")), tokenizer.stop_ids[0]]
    return prompt_of(problem), answer, [True] * len(answer)


def _ids(place: str, row: Mapping[str, Any], key: str, vocab: int) -> list[int]:
    ids: Any = row.get(key)
    is_list = isinstance(ids, list) and len(ids) > 0
    if not is_list or not all(type(i) is int and 0 <= i < vocab for i in ids):
        raise UserError(f"{place}: {key} must be a list of token ids below {vocab}.")
    return ids


def _of_messages(
    place: str, messages: Any, tokenizer: Tokenizer
) -> tuple[list[int], list[int], list[bool]]:
    """Every turn as the template writes it; the assistant's, with its stop token, are learned."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: messages is {short(messages)}; it must be a list of turns.")
    turns: list[Message] = []
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise UserError(f"{place}: a turn is {short(turn)}; its role must be one of {ROLES}.")
        turns.append({"role": turn["role"], "content": text_in(place, turn, "content")})
    prompt: list[int] = []
    tokens: list[int] = []
    learned: list[bool] = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        head, so_far = tokenizer.chat(turns[:i]), [*prompt, *tokens]
        if head[: len(so_far)] != so_far:
            raise UserError(
                f"{place}: the chat template writes earlier turns in another way once others follow"
                " them, so only the first answer of a conversation can be learned. Split it."
            )
        if not prompt:
            prompt = head
        else:
            tokens += head[len(so_far) :]
            learned += [False] * (len(head) - len(so_far))
        answer = [*tokenizer.encode(turn["content"]), tokenizer.stop_ids[0]]
        tokens += answer
        learned += [True] * len(answer)
    if not any(learned):
        raise UserError(f"{place}: messages holds no turn of the assistant.")
    return prompt, tokens, learned
