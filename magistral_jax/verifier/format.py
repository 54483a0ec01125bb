"""The format gate: one think block, then a final answer where a program can find it (2.1).

Strict where the paper leaves room, because a gate that forgives is a gate that drifts:
- the text starts with `<think>` at its first character; leading whitespace is refused;
- thoughts may be empty: the paper asks for the tags, not for what is between them;
- math: only `\\boxed{...}` with balanced braces counts, of several the one that opens last, and of
  nested ones thus the inner one. `\\fbox` and `\\boxed 4` are refused, and so is an empty last box.
  A box inside a closed block of code is code, not an answer;
- code: only a closed block that names its language counts (code/extract.py).
"""

import re
from dataclasses import dataclass
from typing import Literal

from magistral_jax.verifier.code.extract import first_block, outside_blocks

_OPEN, _CLOSE = "<think>", "</think>"
# An escape is one token, so that `\{` is no brace and `\\boxed` (a line break, a word) is no box.
_BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)

_PERCENT = re.compile(r"\s*(?:\$|\\\))?\s*(?:\\?%|percent\b)")


@dataclass(frozen=True, kw_only=True)
class Format:
    """The parts of a completion, or why it has none. `problem` is empty if all is well."""

    thoughts: str = ""
    answer_part: str = ""
    """What follows `</think>`."""
    boxed: str | None = None
    """Content of the last box of the answer part; None unless the domain is math."""
    readings: tuple[str, ...] = ()
    """What the box may say: its content, and its percentage where a percent sign follows it."""
    problem: str = ""


def check_format(text: str, domain: Literal["math", "code"]) -> Format:
    """The completion's parts, if it has the form its domain asks for. Linear in the text."""
    if not text.startswith(_OPEN):
        return Format(problem="no leading <think>")
    if text.count(_OPEN) > 1 or text.count(_CLOSE) > 1:
        return Format(problem="two think blocks")
    thoughts, closing, answer_part = text[len(_OPEN) :].partition(_CLOSE)
    if not closing:
        return Format(problem="think block never closed")
    readings: tuple[str, ...] = ()
    problem = ""
    if domain == "math":
        readings = box_readings(answer_part)
        if not readings:
            problem = "no boxed answer"
        elif not readings[0].strip():
            problem = "empty box"
    elif first_block(answer_part) is None:
        problem = "no code block with a language"
    return Format(
        thoughts=thoughts,
        answer_part=answer_part,
        boxed=readings[0] if readings else None,
        readings=readings,
        problem=problem,
    )


def last_box(text: str) -> str | None:
    """Content of the closed `\\boxed{...}` outside blocks of code that opens last; None without."""
    return next(iter(box_readings(text)), None)


def box_readings(text: str) -> tuple[str, ...]:
    r"""What the last box may say: its content, and `17\%` for `\boxed{17}\%`; () without a box."""
    text = outside_blocks(text)
    opened: list[int] = []  # where each open brace's content starts; -1 for braces of no box
    start, end = -1, -1
    for token in _BOX_OR_BRACE.finditer(text):
        if token[0].startswith(r"\boxed"):
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(-1)
        elif token[0] == "}" and opened:
            candidate = opened.pop()
            if candidate > start:
                start, end = candidate, token.start()
    if start < 0:
        return ()
    content = text[start:end]
    if _PERCENT.match(text, end + 1) and "%" not in content:
        return content, content + r"\%"
    return (content,)
