"""Counting from many threads, and the numbers of a step's groups."""

import threading

import numpy as np
import pytest

from magistral_jax.tally import PARTS, Tally, group_metrics, rates
from magistral_jax.types import Completion, Group, Problem, Prompt, Verdict, VersionSpan


def make_group(rewards, *, lengths=None, finish="stop", spans=1):
    """A completion per reward; None is a check that failed."""
    problem = Problem(id="p", domain="math", question="", answer="")
    prompt = Prompt(group=0, problem=problem, tokens=np.zeros(1, np.int32))
    lengths = lengths or [4] * len(rewards)
    completions = tuple(
        Completion(
            group=0,
            index=i,
            prompt=prompt.tokens,
            tokens=np.ones(length, np.int32),
            logprobs=np.zeros(length, np.float32),
            sampled=np.ones(length, bool),
            spans=tuple(VersionSpan(start=n, version=n) for n in range(spans)),
            finish=finish,
        )
        for i, length in enumerate(lengths)
    )
    return Group(prompt=prompt, completions=completions, verdicts=tuple(map(verdict_of, rewards)))


def verdict_of(reward):
    if reward is None:
        return Verdict(reward=0.0, parts=dict.fromkeys(PARTS, 0.0), reason="error")
    parts = {"format": 0.1, "correct": reward - 0.1, "length": 0.0, "language": 0.0}
    return Verdict(reward=reward, parts=parts, reason="pass" if reward > 0.5 else "wrong")


def test_a_drain_gives_what_came_since_the_one_before():
    tally = Tally()
    tally.add("tokens", 3)
    tally.add("tokens", np.int64(4))
    tally.note("loss", 0.5)
    tally.note("loss", np.float32(0.25))
    assert tally.drain() == ({"tokens": 7.0}, {"loss": 0.25})
    assert tally.drain() == ({}, {})
    tally.add("tokens", 1)
    assert tally.drain() == ({"tokens": 1.0}, {})


def test_what_was_drained_is_not_changed_by_what_comes_later():
    tally = Tally()
    tally.add("tokens", 1)
    sums, latest = tally.drain()
    tally.add("tokens", 5)
    tally.note("loss", 1.0)
    assert (sums, latest) == ({"tokens": 1.0}, {})


def test_nothing_is_lost_between_threads():
    tally = Tally()
    found, done = [], threading.Event()

    def count():
        for _ in range(2000):
            tally.add("n", 1)

    def drain():
        while not done.is_set():
            found.append(tally.drain())

    counters = [threading.Thread(target=count) for _ in range(3)]
    drainer = threading.Thread(target=drain)
    for thread in (*counters, drainer):
        thread.start()
    for thread in counters:
        thread.join()
    done.set()
    drainer.join()
    found.append(tally.drain())
    assert sum(sums.get("n", 0.0) for sums, _ in found) == 6000


def test_time_is_added_up_even_when_what_was_timed_fails():
    tally = Tally()
    with tally.timed("time/train"):
        pass
    with pytest.raises(RuntimeError), tally.timed("time/train"):
        raise RuntimeError
    with pytest.raises(RuntimeError), tally.timed("time/other"):
        raise RuntimeError
    sums, _ = tally.drain()
    assert set(sums) == {"time/train", "time/other"} and min(sums.values()) >= 0


def test_group_metrics_count_dropped_groups_and_leave_errors_out():
    groups = [
        make_group([1.0, 0.1, None], lengths=[2, 4, 1000], spans=2),
        make_group([0.1, 0.1, 0.1], lengths=[6, 6, 6], finish="length"),
    ]
    found = group_metrics(groups)
    assert found == {
        "batch/uniform_groups": 0.5,
        "batch/errored": 1.0,
        "verifier/pass": 1.0,
        "verifier/wrong": 4.0,
        "verifier/error": 1.0,
        "reward/mean": pytest.approx(1.4 / 5),
        "reward/format": pytest.approx(0.1),
        "reward/correct": pytest.approx(0.9 / 5),
        "reward/length": 0.0,
        "reward/language": 0.0,
        "reward/accuracy": pytest.approx(1 / 5),
        "length/mean": pytest.approx(24 / 5),
        "length/max": 6.0,
        "length/truncated": pytest.approx(3 / 5),
        "policy/spans_mean": pytest.approx(7 / 5),
        "policy/spans_two_or_more": pytest.approx(2 / 5),
    }


def test_a_step_in_which_nothing_was_judged_claims_no_reward():
    assert group_metrics([]) == {"batch/uniform_groups": 0.0, "batch/errored": 0.0}
    assert group_metrics([make_group([None, None])]) == {
        "batch/uniform_groups": 1.0,
        "batch/errored": 2.0,
        "verifier/error": 2.0,
    }


def test_rates_come_from_what_was_counted():
    raw = {"tokens": 60.0, "decode_steps": 10.0, "decode_s": 2.0, "swap_s": 0.5}
    raw |= {"train_tokens": 90.0, "time/train": 3.0}
    assert rates(raw, slots=8, step_s=4.0) == {
        "time/step": 4.0,
        "generator/tokens_per_s": 15.0,
        "generator/decode_steps": 10.0,
        "generator/occupancy": 0.75,
        "push/pause_steps": 2.5,
        "train/tokens_per_s": 30.0,
    }


def test_a_step_in_which_nothing_happened_has_rates_of_nothing():
    assert set(rates({}, slots=8, step_s=0.0).values()) == {0.0}


def test_each_run_counts_its_own_lengths():
    one, other = Tally(), Tally()
    one.lengths.trained([make_group([0.1, 1.0])])
    assert one.lengths.shares() and not other.lengths.shares()
