"""The real rooms, end to end, with a network of two small layers.

The verdict is scripted where a random network must be told apart: a completion's reward is a
function of its tokens, and some groups are uniform.
"""

from concurrent.futures import Future
from dataclasses import replace

import jax
import numpy as np
import pytest

from magistral_jax.build import Run
from magistral_jax.config import (
    BatchConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    MeshConfig,
    MetricsConfig,
    ModelConfig,
    RunConfig,
    ShapeConfig,
    TrainerConfig,
)
from magistral_jax.loops.asynchronous import run_async
from magistral_jax.loops.sync import run_sync
from magistral_jax.tally import PARTS
from magistral_jax.types import Frontier, Verdict

SHAPE = ShapeConfig(layers=2, width=32, heads=2, kv_heads=2, head_dim=16, ffn=64)

# The first losses of `CONFIG`, run in turn. Made again by hand only, with the reason in the
# commit: print what `test_the_first_losses_are_those_of_the_stored_trace` found.
STORED_LOSSES = [0.04188721, -0.07119386, 0.05616809, -0.06505446, 0.04273083]

CONFIG = RunConfig(
    stall_s=120.0,
    model=ModelConfig(shape=SHAPE),
    data=DataConfig(digits=2, max_prompt_tokens=12, heldout_percent=20.0),
    # Fewer slots than a batch has completions: sequences are queued, and slots are reused.
    generator=GeneratorConfig(group_size=4, in_flight=12, max_tokens=20),
    batch=BatchConfig(completions=16, minibatch=8, max_lag=0, row_tokens=64, rows=4),
    trainer=TrainerConfig(steps=5, learning_rate=3e-3, remat=False),
    eval=EvalConfig(problems=0),
    metrics=MetricsConfig(probe_every=0),
)


def judge(prompt, completion):
    """A reward that any network earns now and then; none at all in every third group."""
    is_right = prompt.group % 3 != 0 and int(completion.tokens.sum()) % 2 == 0
    parts = {**dict.fromkeys(PARTS, 0.0), "correct": float(is_right)}
    verdict = Future()
    reason = "pass" if is_right else "wrong"
    verdict.set_result(Verdict(reward=float(is_right), parts=parts, reason=reason))
    return verdict


class Player:
    """One run's compiled rooms, played again and again from the same weights."""

    def __init__(self, config, params=None):
        devices = config.mesh.trainer_devices + config.mesh.generator_tp
        self.run = Run(config, devices=jax.devices()[:devices])
        self.trainer = self.run.trainer(self.run.initial_params() if params is None else params)
        self.places = jax.tree.map(lambda x: x.sharding, self.trainer.state)
        self.start = jax.tree.map(np.array, self.trainer.state)

    def play(self, loop, config=None, **rooms_instead):
        """The batches, the rows and the final weights of one pass over the loop."""
        run, trainer = self.run, self.trainer
        run.config = config or run.config
        trainer.state = jax.device_put(self.start, self.places)
        batches, rows = [], []
        rooms = run.rooms(
            trainer,
            run.published(trainer.params, 0),
            Frontier(),
            wants_frontier=lambda step: False,
            on_step=lambda step, values, groups, frontier: rows.append(values),
            waiting=lambda owner, what: None,
        )

        def train(batch):
            batches.append(batch)
            return rooms.train(batch)

        loop(run.config, replace(rooms, **{"train": train, "judge": judge, **rooms_instead}))
        return batches, rows, jax.tree.map(np.array, trainer.params)


@pytest.fixture(scope="module")
def player():
    return Player(CONFIG)


def assert_same_batches(ours, theirs):
    assert [b.version for b in ours] == [b.version for b in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert [g.group for g in one.groups] == [g.group for g in other.groups]
        for group, its_twin in zip(one.groups, other.groups, strict=True):
            assert group.verdicts == its_twin.verdicts
            for a, b in zip(group.completions, its_twin.completions, strict=True):
                assert (a.index, a.finish, a.spans) == (b.index, b.finish, b.spans)
                np.testing.assert_array_equal(a.tokens, b.tokens)
                np.testing.assert_array_equal(a.logprobs, b.logprobs)


def assert_bit_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("minibatch", [0, 8])
def test_async_without_lag_reproduces_sync_exactly(player, minibatch):
    config = replace(
        CONFIG,
        batch=replace(CONFIG.batch, minibatch=minibatch),
    )
    batches, rows, params = player.play(run_sync, config)
    async_batches, async_rows, async_params = player.play(run_async, config)

    assert len(batches) == 5 and all(len(b.minibatches) == (2 if minibatch else 1) for b in batches)
    assert sum(row["dispatched"] for row in rows) > sum(len(b.groups) for b in batches)
    assert_same_batches(async_batches, batches)
    for row, async_row in zip(rows, async_rows, strict=True):
        for name in ("loss", "policy/grad_norm", "policy/entropy", "batch/padding", "dispatched"):
            assert async_row[name] == row[name], name
    assert_bit_equal(async_params, params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, player.start.params)
    assert all(jax.tree.leaves(moved))


def test_the_first_losses_are_those_of_the_stored_trace(player):
    _, rows, _ = player.play(run_sync, CONFIG)
    np.testing.assert_allclose([row["loss"] for row in rows], STORED_LOSSES, rtol=1e-4)


def free(config, **trainer):
    """The paper's timing: two updates of lag, new weights between any two decode steps."""
    return replace(
        config,
        generator=replace(config.generator, in_flight=12),
        batch=replace(config.batch, max_lag=2),
        trainer=replace(config.trainer, **trainer),
    )


def test_with_rate_0_an_async_run_leaves_every_bit_of_the_weights(player):
    still = Player.__new__(Player)
    still.run, still.places, still.start = player.run, player.places, player.start
    config = free(CONFIG, learning_rate=0.0)
    player.run.config = config
    still.trainer = player.run.trainer(jax.device_put(player.start.params, player.places.params))
    batches, rows, params = still.play(run_async, config)
    assert all(row["policy/grad_norm"] > 0 for row in rows)
    assert_bit_equal(params, player.start.params)
    # The same weights under any version: what is sampled does not depend on the timing.
    again, _, _ = still.play(run_sync, config)
    assert [g.group for b in batches for g in b.groups] == [
        g.group for b in again for g in b.groups
    ]
    for one, other in zip(batches, again, strict=True):
        for a, b in zip(one.groups, other.groups, strict=True):
            for mine, its in zip(a.completions, b.completions, strict=True):
                np.testing.assert_array_equal(mine.tokens, its.tokens)


def test_trainer_and_generator_on_meshes_of_their_own():
    mesh = MeshConfig(trainer_fsdp=2, generator_tp=2)
    config = replace(free(CONFIG, steps=4), mesh=mesh, metrics=MetricsConfig(probe_every=1))
    player = Player(config)
    # The probe's slots in the run's own engine: one set of programs to compile.
    vars(player.run)["_probe_engine"] = player.run.main_engine
    trainer, generator = player.run.trainer_mesh.devices, player.run.generator_mesh.devices
    assert not set(trainer.flat) & set(generator.flat)
    batches, rows, params = player.play(run_async)

    assert len(rows) == 4
    assert all(row["policy/lag_max"] <= 2 for row in rows)
    completions = [c for b in batches for g in b.groups for c in g.completions]
    assert any(len(c.spans) >= 2 for c in completions), "no update came in flight"
    gaps = [row["mismatch/logprob_abs_max"] for row in rows if "mismatch/logprob_abs_max" in row]
    assert gaps and max(gaps) < 1e-4
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, player.start.params)
    assert all(jax.tree.leaves(moved))
