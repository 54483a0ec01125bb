"""The kinds that only French has, and its marks: ##titre## and « guillemets »."""

import re
from collections.abc import Mapping

from magistral_jax.verifier.instructions.words import is_accented, unaccented, words

ANSWERS = ("Oui.", "Non.", "Peut-être.")
TITLE_MARKS = ("##", "##")
QUOTES = ('""', "''", "«»")

_INFORMAL = re.compile(r"\b(?:(?:tu|te|toi|ton|ta|tes)\b|t['\u2019]\w)", re.IGNORECASE)


def informal_address(response: str) -> bool:
    """The reader is a "tu" at least once. As in M-IFEval, a "vous" to others does not spoil it."""
    return _INFORMAL.search(response) is not None


def no_digits(response: str) -> bool:
    return not any(map(str.isdigit, set(response)))


def no_accents(response: str) -> bool:
    """No letter has an accent or a cedilla; a ligature such as œ is no accent."""
    return not any(map(is_accented, set(response)))


def no_ethel_or_cedilla(response: str, *, forbidden_char: str) -> bool:
    return forbidden_char.lower() not in response.lower()


def accents(response: str, *, word_to_accentuate: Mapping[str, str]) -> bool:
    """Each word occurs with its accents, if only as a plural's beginning, and nowhere without.

    M-IFEval asks for the second alone, which a text without any of the words would follow.
    """
    right = {
        unaccented(spelled.lower()): spelled.lower() for spelled in word_to_accentuate.values()
    }
    bare = {word.lower() for word in word_to_accentuate} - set(right.values())
    lower = response.lower()
    # Only letters lose something, each its accent, so that the words are the same ones.
    found = frozenset(zip(words(lower), words(unaccented(lower)), strict=True))
    if any(word in bare or right.get(plain, word) != word for word, plain in found):
        return False
    return all(any(word.startswith(spelled) for word, _ in found) for spelled in right.values())
