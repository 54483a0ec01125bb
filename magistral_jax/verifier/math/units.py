"""Units behind a number: what they measure and by how much they differ; and things counted.

A unit that is left out is forgiven, a wrong one never. Units of one kind convert exactly, except
temperatures, which need more than a factor. Words that are not listed here are no units.
"""

import re
from fractions import Fraction
from functools import cache

Dimension = tuple[tuple[str, int], ...]

_PREFIXES = {"milli": "1/1000", "centi": "1/100", "deci": "1/10", "kilo": "1000"} | {
    "micro": "1/1000000",
    "mega": "1000000",
    "nano": "1/1000000000",
}
_SHORT_PREFIXES = {"m": "1/1000", "c": "1/100", "d": "1/10", "k": "1000", "n": "1/1000000000"}
# kind: {spellings: how many of the kind's base}
_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "inch inches in": "0.0254",
        "foot feet ft": "0.3048",
        "yard yards yd yds": "0.9144",
        "mile miles mi": "1609.344",
    },
    "mass": {
        "pound pounds lb lbs": "0.45359237",
        "ounce ounces oz": "0.028349523125",
        "ton tons": "907.18474",
        "tonne tonnes": "1000",
    },
    "time": {
        "second seconds sec secs s": "1",
        "minute minutes min mins": "60",
        "hour hours hr hrs h": "3600",
        "day days": "86400",
        "week weeks": "604800",
    },
    "month": {"month months": "1", "year years yr yrs": "12", "decade decades": "120"},
    "money": {
        "dollar dollars usd": "1",
        "cent cents": "0.01",
    },
    "volume": {
        "gallon gallons gal": "1",
        "quart quarts qt": "1/4",
        "pint pints pt": "1/8",
        "cup cups": "1/16",
    },
    "angle": {"degree degrees deg": "1"},
    "celsius": {"celsius": "1"},
    "fahrenheit": {"fahrenheit": "1"},
    "knot": {"knot knots": "1"},
    "radian": {"radian radians rad": "1"},
    "euro": {"euro euros eur": "1"},
    "sterling": {"sterling": "1"},
    "rupee": {"rupee rupees": "1"},
    "yuan": {"yuan": "1"},
    "square": {"square squares": "1"},
    "unit": {"unit units": "1"},
    "acre": {"acre acres": "1"},
}
_METRIC = {
    "meter": ("length", "1", "m"),
    "metre": ("length", "1", "m"),
    "gram": ("mass", "1/1000", "g"),
    "gm": ("mass", "1/1000", ""),
    "liter": ("litre", "1", "L"),
    "litre": ("litre", "1", "L"),
    "joule": ("energy", "1", "J"),
    "watt": ("power", "1", "W"),
    "newton": ("force", "1", "N"),
    "volt": ("voltage", "1", "V"),
    "ampere": ("current", "1", "A"),
    "amp": ("current", "1", "A"),
    "ohm": ("resistance", "1", ""),
    "pascal": ("pressure", "1", "Pa"),
    "hertz": ("frequency", "1", "Hz"),
}
_COUNTED_WORDS = (
    "multiple meal triangle apple orange banana book pencil pen ball marble coin card student "
    "people person child girl boy man woman men women children cat dog bird animal car bus "
    "bike box bag bottle cookie cake candy egg flower tree ticket toy game page word letter "
    "number digit way point solution pair side edge vertex vertices face circle integer root "
    "value step time turn trip question problem team player worker employee friend group row "
    "column table chair room house slice piece pizza sheep cow horse chicken duck fish bee "
    "stamp sticker shirt shoe hat arrangement combination permutation outcome subset element "
    "function path route term factor divisor prime nickel dime penny pennies quarter packet "
    "pack packages seat vote mark goal kid adult passenger bead block brick tile cube stone "
    "rock rose penguin member donut muffin sandwich glass plate item order class sequence "
    "pairs tournament match round"
)
_COUNTED = _COUNTED_WORDS.split()
_WORD = r'"([A-Za-z]+)"'
_FACTOR = re.compile(
    r'\s*(?:"(?:distinct|different|right|positive|possible)" )?'
    rf'(?:"(?P<power>square|sq|cubic|cu)"\.? )?\s*{_WORD}\.?'
    rf'(?:\s*\^\s*\{{?(?P<exponent>-?[123])\}}?|\s*"(?P<after>squared|cubed)")?',
    re.IGNORECASE,
)
# Behind a unit and a stroke even a plain letter is one: km/h.
_BARE_FACTOR = re.compile(
    r"\s*(?P<power>)([a-z]{1,2})(?:\^\{?(?P<exponent>[23])\}?)?(?P<after>)(?![a-z])"
)
_BETWEEN = re.compile(
    r'\s*(?P<per>/|"per"|"an"|"a")|\s*\*|(?=\s*"[A-Za-z]+"\s*\^\s*\{-)', re.IGNORECASE
)
_FRACTION = re.compile(rf"\s*\\frac\s*\{{\s*{_WORD}\s*\}}\s*\{{\s*{_WORD}(?:\^\{{?2\}}?)?\s*\}}")
_SPEEDS = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmh": ("km", "hour")}


