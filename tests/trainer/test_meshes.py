"""One batch, one update: on every mesh, with every policy of what is kept, however it is cut."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P

from magistral_jax.arrays import Microbatch, Minibatch
from magistral_jax.batch.assemble import assemble_minibatch
from magistral_jax.config import TrainerConfig
from magistral_jax.model import transformer
from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.trainer.optimizer import make_optimizer
from magistral_jax.trainer.trainer import Trainer

# Adam divides by what may be next to zero, and rounding differs between meshes: a coarse epsilon.
CONFIG = TrainerConfig(learning_rate=1e-2, adam_eps=1e-3, max_grad_norm=0.1, weight_decay=0.01)
MESHES = [
    (4, 1, 1), (2, 1, 2), (1, 1, 4), (1, 2, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2)
]  # fmt: skip


@pytest.fixture(scope="module")
def arch():
    """Whatever four devices may share, they can."""
    return Architecture(
        layers=2,
        width=8,
        heads=8,
        kv_heads=4,
        head_dim=4,
        ffn=12,
        vocab=12,
        rope_theta=100.0,
        norm_eps=1e-5,
        tie_embeddings=True,
    )


@pytest.fixture(scope="module")
def host_params(arch):
    rng = np.random.default_rng(0)
    return map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
        abstract(arch),
    )


def made(arch, host_params, mesh=(1, 1, 1), rule=None, **options):
    fsdp, sp, tp = mesh
    mesh = make_mesh(jax.devices(), fsdp=fsdp, sp=sp, tp=tp)
    options = {"head_tokens": 16, **options}
    return Trainer(
        arch,
        mesh,
        place(host_params, shardings(arch, mesh, TRAINER_RULES)),
        rule or make_optimizer(CONFIG),
        dtype=jnp.dtype("float32"),
        **options,
    )


def packed(groups, row_tokens=12, rows=4) -> Minibatch:
    return assemble_minibatch(
        groups, row_tokens=row_tokens, rows=rows, advantage_rule="minibatch", share_rule="group"
    )


def updated(trainer, minibatch):
    """Weights, optimizer, loss and statistics after one step, on the host."""
    stats = trainer.minibatch_step(minibatch)
    return jax.device_get((trainer.state, stats))


@pytest.fixture(scope="module")
def expected(arch, host_params, groups):
    return updated(made(arch, host_params), packed(groups))


close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "x".join(map(str, mesh)))
def test_the_mesh_does_not_change_the_update(arch, host_params, groups, expected, mesh):
    trainer = made(arch, host_params, mesh)
    jax.tree.map(close, updated(trainer, packed(groups)), expected)
    fsdp, sp, tp = mesh
    placed = trainer.to_device(packed(groups).microbatches[0])
    assert placed.inputs.sharding.spec == P("fsdp", "sp" if sp > 1 else None)
    parts = {s.data.shape for s in placed.inputs.addressable_shards}
    assert parts == {(4 // fsdp, 12 // sp)}
    wq = trainer.params["layers"]["wq"]
    assert {s.data.shape for s in wq.addressable_shards} == {(2, 8 // fsdp, 8 // tp, 4)}


@pytest.mark.parametrize(
    "options", [{"optimizer": "adafactor"}, {"moment_dtype": "bfloat16"}], ids=str
)
def test_nor_does_it_with_other_optimizers(arch, host_params, groups, options):
    """Factors of second moments are split as their matrices are, or whole."""
    config = replace(CONFIG, **options)
    one, other = (
        updated(made(arch, host_params, mesh, make_optimizer(config)), packed(groups))
        for mesh in ((1, 1, 1), (2, 1, 2))
    )
    # A bf16 moment may round to the other side.
    loose = partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-4)
    jax.tree.map(loose, one[0].optimizer, other[0].optimizer)
    jax.tree.map(close, one[0].params, other[0].params)


OPTIONS = [
    {"remat": False},
    {"unroll": True},
    {"unroll": True, "remat": False},
    {"head_tokens": 1},
    {"head_tokens": 4096},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_kept_does_not_change_the_update(arch, host_params, groups, expected, options):
    for mesh in ((1, 1, 1), (2, 2, 1)):
        trainer = made(arch, host_params, mesh, **options)
        jax.tree.map(close, updated(trainer, packed(groups)), expected)


@pytest.mark.parametrize("row_tokens, rows", [(12, 2), (20, 4), (36, 2), (96, 1), (98, 1)])
def test_how_it_is_cut_does_not_change_the_update(
    arch, host_params, groups, expected, row_tokens, rows
):
    """One sequence to a row, several, all; one microbatch or many."""
    minibatch = packed(groups, row_tokens, rows)
    for mesh in ((1, 1, 1), (1, 2, 1)):
        found = updated(made(arch, host_params, mesh), minibatch)
        jax.tree.map(close, found, expected)


def test_rows_that_do_not_divide_are_padded(arch, host_params, groups, expected):
    minibatch = packed(groups, 13, 4)
    trainer = made(arch, host_params, (1, 4, 1))
    assert trainer.to_device(minibatch.microbatches[0]).inputs.shape == (4, 16)
    jax.tree.map(close, updated(trainer, minibatch), expected)


def test_another_row_changes_it(arch, host_params, groups, expected):
    """Else the tests above would say less than they seem to."""
    minibatch = packed(groups)
    wrong = replace(minibatch.microbatches[0])
    wrong.shares[np.nonzero(wrong.shares)[0][0]] *= 1.01
    with pytest.raises(AssertionError):
        jax.tree.map(
            close,
            updated(made(arch, host_params), replace(minibatch, microbatches=(wrong,))),
            expected,
        )


@pytest.mark.full
def test_a_row_of_65536_tokens_trains_in_four_parts_and_is_the_whole():
    """Completions of up to 40,000 tokens; no device holds more than a quarter of the row."""
    arch = Architecture(
        layers=2,
        width=16,
        heads=2,
        kv_heads=1,
        head_dim=8,
        ffn=24,
        vocab=32,
        rope_theta=1e6,
        norm_eps=1e-5,
        tie_embeddings=True,
    )
    rng = np.random.default_rng(0)
    params = map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
        abstract(arch),
    )
    T, lengths = 65_536, (40_000, 900, 16_000, 3, 8_000)
    segments, positions = np.zeros((2, 1, T), np.int32)
    for number, (start, length) in enumerate(
        zip(itertools.accumulate((0, *lengths[:-1])), lengths, strict=True)
    ):
        segments[0, start : start + length] = number + 1
        positions[0, start : start + length] = np.arange(length)
    real = (segments > 0).astype(np.float32)
    row = Microbatch(
        inputs=rng.integers(0, 32, (1, T)).astype(np.int32) * (segments > 0),
        targets=rng.integers(0, 32, (1, T)).astype(np.int32),
        positions=positions,
        segments=segments,
        behavior_logprobs=real * np.float32(-3.4),
        advantages=rng.normal(size=(1, T)).astype(np.float32),
        shares=real / real.sum(),
    )
    minibatch = Minibatch(microbatches=(row,), padding=0.0)
    assert T > transformer.LONG_ROW
    whole, split = (
        made(arch, params, mesh, optax.sgd(1.0), head_tokens=8192)
        for mesh in ((1, 1, 1), (1, 4, 1))
    )
    placed = split.to_device(row)
    assert {s.data.shape for s in placed.inputs.addressable_shards} == {(1, T // 4)}
    jax.tree.map(close, updated(split, minibatch), updated(whole, minibatch))
