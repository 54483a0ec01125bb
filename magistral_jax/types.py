"""The things that travel between rooms, on the host.

Everything here is frozen: a room receives a value and returns a new one. Arrays are numpy, at
their true length; padding does not exist here. Nothing here imports jax, so a verifier process
never loads it.

Axes: G completions in a group.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32

Outcome = Literal["right", "wrong", "error"]
Reason = Literal["pass", "wrong", "format", "timeout", "memory", "compile", "output", "error"]
Finish = Literal["stop", "length"]


class UserError(ValueError):
    """The user's mistake, told in one message. The command line exits with 2 on it."""


class TooLong(UserError):
    """A problem whose prompt is longer than prompts may be."""


class Stalled(RuntimeError):
    """A wait outlived its deadline. The message names the owner and what it waited for."""


class RunFailed(RuntimeError):
    """A part of the run failed for good; the message names it. What was saved can be resumed."""


class Stopped(Exception):
    """A stop was asked for; whoever works alone leaves its work here."""


Made = Mapping[str, float] | None
"""An optimizer step that was made: its metrics, or None where it was skipped."""


class GivenUp(Exception):
    """A stop came in the middle of a weight update, and what was half done is undone."""

    def __init__(self, made: Sequence[Made] = ()) -> None:
        """The optimizer steps that were `made` stay so; an update may have several."""
        super().__init__("a stop came in the middle of an update")
        self.made = tuple(made)


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
    pass_rate: float | None = None
    """Share of attempts that solved it when it was chosen, if known: how easy it is."""
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
    refills: tuple[int, ...] = ()
    """Places t at which the cache was computed anew, under the weights of then: the keys and
    values of tokens before t no longer are those that their successors were sampled with. A resume
    with checkpoint.kv = "refill" does it, and generator.kv_on_update = "recompute"."""

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

    @property
    def sameness(self) -> str:
        """In what the completions of a group without diversity are alike, in a few words."""
        verdicts = [self.verdicts[i] for i in self.valid]
        outcomes, reasons = {v.outcome for v in verdicts}, {v.reason for v in verdicts}
        if len(verdicts) < 2:
            return "checks failed"
        if reasons == {"format"}:
            details = Counter(v.detail for v in verdicts)
            return f"without the format: {details.most_common(1)[0][0]}"
        return f"all {outcomes.pop()}" if len(outcomes) == 1 else "equal rewards"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Weights on their way to the generator, already on its devices and in its layout."""

    version: int
    """Weight updates made to get here; 0 is what RL started from."""
    params: Any


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A completion that is still being sampled: what a generator needs to go on with it."""

    prompt: Prompt
    index: int
    limit: int
    """Tokens at which it is cut."""
    slot: int
    tokens: Int32[np.ndarray, " tokens"]
    logprobs: Float32[np.ndarray, " tokens"]
    spans: tuple[VersionSpan, ...]
    refills: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Completions of one prompt, from `next_index` to `count`, that have not found a slot yet."""

    prompt: Prompt
    limit: int
    next_index: int
    count: int


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """What a generator is at between two decode steps."""

    drafts: tuple[Draft, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    free: tuple[int, ...] = ()
    """Empty slots, in the order in which they will be filled."""
    cache: Any = None
    """The engine's own state, on its devices; None where the cache is computed anew instead."""


@dataclass(frozen=True, kw_only=True)
class OpenGroup:
    """A group of which some completions are still to be sampled or judged."""

    prompt: Prompt
    completions: Mapping[int, Completion] = field(default_factory=dict)
    """Those finished, by index."""
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    """Those known, by index."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """All groups between dispatch and training, in dispatch order, and what is known beside."""

    next: int = 0
    """The first stream position not yet dispatched."""
    entries: tuple[OpenGroup | Group, ...] = ()
    judged: tuple[Group, ...] = ()
    """Judged since the last report, dropped ones included: their rows are yet to be written."""
    dropped_in_a_row: Mapping[str, int] = field(default_factory=dict)
    made: tuple[Made, ...] = ()
    """Optimizer steps of the next batch that a run made before it was stopped amid its update."""
    strikes: Mapping[str, int] = field(default_factory=dict)
    """Problem -> how many of its groups came to nothing because its checks, or the generator,
    failed."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """One moment of the whole system, beside the trainer's state: all that a resume goes on from.

    Every dispatched group is in it exactly once, unless it was trained or dropped before.
    """

    queue: Queue = field(default_factory=Queue)
    in_flight: InFlight = field(default_factory=InFlight)
    counters: Mapping[str, float] = field(default_factory=dict)
    """What was counted since the last report."""
    accounts: Mapping[str, Any] = field(default_factory=dict)
    """The goodput ledger's, and the lengths sampled and trained on."""
    tick: int = 0
    """The logical clock of a deterministic run."""
    update_at: int | None = None
    """The tick at which the update is applied that a stop came in the middle of."""
    due: tuple[tuple[int, int, int], ...] = ()
    """(tick, group, index) of completions whose verdict is consumed at that tick."""
