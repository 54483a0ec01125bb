"""Whether a response follows an instruction: the 118 kinds of IFEval and M-IFEval.

A kind is named as in their data, "fr:length_constraints:number_words". The response is hostile:
every check is linear in it, and one that is too long follows nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from magistral_jax.verifier.instructions import common, french, japanese, spanish
from magistral_jax.verifier.instructions.arguments import read
from magistral_jax.verifier.instructions.words import composed

LONGEST = 1_000_000
"""Characters of the longest response that is looked at."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A checker of a response, and the names of its arguments in the data."""

    check: Callable[..., bool]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def follows(kind: str, arguments: Mapping[str, Any], response: str, prompt: str = "") -> bool:
    """True if the response follows the instruction. An empty one, or a blank one, follows none.

    An argument that is None is not given. A request to repeat that is not given is the prompt.
    Raises LookupError for an unknown kind, and ValueError for arguments that make no sense.
    """
    found = _TABLE.get(kind)
    if found is None:
        raise LookupError(f"no instruction is of the kind {kind!r}")
    if "prompt_to_repeat" in found.required and arguments.get("prompt_to_repeat") is None:
        arguments = {**arguments, "prompt_to_repeat": prompt}
    try:
        given = read(arguments, found.required, found.optional)
    except ValueError as failure:
        raise ValueError(f"{kind}: {failure}") from None
    if len(response) > LONGEST or not response.strip():
        return False
    return found.check(composed(response), **given)


def all_followed(
    kinds: Sequence[str], arguments: Sequence[Mapping[str, Any]], response: str, prompt: str = ""
) -> list[bool]:
    """For each instruction of a problem, whether the response follows it."""
    if len(kinds) != len(arguments):
        raise ValueError(f"{len(kinds)} instructions have arguments for {len(arguments)}")
    return [follows(k, a, response, prompt) for k, a in zip(kinds, arguments, strict=True)]


def _shared(
    language: str,
    *,
    answers: Sequence[str],
    title_marks: tuple[str, str] = ("<<", ">>"),
    quotes: Sequence[str] = ('""',),
    closers: str = '"',
) -> dict[str, _Kind]:
    """The kinds that every language has, with its own marks."""
    title = partial(common.title, opening=title_marks[0], closing=title_marks[1])
    kinds = {
        "combination:repeat_prompt": _Kind(
            check=common.repeat_prompt, required=("prompt_to_repeat",)
        ),
        "combination:two_responses": _Kind(check=common.two_responses),
        "detectable_content:number_placeholders": _Kind(
            check=common.number_placeholders,
            required=("num_placeholders",),
            optional=("relation",),
        ),
        "detectable_content:postscript": _Kind(
            check=common.postscript, required=("postscript_marker",)
        ),
        "detectable_format:constrained_response": _Kind(
            check=partial(common.constrained_response, options=answers)
        ),
        "detectable_format:json_format": _Kind(check=common.json_format),
        "detectable_format:title": _Kind(check=title),
        "language:response_language": _Kind(check=common.response_language, required=("language",)),
        "length_constraints:number_paragraphs": _Kind(
            check=common.number_paragraphs, required=("num_paragraphs",)
        ),
        "startend:end_checker": _Kind(
            check=partial(common.end_checker, closers=closers), required=("end_phrase",)
        ),
        "startend:quotation": _Kind(check=partial(common.quotation, marks=quotes)),
    }
    return {f"{language}:{name}": kind for name, kind in kinds.items()}


def _spaced(language: str, name: str) -> dict[str, _Kind]:
    """The kinds that languages with spaces and capitals share; `name` is the language's own."""
    kinds = {
        "change_case:capital_word_frequency": _Kind(
            check=common.capital_word_frequency,
            required=("capital_frequency", "capital_relation"),
        ),
        f"change_case:{name}_capital": _Kind(
            check=partial(common.all_capitals, of_language=language)
        ),
        f"change_case:{name}_lowercase": _Kind(
            check=partial(common.all_lowercase, of_language=language)
        ),
        "length_constraints:number_words": _Kind(
            check=common.number_words, required=("num_words", "relation")
        ),
        **_varied(common, sentences=partial(common.number_sentences, of_language=language)),
    }
    return {f"{language}:{kind}": found for kind, found in kinds.items()}


