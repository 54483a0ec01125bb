"""Meshes, partitions, and that neither changes what is computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import NamedSharding

from magistral_jax.config import MeshConfig
from magistral_jax.model.logprobs import score
from magistral_jax.model.params import Architecture, ArraySpec, abstract, map_specs
from magistral_jax.model.sharding import (
    GENERATOR_RULES,
    TRAINER_RULES,
    check_divides,
    make_mesh,
    make_meshes,
    place,
    shardings,
    spec_of,
)
from magistral_jax.types import UserError

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2)]
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
    tie_embeddings=False,
)


def mesh_of(fsdp, tp):
    return make_mesh(jax.devices(), fsdp=fsdp, tp=tp)


@pytest.fixture(scope="module")
def host_params():
    rng = np.random.default_rng(0)
    return map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
        abstract(ARCH),
    )


@pytest.fixture(scope="module")
def loss_and_gradient(host_params):
    """The mean log-prob of two packed rows on a mesh, with its gradient, on the host."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, ARCH.vocab, (2, 9)).astype(np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 0, 0]], np.int32)
    weights = (rng.normal(size=(2, 8)) * (segments > 0)).astype(np.float32)

    def loss(params, inputs, targets, positions, segments, weights):
        scores = score(
            params,
            ARCH,
            inputs,
            targets,
            positions,
            segments,
            temperature=0.9,
            dtype=jnp.dtype("float32"),
            remat=True,
            head_tokens=8,
        )
        return jnp.sum(scores.logprobs * weights), scores.entropy

    def run(fsdp, tp):
        mesh = mesh_of(fsdp, tp)
        rows = NamedSharding(mesh, P("fsdp", None))
        params = place(host_params, shardings(ARCH, mesh, TRAINER_RULES))
        arrays = jax.device_put((tokens[:, :-1], tokens[:, 1:], positions, segments, weights), rows)
        with jax.set_mesh(mesh):
            out = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, *arrays)
        jax.tree.map(lambda w, grad: _same_layout(w, grad), params, out[1])
        return jax.device_get(out)

    return run


def _same_layout(param, grad):
    assert grad.sharding.is_equivalent_to(param.sharding, param.ndim), (grad.sharding, param)


@pytest.fixture(scope="module")
def on_one_device(loss_and_gradient):
    return loss_and_gradient(1, 1)


@pytest.mark.parametrize("fsdp, tp", MESHES[1:])
def test_the_mesh_changes_neither_loss_nor_gradient(loss_and_gradient, on_one_device, fsdp, tp):
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, loss_and_gradient(fsdp, tp), on_one_device)


def test_each_device_holds_its_shard_and_no_more(host_params):
    params = place(host_params, shardings(ARCH, mesh_of(2, 2), TRAINER_RULES))
    wq = params["layers"]["wq"]
    assert wq.sharding.spec == P(None, "fsdp", "tp", None)
    assert {shard.data.shape for shard in wq.addressable_shards} == {(2, 4, 2, 4)}
    for shard in wq.addressable_shards:
        np.testing.assert_array_equal(shard.data, host_params["layers"]["wq"][shard.index])
    assert params["layers"]["attn_norm"].is_fully_replicated


def test_generator_weights_are_whole_along_the_width():
    specs = map_specs(lambda spec: spec_of(spec, GENERATOR_RULES), abstract(ARCH))
    used = {axis for spec in jax.tree.leaves(specs, is_leaf=_is_spec) for axis in spec}
    assert used == {None, "tp"}


def _is_spec(x):
    return isinstance(x, P)


def test_two_axes_on_one_mesh_axis_are_refused():
    square = ArraySpec(shape=(4, 4), axes=("heads", "ffn"), scale=1.0)
    with pytest.raises(AssertionError, match=r"\('heads', 'ffn'\) put two axes on one mesh axis"):
        spec_of(square, TRAINER_RULES)


@pytest.mark.parametrize(
    "fsdp, tp, rules, owner, message",
    [
        (
            1,
            4,
            TRAINER_RULES,
            "trainer",
            r"_tp \(4\) .*vocab \(10\), .*ffn \(6\).* mesh.trainer_tp may be 1, 2.$",
        ),
        (3, 1, TRAINER_RULES, "trainer", r"trainer_fsdp \(3\) .*width \(8\).*be 1, 2.$"),
        (1, 4, GENERATOR_RULES, "generator", r"mesh.generator_tp \(4\) must divide"),
    ],
)
def test_a_mesh_that_cannot_split_the_model_is_refused_by_its_field(
    fsdp, tp, rules, owner, message
):
    with pytest.raises(UserError, match=message):
        check_divides(ARCH, mesh_of(fsdp, tp), rules, owner)


def test_a_mesh_that_can_is_not():
    for rules, owner in ((TRAINER_RULES, "trainer"), (GENERATOR_RULES, "generator")):
        check_divides(ARCH, mesh_of(2, 2), rules, owner)


def numbers(mesh):
    return [device.id for device in mesh.devices.flat]


def test_meshes_are_disjoint_where_devices_suffice():
    config = MeshConfig(trainer_fsdp=2, trainer_tp=1, generator_tp=2)
    trainer, generator = make_meshes(config)
    assert dict(trainer.shape) == {"fsdp": 2, "sp": 1, "tp": 1}
    assert dict(generator.shape) == {"fsdp": 1, "sp": 1, "tp": 2}
    assert numbers(trainer) == [0, 1] and numbers(generator) == [2, 3]


def test_one_and_one_share_a_single_device_but_use_two_if_there_are_two():
    devices = jax.devices()
    trainer, generator = make_meshes(MeshConfig(), devices[:1])
    assert numbers(trainer) == numbers(generator) == [0]
    trainer, generator = make_meshes(MeshConfig(), devices[:2])
    assert (numbers(trainer), numbers(generator)) == ([0], [1])


def test_too_few_devices_are_refused_with_the_fields_that_ask_for_them():
    config = MeshConfig(trainer_fsdp=2, trainer_tp=2, generator_tp=1)
    with pytest.raises(UserError, match=r"need 5 devices .*mesh.trainer_fsdp .*this machine has 4"):
        make_meshes(config)
