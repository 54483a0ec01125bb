"""The kinds of Japanese, which has no spaces, no capitals, and scripts to choose from.

M-IFEval cuts words with a dictionary. Here a keyword of one kanji, or of katakana, counts where
it is no part of a longer run of its script: 音 is not in 音楽, nor ラテ in ラテン. Any other
counts wherever it stands.
"""

# ruff: noqa: RUF001 - Japanese writes its marks wide, and they are what is looked for here.

import re
from collections.abc import Sequence

from magistral_jax.verifier.instructions.arguments import AT_LEAST, Relation
from magistral_jax.verifier.instructions.words import has_letter, paragraphs

ANSWERS = ("はい、そうです。", "いいえ、違います。", "どちらとも言えません。")
TITLE_MARKS = ("『", "』")
QUOTES = ("「」",)
CLOSERS = '」』"'

_KANJI = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HIRAGANA = "\u3041-\u3096\u309d-\u309f"
_KATAKANA = "\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff6f\uff71-\uff9d"
_LONG_MARKS = "\u30fc\uff70"  # ー belongs to both kana, and says nothing of a script by itself

_ONE_KANJI = re.compile(f"[{_KANJI}]")
_ALL_KATAKANA = re.compile(f"[{_KATAKANA}{_LONG_MARKS}]+")
# 時々 and 一ヶ月 are read as wholes.
_KANJI_RUN = re.compile(f"[{_KANJI}々〆]+(?:[ヶヵ][{_KANJI}々]+)*")
_FURIGANA = re.compile(f"（[{_HIRAGANA}{_LONG_MARKS}]+）")
_ANY_HIRAGANA = re.compile(f"[{_HIRAGANA}]")
_ANY_KATAKANA = re.compile(f"[{_KATAKANA}]")

_DOT_BULLET = re.compile(r"(?m)^[ \t\u3000]*・[ \t\u3000]*[^\s・]")
_OTHER_BULLET = re.compile(r"(?m)^[ \t\u3000]*[*•-][ \t\u3000]++(?=[^\n]*[^\W_])")
_NUMBERED = re.compile(r"(?m)^[ \t\u3000]*\d+(?:\.[ \t\u3000]|．)[ \t\u3000]*[^\s]")
_HIGHLIGHT = re.compile(r"《([^\n《》]+)》")
_SECTION_NUMBER = "[0-9０-９一二三四五六七八九十百]{1,4}"

_ENDS = "。！？!?｡"
_SENTENCE_END = re.compile(f"[{_ENDS}]")
_SENTENCE_OR_LINE_END = re.compile(f"[{_ENDS}\n]")
_HEADING = re.compile(r"\s*+(?:#|『[^』]*』\s*+$)")
_QUOTED = re.compile(r"「[^「」\n]*」|『[^『』\n]*』")
_ASIDE = re.compile(r"[（(][^（()）\n]*[）)]")
_DECORATION = " \t\u3000\r\n\"'*_`」』）)】》〉]…・~〜～♪-"

# A sentence that ends in kanji or katakana ends in a noun, nearly always; of the nouns written in
# hiragana these are the ones that sentences end in.
_NOUN_END = re.compile(
    f"(?:[{_KANJI}々{_KATAKANA}{_LONG_MARKS}A-Za-zＡ-Ｚａ-ｚ0-9０-９]"
    "|こと|もの|ところ|とき|ため|わけ|はず|ひと|まち|いのち|こころ|ひとつ|ふたつ|すべて|あなた|わたし)$"
)


# Keywords and letters.


def keywords_exist(response: str, *, keywords: Sequence[str]) -> bool:
    return all(_occurrences(keyword, response) for keyword in keywords)


