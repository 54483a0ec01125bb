r"""The final answer of a whole output: where it is said, in order of preference.

1. the last closed `\boxed{...}` behind the last `</think>` (or of the whole text without one);
2. what follows "#### ", "the (final) answer is", "Answer:", the last one said;
3. the last displayed formula, then the last inline one, then the last bold text;
4. a last line that is short and stands by itself; 5. what a last line says after its last equals
sign; 6. the last number or fraction.
"""

import re

from magistral_jax.verifier.format import box_readings
from magistral_jax.verifier.math.caps import MAX_CHARS

_TAIL = 20_000
"""Characters at the end in which an answer without a box is sought."""
_SAID = re.compile(
    r"####[ ]*|<answer>"
    r"|^[#* ]*(?:the[ ])?(?:final[ ])?answer[*: ]*$"
    r"|\b(?:option|choice)[ ]+(?=\**\(?[A-J]\)?(?![A-Za-z]))"
    r"|\b(?:final[ ]answer|answer|result|réponse|respuesta|risposta|resposta|Antwort|ответ)\b"
    r"\**[ ]*"
    r"(?:(?:to|of|for)\b[^.\n=:]{0,80}?[ ]|here[ ]|therefore[ ])?"
    r"(?:(?:est|es|è|é|ist|is|equals|are|would[ ]be|must[ ]be)\b(?:[ ]*:)?|:|=)"
    r"|答案(?:是|为|\uff1a|:)+",
    re.IGNORECASE | re.MULTILINE,
)
_DISPLAYED = re.compile(r"\\\[(.{1,2000}?)\\\]|\$\$(.{1,2000}?)\$\$", re.DOTALL)
# Blanks on both sides of the formula or on neither, and no digit behind it: else it is money.
_INLINE = re.compile(
    r"\\\((.{1,2000}?)\\\)|(?<![\\$])\$(?:[ ]([^$\n]+?)[ ]|([^\s$](?:[^$\n]*?[^\s$\\])?))\$(?!\d)"
)
_BOLD = re.compile(r"\*\*([^*\n]+?)\*\*")
_END = re.compile(
    r"\.(?:\s|$)|;\s|</answer>|\s\((?:because|since|as)\s|\s(?:because|since|as)\s"
    r"|,\s(?:which|because|since|so|as|(?:and|but)\s(?:we|this|it|that|so|thus))\s",
    re.IGNORECASE,
)
_ADVERB = re.compile(
    r"(?:(?:exactly|simply|just|therefore|thus|then|hence|also|so|about|approximately"
    r"|the[ ](?:interval|set|point|number|value|pair|ordered[ ]pair|equation))\b,?[ ]*)+",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?:solution|sol|ans|a)[ ]*[:=][ ]*|(?:hence|thus|so|therefore),?[ ]+", re.I)
_OTHER = re.compile(r"[ ]*,?[ ]*(?:or\b|/)")
_NUMBER = re.compile(
    r"-?\d*\\(?:[dt]?frac\{[^{}]{1,40}\}\{[^{}]{1,40}\}|sqrt\{[^{}]{1,40}\})|"
    r"(?<![\w.])-?\\?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?"
)


def final_answer(text: str) -> str | None:
    """The answer that a whole output gives; None if it gives none. Linear in the text."""
    readings = final_answers(text)
    return readings[0] if readings else None


def final_answers(text: str) -> tuple[str, ...]:
    """The answer's readings, the likelier one first; outside a box, x + y = 7 may also mean 7."""
    _, closing, after = text.rpartition("</think>")
    part = after if closing else text
    if "<think>" in part:  # thoughts that never close hold no answer
        return ()
    boxed = box_readings(part)
    if boxed and boxed[0].strip():
        return boxed
    part = part[-_TAIL:].strip()
    for find in (_said, _displayed, _inline, _bold, _line, _equated, _number):
        answer = find(part)
        if answer:
            return tuple(dict.fromkeys((_computed(answer), answer)))
    return ()


def _said(text: str) -> str | None:
    found = None
    for match in _SAID.finditer(text):
        answer = _trimmed(text[match.end() : match.end() + MAX_CHARS])
        if answer:
            found = answer
    return found


def _trimmed(rest: str) -> str:
    """The answer at the start of what follows "the answer is"."""
    rest = rest.strip()
    if adverb := _ADVERB.match(rest):
        rest = rest[adverb.end() :]
    if re.match(r"\*\*\s", rest):  # the end of **Answer:**
        rest = rest[2:].strip()
    for pattern in (_DISPLAYED, _BOLD):
        if (match := pattern.match(rest)) and not _OTHER.match(rest, match.end()):
            return _inner(match)
    phrase = rest.partition("\n")[0]
    # A sentence ends at a point that no digit follows; a reason is no part of the answer.
    phrase = _END.split(phrase)[0].strip().strip("*").strip()
    formulas = list(_INLINE.finditer(phrase))
    outside = _INLINE.sub(" ", phrase)
    # What else the phrase gives is part of the answer: a hedge must stay one.
    is_alone = len(formulas) == 1 and not re.search(r"[0-9]|\bor\b", outside)
    if is_alone and (formulas[0].start() == 0 or len(outside.split()) <= 3):
        return _inner(formulas[0])
    phrase = phrase.replace("**", "")
    phrase = phrase.replace("$", "") if phrase.count("$") % 2 == 0 else phrase
    return phrase.strip("` ")


def _inner(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _displayed(text: str) -> str | None:
    return _last(_DISPLAYED, text)


def _inline(text: str) -> str | None:
    return _last(_INLINE, text)


def _computed(formula: str) -> str:
    """What a formula comes to: 7 for 3 + 4 = 7; the whole if a name is on its left."""
    match = re.fullmatch(r"(.*[^=<>\\\s])\s*=\s*([^=<>]+)", formula, re.DOTALL)
    if match is None or re.fullmatch(r"\s*\\?[A-Za-z]+(?:_\S+|\([a-z, ]+\))?\s*", match[1]):
        return formula
    return match[2].strip() if re.search(r"[-+*/^{!(0-9]|\\", match[1]) else formula


def _bold(text: str) -> str | None:
    return _last(_BOLD, text)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = [inner for match in pattern.finditer(text) if (inner := _inner(match))]
    return found[-1].strip(".,").strip() if found else None


def _line(text: str) -> str | None:
    """The last line, if it is all there is or stands by itself, and reads like an answer."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    label = _LABEL.match(lines[-1])
    lines[-1] = lines[-1][label.end() :].strip() if label else lines[-1]
    words = lines[-1].split()
    is_formula = not re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", lines[-1])
    most_words = 12 if is_formula and len(lines) == 1 else 2
    return lines[-1].strip("*").strip() if len(words) <= most_words else None


def _equated(text: str) -> str | None:
    match = re.search(r"=([^=\n]{1,80})\.?\Z", text)
    return match[1].strip().rstrip(".").strip() if match and len(match[1].split()) <= 3 else None


def _number(text: str) -> str | None:
    found = None
    for match in _NUMBER.finditer(text):
        found = match[0]
    return found
