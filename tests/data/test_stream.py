import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magistral_jax.data import stream as stream_module
from magistral_jax.data.sources import Sums, is_heldout
from magistral_jax.data.stream import PromptStream, heldout_problems
from magistral_jax.types import Problem, Prompt, TooLong, UserError

PERCENT = 30.0


def render(problem: Problem) -> np.ndarray:
    return np.frombuffer(problem.question.encode(), np.uint8).astype(np.int32)


def listed(count: int) -> list[Problem]:
    return [
        Problem(id=f"p{i}", domain="math", question=question_of(f"p{i}"), answer=str(i))
        for i in range(count)
    ]


def question_of(name: str) -> str:
    if name.startswith("sum-"):
        return "{}+{}=?".format(*name.split("-")[1:])
    return f"What is {name[1:]} + x?"


def stream(problems=None, seed=0, percent=PERCENT, **kwargs) -> PromptStream:
    problems = listed(17) if problems is None else problems
    return PromptStream(problems, render, seed=seed, heldout_percent=percent, **kwargs)


def take(prompts: PromptStream, count: int) -> list[tuple[int, str]]:
    return [named(prompts.next()) for _ in range(count)]


def named(prompt: Prompt) -> tuple[int, str]:
    return prompt.group, prompt.problem.id


def test_a_prompt_names_its_position_and_carries_its_rendered_problem():
    prompts = stream()
    prompt = prompts.next()
    assert prompt.tokens.tolist() == render(prompt.problem).tolist()
    assert prompts.position == prompt.group + 1


