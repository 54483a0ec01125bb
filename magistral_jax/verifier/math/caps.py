"""How large an answer may be before anything reads it (text), and before anything computes it.

An answer over a cap is not the same as any other; nobody's answer to a problem is that large.
"""

import re
import unicodedata

MAX_CHARS = 2000
MAX_DEPTH = 30
"""Brackets inside brackets. Each costs a dozen frames of the parser's recursion."""
MAX_NODES = 500
MAX_TERMS = 200
"""Of a sum or product written out."""
MAX_DIGITS = 1000
"""Digits in a row."""
MAX_BITS = 40_000
"""Of an exact numerator or denominator: 12,000 digits, so that 10^4 as an exponent still works."""
MAX_FACTORIAL = 1000
MAX_EXPONENT = 10_000

_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")


class Unreadable(Exception):
    """The text is not in the grammar, or its value is beyond the caps."""


def is_bounded(text: str) -> bool:
    """True if the text is short and shallow enough to read, without NUL or half a surrogate."""
    if len(text) > MAX_CHARS or _LONG_NUMBER.search(text):
        return False
    if any(c < " " and c not in "\t\n\r" for c in text):
        return False
    if not text.isascii() and any(unicodedata.category(c) in ("Cs", "Cc") for c in text):
        return False
    depth = 0
    for c in text:
        if c in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                return False
        elif c in ")]}":
            depth -= 1
    return True
