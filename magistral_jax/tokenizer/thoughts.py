r"""Thoughts that a prompt has opened already.

Some chat templates end the prompt inside the thoughts ("...assistant\n<think>\n", as R1's
distillations and Qwen 3 Thinking do), or with empty ones ("<think>\n\n</think>\n\n"). What the
policy says is the rest: it is judged, shown and learned together with that beginning.
"""

import re
from collections.abc import Sequence

import numpy as np

from magistral_jax.tokenizer.interface import Tokenizer

OPEN, CLOSE = "<think>", "</think>"
_LOOK = 16
"""Tokens at a prompt's end that such a beginning may have."""
OPENED = re.compile(rf"{OPEN}\s*({CLOSE}\s*)?\Z")

UNFIT = (
    "the prompt opens the thoughts and the answer does not close them, or it closes them and the "
    "answer has others"
)
"""Why `rest_of` finds nothing."""


def opened(tokenizer: Tokenizer, prompt: Sequence[int] | np.ndarray) -> str:
    """What the prompt has written of the answer: "", or "<think>" with what follows it."""
    tail: list[int] = []
    for token in map(int, reversed(prompt[-_LOOK:])):
        if not tokenizer.decode([token]):
            break  # a control token: what stands before it is another's turn
        tail.insert(0, token)
    found = OPENED.search(tokenizer.decode(tail))
    return found[0] if found else ""


def rest_of(text: str, beginning: str) -> str | None:
    """The text without the thoughts' beginning that a prompt has written; None if it cannot
    follow it: thoughts are open and the text has none, or they are closed and it has."""
    if not beginning:
        return text
    if CLOSE in beginning:
        return text if OPEN not in text else None
    if CLOSE not in text:
        return None
    if not text.startswith(OPEN):
        return text
    rest = text.removeprefix(OPEN)
    return rest.lstrip() if beginning != OPEN else rest
