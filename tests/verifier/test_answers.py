import gzip
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.verifier.answers import is_equal

DATA = Path(os.environ.get("MAGISTRAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILES = ["gsm8k_train.jsonl.gz", "math_train.jsonl.gz"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("4", " 4 "),
        ("+3", "3"),
        ("-3", "\u22123"),
        ("-3", "- 3"),
        ("42.", "42"),
        ("$42$", "42"),
        (r"\text{13}", "13"),
        ("\u0663", "3"),  # an Arabic-Indic digit
        ("\uff11\uff0c\uff10\uff10\uff10", "1000"),  # full width
        ("1,000", "1000"),
        ("1{,}000.50", "1000.5"),
        (r"45,\!045", "45045"),
        (r"1, \! 000, \! 000", "1000000"),
        (r"10\,000", "10000"),
        ("1e3", "1000"),
        ("1.5e-2", "0.015"),
        (r"3 \times 10^{3}", "3000"),
        ("3 \u00d7 10^3", "3000"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac12", "0.5"),
        (r"\tfrac 1 2", ".50"),
        (r"\frac1{2}", r"\cfrac{2}{4}"),
        (r"-\frac{1}{2}", r"\frac{1}{-2}"),
        (r"2\frac{1}{2}", "2.5"),
        (r"-2 \frac12", "-5/2"),
        (r"50\%", "0.5"),
        ("50 %", "1/2"),
        (r"\$1,050.5", "1050.50"),
        (r"-\$0.50", "-0.5"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90\u00b0"),
        ("(1, 2)", r"\left( \frac{2}{2}, 2.0 \right)"),
        ("1,2", "1.0, 2"),
        (r"\{1,\ 2\}", r"\{1.0,2\}"),
        ("(0,1]", "(0, 1.0]"),
        ("((1,2),3)", "((1,2.0),3)"),
        ("(1,2),(3,4)", "(1, 2.0), (3, 4)"),
        (r"4 \sqrt 3", r"4\sqrt3"),
        (r"x^{2}+1", "x^2 + 1"),
        (r"10\text{ cm}", "10 cm"),
        (r"\text {Friday}", "Friday"),
        ("1000000!", "1000000!"),
        ("1/0", "1/0"),
    ],
)
def test_one_answer_in_two_spellings(a, b):
    assert is_equal(a, b) and is_equal(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"4 \text{ or } 5", "4"),
        (r"\text{4 or 5}", "4"),
        ("4,5", "4"),
        ("4, 5", "5"),
        ("4 5", "45"),
        ("4. 5", "4.5"),
        ("1, 000", "1000"),
        ("(1,234)", "1234"),
        ("(1,234)", "(1234)"),
        ("(5)", "5"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2]", "(1,2)"),
        ("1,2,", "1,2"),
        ("1,2,3", "1,2"),
        ("(0,1)\\cup(2,3)", "(0,1)"),
        ("9007199254740993", "9007199254740992"),
        ("0.1", "0.10000000000000000001"),
        ("0.333", "1/3"),
        ("1e-400", "0"),
        ("5\u00b2", "52"),  # NFKC would make a square into 52
        ("5\u00b2", "25"),
        ("007", "7"),
        ("1011_2", "1011"),
        ("1011_{2}", "1011_{3}"),
        ("x = 5", "5"),
        (r"50\%", "50"),
        (r"\$5", r"5^\circ"),
        (r"\$5\%", "0.05"),
        (r"\$5^\circ", "5"),
        (r"5\$3", "53"),
        (r"1\\,2", r"1\2"),  # a line break and a comma, not a thin space
        (r"2\frac{1}{2}", "1"),
        (r"2\frac{3}{2}", "3.5"),
        (r"\frac{1}{2}3", r"\frac{1}{23}"),
        (r"1\times10^{1}2", r"1\times10^{12}"),
        ("1/0", "2/0"),
        (r"10\text{ cm}", "10"),
        (r"10\text{ cm}", r"10\text{ m}"),
        (r"\sin x", r"\sinx"),
        (r"2 \pm 1", "2"),
        ("", ""),
        (r"\,", " "),
        ("1\0", "1\0"),
        ("\ud800", "\ud800"),
        ("1" * 2001, "1" * 2001),
        ("1" * 1001, "+" + "1" * 1001),
        ("1e1001", "10e1000"),
        ("1e99999999", "10e99999998"),
        ("(" * 1000, ")" * 1000),
        ("(" * 11 + "1" + ")" * 11, "(" * 11 + "1.0" + ")" * 11),
    ],
)
def test_different_or_unreadable_answers_are_refused(a, b):
    assert not is_equal(a, b) and not is_equal(b, a)


