"""Rules of the Spanish prompts."""

import re

from magistral_jax.verifier.following.common import Arguments
from magistral_jax.verifier.following.words import related, words


def exclamation_marks(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """At least one exclamation, opened and closed."""
    return re.search(r"¡[^¡!]+!", response) is not None


def question_marks(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return re.search(r"¿[^¿?]+\?", response) is not None


def dieresis(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """Exactly so many words with ü."""
    return _with(response, "ü") == int(arguments["let_frequency"])


def enie(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """Exactly so many words with ñ."""
    return _with(response, "ñ") == int(arguments["let_frequency"])


def tildes(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return related(_with(response, "áéíóú"), arguments, "relation", "num_words")


def _with(response: str, letters: str) -> int:
    """Words that hold one of the letters."""
    return sum(any(letter in word for letter in letters) for word in words(response.lower()))
