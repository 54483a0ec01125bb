"""Words, sentences, paragraphs and relations, in the languages of the data."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

AT_LEAST = {"at least", "au moins", "al menos", "以上"}
LESS_THAN = {"less than", "moins de", "未満"}
AT_MOST = {"como máximo"}

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_END = re.compile(r"[.!?…]+[\"'”»)\]]*(?=\s|$)|\n\s*\n")
_JAPANESE_END = re.compile(r"[。！？!?]+[」』）]*|\n+")
# A dot behind these ends no sentence.
_SHORT = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|p\.ej|Sr|Sra|M|Mme|approx|[A-Z])\.(?=\s)"
)


def holds(count: int, relation: str, bound: int) -> bool:
    """Whether a count is as the relation wants it. Raises ValueError for a relation unknown."""
    if relation in AT_LEAST:
        return count >= bound
    if relation in LESS_THAN:
        return count < bound
    if relation in AT_MOST:
        return count <= bound
    raise ValueError(f"relation is {relation!r}; it is none of those known")


def related(count: int, arguments: Mapping[str, Any], relation: str, bound: str) -> bool:
    """The same with the names of its arguments; without a relation, at least."""
    found = arguments.get(relation)
    return holds(count, "at least" if found is None else str(found), int(arguments[bound]))


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def sentences(text: str, language: str) -> list[str]:
    """The sentences, without what ends them."""
    if language == "ja":
        return [part.strip() for part in _JAPANESE_END.split(text) if part.strip()]
    text = _SHORT.sub(lambda match: match[0][:-1], text)
    return [part.strip() for part in _END.split(text) if words(part)]


def without_accents(text: str) -> str:
    """The letters alone: marks above and below taken off."""
    apart = unicodedata.normalize("NFD", text)
    return "".join(char for char in apart if not unicodedata.combining(char))


def is_kanji(char: str) -> bool:
    return "一" <= char <= "鿿" or "㐀" <= char <= "䶿" or char in "々〆"


def is_hiragana(char: str) -> bool:
    return "ぁ" <= char <= "ゖ"


def is_katakana(char: str) -> bool:
    return "ァ" <= char <= "ヺ" or "ｦ" <= char <= "ﾝ"
