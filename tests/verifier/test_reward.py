import dataclasses
import itertools
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.config import VerifierConfig
from magistral_jax.types import CodeTests, Problem, UserError
from magistral_jax.verifier import reward
from magistral_jax.verifier.reward import TEXT_LIMIT, Judge, RewardRule

PROBLEM = Problem(id="sum", domain="math", question="What is 2+2?", answer="4")
CODE = Problem(id="print", domain="code", question="Print 4.", answer="")  # without tests
RULE = RewardRule(soft_tokens=80, max_tokens=100)
judge = Judge(RULE)
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
    verdict = judge(PROBLEM, text, tokens)
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
    assert judge(PROBLEM, text, 1).detail == reason


def test_code_is_an_error_only_behind_the_gate():
    verdict = judge(CODE, "<think>t</think>\n```python\nprint(4)\n```", 1)
    assert (verdict.outcome, verdict.detail) == ("error", "the problem has no tests")
    assert dict(verdict.parts) == NOTHING
    assert judge(CODE, "print(4)", 1).outcome == "wrong"


@pytest.mark.parametrize("answer", ["", "1\0", "1" * 3000])
def test_a_reference_that_equals_nothing_is_our_error_not_the_policys(answer):
    verdict = judge(dataclasses.replace(PROBLEM, answer=answer), boxed("4"), 1)
    assert verdict.outcome == "error" and "reference" in verdict.detail


def test_a_text_over_the_limit_is_not_read():
    head = boxed("4")
    assert judge(PROBLEM, head + "." * (TEXT_LIMIT - len(head)), 1).outcome == "right"
    verdict = judge(PROBLEM, head + "." * (TEXT_LIMIT - len(head) + 1), 1)
    assert (verdict.reason, verdict.detail) == ("format", "too long to read")


pieces = st.sampled_from(
    ["<think>", "</think>", r"\boxed{", "}", "{", "4", ",", r"\frac", "```", "python\n", "\ud800"]
)
texts = st.text() | st.lists(pieces | st.text(max_size=5)).map("".join)


@given(texts | texts.map(boxed), st.integers(0, 200), st.sampled_from([PROBLEM, CODE]))
def test_any_text_gets_a_verdict_whose_reward_is_the_sum_of_its_parts(text, tokens, problem):
    verdict = judge(problem, text, tokens)
    assert verdict.reward == sum(verdict.parts.values())
    assert set(verdict.parts) == set(NOTHING)
    assert -1e-9 <= verdict.reward <= 1.1
    assert verdict.detail.isprintable()


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
        judge(PROBLEM, text, tokens).reward
        for text, tokens in [(boxed("4"), 1), (boxed("4"), 100), (boxed("5"), 1), ("4", 1)]
    ]
    assert all(better > worse for better, worse in itertools.pairwise(rewards))


ENGLISH = "The second number is twice the first one, so the sum of both must be even."
FRENCH = "Le deuxième nombre est le double du premier, donc la somme des deux est paire."


@pytest.mark.parametrize(
    ("question", "thoughts", "answer", "bonus"),
    [
        (ENGLISH, ENGLISH, ENGLISH, 0.1),
        (FRENCH, FRENCH, FRENCH, 0.1),
        (ENGLISH, FRENCH, ENGLISH, 0.0),
        (FRENCH, ENGLISH, FRENCH, 0.0),
        (FRENCH, FRENCH, ENGLISH, 0.0),
        (ENGLISH, "12", ENGLISH, 0.0),
    ],
)
@pytest.mark.parametrize("boxed_answer", ["4", "5"])
def test_one_language_throughout_earns_a_bonus_right_or_wrong(
    question, thoughts, answer, bonus, boxed_answer
):
    problem = dataclasses.replace(PROBLEM, question=question)
    text = rf"<think>{thoughts}</think>{answer} \boxed{{{boxed_answer}}}"
    verdict = judge(problem, text, 1)
    assert verdict.parts["language"] == bonus
    assert verdict.reward == pytest.approx(0.1 + bonus + 0.9 * (boxed_answer == "4"))


def test_what_an_earlier_try_found_out_is_not_tried_again():
    verdict = judge(PROBLEM, boxed("4"), 90, known="timeout")
    assert verdict.reason == "timeout" and verdict.outcome == "wrong"
    assert verdict.parts["format"] == 0.1 and verdict.parts["length"] == pytest.approx(-0.05)
    assert verdict.parts["correct"] == 0


PROGRAM = "<think></think>\n```{language}\n{code}\n```\n"


def of_code(code, language="python", **config):
    tests = CodeTests(stdio=(("2\n", "4\n"), ("3\n", "6\n"), ("5\n", "10\n"), ("0\n", "0\n")))
    problem = dataclasses.replace(CODE, tests=tests)
    text = PROGRAM.format(language=language, code=code)
    with closing(Judge(RULE, VerifierConfig(**config))) as judge_once:
        return judge_once(problem, text, 1, draw="group 7")


def test_a_program_is_right_or_wrong_as_a_whole():
    assert of_code("print(2 * int(input()))").parts["correct"] == 0.9
    verdict = of_code("print(4)")
    assert (verdict.reason, verdict.parts["correct"]) == ("wrong", 0.0)


def test_a_share_of_tests_is_paid_only_on_demand():
    half = "n = int(input())\nprint(2 * n if n < 3 else 0)"
    assert of_code(half).parts["correct"] == 0
    verdict = of_code(half, code_fraction=True)
    assert verdict.parts["correct"] == pytest.approx(0.45) and verdict.outcome == "wrong"


def test_a_language_that_was_not_asked_for_is_wrong():
    verdict = of_code("int main() {}", language="cpp", code_languages="python")
    assert (verdict.reason, verdict.detail) == ("compile", "the problem asks for Python")


def test_a_sandbox_that_fails_on_everything_is_our_error(monkeypatch):
    monkeypatch.setattr(reward, "CANARY_CODE", {"python": "print('broken')"})
    monkeypatch.setattr(reward, "TRUST_S", -1.0)
    assert of_code("print(4)").reason == "error"
    assert of_code("print(2 * int(input()))").reason == "pass"
