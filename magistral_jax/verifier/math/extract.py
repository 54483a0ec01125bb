r"""The final answer of a whole output: where it is said, in order of preference.

1. the last closed `\boxed{...}` behind the last `</think>` (or of the whole text without one);
2. what follows "#### ", "the (final) answer is", "Answer:", the last one said;
3. the last displayed formula, then the last inline one, then the last bold text;
4. a text that is one short line; 5. the last number.
"""

import re

from magistral_jax.verifier.format import last_box
from magistral_jax.verifier.math.caps import MAX_CHARS

_TAIL = 20_000
"""Characters at the end in which an answer without a box is sought."""
_SAID = re.compile(
    r"####[ ]*(?P<hashes>[^\n]+)"
    r"|(?:\bfinal\s+answer|\banswer|\bresult)\b[^\S\n]*\**[^\S\n]*"
    r"(?:(?:to[^.\n=:]{0,80}?|of[^.\n=:]{0,80}?|here|therefore)[^\S\n]*)?"
    r"(?:is|:|=|equals|are|would[ ]be|must[ ]be)[^\S\n]*\**[^\S\n]*:?(?P<said>[^\n]*(?:\n[^\n]+)?)",
    re.IGNORECASE,
)
_DISPLAYED = re.compile(r"\\\[(.+?)\\\]|\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"\\\((.+?)\\\)|(?<![\\$])\$(?![\d,.]+[ ,.](?![^$\n]*\$))([^$\n]+?)(?<!\\)\$")
_BOLD = re.compile(r"\*\*([^*\n]+?)\*\*")
_NUMBER = re.compile(r"(?<![\w.])-?\\?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?")


def final_answer(text: str) -> str | None:
    """The answer that a whole output gives; None if it gives none. Linear in the text."""
    _, closing, after = text.rpartition("</think>")
    part = after if closing else text
    boxed = last_box(part)
    if boxed is not None and boxed.strip():
        return boxed
    part = part[-_TAIL:].strip()
    for find in (_said, _displayed, _inline, _bold, _line, _number):
        answer = find(part)
        if answer:
            return answer
    return None


def _said(text: str) -> str | None:
    found = None
    for match in _SAID.finditer(text):
        phrase = match["hashes"] or match["said"] or ""
        answer = _trimmed(phrase)
        if answer:
            found = answer
    return found


def _trimmed(phrase: str) -> str:
    """The answer at the start of what follows "the answer is"."""
    phrase = phrase.strip()
    for pattern in (_DISPLAYED, _INLINE, _BOLD):
        match = pattern.match(phrase)
        if match:
            return next(group for group in match.groups() if group is not None).strip()
    phrase = phrase.split("\n")[0].strip().strip("*").strip()
    # A sentence ends at a point that no digit follows.
    phrase = re.split(
        r"\.(?:\s|$)|;\s|,\s(?:which|because|since|so|as)\s|\s(?:because|since)\s", phrase
    )[0]
    inline = list(_INLINE.finditer(phrase))
    if len(inline) == 1 and not re.search(r"\d", phrase.replace(inline[0][0], "")):
        outside = phrase.replace(inline[0][0], " ")
        if len(outside.split()) <= 3:
            return phrase.replace("$", "") if outside.split() else (inline[0][1] or inline[0][2])
    return phrase.strip().strip(".").strip()


def _displayed(text: str) -> str | None:
    return _last(_DISPLAYED, text, is_equation_cut=True)


def _inline(text: str) -> str | None:
    return _last(_INLINE, text, is_equation_cut=True)


def _bold(text: str) -> str | None:
    return _last(_BOLD, text, is_equation_cut=False)


def _last(pattern: re.Pattern[str], text: str, *, is_equation_cut: bool) -> str | None:
    found = None
    for match in pattern.finditer(text):
        inner = next(group for group in match.groups() if group is not None).strip()
        if inner and len(inner) <= MAX_CHARS:
            found = inner
    return found.strip().strip(".,").strip() if found else None


def _line(text: str) -> str | None:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) == 1 and len(lines[0]) <= 60 and len(lines[0].split()) <= 4:
        return lines[0].strip("*").strip()
    if lines and len(lines[-1]) <= 40 and len(lines[-1].split()) <= 2:
        return lines[-1].strip("*").strip()
    return None


def _number(text: str) -> str | None:
    found = None
    for match in _NUMBER.finditer(text):
        found = match[0]
    return found
