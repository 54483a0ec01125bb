# ruff: noqa: RUF001 - the answers are in four languages, with the marks of each.
import json
import operator
import time

import pytest

from magistral_jax.verifier.instructions import arguments as reading
from magistral_jax.verifier.instructions.check import KINDS, LONGEST, all_followed, follows
from magistral_jax.verifier.instructions.words import count_sentences

GERMAN = "Das Wetter in Berlin ist heute sehr schön, und wir gehen in den Park."
FINNISH = "Sää on tänään erittäin kaunis, ja me menemme yhdessä puistoon kävelemään."
KOREAN = "오늘은 날씨가 아주 좋아서 우리는 공원에 산책하러 갑니다."
ENGLISH = "The weather is very nice today, and we are going for a walk in the park."
FRENCH = "Le temps est très agréable aujourd'hui et nous allons nous promener au parc."
SPANISH = "El tiempo es muy bueno hoy y vamos a dar un paseo por el parque con los niños."

# Per kind: its arguments, an answer that follows and one that does not.
ENGLISH_TABLE = {
    "change_case:capital_word_frequency": (
        {"capital_relation": "at least", "capital_frequency": 2},
        "We LOVE well-known MOTHER-IN-LAW jokes.",
        "We LOVE jokes.",
    ),
    "change_case:english_capital": ({}, ENGLISH.upper(), ENGLISH),
    "change_case:english_lowercase": ({}, ENGLISH.lower(), ENGLISH),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Write a haiku."},
        "Write a haiku.\n\nOld pond.",
        "Sure! Write a haiku. Old pond.",
    ),
    "combination:two_responses": ({}, "One.\n******\nTwo.", "One.\n******\nOne."),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        "Dear [name], come to [address].",
        "Dear [name], come to [].",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.P.S"},
        "Bye.\n\nP. P. S. Write soon.",
        "Bye.\n\nP.S. Write soon.",
    ),
    "detectable_format:constrained_response": (
        {},
        "A plane is faster. My answer is yes.",
        "My answer is yes. My answer is no.",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": [1, 2.5]}\n```', 'Here: {"a": 1}'),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\nRain.\nSECTION 2\nSun.",
        "Section 1\nRain.\nSection 2\nSun.",
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        "*Mind*:\n* **One**: a\n* two\n* * *",
        "* one\n* two\n- three",
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "* A *big* and **bold** claim",
        "* A **big** claim\n* another",
    ),
    "detectable_format:title": ({}, "<<old pond>>\nA frog.", "<<>>\nA << frog."),
    "keywords:existence": (
        {"keywords": ["le", "Sarah"]},
        "A letter for sarah.",
        "A letter for Sam.",
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["rock", "roll"]},
        "A rocking chair.",
        "It ROCKS: Rock, paper.",
    ),
    "keywords:frequency": (
        {"relation": "less than", "keyword": "war", "frequency": 2},
        "War and peace.",
        "War and more war.",
    ),
    "keywords:letter_frequency": (
        {"let_relation": "at least", "letter": "o", "let_frequency": 3},
        "Oh, no, go.",
        "Oh, no.",
    ),
    "language:response_language": ({"language": "de"}, GERMAN, ENGLISH),
    "length_constraints:nth_paragraph_first_word": (
        {"first_word": "president", "num_paragraphs": 2, "nth_paragraph": 2},
        "Once.\n\nPresident, he was.",
        "Once.\n\nPresidents they were.",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        "One.\n\n***\n\nTwo.",
        "One.\n***\n\n***\nTwo.",
    ),
    "length_constraints:number_sentences": (
        {"relation": "less than", "num_sentences": 3},
        "Dr. Who came at 5 p.m. yesterday. He left!",
        "He came. He saw. He left.",
    ),
    "length_constraints:number_words": (
        {"relation": "at least", "num_words": 4},
        "I don't know.",
        "I do know.",
    ),
    "punctuation:no_comma": ({}, "Yes and no.", "Yes, no."),
    "startend:end_checker": (
        {"end_phrase": "Hope you agree with me."},
        '"So it is. Hope you agree with me."',
        "Hope you agree with me. Bye.",
    ),
    "startend:quotation": ({}, '"So it is."', '"So it is". Yes.'),
}

