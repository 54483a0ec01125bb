"""The reward's numbers, and how its four parts become one verdict (section 2)."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from magistral_jax.config import RunConfig, VerifierConfig
from magistral_jax.types import CodeTests, Problem, Reason, UserError, Verdict
from magistral_jax.verifier.code.extract import first_block
from magistral_jax.verifier.code.judge import judge_code
from magistral_jax.verifier.format import Format, check_format
from magistral_jax.verifier.grade import Grade, shown
from magistral_jax.verifier.length import length_reward
from magistral_jax.verifier.math.equal import (
    PARSERS,
    is_readable_gold,
    math_equal,
    same_answer,
)
from magistral_jax.verifier.own import load_own
from magistral_jax.verifier.sandbox.choose import open_sandbox

FORMAT = 0.1
CORRECT = 0.9
LANGUAGE = 0.1
PROCEDURAL = "reasoning-gym/"
"""How the source of a problem begins that reasoning-gym made, and judges."""
REASONING_GYM = "magistral_jax.verifier.own:ReasoningGym"
TEXT_LIMIT = 1_000_000
"""Characters of a completion beyond which nobody reads it."""
CLASSIFIER = "magistral_jax.verifier.language"
# What must be right on a machine that works; asked after a check went wrong in a way that may be
# the machine's fault.
TRUST_S = 10.0
CANARY_TESTS = CodeTests(stdio=(("2 3\n", "5\n"),))
CANARY_CODE = {
    "python": "print(sum(map(int, input().split())))",
    "cpp": '#include <cstdio>\nint main() { int a, b; scanf("%d %d", &a, &b); '
    'printf("%d\\n", a + b); }',
}


@dataclass(frozen=True, kw_only=True)
class RewardRule:
    """The numbers of the reward that a run chooses."""

    soft_tokens: int
    """l_max - l_cache: completions up to here lose nothing."""
    max_tokens: int
    """l_max: completions of this length lose all of `length_penalty`."""
    length_penalty: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.soft_tokens <= self.max_tokens:
            raise UserError(
                f"verifier.soft_tokens is {self.soft_tokens}; it must lie between 0 and "
                f"generator.max_tokens ({self.max_tokens})."
            )
        if not self.length_penalty >= 0:
            raise UserError(
                f"verifier.length_penalty is {self.length_penalty}; it is what length costs, so "
                "it must be at least 0."
            )


def rule_of(config: RunConfig) -> RewardRule:
    """The numbers that a run's config chooses."""
    return RewardRule(
        soft_tokens=config.soft_tokens,
        max_tokens=config.generator.max_tokens,
        length_penalty=config.verifier.length_penalty,
    )


