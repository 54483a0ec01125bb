"""A resume holds no more than what was saved, and reads nothing but that."""

import gc
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax import build
from magistral_jax import checkpoint as checkpoint_module
from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, Meta, shapes_of
from magistral_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    MetricsConfig,
    ModelConfig,
    RunConfig,
    ShapeConfig,
    TrainerConfig,
)
from magistral_jax.model.params import Architecture, initialise
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, shardings
from magistral_jax.run import train
from magistral_jax.session import Session
from magistral_jax.trainer.optimizer import make_optimizer
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.watch import STOPPED

ARCH = Architecture(
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    vocab=256,
    rope_theta=1e4,
    norm_eps=1e-5,
    tie_embeddings=False,
)
CONFIG = RunConfig(
    mode="sync",
    stall_s=120.0,
    model=ModelConfig(
        shape=ShapeConfig(layers=2, width=64, heads=2, kv_heads=1, head_dim=32, ffn=128)
    ),
    data=DataConfig(digits=1, max_prompt_tokens=8),
    generator=GeneratorConfig(group_size=2, in_flight=4, max_tokens=6),
    batch=BatchConfig(completions=4, row_tokens=24, rows=4),
    trainer=TrainerConfig(steps=2, learning_rate=1e-3, kl_coefficient=0.1),
    eval=EvalConfig(problems=0),
    metrics=MetricsConfig(probe_every=0, tensorboard=False),
    checkpoint=CheckpointConfig(every=1),
)


def live():
    return sum(array.nbytes for array in jax.live_arrays())


def size_of(tree):
    return sum(array.nbytes for array in jax.tree.leaves(tree))


@pytest.mark.parametrize("fsdp, tp, kl", [(1, 1, 0.1), (2, 2, 0.0)])
def test_a_trainer_made_from_shapes_holds_nothing_until_it_is_given_what_was_saved(
    fsdp, tp, kl, monkeypatch, tmp_path
):
    monkeypatch.setattr(checkpoint_module, "PIECE_BYTES", 1)  # leaf by leaf
    mesh = make_mesh(jax.devices(), fsdp=fsdp, tp=tp)
    onto = shardings(ARCH, mesh, TRAINER_RULES)

    def trainer(params):
        optimizer = make_optimizer(TrainerConfig())
        dtype = jnp.dtype("float32")
        return Trainer(ARCH, mesh, params, optimizer, dtype=dtype, kl_coefficient=kl)

    with jax.set_mesh(mesh):
        first = trainer(initialise(ARCH, jax.random.key(0), onto))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(Meta(step=1, identity={}, notes={}), {"state": first.state})
    checkpoints.settle()
    shapes, state = shapes_of(first.params), jax.tree.map(np.asarray, first.state)
    places = jax.tree.map(lambda x: x.sharding, first.state)
    size = size_of(first.state)
    del first
    gc.collect()
    before, seen = live(), []
    second = trainer(shapes)
    assert live() == before
    checkpoints.on_progress = lambda: seen.append(live() - before)
    second.state = checkpoints.restore(checkpoints.latest(), "state", second.state)
    assert len(seen) == len(jax.tree.leaves(state))
    assert max(seen) <= 1.1 * size
    jax.tree.map(np.testing.assert_array_equal, second.state, state)
    assert jax.tree.map(lambda x: x.sharding, second.state) == places


def refuse(*_, **__):
    raise AssertionError("a resume reads the model that the run began with")


def test_a_resume_holds_the_state_once_and_reads_no_other_model(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint_module, "PIECE_BYTES", 1)
    save = Session._save

    def save_and_stop(self, *rest):
        save(self, *rest)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_save", save_and_stop)
        assert train(CONFIG, tmp_path, resume=False) == STOPPED
    for owner, name in (
        (build, "read_params"),
        (build, "initialise"),
        (build, "checked_weights"),
        (Run, "initial_params"),
        (Run, "saved_params"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    gc.collect()
    before, seen, sizes = live(), [], []
    honest = Checkpoints.restore

    def restore(self, meta, name, like):
        told, self.on_progress = self.on_progress, lambda: seen.append(live() - before)
        found = honest(self, meta, name, like)
        self.on_progress = told
        sizes.append((name, size_of(found)))
        return found

    monkeypatch.setattr(Checkpoints, "restore", restore)
    # That it goes on from there as if nothing had been is shown in test_resume.py.
    monkeypatch.setattr(Session, "_reinforce", lambda self, snapshot: STOPPED)
    assert train(CONFIG, tmp_path, resume=True) == STOPPED
    ((name, size),) = sizes
    assert name == "state" and len(seen) > 10
    assert max(seen) <= 1.1 * size
