"""When a stage ends and what the next one asks, on scripted histories."""

import json
from dataclasses import replace

import numpy as np
import pytest

from magistral_jax.config import BatchConfig, GeneratorConfig, RunConfig, StageConfig
from magistral_jax.recipes.stages import NEXT_STAGE, Stages, is_plateau
from magistral_jax.types import Completion, Group, Problem, Prompt, UserError, Verdict, VersionSpan


def config(*stages):
    return RunConfig(
        generator=GeneratorConfig(in_flight=16, max_tokens=64),
        batch=BatchConfig(completions=32),
        stage=stages,
    )


def group(name, rewards):
    """A group of a problem with these verdicts; None is a check that failed."""
    prompt = Prompt(
        group=0,
        problem=Problem(id=name, domain="math", question="?", answer="1"),
        tokens=np.zeros(1, np.int32),
    )
    completion = Completion(
        group=0,
        index=0,
        prompt=prompt.tokens,
        tokens=np.zeros(1, np.int32),
        logprobs=np.zeros(1, np.float32),
        sampled=np.ones(1, bool),
        spans=(VersionSpan(start=0, version=0),),
        finish="stop",
    )
    reasons = {None: "error", 0: "wrong", 1: "pass"}
    verdicts = tuple(Verdict(reward=float(r or 0), parts={}, reason=reasons[r]) for r in rewards)
    return Group(prompt=prompt, completions=(completion,) * len(rewards), verdicts=verdicts)


def played(stages, rewards=None, lengths=None, start=0):
    """The update after which the stage is left, or None."""
    rewards = [0.5] * len(lengths) if rewards is None else rewards
    lengths = [1.0 + n for n in range(len(rewards))] if lengths is None else lengths
    for step, (reward, length) in enumerate(zip(rewards, lengths, strict=True), start + 1):
        stages.observe(step, reward, length, ())
        if stages.leaving:
            return step
    return None


GROWING = [0.1 + 0.02 * n for n in range(20)]


def test_a_stage_is_left_when_the_reward_no_longer_grows():
    harder = StageConfig(when="reward_plateau", plateau_steps=5, plateau_gain=0.02)
    stages = Stages(config(StageConfig(), harder))
    assert played(stages, GROWING) is None
    # The first update at which five are not above the five before by a fiftieth.
    rest = [GROWING[-1]] * 20
    step = played(stages, rest, start=20)
    values = GROWING + rest
    for n in range(10, step + 1):
        before, after = np.mean(values[n - 10 : n - 5]), np.mean(values[n - 5 : n])
        assert (after - before < 0.02 * before) == (n == step)
    assert stages.leaving.startswith("reward plateau: 0.48 over the last 5 updates")


def test_a_falling_reward_is_a_plateau_and_two_spans_are_needed():
    assert is_plateau([1.0, 0.9, 0.8, 0.7], 2, 0.0)
    assert not is_plateau([1.0, 0.9, 0.8], 2, 0.0)
    assert not is_plateau([-1.0, -1.0, -0.5, -0.5], 2, 0.1)


def test_a_stage_is_left_when_lengths_no_longer_grow_whatever_the_reward_does():
    longer = StageConfig(when="length_plateau", plateau_steps=3, max_tokens=128, soft_tokens=96)
    stages = Stages(config(StageConfig(), longer))
    assert played(stages, lengths=[10.0, 12.0, 14.0, 16.0, 18.0, 20.0]) is None
    # 16, 18, 20 against 20, 20, 20 is still growth; 20, 20, 20 against the same is none.
    assert played(stages, lengths=[20.0] * 9, start=6) == 6 + 5
    stages.advance(11)
    assert stages.config.generator.max_tokens == 128 and stages.config.soft_tokens == 96
    assert stages.config.batch.completions == 32  # as before


