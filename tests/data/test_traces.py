import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.data.sources import Sums
from magistral_jax.data.traces import trace
from magistral_jax.types import Problem


def the_sum(a: int, b: int) -> Problem:
    return Problem(id=f"sum-{a}-{b}", domain="math", question=f"{a}+{b}=?", answer=str(a + b))


@pytest.mark.parametrize(
    "a, b, text",
    [
        (347, 285, r"<think>7+5+0=12 4+8+1=13 3+2+1=06</think>\boxed{632}"),
        (120, 130, r"<think>0+0+0=00 2+3+0=05 1+1+0=02</think>\boxed{250}"),
        (999, 999, r"<think>9+9+0=18 9+9+1=19 9+9+1=19</think>\boxed{1998}"),
        (5, 5, r"<think>5+5+0=10</think>\boxed{10}"),
    ],
)
def test_worked_traces_as_written(a, b, text):
    assert trace(the_sum(a, b), worked=True) == text


def test_a_trace_that_is_not_worked_just_answers():
    assert trace(the_sum(347, 285), worked=False) == r"<think>ok</think>\boxed{632}"


@given(
    st.integers(1, 12).flatmap(lambda d: st.tuples(*[st.integers(10 ** (d - 1), 10**d - 1)] * 2))
)
def test_every_step_is_a_true_sum_and_the_steps_give_the_answer(numbers):
    a, b = numbers
    text = trace(the_sum(a, b), worked=True)
    steps = [step.split("=") for step in text[len("<think>") : text.index("</think>")].split()]
    assert all(sum(map(int, terms.split("+"))) == int(total) for terms, total in steps)
    carries = [0, *(int(total) // 10 for _, total in steps)]
    digits = zip(reversed(str(a)), reversed(str(b)), carries, strict=False)
    expected = [[x, y, str(carry)] for x, y, carry in digits]
    assert [terms.split("+") for terms, _ in steps] == expected
    assert all(len(total) == 2 for _, total in steps)  # every step has the same width
    columns = [total[-1] for _, total in steps[:-1]] + [str(int(steps[-1][1]))]
    assert "".join(reversed(columns)) == str(a + b) == re.findall(r"boxed{(\d+)}", text)[0]


def test_traces_belong_to_generated_sums():
    assert trace(Sums(3)[7], worked=True).startswith("<think>0+7+0=07 ")
    with pytest.raises(AssertionError, match="not a generated sum"):
        trace(Problem(id="x", domain="math", question="12+3=?", answer="15"), worked=True)
