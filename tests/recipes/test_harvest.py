"""Which completions of a run become traces, on scripted histories."""

import pytest

from magistral_jax.recipes.harvest import harvest, pass_rates


def row(problem, step, outcome="right", index=0, finish="stop"):
    return {
        "prompt_id": problem,
        "group": step,
        "index": index,
        "step": step,
        "outcome": outcome,
        "finish": finish,
    }


HISTORY = [
    *(row("easy", step, index=i) for step in (1, 5, 9) for i in range(4)),
    row("hard", 2, "wrong"),
    row("hard", 6, "wrong"),
    row("hard", 7, "wrong", index=1),
    row("hard", 8),
    row("broken", 8, "error"),
    row("long", 10, finish="length"),
    row("never", 10, "wrong"),
]


def test_rates_are_of_what_was_judged():
    assert pass_rates(HISTORY) == {"easy": 1.0, "hard": 0.25, "long": 1.0, "never": 0.0}


def test_right_answers_are_kept_late_ones_first_up_to_the_cap():
    found = harvest(HISTORY, skip=0.2, cap=6, low_rate=0.0, upsample=1)
    names = [(r["prompt_id"], r["step"], r["index"]) for r in found.kept]
    assert names == [
        *(("easy", 5, i) for i in (2, 3)),
        *(("easy", 9, i) for i in range(4)),
        ("hard", 8, 0),
    ]
    assert found.counts == {
        "kept": 7, "copies": 0, "wrong": 5, "cut": 1, "early": 4, "capped": 2
    }  # fmt: skip
    assert sum(found.counts.values()) == len(HISTORY)


def test_problems_rarely_solved_count_several_times():
    found = harvest(HISTORY, skip=0.0, cap=2, low_rate=0.5, upsample=3)
    assert [r["prompt_id"] for r in found.kept] == ["easy", "easy", "hard", "hard", "hard"]
    assert found.counts["kept"] == 3 and found.counts["copies"] == 2


@pytest.mark.parametrize(("skip", "early"), [(0.0, 0), (0.1, 4), (0.5, 8), (1.0, 13)])
def test_early_steps_are_left_out(skip, early):
    assert harvest(HISTORY, skip=skip, cap=99, low_rate=0.0, upsample=1).counts["early"] == early


def test_a_run_that_solved_nothing_gives_nothing():
    found = harvest([row("never", 1, "wrong")], skip=0.0, cap=1, low_rate=1.0, upsample=2)
    assert found.kept == [] and found.counts["wrong"] == 1
    assert harvest([], skip=0.5, cap=1, low_rate=0.5, upsample=2).kept == []