def test_a_step_is_the_latest_and_history_begins_anew_in_each_stage():
    second = StageConfig(from_step=7, when="reward_plateau", plateau_steps=2)
    third = StageConfig(when="reward_plateau", plateau_steps=4, completions=16, in_flight=8)
    stages = Stages(config(StageConfig(), second, third))
    assert played(stages, GROWING) == 7 and stages.leaving == "step 7"
    stages.advance(9)
    # Eight values of this stage are needed, however flat those of the stage before were.
    assert played(stages, [0.5] * 9, start=9) == 9 + 8
    stages.advance(18)
    assert stages.config.batch.completions == 16 and stages.config.generator.in_flight == 8
    assert [row["step"] for row in stages.log] == [9, 18]
    assert played(stages, [0.5] * 30, start=18) is None  # there is none after it


PROBLEMS = [("never", [0, 0, 0]), ("some", [0, 1, 1]), ("always", [1, 1, 1]), ("broken", [None])]


def test_pass_rates_are_kept_and_decide_when_a_stage_begins():
    easy = StageConfig(min_pass_rate=0.2)
    harder = StageConfig(from_step=3, max_pass_rate=0.9)
    stages = Stages(config(easy, harder))

    def problem(name, rate=None):
        return Problem(id=name, domain="math", question="?", answer="1", pass_rate=rate)

    # What rows say counts from the start: too hard ones are set aside.
    assert not stages.wanted(problem("a", 0.1)) and stages.wanted(problem("b", 0.2))
    assert stages.wanted(problem("c"))
    for step in (1, 2, 3):
        stages.observe(step, 0.5, 1.0, [group(*row) for row in PROBLEMS])
    # Within a stage nothing changes: the order of prompts must not hang on what was solved when.
    assert all(stages.wanted(problem(name)) for name, _ in PROBLEMS)
    stages.advance(3)
    assert stages.wanted(problem("a", 0.1)) and not stages.wanted(problem("d", 1.0))
    asked = {name: stages.wanted(problem(name, 0.5)) for name, _ in PROBLEMS}
    assert asked == {"never": True, "some": True, "always": False, "broken": True}
    assert stages.log[0]["left_out"] == 1


def test_what_is_saved_goes_on_as_if_nothing_had_happened():
    rules = (StageConfig(), *(StageConfig(when="reward_plateau", plateau_steps=3) for _ in "ab"))
    rewards = [0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
    whole, resumed = Stages(config(*rules)), Stages(config(*rules))
    for step, reward in enumerate(rewards, 1):
        for stages in (whole, resumed):
            stages.observe(step, reward, 1.0, [group(*row) for row in PROBLEMS])
        resumed = Stages(config(*rules), json.loads(json.dumps(resumed.saved())))
        assert resumed.saved() == json.loads(json.dumps(whole.saved()))
    assert whole.leaving == resumed.leaving != ""
    whole.advance(8)
    resumed.advance(8)
    assert resumed.index == 1 and resumed.log == whole.log
    with pytest.raises(UserError, match="the config has 1 stages"):
        Stages(config(*rules[:1]), resumed.saved())


def test_a_file_asks_for_the_next_stage_and_in_the_last_for_nothing(tmp_path):
    stages = Stages(config(StageConfig(), StageConfig(from_step=100)))
    assert not stages.is_asked_in_vain(tmp_path) and not stages.leaving
    (tmp_path / NEXT_STAGE).touch()
    assert not stages.is_asked_in_vain(tmp_path) and NEXT_STAGE in stages.leaving
    assert (tmp_path / NEXT_STAGE).exists()  # until the next stage is saved
    stages.advance(1)
    assert stages.is_asked_in_vain(tmp_path) and not stages.leaving
    assert not (tmp_path / NEXT_STAGE).exists()


def test_a_run_without_stages_keeps_nothing(tmp_path):
    stages = Stages(replace(config(), stage=()))
    stages.observe(1, 0.5, 1.0, [group(*PROBLEMS[0])])
    stages.write_down(tmp_path)
    assert stages.saved() == {} and not list(tmp_path.iterdir()) and not stages.leaving
