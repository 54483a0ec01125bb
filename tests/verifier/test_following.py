# ruff: noqa: E501 - a table, a line a rule
"""IFEval's rules: of every kind in the data, answers that keep it and answers that do not."""

import json
import time

import pytest

from magistral_jax.verifier.following.check import CHECKERS, all_followed, follows
from magistral_jax.verifier.following.words import sentences, words

LONG_EN = "The weather is fine today and we walk along the river with our friends."
LONG_FR = "Le temps est agréable aujourd'hui et nous marchons au bord de la rivière avec des amis."
LONG_ES = "Hoy hace buen tiempo y caminamos por la orilla del río con nuestros amigos de siempre."

# kind without its language: languages, arguments, answers that keep it, answers that do not.
SHARED = [
    (
        "combination:repeat_prompt",
        "en fr es ja",
        {"prompt_to_repeat": "Say X, twice."},
        ["Say X, twice. X X", '"say x, twice." X'],
        ["X X", "I say: Say X, twice."],
    ),
    (
        "combination:two_responses",
        "en fr es ja",
        {},
        ["one\n******\ntwo", "******\none\n******\ntwo\n******"],
        ["one\n******\none", "one", "a\n******\nb\n******\nc", "a\n***\nb"],
    ),
    (
        "detectable_content:number_placeholders",
        "en fr ja",
        {"num_placeholders": 2},
        ["[name], [town]", "[a] [b] [c]"],
        ["[name]", "name and town", "(a) (b)"],
    ),
    (
        "detectable_format:json_format",
        "en fr es ja",
        {},
        ['{"a": [1, 2]}', '```json\n[{"a": null}]\n```', "```\n{}\n```"],
        ["{a: 1}", "here: {}", '"text"', "{" * 100_000],
    ),
    (
        "keywords:existence",
        "en fr es ja",
        {"keywords": ["été", "川"]},
        ["L'ÉTÉ, 川", "川 été"],
        ["été", "川"],
    ),
    (
        "keywords:frequency",
        "en",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        ["Cat and cat", "a cat, cats, a cat"],
        ["a cat", "dogs"],
    ),
    (
        "keywords:frequency",
        "fr",
        {"keyword": "chat", "frequency": 2, "relation": "moins de"},
        ["un chat", "rien"],
        ["chat et chat", "chats chats chats"],
    ),
    (
        "keywords:frequency",
        "es",
        {"keyword": "gato", "frequency": 1, "relation": "como máximo"},
        ["un gato", "nada"],
        ["gato y gato"],
    ),
    (
        "keywords:frequency",
        "ja",
        {"keyword": "猫", "frequency": 2, "relation": "以上"},
        ["猫と猫"],
        ["猫が一匹"],
    ),
    (
        "keywords:letter_frequency",
        "en fr es",
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        ["Zigzag", "zz"],
        ["zone", "none"],
    ),
    (
        "keywords:letter_frequency",
        "ja",
        {"letter": "し", "let_frequency": 2, "let_relation": "未満"},
        ["しろい", "くろい"],
        ["ししまい"],
    ),
    (
        "language:response_language",
        "en fr es ja",
        {"language": "it"},
        ["Oggi il tempo è bello e camminiamo lungo il fiume con i nostri amici di sempre."],
        [LONG_EN, LONG_FR],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        "en fr es",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Para"},
        ["uno\n\nPara dos", 'uno\n\n"para, dos'],
        ["Para uno\n\ndos", "uno\n\nParado", "uno\n\ndos\n\nPara", "Para"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        "ja",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "首"},
        ["はじめ\n\n首が長い"],
        ["首が長い\n\nおわり", "首"],
    ),
    (
        "length_constraints:number_paragraphs",
        "en fr es ja",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a\n\nb", "a\n***\n***\nb", "a\n***\nb\n***\nc"],
    ),
    (
        "length_constraints:number_sentences",
        "en fr es",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two!", "Mr. Ott asks. He goes.", "3.5 and e.g. this"],
        ["One. Two! Three?", "A? B? C? D?"],
    ),
    (
        "length_constraints:number_sentences",
        "ja",
        {"num_sentences": 2, "relation": "以上"},
        ["晴れた。歩いた。", "晴れた！\n歩く"],
        ["晴れた。", "晴れ"],
    ),
    (
        "length_constraints:number_words",
        "en",
        {"num_words": 4, "relation": "at least"},
        ["one two three four", "it's a well-known, old fact"],
        ["one two three", "one"],
    ),
    (
        "length_constraints:number_words",
        "fr",
        {"num_words": 4, "relation": "moins de"},
        ["un deux trois", "l'été"],
        ["un deux trois quatre"],
    ),
    (
        "length_constraints:number_words",
        "es",
        {"num_words": 3, "relation": "como máximo"},
        ["uno dos tres", "uno"],
        ["uno dos tres cuatro"],
    ),
    ("punctuation:no_comma", "en fr es ja", {}, ["no such mark; none."], ["well, yes"]),
    ("punctuation:no_comma", "ja", {}, ["はれた。"], ["はれ、くもり"]),
    (
        "startend:end_checker",
        "en fr es ja",
        {"end_phrase": "Is that all?"},
        ["Yes. Is that all?", '"So: is that all?"\n'],
        ["Is that all? Yes.", "Is that all", "all"],
    ),
    ("startend:quotation", "en fr es", {}, ['"all of it"'], ['"some" of it', "none", '"'],),
    ("startend:quotation", "fr es", {}, ["« tout »"], ["« tout » ou rien"]),
    ("startend:quotation", "ja", {}, ["「ぜんぶ」"], ["「ここ」だけ", '"all"']),
    ("detectable_format:number_bullet_lists", "en fr es", {"num_bullets": 2},
     ["* a\n* b", "Items:\n- a\n  - b"], ["* a", "* a\n* b\n* c", "**a**\n**b**"]),
    ("detectable_format:number_bullet_lists", "ja", {"num_bullets": 2},
     ["・いち\n・に"], ["・いち", "いち\nに"]),
    ("detectable_format:number_highlighted_sections", "en fr es", {"num_highlights": 2},
     ["*a* and *b*", "**a** and *b c*"], ["*a*", "a and b", "* a\n* b", "** ** and * *"]),
    ("detectable_format:number_highlighted_sections", "ja", {"num_highlights": 2},
     ["《い》と《ろ》"], ["《い》", "*い* *ろ*", "《》《》"]),
    ("detectable_format:title", "en es", {}, ["<<a poem>>\ntext"], ["<a poem>", "<<>>", "a poem"]),
    ("detectable_format:title", "fr", {}, ["##mon poème##\ntexte"], ["# mon poème", "poème"]),
    ("detectable_format:title", "ja", {}, ["『昭和』\n本文"], ["「昭和」", "『』"]),
    ("detectable_format:multiple_sections", "en fr es",
     {"section_spliter": "SECTION", "num_sections": 2},
     ["SECTION 1\na\nSECTION 2\nb"], ["SECTION 1\na", "Section 1 Section 2", "SECTION a SECTION b"]),
    ("detectable_format:multiple_sections", "ja", {"section_spliter": "章", "num_sections": 2},
     ["第1章\nい\n第2章\nろ", "第一章 第二章"], ["第1章", "章 章"]),
    ("keywords:forbidden_words", "en fr es", {"forbidden_words": ["art", "Ville"]},
     ["a party in the villages"], ["ART is", "la ville."]),
    ("keywords:forbidden_words", "ja", {"forbidden_words": ["花"]}, ["木"], ["花火"]),
    ("detectable_content:postscript", "en", {"postscript_marker": "P.S."},
     ["Bye.\nP.S. Write!", "Bye. p.s. me"], ["Bye.", "P.S.", "PS: no dots"]),
    ("detectable_content:postscript", "en", {"postscript_marker": "P.P.S"},
     ["Bye\nP.P.S call"], ["Bye\nP.S. call"]),
    ("detectable_content:postscript", "fr", {"postscript_marker": "P.-S."},
     ["Adieu.\nP.-S. Écris !"], ["Adieu.", "Écris P.S."]),
    ("detectable_content:postscript", "es", {"postscript_marker": "P.D."},
     ["Adiós.\nP.D. Escribe."], ["Adiós."]),
    ("detectable_content:postscript", "ja", {"postscript_marker": "追伸"},
     ["さようなら。追伸 また。"], ["さようなら。", "追伸"]),
    ("detectable_format:constrained_response", "en", {},
     ["My answer is yes.", "Well: My answer is maybe."], ["yes", "My answer is perhaps."]),
    ("detectable_format:constrained_response", "fr", {}, ["Peut-être.", '"Oui."'],
     ["Oui", "Oui. Mais…"]),
    ("detectable_format:constrained_response", "es", {}, ["Quizás.", "Sí."], ["Sí", "No. Nunca."]),
    ("detectable_format:constrained_response", "ja", {}, ["はい、そうです。"], ["はい", "いいえ。"]),
    ("change_case:capital_word_frequency", "en",
     {"capital_frequency": 2, "capital_relation": "at least"}, ["VERY GOOD day"], ["VERY good day"]),
    ("change_case:capital_word_frequency", "fr",
     {"capital_frequency": 2, "capital_relation": "moins de"}, ["TRÈS bien"], ["TRÈS BIEN"]),
    ("change_case:capital_word_frequency", "es",
     {"capital_frequency": 1, "capital_relation": "como máximo"}, ["MUY bien"], ["MUY BIEN"]),
    ("change_case:english_capital", "en", {}, [LONG_EN.upper()], [LONG_EN, LONG_FR.upper()]),
    ("change_case:english_lowercase", "en", {}, [LONG_EN.lower()], [LONG_EN, LONG_FR.lower()]),
    ("change_case:french_capital", "fr", {}, [LONG_FR.upper()], [LONG_FR, LONG_EN.upper()]),
    ("change_case:french_lowercase", "fr", {}, [LONG_FR.lower()], [LONG_FR]),
    ("change_case:spanish_capital", "es", {}, [LONG_ES.upper()], [LONG_ES]),
    ("change_case:spanish_lowercase", "es", {}, [LONG_ES.lower()], [LONG_ES]),
    ("detectable_content:informal_address", "fr", {},
     ["Tu vas bien ?", "As-tu vu ta sœur, t'es là"], ["Vous allez bien ?", "Il va bien", "tu, vous"]),
    ("detectable_content:no_digits", "fr", {}, ["dix ans, MMXX"], ["10 ans"]),
    ("special_character:accents", "fr", {"word_to_accentuate": {"a": "à", "ecole": "école"}},
     ["Il va à l'école."], ["Il va a l'ecole.", "à l'ecole"]),
    ("special_character:ethel_or_cedilla", "fr", {"forbidden_char": "ç"}, ["la facade"],
     ["la façade", "ÇA"]),
    ("special_character:no_accents", "fr", {}, ["la ville, ça va"], ["l'été", "À Noël"]),
    ("detectable_content:number_placeholders", "es", {"num_placeholders": 1, "relation": "al menos"},
     ["[nombre]"], ["nombre"]),
    ("punctuation:exclamation_marks", "es", {}, ["¡Hola!"], ["Hola!", "¡Hola"]),
    ("punctuation:question_marks", "es", {}, ["¿Qué?"], ["Qué?", "¿Qué"]),
    ("special_character:dieresis", "es", {"let_frequency": 2}, ["pingüino y cigüeña"],
     ["pingüino", "pinguino y ciguena", "güe güi güe"]),
    ("special_character:enie", "es", {"let_frequency": 1}, ["mañana"], ["hoy", "año y niño"]),
    ("special_character:tildes", "es", {"num_words": 2, "relation": "al menos"},
     ["mamá y papá"], ["mamá y papa", "ü y ñ"]),
    ("detectable_format:nominal_ending", "ja", {"count": 2}, ["美しい山。静かなホテル。"],
     ["美しい山。静かです。", "です。ます。"]),
    ("detectable_format:number_numbered_lists", "ja", {"num_items": 2}, ["1. い\n2. ろ"],
     ["1. い", "い\nろ", "1. い\n2. ろ\n3. は"]),
    ("length_constraints:number_letters", "ja", {"num_letters": 4, "relation": "以上"},
     ["あいうえ", "あい うえ"], ["あいう", "あ い う"]),
    ("letters:furigana", "ja", {}, ["水(みず)と山（やま）"], ["水と山（やま）", "みず"]),
    ("letters:hiragana_only", "ja", {}, ["みずは、だいじ。"], ["水は", "ミズは", "abc"]),
    ("letters:kanji", "ja", {"kanji_limit": 3, "relation": "未満"}, ["水と山"], ["水山川"]),
    ("letters:kansuuji", "ja", {}, ["三百年"], ["300年", "３年"]),
    ("letters:katakana_only", "ja", {}, ["ミズハ、ダイジ。"], ["みずは", "水ハ"]),
    ("letters:no_hiragana", "ja", {}, ["日本国憲法"], ["日本の憲法"]),
    ("letters:no_katakana", "ja", {}, ["目隠しの遊び"], ["スイカ割り"]),
    ("punctuation:no_period", "ja", {}, ["晴れ！雨！"], ["晴れ。"]),
    ("startend:sentence_unified_end", "ja", {"ending": "です"}, ["春です。秋です。"],
     ["春です。秋だ。"]),
]  # fmt: skip
CASES = [
    (f"{language}:{kind}", arguments, keep, break_)
    for kind, languages, arguments, keep, break_ in SHARED
    for language in languages.split()
]


