r"""Spellings of one number: decimals, powers of ten behind e, repeating decimals, other bases."""

import re
from fractions import Fraction

from magistral_jax.verifier.math.caps import MAX_DIGITS, MAX_EXPONENT, Unreadable
from magistral_jax.verifier.math.nodes import Based, Node, Num

_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7} | {
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
    "sixteen": 16,
}
_NUMBER = re.compile(
    r"""(?P<whole>[0-9]*)\.(?P<fixed>[0-9]*)\\overline\ ?\{?(?P<over>[0-9]+)\}?
    | (?P<whole2>[0-9]*)\.(?P<fixed2>[0-9]*)\\dot\ ?\{?(?P<first>[0-9])\}?
      (?:(?P<middle>[0-9]*)\\dot\ ?\{?(?P<last>[0-9])\}?)?
    | (?P<whole3>[0-9]*)\.(?P<fixed3>[0-9]*)\((?P<round>[0-9]+)\)
    | (?P<whole4>[0-9]*)\.(?P<seen>[0-9]+)\s*(?:\.\.\.|\\ldots)
    | (?P<decimal>[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[0-9]+\.(?![0-9.]))(?:[eE](?P<exponent>[+-]?[0-9]+))?
    """,
    re.VERBOSE,
)
_BASED = re.compile(
    r"\(?(?P<digits>[0-9][0-9A-Fa-f]*(?:\.[0-9A-Fa-f]+)?|[A-F][0-9A-F]+)\)?\s*(?:_\s*"
    r'(?:\{\s*\(?(?:"base"\s*)?(?:(?P<base>[0-9]+)|"?(?P<word>[a-z]+)"?)\)?\s*\}|(?P<short>[0-9]))'
    r'|\(?"base"\s*(?:(?P<plain>[0-9]+)|"(?P<plain_word>[a-z]+)")\)?)'
)


def number(text: str, at: int) -> tuple[Node, int] | None:
    """The number that starts at `at` and its end. Raises Unreadable for digits that are none."""
    if based := _BASED.match(text, at):
        if based[0].startswith("(") != (")" in based[0].split("_")[0].split('"')[0]):
            raise Unreadable("a bracket of a based number")
        return _based(based), based.end()
    match = _NUMBER.match(text, at)
    if match is None:
        return None
    return Num(_value(match)), match.end()


def _value(match: re.Match[str]) -> Fraction:
    if (over := match["over"]) is not None:
        return _repeating(match["whole"], match["fixed"], over)
    if (first := match["first"]) is not None:
        block = first if match["last"] is None else first + match["middle"] + match["last"]
        return _repeating(match["whole2"], match["fixed2"], block)
    if (inside := match["round"]) is not None:
        return _repeating(match["whole3"], match["fixed3"], inside)
    if (seen := match["seen"]) is not None:
        return _repeating(match["whole4"], *_visible_block(seen))
    decimal = match["decimal"]
    whole = decimal.partition(".")[0]
    if len(whole) > 1 and whole[0] == "0":
        raise Unreadable("leading zeros")  # a date, or the end of 1,000: no number
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        raise Unreadable("exponent")
    return Fraction(decimal.rstrip(".")) * Fraction(10) ** exponent


def _repeating(whole: str, fixed: str, block: str) -> Fraction:
    if len(fixed) + len(block) > MAX_DIGITS:
        raise Unreadable("digits")
    start = Fraction(int((whole or "0") + fixed), 10 ** len(fixed))
    return start + Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(fixed))


def _visible_block(seen: str) -> tuple[str, str]:
    """What repeats in 0.1666... or 0.1212...: seen three times, or twice and longer than one."""
    for length in range(1, len(seen) // 2 + 1):
        block = seen[-length:]
        times = 1
        while seen.endswith(block * (times + 1)):
            times += 1
        if times >= 3 or (times == 2 and length >= 2):
            return seen[: len(seen) - length * times], block
    raise Unreadable("digits that do not repeat")


def _based(match: re.Match[str]) -> Node:
    word = match["word"] or match["plain_word"]
    digits = match["base"] or match["short"] or match["plain"]
    base = _BASE_WORDS.get(word or "", 0) if word else int(digits)
    if not 2 <= base <= 36 or len(match["digits"]) > MAX_DIGITS:
        raise Unreadable("base")
    whole, _, rest = match["digits"].partition(".")
    if any(int(c, 36) >= base for c in whole + rest):
        raise Unreadable("a digit that the base has not")
    value = Fraction(int(whole + rest, base), base ** len(rest))
    return Based(value, base)
