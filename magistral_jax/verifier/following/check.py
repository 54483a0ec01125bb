"""Kind of rule -> what checks it, and whether a whole answer keeps the rules of its prompt.

Semantics are those of IFEval's strict checks and of M-IFEval's for French, Spanish and Japanese,
written anew. Answers are hostile: every check is linear in them, and runs nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from magistral_jax.verifier.following import common, french, japanese, spanish
from magistral_jax.verifier.following.common import Checker

MOST_CHARS = 200_000

_EVERYWHERE: dict[str, Checker] = {
    "combination:repeat_prompt": common.repeat_prompt,
    "combination:two_responses": common.two_responses,
    "detectable_content:number_placeholders": common.number_placeholders,
    "detectable_content:postscript": common.postscript,
    "detectable_format:constrained_response": common.constrained_response,
    "detectable_format:json_format": common.json_format,
    "detectable_format:multiple_sections": common.multiple_sections,
    "detectable_format:number_bullet_lists": common.number_bullet_lists,
    "detectable_format:number_highlighted_sections": common.number_highlighted_sections,
    "detectable_format:title": common.title,
    "keywords:existence": common.existence,
    "keywords:forbidden_words": common.forbidden_words,
    "keywords:frequency": common.frequency,
    "keywords:letter_frequency": common.letter_frequency,
    "language:response_language": common.response_language,
    "length_constraints:nth_paragraph_first_word": common.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": common.number_paragraphs,
    "length_constraints:number_sentences": common.number_sentences,
    "punctuation:no_comma": common.no_comma,
    "startend:end_checker": common.end_checker,
    "startend:quotation": common.quotation,
}
_IN_LETTERS: dict[str, Checker] = {
    "change_case:capital_word_frequency": common.capital_word_frequency,
    "length_constraints:number_words": common.number_words,
}
_OWN: dict[str, dict[str, Checker]] = {
    "en": {
        **_IN_LETTERS,
        "change_case:english_capital": common.all_capital,
        "change_case:english_lowercase": common.all_lowercase,
    },
    "fr": {
        **_IN_LETTERS,
        "change_case:french_capital": common.all_capital,
        "change_case:french_lowercase": common.all_lowercase,
        "detectable_content:informal_address": french.informal_address,
        "detectable_content:no_digits": french.no_digits,
        "special_character:accents": french.accents,
        "special_character:ethel_or_cedilla": french.ethel_or_cedilla,
        "special_character:no_accents": french.no_accents,
    },
    "es": {
        **_IN_LETTERS,
        "change_case:spanish_capital": common.all_capital,
        "change_case:spanish_lowercase": common.all_lowercase,
        "punctuation:exclamation_marks": spanish.exclamation_marks,
        "punctuation:question_marks": spanish.question_marks,
        "special_character:dieresis": spanish.dieresis,
        "special_character:enie": spanish.enie,
        "special_character:tildes": spanish.tildes,
    },
    "ja": {
        "detectable_format:nominal_ending": japanese.nominal_ending,
        "detectable_format:number_numbered_lists": japanese.number_numbered_lists,
        "length_constraints:number_letters": japanese.number_letters,
        "letters:furigana": japanese.furigana,
        "letters:hiragana_only": japanese.hiragana_only,
        "letters:kanji": japanese.kanji,
        "letters:kansuuji": japanese.kansuuji,
        "letters:katakana_only": japanese.katakana_only,
        "letters:no_hiragana": japanese.no_hiragana,
        "letters:no_katakana": japanese.no_katakana,
        "punctuation:no_period": japanese.no_period,
        "startend:sentence_unified_end": japanese.sentence_unified_end,
    },
}
CHECKERS: dict[str, Checker] = {
    f"{language}:{kind}": checker
    for language, own in _OWN.items()
    for kind, checker in {**_EVERYWHERE, **own}.items()
}
"""By kind, as "en:keywords:existence"."""


def follows(kind: str, arguments: Mapping[str, Any], response: str, prompt: str = "") -> bool:
    """Whether the answer keeps the rule; one that is blank, or too long to read, keeps none.

    Raises LookupError for a kind or an argument that is not known, ValueError for one that makes
    no sense.
    """
    checker = CHECKERS[kind]
    if not response.strip() or len(response) > MOST_CHARS:
        return False
    given = {name: value for name, value in arguments.items() if value is not None}
    return checker(response, given, prompt, kind.partition(":")[0])


def all_followed(
    kinds: Sequence[str], arguments: Sequence[Mapping[str, Any]], response: str, prompt: str = ""
) -> list[bool]:
    """Of each rule, whether the answer keeps it."""
    return [
        follows(kind, given, response, prompt) for kind, given in zip(kinds, arguments, strict=True)
    ]