@pytest.mark.parametrize(("kind", "arguments", "keep", "break_"), CASES, ids=lambda x: str(x)[:40])
def test_answers_that_keep_a_rule_and_that_do_not(kind, arguments, keep, break_):
    for response in keep:
        assert follows(kind, arguments, response), response
    for response in break_:
        assert not follows(kind, arguments, response), response


def test_every_kind_has_both():
    assert {kind for kind, *_ in CASES} == set(CHECKERS) and len(CHECKERS) == 118


def test_every_row_of_the_data_can_be_checked(data_dir):
    text = (data_dir / "ifeval_en_fr_es_ja.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 1063
    kinds = {kind for row in rows for kind in row["instruction_id_list"]}
    assert kinds == set(CHECKERS)
    for row in rows:
        for response in (LONG_EN, row["problem"], "水。"):
            found = all_followed(
                row["instruction_id_list"], row["kwargs"], response, row["problem"]
            )
            assert len(found) == len(row["instruction_id_list"])


@pytest.mark.parametrize("response", ["", "  \n", "x" * 200_001])
def test_a_blank_or_endless_answer_keeps_nothing(response):
    assert not follows("en:punctuation:no_comma", {}, response)


def test_what_is_not_known_is_no_rule():
    with pytest.raises(LookupError):
        follows("en:no:such", {}, "a")
    with pytest.raises(LookupError):
        follows("en:keywords:existence", {"keywords": None}, "a")
    with pytest.raises(ValueError, match="relation is 'about'"):
        follows("en:length_constraints:number_words", {"relation": "about", "num_words": 1}, "a")


@pytest.mark.parametrize(
    "text",
    ["(", "*", "\n", "[", '"', "***\n", "* a\n", "A. ", "《", "¡", "水", "\ud800", "<<", "-'"],
)
def test_hostile_answers_end_soon(text):
    response = text * (200_000 // len(text))
    for kind, arguments, _, _ in CASES:
        began = time.monotonic()
        follows(kind, arguments, response)
        assert time.monotonic() - began < 1.0, kind


def test_words_and_sentences():
    assert words("It's a well-known fact; isn't it?") == [
        "It's",
        "a",
        "well-known",
        "fact",
        "isn't",
        "it",
    ]
    assert sentences("Dr. No asks: why? Because! 3.5 is it.", "en") == [
        "Dr No asks: why", "Because", "3.5 is it"
    ]  # fmt: skip
    assert sentences("はい。いいえ！\nはて", "ja") == ["はい", "いいえ", "はて"]
