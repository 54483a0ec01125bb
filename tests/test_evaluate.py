"""Accuracy counts problems, not samples; a check that failed counts for neither side."""

import itertools
from concurrent.futures import Future

import numpy as np
import pytest

from magistral_jax.evaluate import evaluate, interval, majority_at, pass_at, summarise
from magistral_jax.types import Completion, Problem, Prompt, Stalled, Verdict, VersionSpan

REASON = {"right": "pass", "wrong": "wrong", "error": "error"}
FORMAT = {"right": 0.1, "wrong": 0.1, "error": 0.0}


def make_prompt(group):
    problem = Problem(id=str(group), domain="math", question="", answer="1")
    return Prompt(group=group, problem=problem, tokens=np.ones(2, np.int32))


def completion(group, index, length=3, finish="stop"):
    return Completion(
        group=group,
        index=index,
        prompt=np.ones(2, np.int32),
        tokens=np.ones(length, np.int32),
        logprobs=np.zeros(length, np.float32),
        sampled=np.ones(length, bool),
        spans=(VersionSpan(start=0, version=0),),
        finish=finish,
    )


def verdict(outcome, form=None):
    parts = {"format": FORMAT[outcome] if form is None else form}
    return Verdict(reward=0.0, parts=parts, reason=REASON[outcome])


def measured(*outcomes):
    """The evaluation of problems whose samples came out like this."""
    answered = [
        tuple(completion(g, i) for i in range(len(samples))) for g, samples in enumerate(outcomes)
    ]
    return summarise(answered, [tuple(map(verdict, samples)) for samples in outcomes])


def test_accuracy_is_the_mean_over_problems_of_the_share_of_right_samples():
    found = measured(("right", "right"), ("right", "wrong"), ("wrong", "wrong"), ("wrong", "right"))
    assert found.accuracy == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert (found.problems, found.samples) == (4, 2)


def test_a_failed_check_counts_neither_as_right_nor_as_wrong():
    found = measured(("right", "error"), ("wrong", "wrong"))
    assert found.accuracy == pytest.approx(0.5)  # (1/1 + 0/2) / 2, and not (1/2 + 0/2) / 2
    assert found.errored == 1


def test_a_problem_whose_checks_all_failed_is_left_out_of_the_accuracy():
    found = measured(("error", "error"), ("right", "right"), ("right", "wrong"))
    assert found.accuracy == pytest.approx(0.75)
    assert found.errored == 2
    assert found.problems == 3


def test_failed_checks_do_not_lower_the_share_that_kept_the_format():
    found = summarise(
        [(completion(0, 0), completion(0, 1), completion(0, 2))],
        [(verdict("right"), verdict("wrong", 0.0), verdict("error"))],
    )
    assert found.format == pytest.approx(0.5)


def test_nothing_judged_is_no_accuracy_and_an_interval_that_says_nothing():
    found = measured(("error",), ("error",))
    assert (found.accuracy, found.format) == (0.0, 0.0)
    assert found.accuracy_ci95 == (0.0, 1.0)


def test_lengths_and_cuts_are_those_of_all_completions():
    answered = [
        (completion(0, 0, length=2), completion(0, 1, length=8, finish="length")),
        (completion(1, 0, length=4), completion(1, 1, length=2)),
    ]
    judged = [(verdict("right"), verdict("error")), (verdict("wrong"), verdict("wrong"))]
    found = summarise(answered, judged)
    assert found.length == pytest.approx(4.0)
    assert found.truncated == pytest.approx(0.25)


DIFFICULTIES = {
    "spread": lambda rng, n: rng.beta(0.5, 0.5, n),
    "hard": lambda rng, n: rng.beta(0.2, 2.0, n),
    "easy": lambda rng, n: rng.beta(5.0, 0.3, n),
    "few solved": lambda rng, n: 0.9 * (rng.random(n) < 0.05),
    "alike": lambda rng, n: np.full(n, 0.5),
    "hardest": lambda rng, n: rng.beta(0.05, 2.0, n),
}


