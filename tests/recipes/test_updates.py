"""An update that is not finite changes nothing, says whose fault it was, and the next counts."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.arrays import Batch
from magistral_jax.batch.assemble import assemble
from magistral_jax.config import TrainerConfig
from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.recipes.updates import ALARMS, FILE, train_batch
from magistral_jax.trainer.optimizer import make_optimizer
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.types import Completion, GivenUp, Group, Problem, Prompt, Verdict, VersionSpan

ARCH = Architecture(
    layers=2,
    width=8,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn=6,
    vocab=10,
    rope_theta=100.0,
    norm_eps=1e-5,
    tie_embeddings=True,
)


def group_of(number, rewards=(1.0, 0.0, 0.1)):
    rng = np.random.default_rng(number)
    problem = Problem(id=f"p{number}", domain="math", question="", answer="")
    prompt = Prompt(group=number, problem=problem, tokens=rng.integers(3, 10, 4, np.int32))
    completions = tuple(
        Completion(
            group=number,
            index=index,
            prompt=prompt.tokens,
            tokens=rng.integers(3, 10, 5 + index, np.int32),
            logprobs=(-2.3 + 0.2 * rng.normal(size=5 + index)).astype(np.float32),
            sampled=np.ones(5 + index, bool),
            spans=(VersionSpan(start=0, version=0),),
            finish="stop",
        )
        for index in range(len(rewards))
    )
    verdicts = tuple(
        Verdict(reward=r, parts={}, reason="pass" if r > 0.5 else "wrong") for r in rewards
    )
    return Group(prompt=prompt, completions=completions, verdicts=verdicts)


def batch_of(*, minibatches=2, bad=()) -> Batch:
    """Two groups a minibatch; the `bad` have a sampler's log-prob that is no number."""
    groups = [group_of(number) for number in range(2 * minibatches)]
    for number, index, value in bad:
        groups[number].completions[index].logprobs[2] = value
    return assemble(
        groups,
        groups_per_minibatch=2,
        row_tokens=12,
        rows=2,
        advantage_rule="minibatch",
        share_rule="group",
        control="none",
        seed=0,
        version=4,
    )


@pytest.fixture(scope="module")
def trainer():
    rng = np.random.default_rng(0)
    params = map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
        abstract(ARCH),
    )
    mesh = make_mesh(jax.devices(), fsdp=2, tp=2)
    rule = make_optimizer(TrainerConfig(learning_rate=1e-2, weight_decay=0.1))
    trainer = Trainer(
        ARCH,
        mesh,
        place(params, shardings(ARCH, mesh, TRAINER_RULES)),
        rule,
        dtype=jnp.dtype("float32"),
    )
    begin = jax.device_get(trainer.state)
    places = jax.tree.map(lambda x: x.sharding, trainer.state)

    def fresh():
        trainer.state = jax.device_put(begin, places)
        return trainer

    return fresh


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(state))]


@pytest.mark.parametrize("value", [np.nan, -np.inf, -1e30])
def test_what_is_not_finite_changes_no_bit(trainer, value):
    """No number, and log-probs so small that the ratio overflows."""
    policy = trainer()
    before = bits(policy.state)
    batch = batch_of(minibatches=1, bad=[(1, 2, value)])
    assert len(batch.minibatches[0].microbatches) > 1
    (stats,) = policy.step(batch)
    assert not bool(stats.is_finite)
    assert bits(policy.state) == before
    (stats,) = policy.step(batch_of(minibatches=1))
    assert bool(stats.is_finite) and bits(policy.state) != before


def test_the_completions_to_blame_are_named_and_no_others(trainer):
    policy = trainer()
    bad = [(0, 1, np.nan), (1, 2, np.nan)]
    minibatch = batch_of(minibatches=1, bad=bad).minibatches[0]
    rows = [names for of_microbatch in minibatch.names for names in of_microbatch]
    assert sorted(name for row in rows for name in row) == [
        (g, i) for g in (0, 1) for i in range(3)
    ]
    assert sorted(policy.culprits(minibatch)) == [(0, 1), (1, 2)]
    assert policy.culprits(batch_of(minibatches=1).minibatches[0]) == []


def test_it_is_told_written_down_and_training_goes_on(trainer, tmp_path):
    policy, told = trainer(), []
    tell = lambda *said: told.append(said)  # noqa: E731
    before = bits(policy.state)
    values = train_batch(policy, batch_of(bad=[(2, 1, np.nan)]), tell=tell, folder=tmp_path)
    ((kind, message),) = told
    assert kind == "update" and "2/1 (problem p2)" in message and "update 5" in message
    assert FILE in message and "\n" not in message
    (row,) = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert (row["update"], row["problem"], row["group"], row["index"]) == (5, "p2", 2, 1)
    assert row["logprobs"][2] == "nan" and len(row["tokens"]) == len(row["logprobs"]) == 6
    # The other minibatch counted, and its numbers are the update's.
    assert values["update/skipped"] == 1 and np.isfinite(list(values.values())).all()
    assert bits(policy.state) != before
    values = train_batch(policy, batch_of(), tell=tell, folder=tmp_path)
    assert values["update/skipped"] == 0 and len(told) == 1


