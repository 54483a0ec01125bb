import json

import pytest

from magistral_jax.rows import problem_of, row_of
from magistral_jax.types import CodeTests, UserError

MATH = {"id": "m", "domain": "math", "problem": "2+2?", "answer": "4"}
CODE = {"id": "c", "domain": "code", "problem": "Add.", "tests": [{"stdin": "1 2", "stdout": "3"}]}


def test_a_math_row_has_no_tests():
    problem = problem_of("f:1", MATH)
    assert (problem.answer, problem.language, problem.tests) == ("4", "en", None)


@pytest.mark.parametrize(
    ("changes", "tests"),
    [
        ({}, CodeTests(stdio=(("1 2", "3"),))),
        ({"checker": "float"}, CodeTests(stdio=(("1 2", "3"),), checker="float")),
        (
            {"tests": [], "asserts": ["assert f(1) == 2"], "setup": "x = 1"},
            CodeTests(asserts=("assert f(1) == 2",), setup="x = 1"),
        ),
        (
            {"tests": None, "test_code": "check(f)", "entry_point": "f"},
            CodeTests(test_code="check(f)", entry_point="f", prompt="Add."),
        ),
    ],
)
def test_a_code_row_has_tests_of_one_kind(changes, tests):
    assert problem_of("f:1", CODE | changes).tests == tests


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (MATH | {"domain": "poetry"}, 'f:1: domain is "poetry"; the domains that can be judged'),
        (MATH | {"answer": " "}, "f:1: answer is empty"),
        (CODE | {"tests": []}, "this one has none"),
        (CODE | {"asserts": ["assert f()"]}, "this one has tests and asserts"),
        (CODE | {"tests": {"stdin": 1}}, 'f:1: tests is {"stdin": 1}; it must be a list'),
        (CODE | {"tests": ["1"]}, 'f:1: a test is "1"; it must be {stdin, stdout}'),
        (CODE | {"tests": [{"stdin": "1"}]}, "f:1: key 'stdout' is missing"),
        (CODE | {"tests": None, "asserts": [3]}, "f:1: asserts is 3; it must be a text"),
        (CODE | {"checker": "fuzzy"}, 'f:1: checker is "fuzzy"; it must be one of exact, float'),
        (CODE | {"entry_point": "../f"}, 'entry_point is "../f"; it must be a Python name'),
        (CODE | {"tests": None, "test_code": "check(f)"}, 'entry_point is ""; test_code needs'),
    ],
)
def test_a_fault_names_place_value_and_rule(row, message):
    with pytest.raises(UserError) as fault:
        problem_of("f:1", row)
    assert message in str(fault.value)


@pytest.mark.parametrize(
    ("answer", "several", "gold"),
    [
        ("$69$,$84$", True, r"\{69,84\}"),
        ("1, 3", True, r"\{1, 3\}"),
        ("1, 3", False, "1, 3"),
        ("7", True, "7"),
        (r"\{1, 3\}", True, r"\{1, 3\}"),
    ],
)
def test_several_answers_in_any_order_are_a_set(answer, several, gold):
    row = MATH | {"answer": answer, "multiple_answers": several}
    assert problem_of("f:1", row).answer == gold


def test_a_line_is_an_object():
    assert row_of("f:1", json.dumps(MATH).encode()) == MATH
    with pytest.raises(UserError, match="f:1: 3 is not an object"):
        row_of("f:1", b"3")
