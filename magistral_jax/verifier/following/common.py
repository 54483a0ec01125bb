"""Rules that several languages share."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from magistral_jax.verifier.following.words import related, sentences, words
from magistral_jax.verifier.language import detect_language

Arguments = Mapping[str, Any]
Checker = Callable[[str, Arguments, str, str], bool]
"""(response, arguments, prompt, language) -> whether it keeps the rule."""

_OPTIONS = {
    "en": ("My answer is yes.", "My answer is no.", "My answer is maybe."),
    "fr": ("Oui.", "Non.", "Peut-être."),
    "es": ("Sí.", "No.", "Quizás."),
    "ja": ("はい、そうです。", "いいえ、違います。", "どちらとも言えません。"),
}
_TITLE = {
    "en": r"<<([^\n<>]+)>>",
    "es": r"<<([^\n<>]+)>>",
    "fr": r"##([^\n#]+)##|<<([^\n<>]+)>>",
    "ja": r"『([^\n『』]+)』",
}
_QUOTES = {
    "en": (('"', '"'),),
    "es": (('"', '"'), ("«", "»"), ("“", "”")),
    "fr": (('"', '"'), ("«", "»"), ("“", "”")),
    "ja": (("「", "」"),),
}
_TOLD = 5_000
"""Characters from the start that tell a language."""
_COMMAS = {"ja": "、,，"}
_FENCE = re.compile(r"^```(?:json)?\s*\n?(.*?)\n?```$", re.IGNORECASE | re.DOTALL)


def existence(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    lower = response.lower()
    return all(str(word).lower() in lower for word in arguments["keywords"])


def forbidden_words(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    lower = response.lower()
    if language == "ja":  # no blanks between words
        return not any(str(word).lower() in lower for word in arguments["forbidden_words"])
    return not any(
        re.search(rf"(?<!\w){re.escape(str(word).lower())}(?!\w)", lower)
        for word in arguments["forbidden_words"]
    )


def frequency(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    count = response.lower().count(str(arguments["keyword"]).lower())
    return related(count, arguments, "relation", "frequency")


def letter_frequency(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    count = response.lower().count(str(arguments["letter"]).lower())
    return related(count, arguments, "let_relation", "let_frequency")


def number_words(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return related(len(words(response)), arguments, "relation", "num_words")


def number_sentences(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    count = len(sentences(response, language))
    return related(count, arguments, "relation", "num_sentences")


def number_paragraphs(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """Exactly so many between Markdown's dividers, none of them empty."""
    parts = [part.strip() for part in re.split(r"\*\*\*", response)]
    parts = parts[1:] if not parts[0] else parts
    parts = parts[:-1] if parts and not parts[-1] else parts
    return all(parts) and len(parts) == int(arguments["num_paragraphs"])


def nth_paragraph_first_word(
    response: str, arguments: Arguments, prompt: str, language: str
) -> bool:
    parts = [part.strip() for part in response.split("\n\n") if part.strip()]
    place = int(arguments["nth_paragraph"])
    if len(parts) != int(arguments["num_paragraphs"]) or not 1 <= place <= len(parts):
        return False
    begins = parts[place - 1].lstrip("\"'«“「¿¡*# ").lower()
    word = str(arguments["first_word"]).lower()
    if language == "ja":
        return begins.startswith(word)
    found = words(begins)
    return (
        begins.startswith(word) and bool(found) and not begins[len(word) : len(word) + 1].isalnum()
    )


def number_placeholders(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    count = len(re.findall(r"\[[^\[\]]*\]", response))
    return related(count, arguments, "relation", "num_placeholders")


def postscript(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """The marker begins a line, or stands behind a sentence, and something follows it."""
    marker = re.escape(str(arguments["postscript_marker"]).strip()).replace(r"\.", r"\.\s?")
    return re.search(rf"(?:^|[\s。]){marker}\s*\S", response, re.IGNORECASE) is not None


def constrained_response(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    """English asks for one of the phrases to be said; the others, for nothing else."""
    if language == "en":
        return any(option in response for option in _OPTIONS["en"])
    return response.strip().strip("\"'«»“”「」 ") in _OPTIONS[language]


def json_format(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    text = response.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def multiple_sections(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    name = re.escape(str(arguments["section_spliter"]))
    pattern = rf"{name}\s?\d+"
    if language == "ja":
        pattern = rf"第?[ 　]?[\d０-９一二三四五六七八九十]{{1,9}}[ 　]?{name}"
    return related(len(re.findall(pattern, response)), arguments, "relation", "num_sections")


def number_bullet_lists(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    mark = r"[*\-・•]" if language == "ja" else r"[*\-]"
    bullets = re.findall(rf"^[ \t]*{mark}(?![*\-])[^\n]*\S", response, re.MULTILINE)
    return len(bullets) == int(arguments["num_bullets"])


def number_highlighted_sections(
    response: str, arguments: Arguments, prompt: str, language: str
) -> bool:
    if language == "ja":
        found = re.findall(r"《([^《》\n]*)》", response)
    else:
        found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", response)
        found = [bold or plain for bold, plain in found]
    count = sum(1 for text in found if text.strip())
    return related(count, arguments, "relation", "num_highlights")


def title(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    found = re.findall(_TITLE[language], response)
    texts = ["".join(one) if isinstance(one, tuple) else one for one in found]
    return any(text.strip() for text in texts)


def repeat_prompt(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    wanted = str(arguments["prompt_to_repeat"]).strip().lower()
    return response.strip().strip("\"'«»“”「」 ").lower().startswith(wanted)


def two_responses(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    parts = [part.strip() for part in response.split("******")]
    parts = parts[1:] if not parts[0] else parts
    parts = parts[:-1] if parts and not parts[-1] else parts
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def end_checker(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    wanted = str(arguments["end_phrase"]).strip().lower()
    text = response.strip().strip("\"'«»“”「」 ").lower()
    return text.endswith(wanted.strip("\"'«»“”「」 "))


def quotation(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    text = response.strip()
    return len(text) > 2 and any(
        text.startswith(begin) and text.endswith(end) for begin, end in _QUOTES[language]
    )


def no_comma(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return not any(comma in response for comma in _COMMAS.get(language, ","))


def capital_word_frequency(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    count = sum(word.isupper() for word in words(response))
    return related(count, arguments, "capital_relation", "capital_frequency")


def all_capital(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return response.isupper() and _may_be(response.lower(), language)


def all_lowercase(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return response.islower() and _may_be(response, language)


def response_language(response: str, arguments: Arguments, prompt: str, language: str) -> bool:
    return detect_language(response[:_TOLD]) == str(arguments["language"])


def _may_be(text: str, language: str) -> bool:
    """Whether a text is in the language, or in none that can be told."""
    return detect_language(text[:_TOLD]) in (language, "unknown")
