r"""An examiner's answer pairs, written without a look at the grader, and scored as one exam.

`exam.txt`: under `## form`, a line `gold => right ;; right ?? right but refused !! wrong ;; wrong`.
What stands behind `??` a reader would accept and the grader does not: bare lists in another order,
names left out, commands that it cannot read. Each wrong one is an edit away from a right one. The
forms before `mixed` were written first and scored 96.3% without a wrong yes; `mixed` and `mended`
came with the repairs, and `second exam` after them (97.4%, again without a wrong yes).
"""

from pathlib import Path

import pytest

from magistral_jax.verifier.math import symbolic
from magistral_jax.verifier.math.equal import same_answer

assert symbolic  # loaded here, so that no pair waits for it


def read_exam():
    """(form, gold, candidate, kind) for each pair; the kinds are right, refused, wrong."""
    pairs, form = [], ""
    lines = Path(__file__).with_name("exam.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("## "):
            form = line[3:]
            continue
        gold, rest = line.split(" => ", 1)
        rest, _, wrong = rest.partition(" !! ")
        right, _, refused = rest.partition(" ?? ")
        for kind, texts in (("right", right), ("refused", refused), ("wrong", wrong)):
            pairs += [(form, gold, text.strip(), kind) for text in texts.split(" ;; ") if text]
    return pairs


PAIRS = read_exam()
FORMS = sorted({form for form, *_ in PAIRS})


def test_the_exam_is_large_and_even():
    forms = [form for form, *_ in PAIRS]
    assert len(PAIRS) >= 1800
    assert sum(kind == "wrong" for *_, kind in PAIRS) >= 0.4 * len(PAIRS)
    assert sum(kind == "refused" for *_, kind in PAIRS) <= 0.03 * len(PAIRS)
    assert {form: n for form in set(forms) if (n := forms.count(form)) < 30} == {}


@pytest.mark.parametrize("form", FORMS)
def test_right_and_wrong_answers_are_told_apart(form):
    mistakes = [
        (gold, candidate, kind)
        for name, gold, candidate, kind in PAIRS
        if name == form and kind != "refused"
        if same_answer(gold, candidate) != (kind == "right")
    ]
    assert mistakes == []


@pytest.mark.parametrize("form", FORMS)
def test_no_wrong_answer_is_right_the_other_way_round(form):
    accepted = [
        (gold, candidate)
        for name, gold, candidate, kind in PAIRS
        if name == form and kind == "wrong" and same_answer(candidate, gold)
    ]
    assert accepted == []
