"""Rules of the Japanese prompts."""

import re

from magistral_jax.verifier.following.common import Arguments
from magistral_jax.verifier.following.words import (
    is_hiragana,
    is_kanji,
    is_katakana,
    related,
    sentences,
)

_ITEM = re.compile(r"^[ \t]*[\d０-９]+[.．、)）][ \t]*\S", re.MULTILINE)
_KANJI = re.compile("[一-鿿㐀-䶿々〆]+")
_READING = re.compile("[（(][ぁ-ゖー・ ]{1,100}[）)]")


def nominal_ending(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """Sentences that end in a noun, as far as the script tells: in kanji or katakana, as verbs and
    particles do not."""
    last = [sentence.rstrip("」』）) ")[-1:] for sentence in sentences(response, "ja")]
    count = sum(is_kanji(char) or is_katakana(char) or char == "ー" for char in last if char)
    return count >= int(arguments["count"])


def number_numbered_lists(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return len(_ITEM.findall(response)) == int(arguments["num_items"])


def number_letters(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    count = sum(not char.isspace() for char in response)
    return related(count, arguments, "relation", "num_letters")


def furigana(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """Every run of kanji has its reading in brackets right behind it, and there is one."""
    ends = [run.end() for run in _KANJI.finditer(response)]
    return len(ends) > 0 and all(_READING.match(response, end) for end in ends)


def hiragana_only(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return any(map(is_hiragana, response)) and not any(
        is_kanji(char) or is_katakana(char) or (char.isascii() and char.isalpha())
        for char in response
    )


def katakana_only(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return any(map(is_katakana, response)) and not any(
        is_kanji(char) or is_hiragana(char) or (char.isascii() and char.isalpha())
        for char in response
    )


def no_hiragana(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return not any(map(is_hiragana, response))


def no_katakana(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return not any(map(is_katakana, response))


def kanji(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return related(sum(map(is_kanji, response)), arguments, "relation", "kanji_limit")


def kansuuji(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """No digits but those in kanji."""
    return not any(char.isdigit() for char in response)


def no_period(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return not any(char in "。．" for char in response)


def sentence_unified_end(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    found = [sentence.rstrip("」』）) ") for sentence in sentences(response, "ja")]
    return bool(found) and all(sentence.endswith(str(arguments["ending"])) for sentence in found)
