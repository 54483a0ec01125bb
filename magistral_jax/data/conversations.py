"""What supervised training is shown: conversations, as tokens with the assistant's marked.

A row of a file is one of

    {"id", "messages": [{"role", "content"}, ...]}      every answer of the assistant is learned
    {"id", "problem", "response"}                       one question, in the run's prompt format
    the same with "prompt_tokens", "tokens", "tokenizer"   as `traces` writes it

Where a trace brings its tokens and they are of this tokenizer, they are taken as they are: text is
not tokenised again.

A turn may hold "weight": 0, and is then not learned; a row may hold "tools". Whatever else a turn
holds ("reasoning_content", "tool_calls") goes to the chat template, which must write it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from magistral_jax.data.turns import Dialogue, dialogue_of
from magistral_jax.rows import text_in
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.tokenizer.thoughts import UNFIT, opened, rest_of
from magistral_jax.types import Completion, Problem, UserError, VersionSpan

Part = tuple[Sequence[int] | np.ndarray, list[int], list[bool]]
"""Prompt, what follows it, and which of that is learned."""

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
            parts = _parts(place, row, tokenizer, prompt_of, mark)
            most = max(len(prompt) + len(tokens) for prompt, tokens, _ in parts)
            if most > longest:
                raise UserError(f"{place}: {most} tokens; batch.row_tokens is {longest}.")
            yield from (shown(*part) for part in parts)
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


def _parts(
    place: str,
    row: Mapping[str, Any],
    tokenizer: Tokenizer,
    prompt_of: Callable[[Problem], Sequence[int] | np.ndarray],
    mark: str,
) -> list[Part]:
    if "tokens" in row and row.get("tokenizer") == mark:
        ids = {
            key: _ids(place, row, key, tokenizer.vocab_size) for key in ("prompt_tokens", "tokens")
        }
        return [(ids["prompt_tokens"], ids["tokens"], [True] * len(ids["tokens"]))]
    if "messages" in row:
        return _of_dialogue(dialogue_of(place, row), tokenizer)
    problem = Problem(
        id=text_in(place, row, "id", place),
        domain="code" if row.get("domain") == "code" else "math",
        question=text_in(place, row, "problem"),
        answer="",
    )
    prompt = prompt_of(problem)
    rest = rest_of(text_in(place, row, "response"), opened(tokenizer, prompt))
    if rest is None:
        raise UserError(f"{place}: response does not fit the chat template: {UNFIT}.")
    answer = [*tokenizer.encode(rest), *tokenizer.end_ids]
    return [(prompt, answer, [True] * len(answer))]


def _ids(place: str, row: Mapping[str, Any], key: str, vocab: int) -> list[int]:
    ids: Any = row.get(key)
    is_list = isinstance(ids, list) and len(ids) > 0
    if not is_list or not all(type(i) is int and 0 <= i < vocab for i in ids):
        raise UserError(f"{place}: {key} must be a list of token ids below {vocab}.")
    return ids


def _of_dialogue(dialogue: Dialogue, tokenizer: Tokenizer) -> list[Part]:
    """Every answer that is learned, behind what the template writes before it.

    Answers share a row as long as the template leaves the earlier ones as they were learned; where
    it does not (Qwen 3's takes the thoughts out of earlier turns), the next one begins another.
    """
    parts: list[Part] = []
    for prompt, answer in dialogue.answers(tokenizer):
        first, tokens, learned = parts[-1] if parts else ([], [], [])
        so_far = [*first, *tokens]
        if not parts or prompt[: len(so_far)] != so_far:
            parts.append((prompt, answer, [True] * len(answer)))
            continue
        between = prompt[len(so_far) :]
        learned = [*learned, *([False] * len(between)), *([True] * len(answer))]
        parts[-1] = (first, [*tokens, *between, *answer], learned)
    return parts