def no_forbidden_words(response: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(_occurrences(word, response) for word in forbidden_words)


def keyword_frequency(response: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    return relation(_occurrences(keyword, response), frequency)


def _occurrences(keyword: str, response: str) -> int:
    if _ONE_KANJI.fullmatch(keyword):
        run = f"[{_KANJI}々]"
    elif _ALL_KATAKANA.fullmatch(keyword):
        run = f"[{_KATAKANA}{_LONG_MARKS}]"
    else:
        return response.count(keyword)
    return len(re.findall(f"(?<!{run}){re.escape(keyword)}(?!{run})", response))


def letter_frequency(
    response: str, *, letter: str, let_frequency: int, let_relation: Relation
) -> bool:
    """A hiragana and its katakana twin are one letter, as they are one sound."""
    count = response.count(letter)
    if "ぁ" <= letter <= "ゖ":
        count += response.count(chr(ord(letter) + ord("ァ") - ord("ぁ")))
    return let_relation(count, let_frequency)


# Lengths.


def number_letters(response: str, *, num_letters: int, relation: Relation) -> bool:
    """Characters but for spaces and line breaks: letters, digits and signs."""
    return relation(sum(map(len, response.split())), num_letters)


def number_sentences(response: str, *, num_sentences: int, relation: Relation) -> bool:
    """A sentence ends with its mark, and a line, such as an item of a list, ends one too."""
    sentences = _SENTENCE_OR_LINE_END.split(response)
    return relation(sum(map(has_letter, sentences)), num_sentences)


def nth_paragraph_first_word(
    response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """As in other languages, but nothing tells where a word ends."""
    found = paragraphs(response)
    if len(found) != num_paragraphs:
        return False
    return found[nth_paragraph - 1].lstrip('「『"').startswith(first_word)


# Form.


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    """Items marked with ・; a list that has none may be marked as in markdown."""
    count = len(_DOT_BULLET.findall(response)) or len(_OTHER_BULLET.findall(response))
    return count == num_bullets


def number_numbered_lists(response: str, *, num_items: int) -> bool:
    return len(_NUMBERED.findall(response)) == num_items


def number_highlighted_sections(
    response: str, *, num_highlights: int, relation: Relation = AT_LEAST
) -> bool:
    return relation(sum(map(has_letter, _HIGHLIGHT.findall(response))), num_highlights)


def multiple_sections(
    response: str, *, section_spliter: str, num_sections: int, relation: Relation = AT_LEAST
) -> bool:
    """Sections are headed as in 第1章, with a number of any writing."""
    found = re.findall(f"第{_SECTION_NUMBER}{re.escape(section_spliter)}", response)
    return relation(len(found), num_sections)


def nominal_ending(response: str, *, count: int) -> bool:
    """At least so many sentences or lines end in a noun; a heading and a title are no sentences."""
    lines = [line for line in response.splitlines() if not _HEADING.match(line)]
    sentences = _SENTENCE_OR_LINE_END.split("\n".join(lines))
    return sum(_NOUN_END.search(_bare_end(s)) is not None for s in sentences) >= count


def sentence_unified_end(response: str, *, ending: str) -> bool:
    """Every sentence ends so. What is quoted is not judged, but for a response quoted as a whole.

    A line ends a sentence only in a text without marks, as a heading has none.
    """
    text = response.strip()
    if text[0] + text[-1] in ("「」", "『』"):
        text = text[1:-1]
    text = _QUOTED.sub("", text)
    end = _SENTENCE_END if _SENTENCE_END.search(text) else _SENTENCE_OR_LINE_END
    sentences = [_bare_end(s) for s in end.split(text) if has_letter(s)]
    return bool(sentences) and all(s.endswith(ending) for s in sentences)


def _bare_end(sentence: str) -> str:
    """The sentence's end, without quotes, emphasis, and an aside such as a reading."""
    end = sentence[-200:].rstrip()
    if end.endswith(("）", ")")):
        end = _ASIDE.sub("", end)
    return end.rstrip(_DECORATION)


# Punctuation and scripts.


def no_comma(response: str) -> bool:
    return not any(comma in response for comma in "、，､")


def no_period(response: str) -> bool:
    return "。" not in response and "｡" not in response


def furigana(response: str) -> bool:
    """Each run of kanji is followed by its reading in hiragana, in wide parentheses."""
    return all(
        _FURIGANA.match(response, run.end()) is not None for run in _KANJI_RUN.finditer(response)
    )


def kanji(response: str, *, kanji_limit: int, relation: Relation) -> bool:
    return relation(len(_ONE_KANJI.findall(response)), kanji_limit)


def no_hiragana(response: str) -> bool:
    return _ANY_HIRAGANA.search(response) is None


def no_katakana(response: str) -> bool:
    return _ANY_KATAKANA.search(response) is None


def hiragana_only(response: str) -> bool:
    """No letter of another script; digits and signs are no letters."""
    return _is_only(_ANY_HIRAGANA, response)


def katakana_only(response: str) -> bool:
    """No letter of another script; digits and signs are no letters."""
    return _is_only(_ANY_KATAKANA, response)


def _is_only(script: re.Pattern[str], response: str) -> bool:
    letters = {c for c in set(response) if c.isalpha() and c not in _LONG_MARKS}
    return bool(letters) and all(script.match(letter) is not None for letter in letters)


def kansuuji(response: str) -> bool:
    """No digit but kanji: in no width, and in no circle."""
    return not any(map(str.isdigit, set(response)))
