"""The kinds of instruction that languages share. Checkers take a text that is not blank.

IFEval's strict rules, and where those would pay for what nobody asked, the prompt's own words:
- a bullet has a space after its mark, and marks an item, not emphasis;
- a placeholder, a title and a highlighted part say something between their marks;
- JSON is an object or a list; a repeated request has an answer after it;
- of the three answers to choose from, a response gives one, not all;
- a postscript opens its line and goes on after its mark.
"""

import json
import re
from collections.abc import Sequence

from magistral_jax.verifier.instructions.arguments import AT_LEAST, Relation
from magistral_jax.verifier.instructions.words import (
    count_sentences,
    has_letter,
    joined_words,
    paragraphs,
    parts,
    plain,
    words,
)
from magistral_jax.verifier.language import detect_language

# What follows must say something: "* * *" is a divider.
_BULLET = re.compile(r"(?m)^[ \t]*[*-][ \t]++(?=[^\n]*[^\W_])")
# The bullet's own star is no emphasis.
_BULLET_MARK = re.compile(r"(?m)^[ \t]*\*[ \t]+")
_HIGHLIGHT = re.compile(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*")
_PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\]")
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)
_COMMAS = ",\uff0c\u060c\u3001\uff64"
_OPENERS = " \t\"'\u201c\u2018\u00ab\u300c\u300e*_#>("


# Keywords and letters.


def keywords_exist(response: str, *, keywords: Sequence[str]) -> bool:
    """Each keyword occurs, in any case, if only inside a longer word."""
    lower = plain(response)
    return all(plain(keyword) in lower for keyword in keywords)


def no_forbidden_words(response: str, *, forbidden_words: Sequence[str]) -> bool:
    """None of the words occurs as a whole word, in any case."""
    lower = plain(response)
    return not any(
        re.search(rf"(?<!\w){re.escape(plain(word))}(?!\w)", lower) for word in forbidden_words
    )


def keyword_frequency(response: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    return relation(plain(response).count(plain(keyword)), frequency)


def letter_frequency(
    response: str, *, letter: str, let_frequency: int, let_relation: Relation
) -> bool:
    return let_relation(response.lower().count(letter.lower()), let_frequency)


# Lengths.


def number_words(response: str, *, num_words: int, relation: Relation) -> bool:
    return relation(len(words(response)), num_words)


def number_sentences(
    response: str, *, num_sentences: int, relation: Relation, of_language: str
) -> bool:
    return relation(count_sentences(response, of_language), num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Paragraphs are divided by `***`, and none is blank."""
    found = parts(response, "***")
    return found is not None and len(found) == num_paragraphs


def nth_paragraph_first_word(
    response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs are divided by empty lines, and the nth starts with the word, in any case."""
    found = paragraphs(response)
    if len(found) != num_paragraphs:
        return False
    start, word = plain(found[nth_paragraph - 1].lstrip(_OPENERS)), plain(first_word)
    return start.startswith(word) and not words(start[len(word) : len(word) + 1])


# Content and form.


def number_placeholders(
    response: str, *, num_placeholders: int, relation: Relation = AT_LEAST
) -> bool:
    count = sum(map(has_letter, _PLACEHOLDER.findall(response)))
    return relation(count, num_placeholders)


def postscript(response: str, *, postscript_marker: str) -> bool:
    """A line opens with the mark, in any case and with or without spaces after its periods."""
    spelled = "".join(
        re.escape(c) + (r"[ \t]?" if c == "." else "") for c in postscript_marker if c != " "
    )
    # "PS" must not open "Psychologie"; a Japanese or Korean mark needs no space after it.
    is_word = postscript_marker[-1].isascii() and postscript_marker[-1].isalnum()
    mark = re.compile(spelled + (r"(?![^\W_])" if is_word else ""), re.IGNORECASE)
    lines = response.splitlines()
    for i, line in enumerate(lines):
        found = mark.match(line.lstrip(_OPENERS))
        if found is not None:
            rest = line.lstrip(_OPENERS)[found.end() :]
            return has_letter(rest) or any(map(has_letter, lines[i + 1 :]))
    return False


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    return len(_BULLET.findall(response)) == num_bullets


def number_highlighted_sections(
    response: str, *, num_highlights: int, relation: Relation = AT_LEAST
) -> bool:
    found = _HIGHLIGHT.findall(_BULLET_MARK.sub("", response))
    count = sum(bool((bold or slanted).strip()) for bold, slanted in found)
    return relation(count, num_highlights)


def multiple_sections(
    response: str, *, section_spliter: str, num_sections: int, relation: Relation = AT_LEAST
) -> bool:
    """Sections are headed by their word, as it is written, and a number: "SECTION 1"."""
    found = re.findall(rf"(?<!\w){re.escape(section_spliter)}\s?\d", response)
    return relation(len(found), num_sections)


def title(response: str, *, opening: str = "<<", closing: str = ">>") -> bool:
    """A line has text between the marks."""
    for line in response.splitlines():
        start, end = line.find(opening), line.rfind(closing)
        if 0 <= start < end and has_letter(line[start + len(opening) : end]):
            return True
    return False


def json_format(response: str) -> bool:
    """The whole is one JSON object or list, in a fence of code or bare."""
    text = response.strip()
    opened = _FENCE.match(text)
    if opened is not None:
        text = text[opened.end() :].removesuffix("```")
    try:
        # Numbers stay text: the longest ones take quadratic time to read.
        value = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def constrained_response(response: str, *, options: Sequence[str]) -> bool:
    """One of the options is in the response as it is written, and no other."""
    return sum(option in response for option in options) == 1


# The whole answer.


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """The response opens with the request, and something follows."""
    start, text = plain(prompt_to_repeat.strip()), plain(response.strip())
    return text.startswith(start) and has_letter(text[len(start) :])


def two_responses(response: str) -> bool:
    """Two different responses are divided by six asterisks."""
    found = parts(response, "******")
    return found is not None and len(found) == 2 and found[0] != found[1]


def end_checker(response: str, *, end_phrase: str, closers: str = '"') -> bool:
    """Nothing but quotation marks follows the phrase, in any case."""
    text = plain(response).rstrip().rstrip(closers).rstrip()
    return text.endswith(plain(end_phrase).rstrip(closers).rstrip())


def quotation(response: str, *, marks: Sequence[str] = ('""',)) -> bool:
    """The whole stands between two marks, given as pairs."""
    text = response.strip()
    return has_letter(text) and any((text[0] + text[-1]) == pair for pair in marks)


def no_comma(response: str) -> bool:
    return not any(comma in response for comma in _COMMAS)


def all_capitals(response: str, *, of_language: str) -> bool:
    return response.isupper() and detect_language(response) == of_language


def all_lowercase(response: str, *, of_language: str) -> bool:
    return response.islower() and detect_language(response) == of_language


def capital_word_frequency(
    response: str, *, capital_frequency: int, capital_relation: Relation
) -> bool:
    """Words in capitals; one with hyphens is one word, and "I" is a word."""
    count = sum(map(str.isupper, joined_words(response)))
    return capital_relation(count, capital_frequency)


def response_language(response: str, *, language: str) -> bool:
    return detect_language(response) == language
