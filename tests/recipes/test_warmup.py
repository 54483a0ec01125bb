"""The cold start in miniature: sums of one digit, a network of two small layers."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from magistral_jax.batch.assemble import assemble_minibatch
from magistral_jax.build import Run
from magistral_jax.config import (
    BatchConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    ModelConfig,
    RunConfig,
    ShapeConfig,
    TrainerConfig,
    WarmupConfig,
)
from magistral_jax.evaluate import evaluate
from magistral_jax.recipes import warmup
from magistral_jax.recipes.warmup import shown
from magistral_jax.tokenizer.bytes import ByteTokenizer
from magistral_jax.types import Problem, Prompt

CONFIG = RunConfig(
    stall_s=120.0,
    model=ModelConfig(
        shape=ShapeConfig(layers=2, width=32, heads=2, kv_heads=1, head_dim=16, ffn=64)
    ),
    data=DataConfig(digits=1, max_prompt_tokens=8, heldout_percent=20.0),
    generator=GeneratorConfig(group_size=2, in_flight=20, max_tokens=24),
    batch=BatchConfig(completions=20, row_tokens=64, rows=6),
    trainer=TrainerConfig(remat=False),
    warmup=WarmupConfig(steps=100, completions=16, learning_rate=1e-2),
    eval=EvalConfig(problems=10, samples=2),
)
TOKENIZER = ByteTokenizer()


class WatchedRun(Run):
    """A run that remembers which problems its warm-up was given."""

    def _warmup_prompts(self):
        for prompt in super()._warmup_prompts():
            self.given.append(prompt.problem.id)
            yield prompt


@pytest.fixture(scope="module")
def warmed():
    """The run, its losses, and what the warmed-up network answers to held-out problems."""
    run = WatchedRun(CONFIG, devices=jax.devices()[:1])
    run.given, losses = [], {}
    try:
        params = run.warmed_up(run.initial_params(), losses.__setitem__)
        found, _ = evaluate(
            run.evaluation(run.published(params, 0)),
            run.judge,
            run.heldout(CONFIG.eval.problems),
            samples=CONFIG.eval.samples,
            timeout_s=CONFIG.stall_s,
        )
    finally:
        run.close()
    return run, losses, found


def test_the_loss_falls_and_is_told_from_the_first_step_to_the_last(warmed):
    _, losses, _ = warmed
    assert list(losses) == [1, 21, 41, 61, 81, 100]
    assert losses[1] > 4.0
    assert losses[100] < 0.5


def test_it_teaches_the_format_and_when_to_stop(warmed):
    *_, found = warmed
    assert found.format >= 0.9
    assert found.truncated <= 0.1
    assert found.errored == 0


def test_heldout_problems_never_appear_in_it(warmed):
    run, *_ = warmed
    held_out = {prompt.problem.id for prompt in run.heldout(10)}
    given = set(run.given)
    assert len(run.given) == CONFIG.warmup.steps * CONFIG.warmup.completions
    assert not given & held_out
    # Of 81 sums, all the others were shown.
    assert len(given) + len(run.heldout(81 - len(given))) == 81


def test_its_problems_come_in_another_order_than_those_of_rl(warmed):
    run, *_ = warmed
    stream = run.stream()
    assert run.given[:20] != [stream.next().problem.id for _ in range(20)]


def group_of(worked):
    problem = Problem(id="sum-7-5", domain="math", question="7+5=?", answer="12")
    tokens = np.array(TOKENIZER.chat([{"role": "user", "content": problem.question}]), np.int32)
    return shown(Prompt(group=3, problem=problem, tokens=tokens), TOKENIZER, worked=worked)


@pytest.mark.parametrize(
    "worked, text",
    [(True, r"<think>7+5+0=12</think>\boxed{12}"), (False, r"<think>ok</think>\boxed{12}")],
)
def test_a_trace_is_shown_whole_and_its_stop_token_is_trained(worked, text):
    group = group_of(worked)
    (completion,) = group.completions
    assert TOKENIZER.decode(completion.tokens[:-1].tolist()) == text
    assert completion.finish == "stop" and completion.tokens[-1] in TOKENIZER.stop_ids
    minibatch = assemble_minibatch(
        [group], row_tokens=64, rows=1, advantage_rule="none", share_rule="batch"
    )
    (sheet,) = minibatch.microbatches
    trained = sheet.targets[sheet.shares > 0]
    np.testing.assert_array_equal(trained, completion.tokens)


def test_the_worked_share_is_what_the_config_says(monkeypatch):
    manners = []

    class NoTrainer:
        """Looks at nothing and learns nothing."""

        def __init__(self, *_, **__):
            self.params = {}

        def minibatch_step(self, minibatch):
            return StepOfLoss()

    class StepOfLoss:
        loss = 0.0

    def noted(prompt, tokenizer, *, worked):
        manners.append(worked)
        return shown(prompt, tokenizer, worked=worked)

    monkeypatch.setattr(warmup, "trainer_of", NoTrainer)
    monkeypatch.setattr(warmup, "shown", noted)
    for share, low, high in ((0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)):
        manners.clear()
        config = replace(CONFIG, warmup=replace(CONFIG.warmup, steps=20, worked_share=share))
        run = Run(config, devices=jax.devices()[:1])
        run.warmed_up({}, lambda step, loss: None)
        assert low <= np.mean(manners) <= high
