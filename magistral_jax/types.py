"""The things that travel between rooms, on the host.

Everything here is frozen: a room receives a value and returns a new one. Arrays are numpy, at
their true length; padding does not exist here. Nothing here imports jax, so a verifier process
never loads it.

Axes: G completions in a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32

Outcome = Literal["right", "wrong", "error"]
Reason = Literal["pass", "wrong", "format", "timeout", "memory", "compile", "output", "error"]
Finish = Literal["stop", "length"]


class UserError(ValueError):
    """The user's mistake, told in one message. The command line exits with 2 on it."""


class Stalled(RuntimeError):
    """A wait outlived its deadline. The message names the owner and what it waited for."""


@dataclass(frozen=True, kw_only=True)
class CodeTests:
    """What decides whether a program is right; of the first three, a problem has one.

    Example: CodeTests(stdio=(("1 2\n", "3\n"),)) for a program that adds two numbers.
    """

    stdio: tuple[tuple[str, str], ...] = ()
    """(stdin, expected stdout). With an `entry_point` they are calls, one JSON value a line for
    each argument, and the JSON of the result; unless the checker is "json"."""
    asserts: tuple[str, ...] = ()
    """Python assert statements."""
    test_code: str = ""
    """Python that fails on a wrong program, run after it."""
    setup: str = ""
    """Python run between the program and `asserts`."""
    entry_point: str = ""
    """The function that is called, or a method of the program's class Solution."""
    checker: str = "exact"
    """How outputs are compared: "exact", "float", "json", "special", or a program in Python."""
    prompt: str = ""
    """Code that the program goes on from, and whose helpers the tests may use (HumanEval)."""
    time_limit_s: float = 4.0
    """CPU seconds of one test."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with a checkable answer: one row of the JSONL schema.

    Example: Problem(id="gsm8k-17", domain="math", question="What is 2+2?", answer="4")
    """

    id: str
    domain: Literal["math", "code"]
    question: str
    answer: str
    """The final answer, as text. Empty where tests decide."""
    language: str = "en"
    source: str = ""
    tests: CodeTests | None = None
    """What decides in the domain "code"; None in others."""
    media: tuple[Any, ...] = ()
    """Images or other inputs beside the text. Nothing reads it yet."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A problem, rendered: what the generator answers G times."""

    group: int
    """Position in the run's prompt stream; names the group its completions will form."""
    problem: Problem
    tokens: Int32[np.ndarray, " prompt"]


@dataclass(frozen=True, kw_only=True)
class VersionSpan:
    """From token `start` on, tokens were sampled under weights `version`."""

    start: int
    version: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer, exactly as the generator produced it. The token record is the truth.

    Example: six tokens, the weights swapped from version 3 to 4 before the fifth:
        tokens [17, 4, 99, 12, 8, 2], spans (VersionSpan(0, 3), VersionSpan(4, 4)), finish "stop"
    """

    group: int
    """Which prompt this answers; the completions of one group share it."""
    index: int
    """Place within the group, 0 <= index < G."""
    prompt: Int32[np.ndarray, " prompt"]
    tokens: Int32[np.ndarray, " tokens"]
    """What follows the prompt. Ends with a stop token if and only if `finish` is "stop"."""
    logprobs: Float32[np.ndarray, " tokens"]
    """log p(token) under the distribution it was drawn from, when it was drawn."""
    sampled: Bool[np.ndarray, " tokens"]
    """False where a token was given to the policy (a tool's output), not drawn from it."""
    spans: tuple[VersionSpan, ...]
    """Which weights sampled which tokens, run-length encoded, oldest first; starts at 0."""
    finish: Finish

    @property
    def oldest_version(self) -> int:
        return self.spans[0].version

    @property
    def newest_version(self) -> int:
        return self.spans[-1].version

    def versions(self) -> Int32[np.ndarray, " tokens"]:
        """The spans written out: the weight version of each token."""
        out = np.empty(len(self.tokens), np.int32)
        for span in self.spans:
            out[span.start :] = span.version
        return out


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the verifier thought of one completion. `reward` is the sum of `parts`."""

    reward: float
    parts: Mapping[str, float]
    """{"format", "correct", "length", "language"}, each its share of the reward."""
    reason: Reason
    """"pass" is right; "error" means that the check itself failed; all others are kinds of wrong:
    an answer that exhausts a limit is wrong, or hanging the check would pay."""
    detail: str = ""
    """The reason in a few words: "no boxed answer", "12 is not 21", "test 3 of 20: 4.0 s"."""
    seconds: float = field(default=0.0, compare=False)
    """Wall time of the check, waiting for a free worker left out."""

    @property
    def outcome(self) -> Outcome:
        """What it comes to; an "error" is never trained on."""
        if self.reason == "error":
            return "error"
        return "right" if self.reason == "pass" else "wrong"


@dataclass(frozen=True, kw_only=True)
class Group:
    """All G completions of one prompt, judged; in the order of their index."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def group(self) -> int:
        return self.prompt.group

    @property
    def valid(self) -> tuple[int, ...]:
        """Places whose verdict can be trusted: all but the errors."""
        return tuple(i for i, v in enumerate(self.verdicts) if v.outcome != "error")

    @property
    def rewards_G(self) -> Float32[np.ndarray, " G"]:
        """Rewards of the valid completions."""
        return np.array([self.verdicts[i].reward for i in self.valid], np.float32)

    @property
    def is_diverse(self) -> bool:
        """Equal rewards mean zero advantage everywhere: nothing to learn from (section 2.1)."""
        rewards_G = self.rewards_G
        return len(rewards_G) >= 2 and bool(np.ptp(rewards_G) > 0)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Weights on their way to the generator, already on its devices and in its layout."""

    version: int
    """Weight updates made to get here; 0 is what RL started from."""
    params: Any


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where the prompt stream stands, such that no prompt is skipped or counted twice."""

    next: int
    """The first stream position not yet dispatched."""
    pending: tuple[int, ...] = field(default=())
    """Positions dispatched but neither trained nor dropped, oldest first."""
