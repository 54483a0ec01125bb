import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.types import Problem, UserError
from magistral_jax.verifier.reward import TEXT_LIMIT, RewardRule, judge

PROBLEM = Problem(id="sum", domain="math", question="What is 2+2?", answer="4")
CODE = Problem(id="print", domain="code", question="Print 4.", answer="")
RULE = RewardRule(soft_tokens=80, max_tokens=100)
NOTHING = {"format": 0, "correct": 0, "length": 0, "language": 0}


def boxed(answer: str) -> str:
    return rf"<think>hm</think>So \boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("text", "tokens", "outcome", "reward", "parts"),
    [
        (boxed("4"), 10, "right", 1.0, {"format": 0.1, "correct": 0.9}),
        (boxed("5"), 10, "wrong", 0.1, {"format": 0.1}),
        (boxed("4"), 90, "right", 0.95, {"format": 0.1, "correct": 0.9, "length": -0.05}),
        (boxed("5"), 100, "wrong", 0.0, {"format": 0.1, "length": -0.1}),
        ("4", 10, "wrong", 0.0, {}),
        ("4", 100, "wrong", 0.0, {}),  # behind the gate nothing is graded, not even the length
    ],
)
def test_the_reward_is_the_papers(text, tokens, outcome, reward, parts):
    verdict = judge(PROBLEM, text, tokens, RULE)
    assert (verdict.outcome, verdict.reward) == (outcome, pytest.approx(reward))
    assert dict(verdict.parts) == pytest.approx(NOTHING | parts)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (boxed("4"), ""),
        (boxed("5"), "5 is not 4"),
        (boxed("5\x1b[2J\ud800"), "5 [2J  is not 4"),
        (boxed("9" * 50), "9" * 40 + "... is not 4"),
        (r"<think>\boxed{4}</think>4", "no boxed answer"),
    ],
)
def test_the_reason_is_short_and_printable(text, reason):
    assert judge(PROBLEM, text, 1, RULE).reason == reason


def test_code_is_an_error_only_behind_the_gate():
    verdict = judge(CODE, "<think>t</think>\n```python\nprint(4)\n```", 1, RULE)
    assert (verdict.outcome, verdict.reason) == ("error", "code is not judged yet")
    assert dict(verdict.parts) == NOTHING
    assert judge(CODE, "print(4)", 1, RULE).outcome == "wrong"


@pytest.mark.parametrize("answer", ["", "1\0", "1" * 3000])
def test_a_reference_that_equals_nothing_is_our_error_not_the_policys(answer):
    verdict = judge(dataclasses.replace(PROBLEM, answer=answer), boxed("4"), 1, RULE)
    assert verdict.outcome == "error" and "reference" in verdict.reason


def test_a_text_over_the_limit_is_not_read():
    head = boxed("4")
    assert judge(PROBLEM, head + "." * (TEXT_LIMIT - len(head)), 1, RULE).outcome == "right"
    verdict = judge(PROBLEM, head + "." * (TEXT_LIMIT - len(head) + 1), 1, RULE)
    assert (verdict.outcome, verdict.reason) == ("wrong", "too long to read")


pieces = st.sampled_from(
    ["<think>", "</think>", r"\boxed{", "}", "{", "4", ",", r"\frac", "```", "python\n", "\ud800"]
)
texts = st.text() | st.lists(pieces | st.text(max_size=5)).map("".join)


@given(texts | texts.map(boxed), st.integers(0, 200), st.sampled_from([PROBLEM, CODE]))
def test_any_text_gets_a_verdict_whose_reward_is_the_sum_of_its_parts(text, tokens, problem):
    verdict = judge(problem, text, tokens, RULE)
    assert verdict.reward == sum(verdict.parts.values())
    assert set(verdict.parts) == set(NOTHING)
    assert -1e-9 <= verdict.reward <= 1
    assert verdict.reason.isprintable()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((101, 100, 0.1), "verifier.soft_tokens"),
        ((-1, 100, 0.1), "verifier.soft_tokens"),
        ((80, 100, -0.1), "verifier.length_penalty"),
        ((80, 100, float("nan")), "verifier.length_penalty"),
    ],
)
def test_a_rule_that_makes_no_sense_names_its_field(values, field):
    names = ("soft_tokens", "max_tokens", "length_penalty")
    with pytest.raises(UserError, match=field):
        RewardRule(**dict(zip(names, values, strict=True)))


def test_the_four_rewards_are_ordered():
    rewards = [
        judge(PROBLEM, text, tokens, RULE).reward
        for text, tokens in [(boxed("4"), 1), (boxed("4"), 100), (boxed("5"), 1), ("4", 1)]
    ]
    assert all(better > worse for better, worse in itertools.pairwise(rewards))
