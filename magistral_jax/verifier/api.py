"""The stable Python surface of the verifiers.

What reads hostile text at length (`judge`, `judge_many`, `math_equal`) runs in worker processes
that are killed at their limits; they are started at the first call and end with this process. The
rest is linear in its input and runs here.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Lock, Thread
from typing import Any, Literal

from magistral_jax.config import VerifierConfig
from magistral_jax.rows import problem_of, short, text_in
from magistral_jax.types import Problem, UserError, Verdict
from magistral_jax.verifier.code.extract import first_block
from magistral_jax.verifier.format import check_format, last_box
from magistral_jax.verifier.length import length_reward
from magistral_jax.verifier.reward import (
    CORRECT,
    FORMAT,
    LANGUAGE,
    RewardRule,
    without_reward,
)
from magistral_jax.verifier.worker import VerifierPool

NO_LENGTH_RULE = RewardRule(soft_tokens=2**31, max_tokens=2**31)
"""No completion is too long: what rows without a run have."""
_MOST_WORKERS = 8  # all start at the first call; who wants more brings a pool
_POLL_S = 0.2
_AHEAD = 8  # rows handed to the pool per worker, so that none waits for the next row to be read


def judge(row: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on one row: {id, reward, parts, outcome, reason, seconds, detail}.

    A row holds id, domain ("math" or "code"), problem, response, and answer, or tests
    ([{stdin, stdout}]), asserts, or test_code with entry_point; optional are checker, language,
    num_tokens, and opened, the text with which the prompt has begun the response (a "<think>"). A
    row that cannot be read has the outcome "error".
    """
    return next(judge_many([row]))


def judge_many(
    rows: Iterable[Mapping[str, Any] | UserError],
    pool: VerifierPool | None = None,
    *,
    see: Callable[[Verdict], None] = lambda verdict: None,
) -> Iterator[dict[str, Any]]:
    """Verdicts in the order of the rows, each as soon as it is ready.

    Rows are read on a thread of their own, a few ahead of the pool, so that a source that waits for
    a verdict before it gives the next row gets it. A `UserError` in place of a row is its verdict.
    `pool` is the caller's own, with rules of its own; the default one knows no length penalty.
    `see` is shown every verdict before its row.
    """
    pool = pool or _default.pool()
    asked: Queue[tuple[Any, Future[Verdict]] | BaseException | None] = Queue(_AHEAD * pool.workers)
    is_over = Event()

    def put(item: tuple[Any, Future[Verdict]] | BaseException | None) -> None:
        while not is_over.is_set():
            with suppress(Full):
                return asked.put(item, timeout=_POLL_S)

    def read() -> None:
        try:
            for number, row in enumerate(rows, 1):
                name = row.get("id") if isinstance(row, Mapping) else None
                put((name, ask(pool, number, row)))
                if is_over.is_set():
                    return
            put(None)
        except BaseException as fault:  # the rows' own: it is the caller's to see
            put(fault)

    Thread(target=read, name="rows", daemon=True).start()
    try:
        while (item := asked.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            verdict = item[1].result()
            see(verdict)
            yield row_out(item[0], verdict)
    finally:
        is_over.set()


def ask(pool: VerifierPool, number: int, row: Mapping[str, Any] | UserError) -> Future[Verdict]:
    """The verdict to come on the row in this line; at once, if the row cannot be read."""
    try:
        if isinstance(row, UserError):
            raise row
        if not isinstance(row, Mapping):
            raise UserError(f"row {number}: {short(row)} is not an object.")
        question = _readable(f"row {number}", row)
    except UserError as fault:
        verdict: Future[Verdict] = Future()
        verdict.set_result(without_reward("error", str(fault)))
        return verdict
    return pool.submit(question.problem, question.response, question.tokens)


def row_out(name: Any, verdict: Verdict) -> dict[str, Any]:
    """A verdict as a row of output."""
    return {
        "id": name,
        "reward": verdict.reward,
        "parts": dict(verdict.parts),
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "seconds": round(verdict.seconds, 4),
        "detail": verdict.detail,
    }


def format_ok(response: str, domain: Literal["math", "code"]) -> bool:
    """Whether the response passes the format gate (section 2.1)."""
    return not check_format(response, domain).problem


def extract(response: str, domain: Literal["math", "code"]) -> str | tuple[str, str] | None:
    """The answer to be graded: the last box's content, or (program, language); None without one.

    Looks at what follows the last `</think>`, whether the rest of the format is right or not.
    """
    answer_part = response.rpartition("</think>")[2]
    return last_box(answer_part) if domain == "math" else first_block(answer_part)


def length_penalty(length: int, l_max: int, l_cache: int) -> float:
    """R_length, a number <= 0, of a completion of `length` tokens (section 2.3)."""
    return length_reward(length, soft_tokens=l_max - l_cache, max_tokens=l_max)


def total(
    format_ok: bool, correct: bool, length_penalty: float, language_consistent: bool
) -> float:
    """The reward: nothing behind a closed gate, else the sum of its parts (section 2)."""
    if not format_ok:
        return 0.0
    return FORMAT + CORRECT * correct + length_penalty + LANGUAGE * language_consistent


def detect_language(text: str) -> str:
    """ISO 639-1 code of the text's language, LaTeX and code left out; or "unknown"."""
    from magistral_jax.verifier import language

    return language.detect_language(text)


def language_consistent(problem: str, thoughts: str, answer: str) -> bool:
    """Whether all three are in one known language (section 2.4)."""
    from magistral_jax.verifier import language

    return language.language_consistent(problem, thoughts, answer)


def math_equal(gold: str, pred: str, mode: str = "answer") -> bool:
    """Whether `pred` is the answer `gold`. In mode "answer", `pred` is the text inside the box; in
    mode "text", a whole output.

    A comparison that exhausts its limits is False. Raises RuntimeError if the check itself fails.
    """
    if mode != "answer" and mode != "text":
        raise UserError(f'mode is {mode!r}; it must be "answer" or "text".')
    verdict = _default.pool().compare(gold, pred, mode).result()
    if verdict.outcome == "error":
        raise RuntimeError(f"math_equal({short(gold)}, {short(pred)}): {verdict.detail}")
    return verdict.outcome == "right"


@dataclass(frozen=True)
class _Row:
    problem: Problem
    response: str
    tokens: int


def _readable(place: str, row: Mapping[str, Any]) -> _Row:
    row = {"problem": "", **row, "id": str(row.get("id", ""))}
    answer = row.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        row = {**row, "answer": str(answer)}
    response = row.get("response")
    if not isinstance(response, str):
        text_in(place, row, "response")  # raises
        raise AssertionError
    tokens = row.get("num_tokens", 0)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise UserError(f"{place}: num_tokens is {short(tokens)}; it must be a whole number.")
    opened = text_in(place, row, "opened", "") if row.get("opened") is not None else ""
    return _Row(problem_of(place, row), opened + response, tokens)


class _Default:
    """The pool of those who have none: started when needed, one a process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pool: VerifierPool | None = None

    def pool(self) -> VerifierPool:
        with self._lock:
            if self._pool is None:
                workers = min(os.cpu_count() or 1, _MOST_WORKERS)
                self._pool = VerifierPool(NO_LENGTH_RULE, VerifierConfig(workers=workers))
                atexit.register(self._pool.close)
            return self._pool

    def forget(self) -> None:
        """In a forked child: the pool and its lock are the parent's."""
        self._lock, self._pool = Lock(), None


_default = _Default()
os.register_at_fork(after_in_child=_default.forget)