@pytest.mark.parametrize("problems, samples", [(30, 64), (30, 4), (83, 4), (200, 1), (500, 4)])
@pytest.mark.parametrize("kind", DIFFICULTIES)
def test_the_interval_covers_the_truth_of_1000_simulated_evaluations(kind, problems, samples):
    rng, draw = np.random.default_rng(0), DIFFICULTIES[kind]
    truth = float(np.mean(draw(rng, 400_000)))
    hits = 0
    for _ in range(1000):
        shares = rng.binomial(samples, draw(rng, problems)) / samples
        low, high = interval(shares.tolist())
        hits += low <= truth <= high
    assert hits >= 930


def test_the_interval_narrows_with_problems_and_is_the_normal_one_of_many(rng):
    shares = rng.random(100_000).tolist()
    low, high = interval(shares)
    half = 1.96 * float(np.std(shares)) / len(shares) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=1e-2)
    assert (low + high) / 2 == pytest.approx(np.mean(shares), abs=1e-4)
    wide_low, wide_high = interval(shares[:100])
    assert wide_high - wide_low > 10 * (high - low)


@pytest.mark.parametrize(
    ("right", "count", "k"), [(0, 4, 2), (1, 5, 3), (2, 6, 2), (6, 6, 1), (3, 8, 8)]
)
def test_pass_at_k_is_the_mean_over_all_subsets(right, count, k):
    samples = [True] * right + [False] * (count - right)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at(k, right, count) == pytest.approx(np.mean([any(s) for s in subsets]))


def test_majority_at_k_is_that_of_each_block():
    answers = ["4", "4.0", "5", "5", "", "5", "4", "", "5"]
    is_right = [a.startswith("4") for a in answers]
    # Blocks of three: {4, 4.0, 5} right; {5, "", 5} wrong; {4, "", 5} a tie, the first counts.
    assert majority_at(3, answers, is_right) == pytest.approx(2 / 3)
    assert majority_at(9, answers, is_right) == 0.0  # three right ones, four fives
    assert majority_at(4, answers, is_right) == pytest.approx(1 / 2)  # 2:2 with 4 first; 5 twice
    assert majority_at(1, answers, is_right) == pytest.approx(3 / 9)
    assert majority_at(2, ["", ""], [False, False]) == 0.0


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval():
    """Samples of one problem are alike; only problems are evidence about other problems."""
    once = measured(("right",), ("wrong",), ("right",), ("wrong",))
    often = measured(("right",) * 50, ("wrong",) * 50, ("right",) * 50, ("wrong",) * 50)
    assert often.accuracy_ci95 == pytest.approx(once.accuracy_ci95)


@pytest.mark.parametrize("shares", [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0] * 50, [1.0] * 50])
def test_the_interval_stays_between_0_and_1_and_holds_the_mean(shares):
    low, high = interval(shares)
    assert 0.0 <= low <= np.mean(shares) <= high <= 1.0
    assert high - low > 0.01


class Scripted:
    """A generator that answers at once."""

    def generate(self, prompts, *, count=None, on_step=None):
        if on_step is not None:
            on_step(len(prompts) * count)
        return [tuple(completion(p.group, i) for i in range(count)) for p in prompts]


def judge_by(outcome_of):
    def judge(prompt, completion):
        future = Future()
        future.set_result(verdict(outcome_of(prompt.group, completion.index)))
        return future

    return judge


def test_each_prompt_is_answered_and_judged_as_often_as_asked():
    seen = []
    found, details = evaluate(
        Scripted(),
        judge_by(lambda group, index: "right" if group == 7 and index < 2 else "wrong"),
        [make_prompt(7), make_prompt(9)],
        samples=3,
        timeout_s=1.0,
        on_step=seen.append,
    )
    assert found.accuracy == pytest.approx((2 / 3 + 0) / 2)
    assert seen == [6]
    assert [[c.group for c in completions] for completions, _ in details] == [[7] * 3, [9] * 3]
    assert [v.outcome for v in details[0][1]] == ["right", "right", "wrong"]


def test_a_verdict_that_does_not_come_is_not_waited_for_forever():
    with pytest.raises((Stalled, TimeoutError)):
        evaluate(Scripted(), lambda p, c: Future(), [make_prompt(0)], samples=1, timeout_s=0.05)