def test_an_update_made_again_is_written_down_once(trainer, tmp_path):
    def play(version, bad):
        batch = replace(batch_of(bad=bad), version=version)
        train_batch(trainer(), batch, tell=lambda *said: None, folder=tmp_path)
        lines = (tmp_path / FILE).read_text().splitlines()
        return [(row["update"], row["group"]) for row in map(json.loads, lines)]

    assert play(3, [(0, 0, np.nan)]) == [(4, 0)]
    assert play(6, [(1, 0, np.nan), (2, 0, np.nan)]) == [(4, 0), (7, 1), (7, 2)]
    # The run went back to the checkpoint of update 5.
    assert play(5, [(3, 1, np.nan)]) == [(4, 0), (6, 3)]


def test_every_backward_pass_is_a_sign_of_life(trainer, monkeypatch):
    """Of an update, and of the search for who is to blame, which makes one for each completion."""
    policy, beats = trainer(), []
    monkeypatch.setattr(policy, "on_progress", lambda: beats.append(len(beats)))
    batch = batch_of(minibatches=1, bad=[(1, 2, np.nan)])
    (minibatch,) = batch.minibatches
    policy.minibatch_step(minibatch)
    assert len(beats) == len(minibatch.microbatches) - 1 > 0
    beats.clear()
    passes, honest = [], type(policy)._add
    monkeypatch.setattr(
        type(policy), "_add", lambda self, *rest: passes.append(1) or honest(self, *rest)
    )
    assert policy.culprits(minibatch) == [(1, 2)]
    assert len(beats) == len(passes) > len(minibatch.microbatches)


def test_an_update_given_up_anywhere_and_gone_on_with_is_the_update(trainer, monkeypatch, tmp_path):
    """Between two microbatches, and in the search for who is to blame."""
    batch = batch_of(minibatches=3, bad=[(2, 1, np.nan)])

    def play(at, batch, folder):
        calls = []

        def on_progress():
            calls.append(1)
            if len(calls) == at:
                raise GivenUp

        monkeypatch.setattr(policy, "on_progress", on_progress)
        values = train_batch(policy, batch, tell=lambda *said: None, folder=folder)
        return values, len(calls)

    policy = trainer()
    (tmp_path / "whole").mkdir()
    values, number = play(0, batch, tmp_path / "whole")
    expected, told = bits(policy.state), (tmp_path / "whole" / FILE).read_text()
    assert number > 3
    counts = []
    for at in range(1, number + 1):
        policy = trainer()
        before = bits(policy.state)
        with pytest.raises(GivenUp) as stop:
            play(at, batch, tmp_path)
        made = stop.value.made
        counts.append(len(made))
        assert (bits(policy.state) == before) == (len(made) == 0)
        # As a checkpoint has them.
        made = tuple(json.loads(json.dumps(made)))
        found, _ = play(0, replace(batch, made=made), tmp_path)
        assert found == values and bits(policy.state) == expected
        assert (tmp_path / FILE).read_text() == told
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}


def test_a_batch_of_which_nothing_is_finite_still_reports(trainer, tmp_path):
    policy = trainer()
    bad = [(0, 0, np.nan), (3, 0, np.nan)]
    values = train_batch(policy, batch_of(bad=bad), tell=lambda *said: None, folder=None)
    assert values == {"update/skipped": 2.0}


def test_alarms_are_told_once_per_update(trainer, monkeypatch):
    policy, told = trainer(), []
    batch = batch_of(minibatches=1, bad=[(0, 0, -16.0)])
    values = train_batch(policy, batch, tell=lambda *said: told.append(said), folder=None)
    assert values["policy/log_ratio_abs_max"] > 10 and values["update/skipped"] == 0
    texts = [text for kind, text in told if kind == "alarm"]
    assert any("log_ratio_abs_max" in text and "update 5" in text for text in texts)


def test_each_alarm_knows_both_sides():
    inside = {
        "policy/log_ratio_abs_max": 1.0,
        "policy/ess": 0.9,
        "policy/clipped_high": 0.01,
        "policy/clipped_low": 0.01,
        "policy/entropy": 0.5,
        "policy/grad_norm": 1.0,
    }
    outside = {
        "policy/log_ratio_abs_max": 11.0,
        "policy/ess": 0.1,
        "policy/clipped_high": 0.5,
        "policy/clipped_low": 0.5,
        "policy/entropy": 1e-5,
        "policy/grad_norm": 1e4,
    }
    assert {name for name, _, _ in ALARMS} == inside.keys() == outside.keys()
    for name, is_out, text in ALARMS:
        assert is_out(outside[name]) and not is_out(inside[name])
        assert "{" not in text.format(outside[name])
