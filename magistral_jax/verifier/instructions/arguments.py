"""The arguments of instructions, read strictly: what makes no sense is a ValueError."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Relation = Callable[[int, int], bool]
"""Compares what the answer has with what the instruction says."""

AT_LEAST: Relation = operator.ge

_RELATIONS: Mapping[str, Relation] = {
    "at least": operator.ge,
    "less than": operator.lt,
    "at most": operator.le,
    "au moins": operator.ge,
    "moins de": operator.lt,
    "au plus": operator.le,
    "al menos": operator.ge,
    "como mínimo": operator.ge,
    "menos de": operator.lt,
    "como máximo": operator.le,
    "以上": operator.ge,
    "未満": operator.lt,
    "以下": operator.le,
}


def read(
    arguments: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]
) -> dict[str, Any]:
    """The arguments that are given, in the form that checkers take.

    None means "not given". Raises ValueError for one that is missing, unknown or unfit.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if missing := [name for name in required if name not in given]:
        raise ValueError(f"arguments {missing} are missing among {sorted(given)}")
    if unknown := [name for name in given if name not in required and name not in optional]:
        raise ValueError(f"arguments {unknown} are not of this kind, which takes {list(required)}")
    values = {name: _READERS[name](name, value) for name, value in given.items()}
    if values.get("nth_paragraph", 0) > values.get("num_paragraphs", 0):
        raise ValueError("nth_paragraph is past num_paragraphs, the last one")
    return values


def _number(name: str, value: Any) -> int:
    # A bool is an int in Python, and "True words" is no instruction.
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 0 or more")
    return value


def _position(name: str, value: Any) -> int:
    if _number(name, value) == 0:
        raise ValueError(f"{name} is 0; the first is 1")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}; it must be a text that is not blank")
    return value.strip()


def _character(name: str, value: Any) -> str:
    if len(_text(name, value)) != 1:
        raise ValueError(f"{name} is {value!r}; it must be one character")
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} is {value!r}; it must be a list of texts, at least one")
    return [_text(name, item) for item in value]


def _spellings(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; it must map a bare word to its accented form")
    # A table of rows with different words has a column, mostly empty, for each of them.
    pairs = {_text(name, k): _text(name, v) for k, v in value.items() if v is not None}
    if not pairs:
        raise ValueError(f"{name} names no word")
    return pairs


def _relation(name: str, value: Any) -> Relation:
    if not isinstance(value, str) or value.strip().lower() not in _RELATIONS:
        raise ValueError(f"{name} is {value!r}; it must be one of {sorted(_RELATIONS)}")
    return _RELATIONS[value.strip().lower()]


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "capital_frequency": _number,
    "capital_relation": _relation,
    "count": _number,
    "end_phrase": _text,
    "ending": _text,
    "first_word": _text,
    "forbidden_char": _character,
    "forbidden_words": _texts,
    "frequency": _number,
    "kanji_limit": _number,
    "keyword": _text,
    "keywords": _texts,
    "language": _text,
    "let_frequency": _number,
    "let_relation": _relation,
    "letter": _character,
    "nth_paragraph": _position,
    "num_bullets": _number,
    "num_highlights": _number,
    "num_items": _number,
    "num_letters": _number,
    "num_paragraphs": _number,
    "num_placeholders": _number,
    "num_sections": _number,
    "num_sentences": _number,
    "num_words": _number,
    "postscript_marker": _text,
    "prompt_to_repeat": _text,
    "relation": _relation,
    "section_spliter": _text,
    "word_to_accentuate": _spellings,
}
