"""The reward's numbers, and how its four parts become one verdict (section 2)."""

from collections.abc import Mapping
from dataclasses import dataclass

from magistral_jax.types import Outcome, Problem, UserError, Verdict
from magistral_jax.verifier.answers import is_equal
from magistral_jax.verifier.format import check_format
from magistral_jax.verifier.length import length_reward

FORMAT = 0.1
CORRECT = 0.9
TEXT_LIMIT = 1_000_000
"""Characters of a completion beyond which nobody reads it."""


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


def judge(problem: Problem, text: str, tokens: int, rule: RewardRule) -> Verdict:
    """The verdict on one completion, given its text and its length in tokens.

    The format is a gate: behind it nothing is graded, so all parts are 0, the length's too. The
    language part is 0 for every completion, as no classifier of languages exists yet; code is
    graded for its format only, and is otherwise an error, as there is no sandbox yet.
    """
    if len(text) > TEXT_LIMIT:
        return without_reward("wrong", "too long to read")
    form = check_format(text, problem.domain)
    if form.problem:
        return without_reward("wrong", form.problem)
    if problem.domain == "code":
        return without_reward("error", "code is not judged yet")
    assert form.boxed is not None
    if not is_equal(problem.answer, problem.answer):
        return without_reward("error", f"the reference {_shown(problem.answer)} cannot be read")
    is_right = is_equal(form.boxed, problem.answer)
    length = length_reward(
        tokens,
        soft_tokens=rule.soft_tokens,
        max_tokens=rule.max_tokens,
        penalty=rule.length_penalty,
    )
    parts = _parts(format=FORMAT, correct=CORRECT if is_right else 0.0, length=length)
    return Verdict(
        reward=sum(parts.values()),
        parts=parts,
        outcome="right" if is_right else "wrong",
        reason="" if is_right else f"{_shown(form.boxed)} is not {_shown(problem.answer)}",
    )


def without_reward(outcome: Outcome, reason: str) -> Verdict:
    """A verdict whose parts are all 0: the gate was closed, or the check itself failed."""
    return Verdict(reward=0.0, parts=_parts(), outcome=outcome, reason=reason)


def _parts(
    *, format: float = 0.0, correct: float = 0.0, length: float = 0.0
) -> Mapping[str, float]:
    return {"format": format, "correct": correct, "length": length, "language": 0.0}


def _shown(text: str, limit: int = 40) -> str:
    """The text, safe and short enough for a log: a completion may hold terminal escapes."""
    short = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else " " for c in short)