def _varied(module: ModuleType, *, sentences: Callable[..., bool]) -> dict[str, _Kind]:
    """The kinds that all languages have, but that Japanese has checkers of its own for."""
    return {
        "detectable_format:multiple_sections": _Kind(
            check=module.multiple_sections,
            required=("section_spliter", "num_sections"),
            optional=("relation",),
        ),
        "detectable_format:number_bullet_lists": _Kind(
            check=module.number_bullet_lists, required=("num_bullets",)
        ),
        "detectable_format:number_highlighted_sections": _Kind(
            check=module.number_highlighted_sections,
            required=("num_highlights",),
            optional=("relation",),
        ),
        "keywords:existence": _Kind(check=module.keywords_exist, required=("keywords",)),
        "keywords:forbidden_words": _Kind(
            check=module.no_forbidden_words, required=("forbidden_words",)
        ),
        "keywords:frequency": _Kind(
            check=module.keyword_frequency, required=("keyword", "frequency", "relation")
        ),
        "keywords:letter_frequency": _Kind(
            check=module.letter_frequency, required=("letter", "let_frequency", "let_relation")
        ),
        "length_constraints:nth_paragraph_first_word": _Kind(
            check=module.nth_paragraph_first_word,
            required=("num_paragraphs", "nth_paragraph", "first_word"),
        ),
        "length_constraints:number_sentences": _Kind(
            check=sentences, required=("num_sentences", "relation")
        ),
        "punctuation:no_comma": _Kind(check=module.no_comma),
    }


_ENGLISH_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_FRENCH = {
    "detectable_content:informal_address": _Kind(check=french.informal_address),
    "detectable_content:no_digits": _Kind(check=french.no_digits),
    "special_character:accents": _Kind(check=french.accents, required=("word_to_accentuate",)),
    "special_character:ethel_or_cedilla": _Kind(
        check=french.no_ethel_or_cedilla, required=("forbidden_char",)
    ),
    "special_character:no_accents": _Kind(check=french.no_accents),
}

_SPANISH = {
    "punctuation:exclamation_marks": _Kind(check=spanish.exclamation_marks),
    "punctuation:question_marks": _Kind(check=spanish.question_marks),
    "special_character:dieresis": _Kind(check=spanish.dieresis, required=("let_frequency",)),
    "special_character:enie": _Kind(check=spanish.enie, required=("let_frequency",)),
    "special_character:tildes": _Kind(check=spanish.tildes, required=("num_words", "relation")),
}

_JAPANESE = {
    **_varied(japanese, sentences=japanese.number_sentences),
    "detectable_format:nominal_ending": _Kind(check=japanese.nominal_ending, required=("count",)),
    "detectable_format:number_numbered_lists": _Kind(
        check=japanese.number_numbered_lists, required=("num_items",)
    ),
    "length_constraints:number_letters": _Kind(
        check=japanese.number_letters, required=("num_letters", "relation")
    ),
    "letters:furigana": _Kind(check=japanese.furigana),
    "letters:hiragana_only": _Kind(check=japanese.hiragana_only),
    "letters:kanji": _Kind(check=japanese.kanji, required=("kanji_limit", "relation")),
    "letters:kansuuji": _Kind(check=japanese.kansuuji),
    "letters:katakana_only": _Kind(check=japanese.katakana_only),
    "letters:no_hiragana": _Kind(check=japanese.no_hiragana),
    "letters:no_katakana": _Kind(check=japanese.no_katakana),
    "punctuation:no_period": _Kind(check=japanese.no_period),
    "startend:sentence_unified_end": _Kind(
        check=japanese.sentence_unified_end, required=("ending",)
    ),
}

_TABLE: Mapping[str, _Kind] = {
    **_shared("en", answers=_ENGLISH_ANSWERS),
    **_spaced("en", "english"),
    **_shared(
        "fr",
        answers=french.ANSWERS,
        title_marks=french.TITLE_MARKS,
        quotes=french.QUOTES,
        closers="\"'»",
    ),
    **_spaced("fr", "french"),
    **{f"fr:{name}": kind for name, kind in _FRENCH.items()},
    **_shared("es", answers=spanish.ANSWERS),
    **_spaced("es", "spanish"),
    **{f"es:{name}": kind for name, kind in _SPANISH.items()},
    **_shared(
        "ja",
        answers=japanese.ANSWERS,
        title_marks=japanese.TITLE_MARKS,
        quotes=japanese.QUOTES,
        closers=japanese.CLOSERS,
    ),
    **{f"ja:{name}": kind for name, kind in _JAPANESE.items()},
}

KINDS: frozenset[str] = frozenset(_TABLE)
"""Every kind that `follows` knows."""
