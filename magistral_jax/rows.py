"""A line of JSON -> a problem: the one schema that training data and `verify` share."""

import json
from collections.abc import Mapping
from typing import Any

from magistral_jax.types import CodeTests, Problem, UserError

DOMAINS = ("math", "code")
_LONGEST_NAME = 200
_CHECKERS = ("exact", "float", "json", "special")


def row_of(place: str, line: bytes) -> dict[str, Any]:
    """The object of a line. Raises UserError, naming the place, where there is none."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number, or a nesting, without end
        raise UserError(f"{place}: not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: {short(row)} is not an object; a row is {{...}}.")
    return row


def problem_of(place: str, row: Mapping[str, Any]) -> Problem:
    """The problem of a row: `id, domain, problem`, and `answer` (math), or `tests`
    ([{stdin, stdout}]), `asserts` or `test_code` with `entry_point` (code).

    Optional: `language`, `source`, `setup`, `checker`, `pass_rate`; and `multiple_answers`, which
    says that the values of `answer` may come in any order. Others are ignored. Raises UserError.
    """
    domain = text_in(place, row, "domain")
    if domain not in DOMAINS:
        raise UserError(
            f"{place}: domain is {short(domain)}; the domains that can be judged: "
            f"{', '.join(DOMAINS)}."
        )
    problem = Problem(
        id=text_in(place, row, "id"),
        domain="math" if domain == "math" else "code",
        question=text_in(place, row, "problem"),
        answer=_answer(place, row, "" if domain == "code" else None),
        language=text_in(place, row, "language", "en"),
        source=text_in(place, row, "source", ""),
        tests=_tests(place, row) if domain == "code" else None,
        pass_rate=_pass_rate(place, row),
    )
    if domain == "math" and not problem.answer.strip():
        raise UserError(f"{place}: answer is empty; a math problem needs it.")
    return problem


def _pass_rate(place: str, row: Mapping[str, Any]) -> float | None:
    rate = row.get("pass_rate")
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise UserError(f"{place}: pass_rate is {short(rate)}; it must lie between 0 and 1.")
    return float(rate)


def _answer(place: str, row: Mapping[str, Any], default: str | None) -> str:
    """The reference answer; several that may come in any order are written as the set they are."""
    answer = text_in(place, row, "answer", default)
    if row.get("multiple_answers") is True and "," in answer and "{" not in answer[:2]:
        return rf"\{{{answer.replace('$', '')}\}}"
    return answer


def text_in(place: str, row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text under a key; without a default it must be there."""
    if key not in row and default is None:
        raise UserError(f"{place}: key {key!r} is missing; a row needs it.")
    value = row.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"{place}: {key} is {short(value)}; it must be a text.")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"{place}: {key} holds half a surrogate pair, which is no character.")
    return value


def short(value: Any) -> str:
    """The value as JSON, cut to fit a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tests(place: str, row: Mapping[str, Any]) -> CodeTests:
    kinds = [key for key in ("tests", "asserts", "test_code") if row.get(key)]
    if len(kinds) != 1:
        raise UserError(
            f"{place}: a code problem needs one of tests, asserts and test_code; this one has "
            f"{' and '.join(kinds) or 'none'}."
        )
    test_code = text_in(place, row, "test_code", "")
    entry_point = text_in(place, row, "entry_point", "")
    if entry_point and not (entry_point.isidentifier() and len(entry_point) <= _LONGEST_NAME):
        raise UserError(f"{place}: entry_point is {short(entry_point)}; it must be a Python name.")
    if test_code and not entry_point:
        raise UserError(f"{place}: entry_point is {short(entry_point)}; test_code needs a name.")
    checker = text_in(place, row, "checker", "exact")
    if checker not in _CHECKERS and "\n" not in checker:
        raise UserError(
            f"{place}: checker is {short(checker)}; it must be one of {', '.join(_CHECKERS)}, or "
            "a program in Python of several lines."
        )
    return CodeTests(
        stdio=tuple(_pair(place, test) for test in _list(place, row, "tests")),
        asserts=tuple(
            text_in(place, {"asserts": line}, "asserts") for line in _list(place, row, "asserts")
        ),
        test_code=test_code,
        setup=text_in(place, row, "setup", ""),
        entry_point=entry_point,
        checker=checker,
        prompt=text_in(place, row, "problem") if test_code else "",
    )


def row_of_tests(tests: CodeTests) -> dict[str, Any]:
    """The keys of a row that say how a program is judged: `problem_of` reads them back."""
    kinds: dict[str, Any] = {
        "tests": [{"stdin": stdin, "stdout": stdout} for stdin, stdout in tests.stdio],
        "asserts": list(tests.asserts),
        "test_code": tests.test_code,
        "setup": tests.setup,
        "entry_point": tests.entry_point,
    }
    return {**{name: value for name, value in kinds.items() if value}, "checker": tests.checker}


def _list(place: str, row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key) or []
    if not isinstance(value, list):
        raise UserError(f"{place}: {key} is {short(value)}; it must be a list.")
    return value


def _pair(place: str, test: Any) -> tuple[str, str]:
    if not isinstance(test, dict):
        raise UserError(f"{place}: a test is {short(test)}; it must be {{stdin, stdout}}.")
    return text_in(place, test, "stdin"), text_in(place, test, "stdout")
