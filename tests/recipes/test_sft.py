"""Supervised fine-tuning: what is shown when, and the loss against transformers' own."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magistral_jax.config import BatchConfig, RunConfig
from magistral_jax.data.conversations import conversations, shown, tokenizer_mark
from magistral_jax.model.export import tensors_of
from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, shardings
from magistral_jax.recipes.sft import minibatch_of, rate_of, schedule
from magistral_jax.tokenizer.bytes import ByteTokenizer
from magistral_jax.trainer.loss import likelihood_loss
from magistral_jax.trainer.trainer import trainer_of
from magistral_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = ByteTokenizer()
USER, ASSISTANT, STOP = 258, 259, 257


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "sft.npz"))


def conversations_of(golden):
    return [
        shown(
            golden[f"ids_{i}"][:prompt],
            golden[f"ids_{i}"][prompt:].tolist(),
            golden[f"learned_{i}"][prompt:],
        )
        for i, prompt in enumerate(golden["prompts"])
    ]


@pytest.mark.parametrize(("row_tokens", "rows"), [(16, 1), (48, 1), (24, 2)])
def test_loss_and_gradients_are_transformers_own(golden, row_tokens, rows):
    """On packed rows, one or several microbatches; prompt tokens and turns of others carry none."""
    config = RunConfig(batch=BatchConfig(row_tokens=row_tokens, rows=rows))
    arch = read_architecture(GOLDEN / "families" / "llama")
    mesh = make_mesh(jax.devices(), fsdp=1, tp=1)
    params = read_params(GOLDEN / "families" / "llama", arch, shardings(arch, mesh, TRAINER_RULES))
    trainer = trainer_of(config, arch, mesh, params, optax.sgd(0.0), loss=likelihood_loss)
    minibatch = minibatch_of(conversations_of(golden), config)
    assert minibatch.padding < 0.7
    grads = trainer.gradient(minibatch)
    found = {name: make() for name, _, make in tensors_of(grads, arch)}
    wanted = {name[5:]: value for name, value in golden.items() if name.startswith("grad ")}
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert np.abs(grad).max() > 1e-4
        np.testing.assert_allclose(found[name], grad, rtol=1e-4, atol=1e-4, err_msg=name)
    assert float(trainer.minibatch_step(minibatch).loss) == pytest.approx(
        float(golden["loss"]), rel=1e-4
    )


def test_what_is_not_learned_has_no_share(golden):
    minibatch = minibatch_of(conversations_of(golden), RunConfig())
    (microbatch,) = minibatch.microbatches
    learned = sum(int(golden[f"learned_{i}"].sum()) for i in range(4))
    assert int((microbatch.shares > 0).sum()) == learned
    np.testing.assert_allclose(microbatch.shares[microbatch.shares > 0], 1 / learned, rtol=1e-6)


def test_every_trace_comes_once_an_epoch_and_general_ones_by_their_share():
    traces, general = [10] * 30, [5, 7, 9]
    steps = schedule(traces, general, share=0.25, epochs=3, per_step=8, seed=1)
    lessons = [lesson for step in steps for lesson in step]
    assert [len(step) for step in steps[:-1]] == [8] * (len(steps) - 1)
    ours = [lesson.index for lesson in lessons if not lesson.is_general]
    for epoch in range(3):
        assert sorted(ours[30 * epoch : 30 * epoch + 30]) == list(range(30))
    assert ours[:30] != ours[30:60]
    # At any point the share is right to one conversation.
    tokens = {False: 0, True: 0}
    for lesson in lessons:
        tokens[lesson.is_general] += (general if lesson.is_general else traces)[lesson.index]
        assert abs(tokens[True] - 0.25 * sum(tokens.values())) <= 10
    again = schedule(traces, general, share=0.25, epochs=3, per_step=8, seed=1)
    assert again == steps
    assert schedule(traces, general, share=0.25, epochs=3, per_step=8, seed=2) != steps
    alone = schedule(traces, [], share=0.25, epochs=1, per_step=30, seed=1)
    assert len(alone) == 1 and not any(lesson.is_general for lesson in alone[0])
    with pytest.raises(UserError, match=r"sft\.path holds no"):
        schedule([], general, share=0.25, epochs=3, per_step=8, seed=1)


def test_the_rate_rises_and_falls_to_a_tenth():
    config = RunConfig()
    config = replace(config, sft=replace(config.sft, learning_rate=1.0, warmup_share=0.1))
    rate = rate_of(config, 100)
    rates = [float(rate(jnp.asarray(step))) for step in range(100)]
    assert rates[0] == 0.0 and rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(1.0) and rates[99] == pytest.approx(0.1, abs=0.01)
    flat = rate_of(replace(config, sft=replace(config.sft, warmup_share=0.0)), 100)
    assert float(flat(jnp.asarray(0))) == pytest.approx(1.0)


def read(*rows, longest=64):
    faults = []
    found = conversations(
        ((f"f:{n}", row) for n, row in enumerate(rows, 1)),
        TOKENIZER,
        lambda problem: TOKENIZER.chat([{"role": "user", "content": problem.question}]),
        longest=longest,
        tell=faults.append,
    )
    return found, faults


def turn(role, content):
    return {"role": role, "content": content}


def test_all_turns_of_the_assistant_are_learned_with_their_stop_and_nothing_else():
    row = {"messages": [turn("user", "a"), turn("assistant", "bc"), turn("user", "d"),
                        turn("assistant", "e")]}  # fmt: skip
    (found,), faults = read(row)
    assert not faults
    assert found.prompt.tolist() == [USER, ord("a"), ASSISTANT]
    wanted = [ord("b"), ord("c"), STOP, USER, ord("d"), ASSISTANT, ord("e"), STOP]
    assert found.tokens.tolist() == wanted
    assert found.sampled.tolist() == [True] * 3 + [False] * 3 + [True] * 2


def test_a_trace_is_asked_as_the_run_asks_and_its_own_tokens_are_kept():
    row = {"id": "t", "problem": "1+1?", "response": "2"}
    (plain,), _ = read(row)
    assert plain.prompt.tolist() == TOKENIZER.chat([turn("user", "1+1?")])
    assert plain.tokens.tolist() == [ord("2"), STOP]
    # Tokens that no tokeniser would give for the text: they are the record.
    tokens = {
        "prompt_tokens": [5, 6],
        "tokens": [7, 8, STOP],
        "tokenizer": tokenizer_mark(TOKENIZER),
    }
    (kept,), _ = read(row | tokens)
    assert kept.prompt.tolist() == [5, 6] and kept.tokens.tolist() == [7, 8, STOP]
    (other,), _ = read(row | tokens | {"tokenizer": "of another"})
    assert other.tokens.tolist() == plain.tokens.tolist()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (UserError("f:1: not JSON"), "f:1: not JSON"),
        ({"messages": []}, "f:1: messages is []"),
        ({"messages": [turn("user", "a")]}, "f:1: messages holds no turn of the assistant"),
        ({"messages": [turn("robot", "a")]}, "f:1: a turn is"),
        ({"messages": [turn("assistant", 3)]}, "f:1: content is 3"),
        ({"id": "x", "problem": "a"}, "f:1: key 'response' is missing"),
        ({"id": "x", "problem": "a", "response": "b" * 99}, "f:1: 103 tokens; batch.row_tokens"),
        (
            {"tokens": [1, 999], "prompt_tokens": [1], "tokenizer": tokenizer_mark(TOKENIZER)},
            "f:1: tokens must be a list of token ids below",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_told_and_the_rest_is_read(row, told):
    found, faults = read(row, {"id": "y", "problem": "a", "response": "b"})
    assert len(found) == 1 and len(faults) == 1 and told in faults[0]


def test_the_mark_tells_tokenizers_apart():
    class Other(ByteTokenizer):
        def encode(self, text):
            return super().encode(text)[::-1]

    assert tokenizer_mark(Other()) != tokenizer_mark(TOKENIZER) == tokenizer_mark(ByteTokenizer())
    json.dumps(tokenizer_mark(TOKENIZER))
