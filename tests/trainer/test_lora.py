"""LoRA against full training, and on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magistral_jax.config import TrainerConfig
from magistral_jax.trainer import lora as rooms
from magistral_jax.trainer.lora import AXES, lora, product
from magistral_jax.trainer.optimizer import make_optimizer
from tests.trainer.test_meshes import close, packed


def orthogonal(key, name, weight, rank):
    """A square A with A A^T = 1, and B of zeros."""
    rng = np.random.default_rng(len(name))
    inputs = weight.shape[1 : 1 + len(AXES[name][1])]
    assert rank == np.prod(inputs)
    q = np.stack([np.linalg.qr(rng.normal(size=(rank, rank)))[0] for _ in weight])
    a = jnp.asarray(q.reshape(len(weight), *inputs, rank), jnp.float32)
    b = jnp.zeros((len(weight), rank, *weight.shape[1 + len(inputs) :]), jnp.float32)
    return rooms.Factors(a, b)


def test_an_orthogonal_full_rank_a_is_full_training(make_trainer, groups, monkeypatch):
    """With A A^T = 1 and B = 0, a step of SGD on B changes A B by what it would change W by."""
    drawn = rooms.drawn

    def of_each_rank(key, name, weight, rank):
        inputs = np.prod(weight.shape[1 : 1 + len(AXES[name][1])])
        return orthogonal(key, name, weight, int(inputs))

    monkeypatch.setattr(rooms, "drawn", of_each_rank)
    minibatch = packed(groups)
    full, factored = make_trainer(), make_trainer(rule=lora(optax.sgd(1.0), rank=1, scale=1.0))
    before = jax.device_get(full.params)
    for trainer in (full, factored):
        trainer.minibatch_step(minibatch)
    moved = 0.0
    for name in AXES:
        ours, wanted = (t.params["layers"][name] - before["layers"][name] for t in (factored, full))
        close(ours, wanted)
        moved = max(moved, float(jnp.abs(wanted).max()))
    assert moved > 1e-3
    assert drawn is not rooms.drawn


RULE = TrainerConfig(learning_rate=1e-2, adam_eps=1e-3, lora_rank=2, lora_alpha=8.0)


def test_weights_are_the_start_and_the_product(make_trainer, groups):
    """What is pushed, saved and exported needs no merging, after any number of updates."""
    trainer = make_trainer(rule=make_optimizer(RULE))
    before = jax.device_get(trainer.params)
    a_before = jax.device_get(trainer.state.optimizer.factors["wq"].a)
    for _ in range(5):
        trainer.minibatch_step(packed(groups))
    factors = trainer.state.optimizer.factors
    for name in AXES:
        delta = trainer.params["layers"][name] - before["layers"][name]
        assert float(jnp.abs(delta).max()) > 1e-4
        close(delta, 4.0 * product(name, factors[name]))
    assert float(jnp.abs(factors["wq"].a - a_before).max()) > 1e-4
    for name in ("embed", "final_norm"):
        np.testing.assert_array_equal(trainer.params[name], before[name])
    np.testing.assert_array_equal(
        trainer.params["layers"]["attn_norm"], before["layers"]["attn_norm"]
    )


def test_gradients_of_the_factors_are_jaxs(rng):
    """Of any loss that is linear in W."""
    for name, (_, inputs, outputs) in AXES.items():
        shape = (2, *(3, 4)[: len(inputs)], *(5, 6)[: len(outputs)])
        weight, grad = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
        factors = rooms.drawn(jax.random.key(1), name, weight, 2)
        factors = factors._replace(b=jnp.asarray(rng.normal(size=factors.b.shape), jnp.float32))

        def loss(factors, name=name, grad=grad):
            return jnp.sum(grad * 3.0 * product(name, factors))

        jax.tree.map(
            close, rooms.factor_gradients(name, grad, factors, 3.0), jax.grad(loss)(factors)
        )


@pytest.mark.parametrize("mesh", [(4, 1, 1), (2, 1, 2), (1, 2, 1), (2, 2, 1)], ids=str)
def test_the_mesh_does_not_change_it(make_trainer, groups, mesh):
    def after(fsdp, sp, tp):
        trainer = make_trainer(fsdp, sp, tp, rule=make_optimizer(RULE))
        for _ in range(2):
            trainer.minibatch_step(packed(groups))
        return trainer

    one, split = after(1, 1, 1), after(*mesh)
    jax.tree.map(close, *(jax.device_get(trainer.state) for trainer in (one, split)))
    fsdp, _, tp = mesh
    factors = split.state.optimizer.factors["wq"]
    assert {s.data.shape for s in factors.a.addressable_shards} == {(2, 8 // fsdp, 2)}
    assert {s.data.shape for s in factors.b.addressable_shards} == {(2, 2, 4 // tp, 4)}


def test_its_state_is_small(make_trainer):
    full, factored = (
        make_trainer(rule=make_optimizer(rule))
        for rule in (TrainerConfig(), TrainerConfig(lora_rank=1))
    )

    def size(trainer):
        return sum(leaf.size for leaf in jax.tree.leaves(trainer.state.optimizer))

    assert size(factored) < size(full) / 2
