"""Answers that name something: a choice, yes or no, a date, a time of day.

Decisions: a choice is one capital letter, alone or in brackets, and may be followed by the number
that the option gives (`(B) 5` is B); brackets make its case irrelevant. Yes is not true. A date
without its year is not the date with it; a time without AM or PM is on the clock of 24 hours.
"""

import re

from magistral_jax.verifier.math.dates import moment

_BARE = re.compile(
    r'(?:"(?:option|choice|answer)" ?"?(?:is|:)?"?:? ?)?'
    r'(?:(?P<bracket>\() ?"?(?P<inside>[A-J])"? ?\)|"?(?P<bare>[A-J])"?)[.):]?',
    re.IGNORECASE,
)
_WITH_TEXT = re.compile(
    r'(?:\( ?"?([A-J])"? ?\)|"?([A-J])"?[).:]) ?'
    r"(?:-?[0-9.,]+|-?[0-9]*\\frac ?(?:\{[0-9]+\}|[0-9]){2}|-?[0-9]*\\sqrt ?\{[0-9]+\})%?"
)
_WORD_ANSWERS = {word: word for word in ("yes", "no", "true", "false", "no solution")} | {
    "no solutions": "no solution",
    "does not exist": "does not exist",
    "dne": "does not exist",
}


def same_label(a: str, b: str) -> bool | None:
    """For two cleaned texts: whether they name the same; None unless both name something."""
    words = _word(a), _word(b)
    if words[0] and words[1]:
        return words[0] == words[1]
    chosen, other = _choice(a), _choice(b)
    if chosen is not None and other is not None:
        (letter_a, loose_a, has_text_a), (letter_b, loose_b, has_text_b) = chosen, other
        if letter_a.upper() != letter_b.upper():
            return False
        if has_text_a and has_text_b:
            return None  # the numbers must agree as well
        return True if letter_a == letter_b or (loose_a and loose_b) else None
    moments = moment(a), moment(b)
    if moments[0] is not None and moments[1] is not None:
        return moments[0] == moments[1]
    return None


def _word(text: str) -> str | None:
    plain = text.replace('"', "").strip(" .!").lower()
    return _WORD_ANSWERS.get(plain)


def _choice(text: str) -> tuple[str, bool, bool] | None:
    """The letter, whether brackets make its case irrelevant, whether a number follows."""
    if match := _BARE.fullmatch(text):
        letter = match["inside"] or match["bare"]
        if match["bracket"] is None and letter.islower():
            return None
        return letter, match["bracket"] is not None, False
    if match := _WITH_TEXT.fullmatch(text):
        return match[1] or match[2], False, True
    return None
