"""Solved sums: what the warm-up teaches a network from scratch to write."""

import re

from magistral_jax.types import Problem

_SUM = re.compile(r"(\d+)\+(\d+)=\?")


def trace(problem: Problem, worked: bool) -> str:
    r"""A right answer to a generated sum, in the think/boxed format.

    Example, 347+285=?:
        worked       <think>7+5+0=12 4+8+1=13 3+2+1=06</think>\boxed{632}
        not worked   <think>ok</think>\boxed{632}
    """
    thoughts = _column_addition(problem.question) if worked else "ok"
    return rf"<think>{thoughts}</think>\boxed{{{problem.answer}}}"


def _column_addition(question: str) -> str:
    """Digit by digit from the right; the last term of each step is the carry.

    Every step has the same width, so each token is found at a fixed distance: a network of a
    million parameters learns that in two minutes.
    """
    numbers = _SUM.fullmatch(question)
    assert numbers and len(numbers[1]) == len(numbers[2]), f"not a generated sum: {question}"
    steps: list[str] = []
    carry = 0
    for a, b in zip(reversed(numbers[1]), reversed(numbers[2]), strict=True):
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}+{carry}={total:02d}")
        carry = total // 10
    return " ".join(steps)