FRENCH_TABLE = {
    "change_case:capital_word_frequency": (
        {"capital_relation": "moins de", "capital_frequency": 2},
        "Une BELLE journée.",
        "Une BELLE JOURNÉE.",
    ),
    "change_case:french_capital": ({}, FRENCH.upper(), ENGLISH.upper()),
    "change_case:french_lowercase": ({}, FRENCH.lower(), FRENCH),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Est-ce l'été ? Oui ou non."},
        "Est-ce l’été\u00a0? Oui ou non.\nOui.",
        "Est-ce l'été ? Oui ou non.",
    ),
    "combination:two_responses": ({}, "Un.\n******\nDeux.", "Un.\n***\nDeux."),
    "detectable_content:informal_address": ({}, "Je t'aime.", "Je vous aime, a-t-il dit."),
    "detectable_content:no_digits": ({}, "Dix ans.", "10 ans."),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 1},
        "Cher [prénom],",
        "Cher (prénom),",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "PS"},
        "Bises.\nPS : écris-moi.",
        "Le temps passe.\nPsychologie du temps : écris-moi.",
    ),
    "detectable_format:constrained_response": ({}, "Peut-être.", "Sinon."),
    "detectable_format:json_format": ({}, '["un", "deux"]', '"un"'),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Partie", "num_sections": 2},
        "Partie 1\nLe jour.\nPartie 2\nLa nuit.",
        "Partie 1\nLe jour.\nPartie deux\nLa nuit.",
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        "* un\n  * deux",
        "* un",
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "*Un* et *deux*.",
        "*Un* et * *.",
    ),
    "detectable_format:title": ({}, "##La mer##\nElle dort.", "## La mer\nElle dort."),
    "keywords:existence": (
        {"keywords": ["épée", "quête"]},
        "Une Épée pour ma quête.",
        "Une epee pour ma quête.",
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["paix"]},
        "La guerre.",
        "La Paix.",
    ),
    "keywords:frequency": (
        {"relation": "au moins", "keyword": "étoile", "frequency": 2},
        "Étoile, belle étoile.",
        "Une étoile.",
    ),
    "keywords:letter_frequency": (
        {"let_relation": "moins de", "letter": "e", "let_frequency": 2},
        "Le rêvé.",
        "Elle est.",
    ),
    "language:response_language": ({"language": "ko"}, KOREAN, FRENCH),
    "length_constraints:nth_paragraph_first_word": (
        {"first_word": "Le", "num_paragraphs": 2, "nth_paragraph": 1},
        "« Le jour.\n\nLa nuit. »",
        "Les jours.\n\nLa nuit.",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 3},
        "Un.\n***\nDeux.\n***\nTrois.\n***",
        "Un.\n***\nDeux.",
    ),
    "length_constraints:number_sentences": (
        {"relation": "au moins", "num_sentences": 2},
        "Qui est-ce ? M. Dupont.",
        "C'est M. Dupont.",
    ),
    "length_constraints:number_words": (
        {"relation": "moins de", "num_words": 4},
        "Je vois tout.",
        "J'ai tout vu.",
    ),
    "punctuation:no_comma": ({}, "Oui et non.", "Oui, non."),
    "special_character:accents": (
        {"word_to_accentuate": {"lecon": "leçon", "ete": "été"}},
        "Les leçons de l'Été.",
        "Les leçons de l'éte ou de l'été.",
    ),
    "special_character:ethel_or_cedilla": ({"forbidden_char": "œ"}, "Un oeuf.", "Un Œuf."),
    "special_character:no_accents": ({}, "Un oeuf et un œuf.", "Un œuf à part."),
    "startend:end_checker": (
        {"end_phrase": "D'autres questions ?"},
        "« Voilà. D’autres questions\u202f? »",
        "D'autres questions ? Non.",
    ),
    "startend:quotation": ({}, "« Voilà. »", "« Voilà."),
}

