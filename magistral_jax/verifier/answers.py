r"""Whether two math answers are the same: as text, else as exact numbers, else item by item (2.2).

Nothing is evaluated: text is matched against a fixed grammar of number spellings, in exact
arithmetic. What is not understood is compared as text, so mistakes are refusals. Decisions:
- a percentage is its value: 50\% = 0.5 = 1/2, and 50\% is not 50;
- dollar and degree signs are units that may be left out: \$5 = 5, 90^\circ = 90;
- other units, words and names stay: 10\text{ cm} is not 10, and x = 5 is not 5;
- 2\frac{1}{2} is the mixed number 5/2;
- 1,000 (no space) is a thousand unless inside brackets; 1, 000 and (1,000) are lists;
- lists keep their order, their brackets and their length, so a hedge never equals one answer;
- leading zeros are no number: 007 equals only 007.
"""

import re
import unicodedata
from fractions import Fraction

_MAX_CHARS = 2000
_MAX_DIGITS = 1000
_MAX_EXPONENT = 1000
_MAX_DEPTH = 10

# Full NFKC would turn a square into 52, so only digits and these signs are mapped.
_SIGNS = str.maketrans(
    {
        "\u2212": "-",
        "\uff0d": "-",
        "\uff0b": "+",
        "\u00d7": r"\times ",
        "\uff0c": ",",
        "\uff0e": ".",
        "\uff0f": "/",
        "\uff1a": ":",
        "\uff05": "%",
        "\uff08": "(",
        "\uff09": ")",
    }
)
_DECIMAL = r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?) (?P<dollar>\\?\$)?
    (?: (?P<whole>[1-9][0-9]*)?
        \\frac\{{(?P<top>[+-]?{_DECIMAL})\}}\{{(?P<bottom>[+-]?{_DECIMAL})\}}
      | (?P<over>{_DECIMAL}) / (?P<under>{_DECIMAL})
      | (?P<decimal>{_DECIMAL})
        (?: [eE](?P<exponent>[+-]?[0-9]+)
          | \\(?:times|cdot)10\^(?P<power>[0-9] | \{{[+-]?[0-9]+\}}) )?
    ) (?P<unit>[%°])?""",
    re.VERBOSE,
)
_THOUSANDS = re.compile(
    r"(?P<before>[+-]?\s*(?:\\?\$)?\s*) (?P<digits>[1-9][0-9]{0,2}(?:(?:,|\\,)[0-9]{3})+)"
    r"(?P<after>(?:\.[0-9]+)?\s*[%°]?)",
    re.VERBOSE,
)


def is_equal(candidate: str, reference: str) -> bool:
    """True only if both texts are the same answer. Never raises; a wrong no is possible."""
    if not (_is_readable(candidate) and _is_readable(reference)):
        return False
    return _same(_normalize(candidate), _normalize(reference))


def _is_readable(text: str) -> bool:
    if len(text) > _MAX_CHARS:
        return False
    return not any(c == "\0" or unicodedata.category(c) == "Cs" for c in text)


def _normalize(text: str) -> str:
    """The text with one spelling for what LaTeX can spell in several ways."""
    text = "".join(str(unicodedata.decimal(c, c)) for c in text.translate(_SIGNS)).strip()
    if re.fullmatch(r"\$[^$]*[^$\\]\$", text):
        text = text[1:-1]
    text = re.sub(r"\s*\\!\s*", "", text.replace("{,}", ","))
    text = re.sub(r"\\([dtc])frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(left|right)(?![A-Za-z])", "", text)
    text = re.sub(r"\\(text[a-z]{0,2}|mbox|mathrm)\s*\{([^{}]*)\}", r" \2 ", text)
    text = re.sub(r"\^\s*(\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", "°", text)
    text = re.sub(r"\\%", "%", text).strip()
    text = text.removesuffix(".").rstrip()
    if thousands := _THOUSANDS.fullmatch(text):
        digits = re.sub(r"[^0-9]", "", thousands["digits"])
        text = thousands["before"] + digits + thousands["after"]
    text = _without_spaces(text)
    text = re.sub(r"\\frac ?([0-9])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\}) ?([0-9])", r"\1{\2}", text)
    return re.sub(r"([_^])\{([A-Za-z0-9])\}", r"\1\2", text)


def _without_spaces(text: str) -> str:
    """Spaces go, except where two numbers or two words would grow together."""
    # `\\` is a line break, whatever follows it: `\\,` is no thin space.
    text = re.sub(r"(\\\\)|\\[,;: ]|~|\\q?quad(?![A-Za-z])", lambda m: m[1] or " ", text)
    text = " ".join(text.split())
    text = re.sub(r"(?<=[0-9.]) (?=[0-9.])|(?<=[^\W\d_]) (?=[^\W\d_])", "\0", text)
    return text.replace(" ", "").replace("\0", " ")


def _same(a: str, b: str, depth: int = 0) -> bool:
    if a == b:
        return a != ""
    number_a, number_b = _number(a), _number(b)
    if number_a is not None and number_b is not None:
        (value_a, unit_a), (value_b, unit_b) = number_a, number_b
        return value_a == value_b and (unit_a == unit_b or not unit_a or not unit_b)
    (brackets_a, items_a), (brackets_b, items_b) = _items(a), _items(b)
    if not (brackets_a or len(items_a) > 1) or brackets_a != brackets_b or depth == _MAX_DEPTH:
        return False
    return len(items_a) == len(items_b) and all(
        _same(x, y, depth + 1) for x, y in zip(items_a, items_b, strict=True)
    )


def _number(text: str) -> tuple[Fraction, str] | None:
    """The exact value and its unit ("", "$" or "°"), or None if this is not one number."""
    match = _NUMBER.fullmatch(text)
    if match is None or sum(c.isdigit() for c in text) > _MAX_DIGITS:
        return None
    if match["dollar"] and match["unit"]:
        return None
    top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
    if top is not None:
        if Fraction(bottom) == 0:
            return None
        value = Fraction(top) / Fraction(bottom)
    else:
        exponent = int((match["exponent"] or match["power"] or "0").strip("{}"))
        if abs(exponent) > _MAX_EXPONENT:
            return None
        value = Fraction(match["decimal"]) * Fraction(10) ** exponent
    if match["whole"]:
        if not 0 < value < 1:
            return None
        value += int(match["whole"])
    if match["sign"] == "-":
        value = -value
    if match["unit"] == "%":
        return value / 100, ""
    return value, "$" if match["dollar"] else match["unit"] or ""


def _items(text: str) -> tuple[str, list[str]]:
    """The brackets around a list ("" if none) and what its commas separate."""
    for opening, closing in ((r"\{", r"\}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]")):
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            items = _split(inner)
            if items is not None:
                return opening + closing, items
    return "", _split(text) or [text]


def _split(text: str) -> list[str] | None:
    """The parts between commas outside all brackets; None if a bracket closes that is not open."""
    parts, start, depth = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]] if depth == 0 else None
