"""The flax module: the same network, the same tree, the same training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from magistral_jax.arrays import Microbatch, Minibatch
from magistral_jax.model.logprobs import score_chunk
from magistral_jax.model.module import Transformer
from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.trainer.loss import policy_loss
from magistral_jax.trainer.trainer import Trainer

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
CLIP = {"eps_low": 0.2, "eps_high": 0.28}


@pytest.fixture
def mesh():
    mesh = make_mesh(jax.devices(), fsdp=1, tp=1)
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture
def make_params(mesh):
    def make(seed):
        rng = np.random.default_rng(seed)
        host = map_specs(
            lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
            abstract(ARCH),
        )
        return place(host, shardings(ARCH, mesh, TRAINER_RULES))

    return make


def make_microbatch(rng) -> Microbatch:
    """A row of two completions and padding."""
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0]], np.int32)
    shares = np.array([[0, 1, 1, 1, 0, 1, 1, 0]], np.float32) / 5
    return Microbatch(
        inputs=rng.integers(0, 10, (1, 8)).astype(np.int32),
        targets=rng.integers(0, 10, (1, 8)).astype(np.int32),
        positions=np.array([[0, 1, 2, 3, 0, 1, 2, 0]], np.int32),
        segments=segments,
        behavior_logprobs=np.where(shares > 0, -2.3, 0).astype(np.float32),
        advantages=np.array([[0, 1.5, 1.5, 1.5, 0, -1.5, -1.5, 0]], np.float32),
        shares=shares,
    )


def test_one_step_through_an_nnx_optimizer_is_the_trainers_step(rng, mesh, make_params):
    batch = make_microbatch(rng)
    # An epsilon well above the rounding of gradients: Adam divides by what may be next to zero.
    rule = optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-4, weight_decay=0.1)

    trainer = Trainer(ARCH, mesh, make_params(0), rule, dtype=jnp.dtype("float32"), **CLIP)
    stats = trainer.minibatch_step(Minibatch(microbatches=(batch,), padding=0.0))

    model = Transformer(ARCH, make_params(0))
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

    on_device = jax.tree.map(jnp.asarray, batch)

    @nnx.jit
    def step(model, optimizer):
        def loss_of(model):
            logits = model(on_device.inputs, on_device.positions, on_device.segments)
            return policy_loss(score_chunk(logits, on_device.targets, 1.0), on_device, **CLIP)[0]

        loss, grads = nnx.value_and_grad(loss_of)(model)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 and float
            optimizer.update(model, grads)
        return loss

    loss = step(model, optimizer)
    np.testing.assert_allclose(loss, stats.loss, atol=1e-6)
    before, after = make_params(0), model.params()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, trainer.params)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
    assert min(jax.tree.leaves(moved)) > 1e-4, moved


def test_without_positions_a_row_is_one_sequence(rng, make_params):
    model = Transformer(ARCH, make_params(0))
    tokens = jnp.asarray(rng.integers(0, 10, (2, 6)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32), (2, 6))
    written_out = model(tokens, positions, jnp.ones((2, 6), jnp.int32))
    assert written_out.shape == (2, 6, 10)
    np.testing.assert_array_equal(model(tokens), written_out)


def test_params_go_in_and_come_out_as_the_same_arrays(make_params):
    params, others = make_params(0), make_params(1)
    model = Transformer(ARCH, params)
    assert jax.tree.structure(model.params()) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, model.params(), params)))
    model.load(others)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, model.params(), others)))


def test_a_tree_of_another_shape_is_not_loaded(make_params):
    params = make_params(0)
    model = Transformer(ARCH, params)
    with pytest.raises(AssertionError):
        model.load({**params, "final_norm": params["final_norm"][:4]})


def test_split_and_merge_round_trip(make_params):
    params = make_params(0)
    graph, state = nnx.split(Transformer(ARCH, params))
    paths = {"/".join(path) for path, _ in nnx.to_flat_state(state)}
    assert "tree/layers/wq" in paths and len(paths) == len(jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, nnx.merge(graph, state).params(), params)
