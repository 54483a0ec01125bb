"""Rules of the French prompts."""

import re
import unicodedata

from magistral_jax.verifier.following.common import Arguments
from magistral_jax.verifier.following.words import words

_FAMILIAR = {"tu", "te", "toi", "ton", "ta", "tes", "t"}
_FORMAL = {"vous", "votre", "vos"}
_CEDILLA = "\N{COMBINING CEDILLA}"


def informal_address(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """It says tu, and never vous."""
    said = {part for word in words(response.lower()) for part in re.split(r"['’\-]", word)}
    return bool(said & _FAMILIAR) and not said & _FORMAL


def no_digits(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return not any("0" <= char <= "9" for char in response)


def accents(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """Every word that lacks its accents in the prompt has them."""
    said = set(words(response.lower()))
    said |= {part for word in said for part in re.split(r"['’]", word)}
    return all(str(word).lower() in said for word in arguments["word_to_accentuate"].values())


def ethel_or_cedilla(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return str(arguments["forbidden_char"]).lower() not in response.lower()


def no_accents(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """A cedilla is no accent."""
    apart = unicodedata.normalize("NFD", response)
    return not any(unicodedata.combining(char) and char != _CEDILLA for char in apart)
