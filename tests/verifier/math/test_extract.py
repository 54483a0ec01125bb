import runpy
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.verifier.math.equal import math_equal
from magistral_jax.verifier.math.extract import final_answer

OUTPUTS = runpy.run_path(str(Path(__file__).parent / "outputs.py"))


def test_the_answer_is_found_in_every_way_of_saying_it():
    assert len(OUTPUTS["OUTPUTS"]) >= 150
    missed = [(t, a) for t, a in OUTPUTS["OUTPUTS"] if not math_equal(a, t, "text")]
    assert [(text, answer, final_answer(text)) for text, answer in missed] == []


@pytest.mark.parametrize("text", OUTPUTS["NONE"])
def test_no_answer_is_invented(text):
    assert final_answer(text) in (None, r"no box \boxed{ here")


@given(st.text(alphabet="<think>/answer is:=#*$\\boxed{}()[]5. \n"))
def test_no_text_raises(text):
    found = final_answer(text)
    assert found is None or found.strip()


@pytest.mark.parametrize(
    "piece", ["$", "$$", r"\[", r"\(", "**", "answer is ", "#### ", "\\boxed{", "9"]
)
def test_long_outputs_take_no_longer_than_they_must(piece):
    start = time.process_time()
    final_answer(piece * (1_000_000 // len(piece)))
    assert time.process_time() - start < 2
