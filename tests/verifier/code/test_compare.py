import time

import pytest

from magistral_jax.verifier.code.compare import compare, is_readable


@pytest.mark.parametrize(
    ("checker", "output", "expected", "result"),
    [
        ("exact", "1 2\n3\n", "1 2\n3", "same"),
        ("exact", "1 2  \n3\t\n\n\n", "1 2\n3\n", "same"),
        ("exact", "1 2\r\n3\r\n", "1 2\n3\n", "same"),
        ("exact", " 1 2\n", "1 2\n", "different"),
        ("exact", "1  2\n", "1 2\n", "different"),
        ("exact", "\n1\n", "1\n", "different"),
        ("exact", "1\n\n2\n", "1\n2\n", "different"),
        ("exact", "", "1\n", "different"),
        ("exact", "YES", "yes", "different"),
        ("exact", "", "\n", "same"),
        ("special", "2 1\n", "2 1", "same"),
        ("special", "1 2\n", "2 1", "unknown"),
        ("json", "[1, 2]", "[1,2]\n", "same"),
        ("json", '{"a": 1, "b": 2}', '{"b": 2, "a": 1}', "same"),
        ("json", "[2, 1]", "[1, 2]", "different"),
        ("json", "1", "true", "different"),
        ("json", "0", "false", "different"),
        ("json", "null", "false", "different"),
        ("json", '"1"', "1", "different"),
        ("json", "1", '"1"', "different"),
        ("json", "5.0", "5", "same"),
        ("json", "5.0000001", "5", "different"),
        ("json", "5", "5.0", "same"),
        ("json", "0.30000000000000004", "0.3", "same"),
        ("json", "0.30001", "0.3", "different"),
        ("json", "9007199254740993", "9007199254740992", "different"),
        ("json", "9007199254740992.0", "9007199254740993", "different"),
        ("json", "1" * 5000, "1" * 5000, "same"),
        ("json", "1" * 5000 + "2", "1" * 5000 + "3", "different"),
        ("json", "1e400", "1e400", "same"),
        ("json", "NaN", "NaN", "same"),
        ("json", "1e400", "5", "different"),
        ("json", "[1] [1]", "[1]", "different"),
        ("json", "[1", "[1]", "different"),
        ("json", "", "[1]", "different"),
        ("json", "[" * 100_000, "[1]", "different"),
        ("json", "[" * 600 + "]" * 600, "[]", "different"),
        ("float", "0.333333333", "0.3333333331", "same"),
        ("float", "0.33333", "0.3333333331", "different"),
        ("float", "1000000.5", "1000000", "different"),
        ("float", "5.0000001", "5", "same"),
        ("float", "1000000007", "1000000008", "different"),
        ("float", "1e9", "1000000000", "same"),
        ("float", "1000000000.1", "1000000000", "different"),
        ("float", "YES 1.0", "YES 1", "same"),
        ("float", "NO 1.0", "YES 1", "different"),
        ("float", "1.0 2.0", "1.0", "different"),
        ("float", "nan", "1.0", "different"),
        ("float", "inf", "1.0", "different"),
        ("float", "1_0.0", "10.0", "different"),
        ("float", "007", "7", "same"),
        ("float", "-0", "0", "same"),
        ("float", "1e9999", "1.0", "different"),
        ("float", "9" * 5000 + ".0", "1.0", "different"),
    ],
)
def test_outputs_compare(checker, output, expected, result):
    assert compare(output, expected, checker) == result


def test_what_cannot_be_expected():
    assert not is_readable("[1", "json")
    assert not is_readable("[" * 10_000, "json")
    assert is_readable("[1]", "json")
    assert is_readable("[1", "exact")


@pytest.mark.parametrize("checker", ["exact", "json", "float", "special"])
@pytest.mark.parametrize("unit", ["[", "1", "1 ", " ", "\n", '{"a":', "[1],", "-", ".", "e1", '"'])
def test_a_million_characters_are_compared_in_linear_time(checker, unit):
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    compare(text, "[1]", checker)
    compare(text, text, checker)
    assert time.process_time() - start < 10