SPANISH_TABLE = {
    "change_case:capital_word_frequency": (
        {"capital_relation": "como máximo", "capital_frequency": 1},
        "Un GRAN día.",
        "Un GRAN DÍA.",
    ),
    "change_case:spanish_capital": ({}, SPANISH.upper(), SPANISH),
    "change_case:spanish_lowercase": ({}, SPANISH.lower(), SPANISH),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Crea un poema."},
        "Crea un poema. El mar.",
        "Crea un cuento. El mar.",
    ),
    "combination:two_responses": ({}, "Uno.\n******\nDos.", "Uno."),
    "detectable_content:number_placeholders": (
        {"relation": "al menos", "num_placeholders": 2},
        "[calle], [ciudad]",
        "[calle]",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "Nota"},
        "Adiós.\n\n**Nota:** escribe.",
        "Adiós. La nota es de diez.",
    ),
    "detectable_format:constrained_response": ({}, '"Quizás."', "Puede ser."),
    "detectable_format:json_format": ({}, '{"uno": 1}', '{"uno": 1'),
    "detectable_format:multiple_sections": (
        {"relation": "al menos", "section_spliter": "Sección", "num_sections": 2},
        "Sección 1\nSol.\nSección 2\nMar.",
        "Sección 1\nSol.",
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 1},
        "* Sol y mar",
        "Sol y mar",
    ),
    "detectable_format:number_highlighted_sections": (
        {"relation": "al menos", "num_highlights": 1},
        "El *sol*.",
        "El * sol\n*.",
    ),
    "detectable_format:title": ({}, "Mi <<poema>>", "Mi <poema>"),
    "keywords:existence": (
        {"keywords": ["Machine Learning", "ADN"]},
        "El machine learning y el ADN.",
        "El aprendizaje y el ADN.",
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["empresa", "planificación"]},
        "Las empresas.",
        "La planificacio\u0301n.",
    ),
    "keywords:frequency": (
        {"relation": "como máximo", "keyword": "éxito", "frequency": 1},
        "Un éxito.",
        "Éxito tras éxito.",
    ),
    "keywords:letter_frequency": (
        {"let_relation": "al menos", "letter": "a", "let_frequency": 2},
        "A la mar.",
        "El más alto.",
    ),
    "language:response_language": ({"language": "fi"}, FINNISH, SPANISH),
    "length_constraints:nth_paragraph_first_word": (
        {"first_word": "Diría que", "num_paragraphs": 2, "nth_paragraph": 2},
        "Bien.\n\nDiría que sí.",
        "Diría que sí.\n\nBien.",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        "Uno.\n***\nDos.",
        "Uno.\n\nDos.",
    ),
    "length_constraints:number_sentences": (
        {"relation": "como máximo", "num_sentences": 2},
        "¿Qué? El Sr. Díaz, claro.",
        "¿Qué? Sí. ¡No!",
    ),
    "length_constraints:number_words": (
        {"relation": "al menos", "num_words": 3},
        "Sol y mar.",
        "Sol, mar.",
    ),
    "punctuation:exclamation_marks": ({}, "¡Vamos ya!", "Vamos ya!"),
    "punctuation:no_comma": ({}, "Sol y mar.", "Sol, mar."),
    "punctuation:question_marks": ({}, "¿Vamos ya?", "¿ ?"),
    "special_character:dieresis": (
        {"let_frequency": 2},
        "El PINGÜINO y la cigüeña.",
        "El pingüino, la cigüeña y la vergüenza.",
    ),
    "special_character:enie": ({"let_frequency": 2}, "El niño y el ñandú.", "El niño."),
    "special_character:tildes": (
        {"relation": "como máximo", "num_words": 1},
        "El niño comió.",
        "Él comió.",
    ),
    "startend:end_checker": (
        {"end_phrase": "¿Necesitas algo más?"},
        "Ya está. ¿Necesitas algo más?",
        "¿Necesitas algo más? Dime.",
    ),
    "startend:quotation": ({}, '"Sol y mar."', "«Sol y mar.»"),
}