def spellings(n: int) -> list[str]:
    return [
        f"{n}",
        f"{n:+}",
        f" {n}. ",
        f"{n:,}",
        f"{n:,}".replace(",", r",\!"),
        f"{n:,}".replace(",", "{,}"),
        f"{n}.00",
        f"${n}$",
        rf"\text{{{n}}}",
        rf"\frac{{{2 * n}}}{{2}}",
        rf"\frac{{{-n}}}{{-1}}",
        f"{3 * n}/3",
        rf"{100 * n}\%",
        f"{n}e0",
        rf"{n}\times10^0",
        rf"{n}^\circ",
        f"{n}".replace("-", "\u2212"),
        f"{n}".translate({48 + i: 0xFF10 + i for i in range(10)}),
    ]


integers = st.integers() | st.integers(-2000, 2000) | st.integers(2**53 - 3, 2**53 + 3)


@given(integers)
def test_an_integer_equals_itself_in_every_spelling(n):
    assert all(is_equal(a, b) for a in spellings(n) for b in (f"{n}", f"{n:,}"))


@given(integers)
def test_an_integer_never_equals_the_next(n):
    assert not any(is_equal(a, f"{n + 1}") or is_equal(f"{n + 1}", a) for a in spellings(n))


@given(st.fractions(), st.fractions())
def test_fractions_are_equal_exactly_when_they_are(a, b):
    left = rf"\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert is_equal(left, f"{b.numerator}/{b.denominator}") == (a == b)


latexish = st.text(alphabet="019.,+-()[]{}\\$%^_ e/x\u00b0~!") | st.text()


@given(latexish, latexish)
def test_any_two_texts_get_one_answer_in_either_order(a, b):
    assert is_equal(a, b) == is_equal(b, a)


@given(latexish, st.sampled_from([",", " , ", r" \text{ or } ", " or ", "; ", " "]))
def test_a_hedge_is_neither_of_its_answers(text, between):
    hedge = f"4{between}{text}"
    if is_equal(hedge, "4"):  # nothing but blanks, a unit or zeros behind it
        assert not re.search(r"[1-9a-z,;(){}]", hedge[1:].replace("quad", ""))


def perturbed(answer: str) -> list[str]:
    """Answers that look like this one and are not."""
    changed = [
        answer[: m.start()] + str((int(m[0]) + 1) % 10) + answer[m.end() :]
        for m in re.finditer(r"[0-9]", answer)
    ]
    return [*changed, answer + "1", "7" + answer, answer + ",1", answer + r" \text{ or } 5"]


@pytest.mark.parametrize("file", FILES)
def test_real_answers_equal_themselves_and_nothing_near_them(file):
    if not (DATA / file).exists():
        pytest.skip(f"{file} is not in MAGISTRAL_DATA")
    with gzip.open(DATA / file, "rt", encoding="utf-8") as rows:
        answers = sorted({json.loads(row)["answer"] for row in rows})
    assert [a for a in answers if not is_equal(a, a)] == []
    pairs = [(a, p) for a in answers[::5] for p in perturbed(a)]
    assert [pair for pair in pairs if is_equal(*pair)] == []