class Judge:
    """Gives the verdict on one completion after another, all under one rule.

    It reads hostile text in its own process, so it belongs in a worker of `VerifierPool`. `load`
    gets what is slow to load, by name; the default loads it on the spot.
    """

    def __init__(
        self,
        rule: RewardRule,
        config: VerifierConfig | None = None,
        load: Callable[[str], Any] | None = None,
    ) -> None:
        self._rule = rule
        self._config = config or VerifierConfig()
        self._load = load or partial(loaded, config=self._config)
        self._sandbox: Any = None
        self._worked_at = -TRUST_S
        self._own = load_own(self._config.own) if self._config.own else None
        self._procedural: Callable[[Problem, Format], Grade] | None = None

    def __call__(
        self,
        problem: Problem,
        text: str,
        tokens: int,
        *,
        draw: str = "",
        known: Reason | None = None,
    ) -> Verdict:
        """The verdict, given the completion's text and its length in tokens.

        The format is a gate: behind it nothing is graded, so all parts are 0, the length's too.
        `draw` chooses the tests of a program, and is the same for a whole group. `known` is what
        an earlier try found out the hard way ("timeout"): then the content is not graded again.
        """
        if len(text) > TEXT_LIMIT:
            return without_reward("format", "too long to read")
        form = check_format(text, problem.domain)
        if form.problem:
            return without_reward("format", form.problem)
        # Loaded before anything is graded: a worker that lacks it starts over.
        classify = self._load(CLASSIFIER).language_consistent
        grade = Grade(0.0, known) if known else self._grade(problem, form, draw)
        if grade.reason == "error":
            return without_reward("error", grade.detail)
        length = length_reward(
            tokens,
            soft_tokens=self._rule.soft_tokens,
            max_tokens=self._rule.max_tokens,
            penalty=self._rule.length_penalty,
        )
        is_consistent = classify(problem.question, form.thoughts, form.answer_part)
        parts = {
            "format": FORMAT,
            "correct": CORRECT * grade.share,
            "length": length,
            "language": LANGUAGE if is_consistent else 0.0,
        }
        return Verdict(
            reward=sum(parts.values()), parts=parts, reason=grade.reason, detail=grade.detail
        )

    def close(self) -> None:
        """End the sandbox, if there is one."""
        if self._sandbox is not None:
            self._sandbox.close()
        self._sandbox = None

    def compare(
        self, gold: str, pred: str, mode: Literal["answer", "text"], known: Reason | None = None
    ) -> Verdict:
        """Whether `pred` says `gold`, as a verdict without reward; see `math.equal.math_equal`."""
        if known:
            return without_reward(known, "")
        self._load(PARSERS)
        return without_reward("pass" if math_equal(gold, pred, mode, self._load) else "wrong", "")

    def _grade(self, problem: Problem, form: Format, draw: str) -> Grade:
        own = self._own
        if own is None and problem.source.startswith(PROCEDURAL):
            own = self._procedural = self._procedural or load_own(REASONING_GYM)
        if own is not None:
            return own(problem, form)
        if problem.domain == "math":
            return self._grade_math(problem, form)
        return self._grade_code(problem, form.answer_part, draw)

    def _grade_math(self, problem: Problem, form: Format) -> Grade:
        self._load(PARSERS)
        gold, answer = problem.answer, form.readings[0]
        for reading in form.readings:
            if same_answer(gold, reading, self._load, problem.question):
                return Grade(1.0, "pass")
        if not is_readable_gold(gold):
            return Grade(0.0, "error", f"the reference {shown(gold)} cannot be read")
        return Grade(0.0, "wrong", f"{shown(answer)} is not {shown(gold)}")

    def _grade_code(self, problem: Problem, answer_part: str, draw: str) -> Grade:
        block = first_block(answer_part)
        assert block is not None  # the format gate saw one
        code, language = block
        if problem.tests is None:
            return Grade(0.0, "error", "the problem has no tests")
        if language != "python" and self._config.code_languages == "python":
            return Grade(0.0, "compile", "the problem asks for Python")
        if self._sandbox is None:
            self._sandbox = open_sandbox(self._config)
        judged = judge_code(
            problem.tests,
            code,
            language,
            self._sandbox,
            seed=draw or problem.id,
            most=self._config.code_tests,
            fraction=self._config.code_fraction,
        )
        if judged.reason == "pass":
            self._worked_at = monotonic()
        elif judged.reason != "error" and not self._works(language, judged.reason):
            return Grade(0.0, "error", "the sandbox fails on a program that is right, too")
        share = float(judged.reason == "pass")
        if self._config.code_fraction and judged.total:
            share = judged.passed / judged.total
        return Grade(share, judged.reason, judged.detail)

    def _works(self, language: str, reason: Reason) -> bool:
        """Whether a program that is right passes; a plain wrong answer soon after one that did
        is believed."""
        if reason == "wrong" and monotonic() - self._worked_at < TRUST_S:
            return True
        name = language if language in CANARY_CODE else "python"
        canary = judge_code(CANARY_TESTS, CANARY_CODE[name], name, self._sandbox, seed="")
        if canary.reason == "pass":
            self._worked_at = monotonic()
        return canary.reason == "pass"


def loaded(name: str, config: VerifierConfig) -> Any:
    """The module of that name, ready for use. Raises UserError if it lacks something."""
    is_new = name not in sys.modules
    module = import_module(name)
    if name == CLASSIFIER and config.language_model:
        module.warm(Path(config.language_model))
    elif is_new:
        module.warm()
    return module


def without_reward(reason: Reason, detail: str) -> Verdict:
    """A verdict whose parts are all 0: the gate was closed, or the check itself failed."""
    parts = {"format": 0.0, "correct": 0.0, "length": 0.0, "language": 0.0}
    return Verdict(reward=0.0, parts=parts, reason=reason, detail=detail)