JAPANESE_TABLE = {
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "海について書いてください。"},
        "海について書いてください。\n海は青い。",
        "海は青い。",
    ),
    "combination:two_responses": ({}, "海です。\n******\n山です。", "海です。\n山です。"),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        "[会社名]の[氏名]様",
        "【会社名】の[氏名]様",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "追伸"},
        "では。\n追伸　お元気で。",
        "では。追伸はありません。",
    ),
    "detectable_format:constrained_response": (
        {},
        "はい、そうです。",
        "はい、そうです。いいえ、違います。",
    ),
    "detectable_format:json_format": ({}, '```JSON\n{"海": 1}\n```', "海"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "章", "num_sections": 3},
        "第1章\n海\n第２章\n山\n第三章\n川",
        "第1章\n海\n第2節\n山\n第3章\n川",
    ),
    "detectable_format:nominal_ending": (
        {"count": 3},
        "青い海。それが日本の「心」。行きたいところ。",
        "『青い海』\n# 海\nそれが日本の心。行きます。海へ。山。",
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "・海\n・山\n- 川", "・海"),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "《海》と《山》",
        "《海》と《》",
    ),
    "detectable_format:number_numbered_lists": (
        {"num_items": 2},
        "1. 海\n2. 山は3.5倍",
        "1. 海\n3.5倍",
    ),
    "detectable_format:title": ({}, "『海』\n青い。", "「海」\n青い。"),
    "keywords:existence": (
        {"keywords": ["夢", "秘密の特訓"]},
        "秘密の特訓は夢だ。",
        "秘密の特訓は悪夢だ。",
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["ラテ", "健康"]},
        "ラテン音楽です。",
        "ラテは健康的です。",
    ),
    "keywords:frequency": (
        {"relation": "未満", "keyword": "音", "frequency": 2},
        "音楽の音です。",
        "音と音です。",
    ),
    "keywords:letter_frequency": (
        {"let_relation": "以上", "letter": "し", "let_frequency": 2},
        "しろいシャツ",
        "しろいじかん",
    ),
    "language:response_language": (
        {"language": "fr"},
        FRENCH,
        "今日は天気がとてもいいので公園に行きます。",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"first_word": "愛", "num_paragraphs": 2, "nth_paragraph": 2},
        "海です。\n\n愛は大切です。",
        "海です。\n\n恋愛は大切です。",
    ),
    "length_constraints:number_letters": (
        {"relation": "以上", "num_letters": 5},
        "海は青い。",
        "海は青い\n\n",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        "海です。\n***\n山です。",
        "海です。",
    ),
    "length_constraints:number_sentences": (
        {"relation": "以上", "num_sentences": 3},
        "海です！山です？\n川です",
        "「海です。」\n山です。",
    ),
    "letters:furigana": ({}, "時々（ときどき）海（うみ）へ", "海（うみ）と山（ヤマ）へ"),
    "letters:hiragana_only": ({}, "うみは あおい。1、2！", "うみはあおいヨ。"),
    "letters:kanji": ({"relation": "未満", "kanji_limit": 3}, "青い海です。", "青い海と山です。"),
    "letters:kansuuji": ({}, "三つの海。", "３つの海。"),
    "letters:katakana_only": ({}, "ウミハ、スーパー・アオイ。", "ウミハあおい。"),
    "letters:no_hiragana": ({}, "青海ブルー。", "青い海。"),
    "letters:no_katakana": ({}, "青い海。", "ﾌﾞﾙｰの海。"),
    "punctuation:no_comma": ({}, "海と山。", "海、山。"),
    "punctuation:no_period": ({}, "海と山！", "海と山。"),
    "startend:end_checker": (
        {"end_phrase": "他に質問はございますか。"},
        "「海です。他に質問はございますか。」",
        "他に質問はございますか。では。",
    ),
    "startend:quotation": ({}, "「海です。」", "『海です。』"),
    "startend:sentence_unified_end": (
        {"ending": "です"},
        "「行く。」は動詞です。海です！\n",
        "海です。山に行きます。",
    ),
}

TABLES = {"en": ENGLISH_TABLE, "fr": FRENCH_TABLE, "es": SPANISH_TABLE, "ja": JAPANESE_TABLE}
TABLE = {f"{code}:{name}": case for code, table in TABLES.items() for name, case in table.items()}


def test_the_table_has_every_kind():
    assert len(TABLE) == 118
    assert TABLE.keys() == KINDS


@pytest.mark.parametrize("kind", TABLE)
def test_a_kind_tells_an_answer_that_follows_from_one_that_does_not(kind):
    arguments, good, bad = TABLE[kind]
    assert follows(kind, arguments, good)
    assert not follows(kind, arguments, bad)


@pytest.mark.parametrize("kind", TABLE)
def test_nothing_follows_from_a_blank_or_an_endless_answer(kind):
    arguments, good, _ = TABLE[kind]
    for response in ("", " \n\u3000\t", good + " " * LONGEST):
        assert not follows(kind, arguments, response)