def read(text: str, at: int) -> tuple[Fraction, Dimension, int] | None:
    """Factor, dimension and end of the unit that starts at `at`; None if there is none."""
    if text.startswith('"', at) is False and not re.compile(r'\s*["\\]').match(text, at):
        return None
    if match := _FRACTION.match(text, at):
        over, under = _unit(match[1]), _unit(match[2])
        if over is None or under is None:
            return None
        power = 2 if "^" in match[0] else 1
        factor = over[0] / under[0] ** power
        return factor, _merged([(over[1], 1), (under[1], -power)]), match.end()
    factor, kinds, sign, end = Fraction(1), [], 1, at
    while match := (_FACTOR.match(text, end) or (sign < 0 and _BARE_FACTOR.match(text, end))):
        word = match[2]
        if word.lower() in _SPEEDS and not kinds:
            (a, kind_a), (b, kind_b) = (_known(name) for name in _SPEEDS[word.lower()])
            return a / b, _merged([(kind_a, 1), (kind_b, -1)]), match.end()
        unit = _unit(word)
        if unit is None:
            return None
        power = int(match["exponent"] or 1)
        if named := (match["power"] or match["after"]):
            if match["exponent"]:
                return None
            power = 2 if named.lower().startswith("sq") else 3
        power *= sign
        factor *= unit[0] ** power
        kinds.append((unit[1], power))
        end = match.end()
        between = _BETWEEN.match(text, end)
        if between is None or not (
            _FACTOR.match(text, between.end())
            or (between["per"] and _BARE_FACTOR.match(text, between.end()))
        ):
            break
        sign = -1 if between["per"] else sign
        end = between.end()
    return (factor, _merged(kinds), end) if kinds else None


def _known(word: str) -> tuple[Fraction, str]:
    unit = _unit(word)
    assert unit is not None
    return unit


def _merged(kinds: list[tuple[str, int]]) -> Dimension:
    totals: dict[str, int] = {}
    for kind, power in kinds:
        if kind == "litre":  # a thousand cubic centimetres
            totals["length"] = totals.get("length", 0) + 3 * power
        else:
            totals[kind] = totals.get(kind, 0) + power
    return tuple(sorted((k, p) for k, p in totals.items() if p))


@cache
def _names() -> dict[str, tuple[Fraction, str]]:
    names: dict[str, tuple[Fraction, str]] = {}
    for kind, units in _TABLE.items():
        for spellings, factor in units.items():
            names |= dict.fromkeys(spellings.split(), (Fraction(factor), kind))
    for name, (kind, factor, short) in _METRIC.items():
        base = Fraction(factor) * (Fraction(1, 1000) if kind == "litre" else 1)
        for prefix, scale in [("", "1"), *_PREFIXES.items()]:
            value = (base * Fraction(scale), kind)
            names |= {prefix + name: value, prefix + name + "s": value}
        if short:
            names |= {short: (base, kind)}
            for prefix, scale in _SHORT_PREFIXES.items():
                names.setdefault(prefix + short, (base * Fraction(scale), kind))
    names |= {"ml": names["mL"], "cc": (Fraction(1, 10**6), "litre"), "hz": names["Hz"]}
    for word in _COUNTED:
        plural = word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")
        kind = f"count of {word}"
        names.setdefault(word, (Fraction(1), kind))
        names.setdefault(plural, (Fraction(1), kind))
        if word.endswith("y"):
            names.setdefault(word[:-1] + "ies", (Fraction(1), kind))
    return names


def _unit(word: str) -> tuple[Fraction, str] | None:
    names = _names()
    return names.get(word) or names.get(word.lower())
