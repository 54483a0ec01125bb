"""The kinds that only Spanish has: its inverted marks and its letters with an accent."""

import re

from magistral_jax.verifier.instructions.arguments import Relation
from magistral_jax.verifier.instructions.words import has_letter, joined_words

ANSWERS = ("Sí.", "No.", "Quizás.")

_QUESTION = re.compile(r"¿([^¿?]+)\?")
_EXCLAMATION = re.compile(r"¡([^¡!]+)!")
_TILDES = frozenset("áéíóú")


def question_marks(response: str) -> bool:
    """At least one question between its two marks."""
    return any(map(has_letter, _QUESTION.findall(response)))


def exclamation_marks(response: str) -> bool:
    """At least one exclamation between its two marks."""
    return any(map(has_letter, _EXCLAMATION.findall(response)))


def enie(response: str, *, let_frequency: int) -> bool:
    """Exactly so many words have an ñ."""
    return _words_with(frozenset("ñ"), response) == let_frequency


def dieresis(response: str, *, let_frequency: int) -> bool:
    """Exactly so many words have a ü."""
    return _words_with(frozenset("ü"), response) == let_frequency


def tildes(response: str, *, num_words: int, relation: Relation) -> bool:
    """Words with an accented vowel; ñ and ü have no accent."""
    return relation(_words_with(_TILDES, response), num_words)


def _words_with(letters: frozenset[str], response: str) -> int:
    return sum(not letters.isdisjoint(word) for word in joined_words(response.lower()))