# A second look at rules with more than one side: arguments, answer, and whether it follows.
@pytest.mark.parametrize(
    ("kind", "arguments", "response", "expected"),
    [
        (
            "en:length_constraints:number_words",
            {"relation": "at most", "num_words": 2},
            "A b",
            True,
        ),
        (
            "fr:length_constraints:number_words",
            {"relation": "moins de", "num_words": 2},
            "A b",
            False,
        ),
        (
            "es:special_character:tildes",
            {"relation": "al menos", "num_words": 2},
            "Él comió.",
            True,
        ),
        ("es:special_character:enie", {"let_frequency": 1}, "El nin\u0303o.", True),
        ("fr:special_character:no_accents", {}, "a la fe\u0302te", False),
        ("fr:special_character:no_accents", {}, "x\u0302", False),
        ("fr:special_character:ethel_or_cedilla", {"forbidden_char": "ç"}, "c\u0327a", False),
        ("fr:special_character:accents", {"word_to_accentuate": {"ete": "été"}}, "Rien.", False),
        (
            "fr:special_character:accents",
            {"word_to_accentuate": {"oranges": "orangées"}},
            "Orangées ou oranges.",
            False,
        ),
        ("fr:startend:quotation", {}, "'Oui'", True),
        ("fr:startend:quotation", {}, "\"Oui'", False),
        ("en:startend:quotation", {}, '"', False),
        ("en:punctuation:no_comma", {}, "一，二", False),
        ("en:detectable_format:constrained_response", {}, "my answer is yes.", False),
        ("en:detectable_format:json_format", {}, "[" * 100_000, False),
        ("en:detectable_format:json_format", {}, "[" + "9" * 900_000 + "]", True),
        ("en:detectable_format:title", {}, "<<\n>>", False),
        ("en:combination:two_responses", {}, "******\na\n******\nb\n******", True),
        ("en:combination:two_responses", {}, "a\n******\n******\nb", False),
        ("en:detectable_content:postscript", {"postscript_marker": "P.S."}, "P.S.Hi", True),
        ("en:detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\nP.S.", False),
        ("en:detectable_content:postscript", {"postscript_marker": "P.S."}, "P.S.\nHi", True),
        ("fr:detectable_content:postscript", {"postscript_marker": "P-S"}, "p-s : oui", True),
        ("fr:detectable_content:postscript", {"postscript_marker": "추신"}, "추신: 네", True),
        ("ja:detectable_content:postscript", {"postscript_marker": "P.P.S."}, "P. P. S. 海", True),
        ("ja:detectable_format:number_bullet_lists", {"num_bullets": 2}, "- 海\n* 山", True),
        ("ja:letters:furigana", {}, "一ヶ月（いっかげつ）", True),
        ("ja:letters:furigana", {}, "海(うみ)", False),
        ("ja:letters:hiragana_only", {}, "123", False),
        ("ja:letters:katakana_only", {}, "ウミ sea", False),
        ("ja:letters:kansuuji", {}, "①海", False),
        ("ja:startend:sentence_unified_end", {"ending": "です"}, "「海です。山です。」", True),
        ("ja:startend:sentence_unified_end", {"ending": "です"}, "山に行きます\n海です", False),
        (
            "ja:startend:sentence_unified_end",
            {"ending": "です"},
            "題\n海（うみ）です（笑）。",
            True,
        ),
        ("ja:startend:sentence_unified_end", {"ending": "です"}, "。。", False),
    ],
)
def test_the_finer_points(kind, arguments, response, expected):
    assert follows(kind, arguments, response) is expected


@pytest.mark.parametrize(
    ("language", "text", "count"),
    [
        ("en", "One. Two! Three? Four...", 4),
        ("en", "no capital. needed here. ok", 3),
        ("en", "Version 3.5 of example.com is out.", 1),
        ("en", "1. Eat well.\n2. Sleep.\n", 2),
        ("en", "A line\nand another\n\nand the end", 1),
        ("en", 'He said "No." Then (he left.) She stayed.', 3),
        ("en", "Mr. J. Smith of the U.S. army met Mrs. Doe, e.g. in May.", 1),
        ("en", "He left the U.S. He was sad.", 2),
        ("en", "So do I. Then go.", 2),
        ("en", "P.S. Do not forget.", 1),
        ("en", "*** !!! ...", 0),
        ("en", "今天很好。我们走吧！", 2),
        ("fr", "Quoi ! Mme. Roux dort ? Oui…", 3),
        ("es", "¿Qué dice Ud. hoy? ¡Nada!", 2),
    ],
)
def test_sentences(language, text, count):
    assert count_sentences(text, language) == count


@pytest.mark.parametrize(
    ("word", "compares"),
    [
        ("at least", operator.ge),
        ("less than", operator.lt),
        ("au moins", operator.ge),
        ("moins de", operator.lt),
        ("al menos", operator.ge),
        ("como máximo", operator.le),
        ("以上", operator.ge),
        ("未満", operator.lt),
    ],
)
def test_relations_of_every_language(word, compares):
    given = reading.read({"relation": word}, ("relation",), ())
    assert [given["relation"](n, 1) for n in range(3)] == [compares(n, 1) for n in range(3)]


