"""Whether an output is the expected one. Nothing here runs or trusts what a program printed.

- exact: equal up to white space at line ends and empty lines at the end;
- json: equal as JSON values. Whole numbers are compared exactly; a number that is expected with a
  point or an exponent may be off by 1e-6 of itself or of 1;
- float: equal token by token, numbers as above; a whole number of below a million, too, if it was
  printed with a point;
- special: several outputs are right and nobody can say which, so all but the expected are unknown.
"""

import json
import math
import re
from decimal import Decimal
from typing import Any, Literal

TOLERANCE = 1e-6
Compared = Literal["same", "different", "unknown"]
BUILT_IN = ("exact", "json", "float", "special")

_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_SMALL = 1_000_000
_DEPTH = 500


def compare(output: str, expected: str, checker: str) -> Compared:
    """How an output stands to the expected one. `checker` is one of BUILT_IN."""
    if checker == "json":
        is_same = _same_json(output, expected)
    elif checker == "float":
        is_same = _same_tokens(output.split(), expected.split())
    else:
        is_same = _tidy(output) == _tidy(expected)
    if is_same:
        return "same"
    return "unknown" if checker == "special" else "different"


def is_readable(expected: str, checker: str) -> bool:
    """False if no output could equal this one, which is then the data set's fault."""
    if checker != "json":
        return True
    try:
        _read(expected)
    except (ValueError, RecursionError):
        return False
    return True


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n"))


def _same_json(output: str, expected: str) -> bool:
    try:
        return _same_value(_read(output), _read(expected))
    except (ValueError, RecursionError):
        return False


class _Whole(str):
    """A whole number as its digits: integers of any length, without turning them into numbers."""


def _read(text: str) -> Any:
    # The standard reader recurses into brackets, in C.
    if text.count("[") + text.count("{") > _DEPTH and _deepest(text) > _DEPTH:
        raise ValueError("nested too deeply")
    return json.loads(text, parse_int=_Whole)


def _deepest(text: str) -> int:
    """At most this deep: brackets in strings count as well."""
    depth = most = 0
    for c in text:
        if c in "[{":
            depth += 1
            most = max(most, depth)
        elif c in "]}":
            depth -= 1
    return most


def _same_value(output: Any, expected: Any) -> bool:
    if isinstance(expected, _Whole) and isinstance(output, _Whole):
        return _digits(output) == _digits(expected)
    if isinstance(expected, _Whole) and isinstance(output, float):
        return math.isfinite(output) and Decimal(output) == Decimal(expected)
    if isinstance(expected, float) and isinstance(output, _Whole | float):
        return _is_close(float(output), expected)
    if type(output) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(output) == len(expected) and all(map(_same_value, output, expected))
    if isinstance(expected, dict):
        return output.keys() == expected.keys() and all(
            _same_value(output[key], value) for key, value in expected.items()
        )
    return output == expected


def _digits(text: str) -> str:
    sign, digits = ("-", text[1:]) if text[0] == "-" else ("", text.removeprefix("+"))
    digits = digits.lstrip("0")
    return sign + digits if digits else "0"


def _same_tokens(output: list[str], expected: list[str]) -> bool:
    return len(output) == len(expected) and all(map(_same_token, output, expected))


def _same_token(output: str, expected: str) -> bool:
    if output == expected:
        return True
    if _WHOLE.fullmatch(output) and _WHOLE.fullmatch(expected):
        return _digits(output) == _digits(expected)
    if not (_NUMBER.fullmatch(output) and _NUMBER.fullmatch(expected)):
        return False
    if _WHOLE.fullmatch(expected) and abs(float(expected)) >= _SMALL:
        return Decimal(output) == Decimal(expected)
    return _is_close(float(output), float(expected))


def _is_close(output: float, expected: float) -> bool:
    if not (math.isfinite(output) and math.isfinite(expected)):
        return output == expected or (math.isnan(output) and math.isnan(expected))
    return abs(output - expected) <= TOLERANCE * max(1.0, abs(expected))
