import json

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import Problem, UserError
from magistral_jax.verifier.own import load_own
from magistral_jax.verifier.reward import RewardRule
from magistral_jax.verifier.worker import VerifierPool

RULE = RewardRule(soft_tokens=80, max_tokens=100)
PROBLEM = Problem(id="p", domain="math", question="Name a prime.", answer="any")
GRADERS = '''
import time

def is_odd(problem, answer, response):
    """Right if the box holds an odd number."""
    return int(answer) % 2 == 1

def half(problem, answer, response):
    return 0.5

def seven(problem, answer, response):
    return 7

def sleeps(problem, answer, response):
    time.sleep(60)

class Counts:
    def __init__(self):
        self.calls = 0

    def __call__(self, problem, answer, response):
        self.calls += 1
        return answer == str(self.calls)

NOT_ONE = 3
'''


@pytest.fixture
def graders(tmp_path, monkeypatch):
    (tmp_path / "my_graders.py").write_text(GRADERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the workers'
    monkeypatch.syspath_prepend(str(tmp_path))  # ours


def verdicts(name, *answers, timeout_s=60.0):
    config = VerifierConfig(own=f"my_graders:{name}", timeout_s=timeout_s)
    with VerifierPool(RULE, config) as pool:
        texts = [rf"<think></think>so \boxed{{{answer}}}" for answer in answers]
        return [pool.submit(PROBLEM, text, 1).result(60) for text in texts]


def test_a_function_decides(graders):
    odd, even, bad = verdicts("is_odd", "7", "8", "x")
    assert odd.reason == "pass" and odd.parts["correct"] == 0.9
    assert even.reason == "wrong" and even.parts["correct"] == 0
    assert bad.reason == "error" and "ValueError" in bad.detail


def test_a_share_is_a_share_and_what_is_none_is_an_error(graders):
    (half,) = verdicts("half", "1")
    assert half.parts["correct"] == pytest.approx(0.45) and half.outcome == "wrong"
    (seven,) = verdicts("seven", "1")
    assert seven.reason == "error" and "7" in seven.detail


def test_a_class_is_made_once(graders):
    assert [v.outcome for v in verdicts("Counts", "1", "2", "2")] == ["right", "right", "wrong"]


def test_it_has_the_same_limits(graders):
    (verdict,) = verdicts("sleeps", "1", timeout_s=0.5)
    assert verdict.reason == "timeout"


def test_the_gate_stands_before_it(graders):
    with VerifierPool(RULE, VerifierConfig(own="my_graders:half")) as pool:
        assert pool.submit(PROBLEM, "7", 1).result(60).reason == "format"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("my_graders", "no colon"),
        ("my_graders:nothing", "AttributeError"),
        ("my_graders:NOT_ONE", "cannot be called"),
        ("no_such_module:f", "ModuleNotFoundError"),
    ],
)
def test_a_path_that_leads_nowhere_is_the_users_mistake(graders, path, why):
    with pytest.raises(UserError, match=rf"verifier\.own is '{path}'.*{why}"):
        load_own(path)


def test_reasoning_gym_scores_its_own_tasks():
    gym = pytest.importorskip("reasoning_gym")
    entry = gym.create_dataset("basic_arithmetic", size=1, seed=3)[0]
    problem = Problem(
        id="g",
        domain="math",
        question=entry["question"],
        answer=json.dumps(entry, default=str),
        source="reasoning-gym/basic_arithmetic",
    )
    config = VerifierConfig(own="magistral_jax.verifier.own:ReasoningGym", timeout_s=60.0)
    with VerifierPool(RULE, config) as pool:
        texts = [rf"<think></think>\boxed{{{answer}}}" for answer in (entry["answer"], "no")]
        right, wrong = (pool.submit(problem, text, 1).result(60) for text in texts)
    assert right.reason == "pass" and wrong.reason == "wrong"
    assert wrong.parts["correct"] < 0.2
