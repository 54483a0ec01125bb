"""How a text falls into words, sentences and paragraphs, per language. Linear in the text.

A model writes these texts and is paid for them, so nothing here backtracks, and no text is
normalized as a whole: `unicodedata.normalize` sorts a run of combining marks in quadratic time.
"""

import re
import unicodedata

_PAIR = re.compile("[A-Za-z\u3046-\u30f2][\u0300-\u0303\u0308\u0327\u3099\u309a]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = str.maketrans(
    {"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2018": "'", "\u2019": "'", "\u02bc": "'"}
)
_WORD = re.compile(r"\w+")
_JOINED_WORD = re.compile(r"\w+(?:[-'\u2010\u2011\u2019]\w+)*")
_LETTER = re.compile(r"[^\W_]")

_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f\u0964")
# Scripts that put no space after a sentence, and Hindi, where some writers put none.
_UNSPACED_END = re.compile("[\u3002\uff01\uff1f\u0964]")
_CLOSERS = "\"'\u201d\u2019\u00bb)]}*_`\u300d\u300f\uff09"
_OPENERS = "\"'\u201c\u2018\u00ab([{*_`#>\u00bf\u00a1\u300c\u300e\uff08"
_ENUMERATOR = re.compile(r"\(?(?:\d{1,3}|[A-Za-z])[.)]{1,2}")
_INITIALS = re.compile(r"(?:[^\W\d_][.-]{1,2}){1,6}")
# A name or a number follows these, so that their period never ends a sentence.
_TITLES = {
    "en": "mr mrs ms dr prof st gen col capt lt sgt rev hon gov sen rep vs fig p.s p.p.s "
    "e.g i.e cf al mt approx",
    "fr": "m mm mme mlle dr pr st ste cf ex p.ex fig n.b p.s p.p.s p.-s av env",
    "es": "sr sra sres srta dr dra d dña ud uds prof profa p.ej ej fig núm nº pág págs av "
    "avda p.d p.s",
}
# These may end a sentence; they do if the next word is capitalized.
_ABBREVIATIONS = {
    "en": "jr sr inc ltd co corp etc u.s u.k u.s.a a.m p.m b.c a.d ph.d m.d ave blvd dept est "
    "jan feb mar apr jun jul aug sep sept oct nov dec",
    "fr": "etc j.-c av.j.-c s.a s.a.r.l h.t",
    "es": "etc ee.uu a.c d.c a.m p.m s.a s.l cía",
}


def composed(text: str) -> str:
    """The text with a letter and its accent as one character, where two were written.

    Half a surrogate pair, which no library of ours takes for text, becomes an unreadable sign.
    """
    text = _SURROGATE.sub("\ufffd", text)
    return _PAIR.sub(lambda pair: unicodedata.normalize("NFC", pair[0]), text)


def unaccented(text: str) -> str:
    """The text with each letter that has an accent replaced by the letter alone."""
    table = {ord(c): unicodedata.normalize("NFD", c)[0] for c in set(text) if is_accented(c)}
    return text.translate(table)


def is_accented(character: str) -> bool:
    """True for a letter with an accent, a cedilla or a tilde, and for such a mark by itself."""
    if "\u0300" <= character <= "\u036f":
        return True
    return character.isalpha() and any(map(_is_mark, unicodedata.normalize("NFD", character)))


def _is_mark(character: str) -> bool:
    return "\u0300" <= character <= "\u036f"


def plain(text: str) -> str:
    """The text in lower case, with a typewriter's spaces and apostrophes.

    "vous\u00a0?" is the French typographer's spelling of "vous ?", and no other phrase.
    """
    return text.translate(_PLAIN).lower()


def has_letter(text: str) -> bool:
    """True if the text says something: it has a letter or a digit of any script."""
    return _LETTER.search(text) is not None


def words(text: str) -> list[str]:
    """Runs of letters and digits, which is what IFEval counts: "don't" is two."""
    return _WORD.findall(text)


def joined_words(text: str) -> list[str]:
    """Words as a reader sees them: "don't" and "mother-in-law" are one each."""
    return _JOINED_WORD.findall(text)


def paragraphs(text: str) -> list[str]:
    """The parts between empty lines that are not blank, without the space around them."""
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def parts(text: str, divider: str) -> list[str] | None:
    """The parts between dividers; None if one is blank, unless it is the first or the last."""
    found = [part.strip() for part in text.split(divider)]
    inner = found[1:-1]
    if not all(inner):
        return None
    return [part for part in found if part]


def count_sentences(text: str, language: str) -> int:
    """Sentences of a language that puts spaces between them: en, fr, es, and most others.

    A mark that ends one must stand before a space, as in "Yes. No", and a line does not end one
    by itself. "1." that opens a line and "Dr." end nothing.
    """
    titles = frozenset(_TITLES.get(language, "").split())
    abbreviations = frozenset(_ABBREVIATIONS.get(language, "").split())
    count, is_open = 0, False
    tokens = _tokens(_UNSPACED_END.sub(r"\g<0> ", text))
    for i, token in enumerate(tokens):
        is_open = is_open or _LETTER.search(token) is not None
        bare = token.rstrip(_CLOSERS)
        if not is_open or bare[-1:] not in _ENDS:
            continue
        following = tokens[i + 1] if i + 1 < len(tokens) else ""
        if not following or _ends_sentence(bare, following, titles, abbreviations):
            count, is_open = count + 1, False
    return count + is_open


def _tokens(text: str) -> list[str]:
    """What stands between spaces, without the numbers of a list's items."""
    tokens: list[str] = []
    for line in text.splitlines():
        inside = line.split()
        if len(inside) > 1 and _ENUMERATOR.fullmatch(inside[0].strip("*_")):
            inside = inside[1:]
        tokens += inside
    return tokens


def _ends_sentence(
    token: str, following: str, titles: frozenset[str], abbreviations: frozenset[str]
) -> bool:
    """True unless the token's last mark is the period of an abbreviation or an initial."""
    if token[-1] != ".":
        return True
    word = token.lstrip(_OPENERS)
    name = word.rstrip(".").lower()
    if name in titles:
        return False
    if name in abbreviations or (len(word) > 2 and _INITIALS.fullmatch(word)):
        return following.lstrip(_OPENERS)[:1].isupper()
    # "J. Smith", but "so do I. Then".
    return not (len(word) == 2 and word[0].isupper() and word[0] != "I")