def test_none_is_not_given_and_a_missing_request_is_the_prompt():
    kind = "en:combination:repeat_prompt"
    assert follows(kind, {"prompt_to_repeat": None, "frequency": None}, "Do. Done.", "Do.")
    assert not follows(kind, {"prompt_to_repeat": "Go."}, "Do. Done.", "Do.")


@pytest.mark.parametrize(
    ("kind", "arguments", "names"),
    [
        ("en:length_constraints:number_words", {"num_words": 3}, "relation"),
        (
            "en:length_constraints:number_words",
            {"num_words": -1, "relation": "at least"},
            "num_words",
        ),
        (
            "en:length_constraints:number_words",
            {"num_words": True, "relation": "at least"},
            "num_w",
        ),
        ("en:length_constraints:number_words", {"num_words": 3, "relation": "around"}, "relation"),
        ("en:punctuation:no_comma", {"num_words": 3}, "num_words"),
        ("en:keywords:existence", {"keywords": []}, "keywords"),
        ("en:keywords:existence", {"keywords": "cat"}, "keywords"),
        ("en:keywords:frequency", {"keyword": " ", "frequency": 1, "relation": "at least"}, "keyw"),
        (
            "en:keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "letter",
        ),
        (
            "en:length_constraints:nth_paragraph_first_word",
            {"first_word": "a", "num_paragraphs": 2, "nth_paragraph": 3},
            "nth_paragraph",
        ),
        (
            "ja:length_constraints:nth_paragraph_first_word",
            {"first_word": "a", "num_paragraphs": 2, "nth_paragraph": 0},
            "nth_paragraph",
        ),
        ("fr:special_character:accents", {"word_to_accentuate": {"a": None}}, "word_to_accentuate"),
        ("en:combination:repeat_prompt", {}, "prompt_to_repeat"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(kind, arguments, names):
    for response in ("A word.", ""):
        with pytest.raises(ValueError, match=rf"{kind}.*{names}"):
            follows(kind, arguments, response)


def test_unknown_kinds_and_uneven_lists_are_refused():
    with pytest.raises(LookupError, match="de:punctuation:no_comma"):
        follows("de:punctuation:no_comma", {}, "Ja.")
    with pytest.raises(ValueError, match="2 instructions have arguments for 1"):
        all_followed(["en:punctuation:no_comma"] * 2, [{}], "Yes.")


def test_all_followed_answers_in_order():
    kinds = ["en:punctuation:no_comma", "en:startend:quotation"]
    assert all_followed(kinds, [{}, {}], '"Yes, no"') == [False, True]


# Long enough for a check that is quadratic to take many seconds.
LONG = 200_000
HOSTILE = [
    *(mark * LONGEST for mark in "(*\n"),
    *(mark * LONG for mark in "{[<#¿¡《「『\"'.- 1漢\ud800"),
    *(part * (LONG // len(part)) for part in ('{"a":', "* ", ". ", "a. ", "- **a ", "a-", "\r\n")),
    *(
        part * (LONG // len(part))
        for part in ("漢（ああ", "e\u0301", "SECTION ", "第1", "<<a", "[a")
    ),
    "e" + "\u0301\u0327" * LONG,
    "* " + " " * LONG + "*",
    "<<" + "a" * LONG + ">",
    "[1.5" + "0" * LONG + "e-9]",
    "Yes \udfff, no. The cat \ud83d sat on the mat and went home. " * 1000,
]


@pytest.mark.parametrize("kind", TABLE)
def test_hostile_answers_take_no_time(kind):
    arguments = TABLE[kind][0]
    for response in HOSTILE:
        started = time.process_time()
        follows(kind, arguments, response)
        spent = time.process_time() - started
        assert spent < 1, f"{spent:.1f} s for {len(response)} of {response[:8]!r}"


def test_every_row_of_the_data_can_be_checked(data_dir):
    path = data_dir / "ifeval_en_fr_es_ja.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the data folder")
    seen = set()
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        kinds = row["instruction_id_list"]
        seen.update(kinds)
        found = all_followed(kinds, row["kwargs"], "A dummy response.", row["problem"])
        assert len(found) == len(kinds) > 0
    assert seen == KINDS
