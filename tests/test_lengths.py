"""Of a run in the order of dispatch every quarter of the lengths came in its turn."""

import json

import numpy as np
import pytest

from magistral_jax.lengths import Lengths
from magistral_jax.types import Completion, Group, Problem, Prompt, Verdict, VersionSpan


def group_of(position, lengths):
    prompt = Prompt(
        group=position,
        problem=Problem(id=str(position), domain="math", question="", answer=""),
        tokens=np.zeros(1, np.int32),
    )
    completions = tuple(
        Completion(
            group=position,
            index=i,
            prompt=prompt.tokens,
            tokens=np.zeros(n, np.int32),
            logprobs=np.zeros(n, np.float32),
            sampled=np.ones(n, bool),
            spans=(VersionSpan(start=0, version=0),),
            finish="stop",
        )
        for i, n in enumerate(lengths)
    )
    verdict = Verdict(reward=0.0, parts={}, reason="wrong")
    return Group(prompt=prompt, completions=completions, verdicts=(verdict,) * len(lengths))


def shares(lengths):
    return [lengths.shares()[f"length/in_turn_q{q}"] for q in (1, 2, 3, 4)]


def test_nothing_is_said_before_anything_was_trained():
    assert Lengths().shares() == {}


def test_in_the_order_of_dispatch_all_is_in_turn():
    lengths = Lengths()
    for first in range(0, 40, 4):
        lengths.trained([group_of(n, [n % 7 + 1, 20 - n % 7]) for n in range(first, first + 4)])
    assert shares(lengths) == [1, 1, 1, 1]


def test_a_batch_is_one_moment():
    lengths = Lengths()
    lengths.trained([group_of(1, [1, 2]), group_of(0, [3, 4])])
    assert shares(lengths) == [1, 1, 1, 1]


def test_long_ones_that_are_overtaken_show_in_their_quarter():
    lengths = Lengths()
    lengths.trained([group_of(n, [n, n]) for n in (1, 2, 3)])
    lengths.trained([group_of(9, [5, 6]), group_of(0, [100, 110])])
    lengths.trained([group_of(8, [120, 4])])
    assert shares(lengths) == pytest.approx([1, 1, 2 / 3, 0])


def test_counts_are_saved_as_json():
    lengths, again = Lengths(), Lengths()
    lengths.trained([group_of(4, [1, 9])])
    lengths.trained([group_of(3, [8, 8])])
    again.restore(json.loads(json.dumps(lengths.saved())))
    for found in (lengths, again):
        found.trained([group_of(2, [9, 9])])
    assert again.saved() == lengths.saved() and again.shares() == lengths.shares()
    assert min(again.shares().values()) < 1