def test_without_heldout_problems_positions_count_up_and_each_epoch_holds_all():
    got = take(stream(percent=0.0), 51)
    assert [position for position, _ in got] == list(range(51))
    epochs = [[name for _, name in got[start : start + 17]] for start in (0, 17, 34)]
    assert all(sorted(epoch) == sorted(p.id for p in listed(17)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_heldout_problems_leave_gaps_and_move_nothing_else():
    everything = dict(take(stream(percent=0.0), 170))
    trained = take(stream(), 60)
    assert all(everything[position] == name for position, name in trained)
    expected = [p for p, name in everything.items() if not is_heldout(question_of(name), PERCENT)]
    assert [position for position, _ in trained] == expected[:60]
    assert len(expected) < 170


def test_the_seed_decides_the_order():
    assert take(stream(seed=3), 30) == take(stream(seed=3), 30) != take(stream(seed=4), 30)
    assert take(stream(seed=-1), 5) == take(stream(seed=2**32 - 1), 5)


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(6, 40),
    seed=st.integers(0, 5),
    lives=st.lists(st.lists(st.integers(0, 5), max_size=25), max_size=4),
    window=st.integers(1, 6),
)
def test_killed_anywhere_no_position_is_skipped_or_counted_twice(size, seed, lives, window):
    """Each life keeps `window` prompts in flight, trains them in any order, and is cut short; the
    next asks for those in flight by their position."""
    problems = listed(size)
    trained: list[tuple[int, str]] = []
    position, in_flight = 0, []
    for choices in lives:
        prompts = stream(problems, seed, position=position)
        in_flight = [named(prompts.prompt_at(at)) for at, _ in in_flight]
        for choice in choices:
            if len(in_flight) < window:
                in_flight += take(prompts, 1)
            else:
                trained.append(in_flight.pop(choice % window))
        position = prompts.position
    trained += in_flight + take(stream(problems, seed, position=position), 5)
    assert sorted(trained) == take(stream(problems, seed), len(trained))


def test_the_order_is_the_one_that_checkpoints_were_written_under():
    names = [name for _, name in take(stream(percent=0.0, seed=7), 8)]
    assert names == [f"p{i}" for i in (7, 9, 0, 8, 14, 15, 11, 6)]


def test_a_position_can_be_asked_for_at_any_time():
    prompts = stream()
    taken = [prompts.next() for _ in range(20)]
    asked = stream()
    assert [asked.prompt_at(p.group).problem for p in taken] == [p.problem for p in taken]
    assert asked.position == 0


def test_a_heldout_position_is_refused():
    gap = next(
        p for p, name in take(stream(percent=0.0), 50) if is_heldout(question_of(name), PERCENT)
    )
    with pytest.raises(UserError, match=r"is held out.*data\.heldout_percent"):
        stream().prompt_at(gap)


def test_a_prompt_that_cannot_be_rendered_is_not_counted_as_dispatched():
    def refuse(problem: Problem) -> np.ndarray:
        raise UserError(problem.id)

    prompts = PromptStream(listed(5), refuse, seed=0, heldout_percent=0.0)
    with pytest.raises(UserError):
        prompts.next()
    assert prompts.position == 0


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_stream_with_nothing_to_train_on_is_refused(count):
    held = [p for p in listed(1000) if is_heldout(p.question, PERCENT)][:count]
    with pytest.raises(UserError, match=rf"heldout_percent is 30\.0.*all {count} problems"):
        stream(held)


def test_one_problem_repeats():
    only = [next(p for p in listed(100) if not is_heldout(p.question, PERCENT))]
    assert [position for position, _ in take(stream(only), 4)] == [0, 1, 2, 3]


def test_training_and_heldout_problems_never_meet():
    for problems in (listed(200), Sums(1)):
        held = {p.id for p in heldout_problems(problems, PERCENT, count=10, seed=1)}
        trained = {name for _, name in take(stream(problems), 3 * len(problems))}
        assert held.isdisjoint(trained)
        everything = {problems[i].id for i in range(len(problems))}
        assert trained == {
            name for name in everything if not is_heldout(question_of(name), PERCENT)
        }


def test_equal_questions_under_two_ids_are_held_out_together():
    """In a mixture one question often stands twice, and hardly ever letter for letter."""
    spelt = (
        "What is {} + x?",
        "what  is {} + X?\n",
        "WHAT IS\t{} + x?",
        "What is {} \uff0b x\uff1f",
    )
    problems = [
        Problem(id=f"{way}-{i}", domain="math", question=text.format(i), answer=str(i))
        for way, text in enumerate(spelt)
        for i in range(100)
    ]
    trained = {name.split("-")[1] for _, name in take(stream(problems), 1500)}
    held = {p.id for p in problems} - {name for _, name in take(stream(problems), 1500)}
    assert 60 < len(trained) < 80
    assert len(held) == len(spelt) * (100 - len(trained))
    assert {name.split("-")[1] for name in held}.isdisjoint(trained)


def test_heldout_problems_are_distinct_seeded_and_all_there_are():
    problems = listed(200)
    every = {p.id for p in problems if is_heldout(p.question, PERCENT)}
    found = [p.id for p in heldout_problems(problems, PERCENT, count=len(every), seed=1)]
    assert len(found) == len(every) and set(found) == every
    again = [p.id for p in heldout_problems(problems, PERCENT, count=5, seed=1)]
    assert again == found[:5]
    assert again != [p.id for p in heldout_problems(problems, PERCENT, count=5, seed=2)]


@pytest.mark.parametrize("percent, there", [(PERCENT, None), (0.0, 0)])
def test_too_few_heldout_problems_are_told(percent, there):
    problems = listed(200)
    there = sum(is_heldout(p.question, percent) for p in problems) if there is None else there
    with pytest.raises(UserError, match=rf"eval\.problems is 150.*only {there} of 200 problems"):
        heldout_problems(problems, percent, count=150, seed=0)


class Counted(Sums):
    looks = 0

    def __getitem__(self, index: int) -> Problem:
        Counted.looks += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("digits", [3, 30])
def test_a_stream_over_many_sums_starts_at_once(digits):
    Counted.looks = 0
    started = time.monotonic()
    prompts = stream(Counted(digits), percent=5.0)
    taken = take(prompts, 20)
    assert Counted.looks < 100 and time.monotonic() - started < 5
    assert len({name for _, name in taken}) == 20
    Counted.looks = 0
    assert len(heldout_problems(Counted(digits), 5.0, count=8, seed=0)) == 8
    assert Counted.looks < 2000


@pytest.mark.parametrize("percent, looks", [(0.0, 0), (1e-9, 50)])
def test_a_search_for_heldout_problems_ends(monkeypatch, percent, looks):
    monkeypatch.setattr(stream_module, "_MOST_LOOKS", 50)
    Counted.looks = 0
    with pytest.raises(UserError, match=r"holds out only 0 of"):
        heldout_problems(Counted(30), percent, count=1, seed=0)
    assert Counted.looks == looks


def test_prompts_that_are_too_long_are_told_and_passed_over():
    told = []

    def only_short(problem: Problem) -> np.ndarray:
        if int(problem.id[1:]) >= 3:
            raise TooLong(f"{problem.id} is too long")
        return np.zeros(1, np.int32)

    prompts = PromptStream(listed(6), only_short, seed=0, heldout_percent=0.0, tell=told.append)
    names = [prompts.next().problem.id for _ in range(12)]
    assert Counter(names) == {"p0": 4, "p1": 4, "p2": 4}
    assert sorted(told) == [f"p{i} is too long" for i in (3, 4, 5)]


@pytest.mark.parametrize("percent", [0.0, 50.0])
def test_a_stream_in_which_nothing_fits_ends(percent):
    def refuse(problem: Problem) -> np.ndarray:
        raise TooLong(f"{problem.id} is too long")

    prompts = PromptStream(listed(20), refuse, seed=0, heldout_percent=percent)
    with pytest.raises(UserError, match=r"none of the 20 problems can be asked.*too long"):
        prompts.next()
    left = [True]
    prompts = PromptStream(
        listed(20),
        lambda problem: np.zeros(1, np.int32),
        seed=0,
        heldout_percent=percent,
        wanted=lambda problem: left[0],
    )
    left[0] = False
    with pytest.raises(UserError, match="left out by this stage"):
        prompts.next()
