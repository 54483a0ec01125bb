"""From the trainer's layout to the generator's: equal values, never through the host."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.model.params import Architecture, abstract, map_specs, unstack
from magistral_jax.model.sharding import (
    GENERATOR_RULES,
    TRAINER_RULES,
    check_divides,
    make_mesh,
    place,
    shardings,
    spec_of,
)
from magistral_jax.weights.push import WeightPush

ARCH = Architecture(
    layers=2,
    width=8,
    heads=4,
    kv_heads=4,
    head_dim=4,
    ffn=12,
    vocab=12,
    rope_theta=100.0,
    norm_eps=1e-5,
    tie_embeddings=False,
)
REPO = Path(__file__).resolve().parents[2]
F32, BF16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def random_params(arch):
    rng = np.random.default_rng(0)
    return map_specs(lambda spec: rng.normal(size=spec.shape).astype(np.float32), abstract(arch))


@pytest.fixture(scope="module")
def host_params():
    return random_params(ARCH)


def mesh_of(first, fsdp, tp):
    return make_mesh(jax.devices()[first:], fsdp=fsdp, tp=tp)


def on_trainer(host_params, mesh):
    return place(host_params, shardings(ARCH, mesh, TRAINER_RULES))


@contextmanager
def no_host():
    with (
        jax.transfer_guard_device_to_host("disallow"),
        jax.transfer_guard_host_to_device("disallow"),
    ):
        yield


def assert_arrived(snapshot, host_params, generator, dtype, arch=ARCH):
    """Every array has its value, its dtype, and the generator's layout on its devices."""

    def check(spec, got, host):
        is_gain = "norm" in spec.axes
        assert got.dtype == (F32 if is_gain else dtype)
        assert got.sharding.mesh == generator
        assert set(got.devices()) == set(generator.devices.flat)
        want = host if is_gain else host.astype(dtype)
        np.testing.assert_array_equal(np.asarray(got), want)

    specs = abstract(arch)
    top = {name: spec for name, spec in specs.items() if name != "layers"}
    host_layers = unstack(host_params, arch.layers)["layers"]
    map_specs(check, top, {n: snapshot.params[n] for n in top}, {n: host_params[n] for n in top})
    assert len(snapshot.params["layers"]) == arch.layers
    for got, host in zip(snapshot.params["layers"], host_layers, strict=True):
        map_specs(check, specs["layers"], got, host)
    wq = snapshot.params["layers"][0]["wq"]
    per_device = arch.heads // generator.shape["tp"]
    assert {shard.data.shape for shard in wq.addressable_shards} == {(arch.width, per_device, 4)}


LAYOUTS = {
    "fsdp 2 to tp 2": ((0, 2, 1), (2, 1, 2), F32),
    "fsdp 2 to tp 2, bfloat16": ((0, 2, 1), (2, 1, 2), BF16),
    "fewer generator devices": ((0, 2, 1), (2, 1, 1), BF16),
    "tp 2 to tp 2": ((0, 1, 2), (2, 1, 2), F32),
    "fewer, tp to one": ((0, 1, 2), (3, 1, 1), F32),
    "more generator devices": ((0, 1, 1), (2, 1, 2), BF16),
    "one to one": ((0, 1, 1), (1, 1, 1), F32),
    "shared": ((0, 1, 1), (0, 1, 1), BF16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_arrive_without_touching_the_host(host_params, layout):
    trainer_at, generator_at, dtype = LAYOUTS[layout]
    trainer, generator = mesh_of(*trainer_at), mesh_of(*generator_at)
    params = on_trainer(host_params, trainer)
    push = WeightPush(ARCH, trainer=trainer, generator=generator, dtype=dtype)
    with no_host():
        snapshot = push(params, 7)
        jax.block_until_ready(snapshot.params)
    assert snapshot.version == 7
    assert_arrived(snapshot, host_params, generator, dtype)


def test_a_plain_device_put_between_the_meshes_is_caught_by_the_same_guard(host_params):
    """So the test above would notice a push that goes through the host."""
    trainer, generator = mesh_of(0, 2, 1), mesh_of(2, 1, 2)
    params = on_trainer(host_params, trainer)
    with no_host(), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed device-to-host"):
        jax.block_until_ready(jax.device_put(params, shardings(ARCH, generator, GENERATOR_RULES)))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("generator_at", [(0, 1, 1), (1, 1, 1)], ids=["shared", "disjoint"])
def test_a_snapshot_outlives_weights_that_are_donated_at_once(host_params, generator_at, dtype):
    """In float32 the cast is no cast, and a buffer handed through would be overwritten."""
    trainer, generator = mesh_of(0, 1, 1), mesh_of(*generator_at)
    params = on_trainer(host_params, trainer)
    push = WeightPush(ARCH, trainer=trainer, generator=generator, dtype=dtype)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda w: w * 0 - 1, tree), donate_argnums=0)
    snapshot = push(params, 1)
    jax.block_until_ready(overwrite(params))
    assert all(array.is_deleted() for array in jax.tree.leaves(params))
    assert_arrived(snapshot, host_params, generator, dtype)


def test_the_next_push_leaves_the_last_snapshot_alone(host_params):
    mesh = mesh_of(0, 1, 1)
    push = WeightPush(ARCH, trainer=mesh, generator=mesh, dtype=F32)
    first = push(on_trainer(host_params, mesh), 1)
    second = push(on_trainer(jax.tree.map(lambda w: w + 1, host_params), mesh), 2)
    assert (first.version, second.version) == (1, 2)
    assert_arrived(first, host_params, mesh, F32)


MANY = {
    # trainer (fsdp, sp, tp); generator (engines, tp); kv heads
    "4 to 4 engines, 2 kv heads": ((4, 1, 1), (4, 1), 2),
    "4 to 4 engines, 3 kv heads": ((4, 1, 1), (4, 1), 3),
    "4 to one engine on 1 of 4, 3 kv heads": ((4, 1, 1), (1, 1), 3),
    "16 to 16 engines, 8 kv heads": ((16, 1, 1), (16, 1), 8),
    "16 to 2 engines of 8, 8 kv heads": ((16, 1, 1), (2, 8), 8),
    "8 x 2 to 4 engines of 4, 8 kv heads": ((8, 1, 2), (4, 4), 8),
    "4 to 2 engines of 2": ((4, 1, 1), (2, 2), 2),
    "2 x 2 x 2 to 2 engines of 2": ((2, 2, 2), (2, 2), 4),
    "tp 4 to 4 engines": ((1, 1, 4), (4, 1), 4),
    "2 to 4 engines of 2": ((2, 1, 1), (4, 2), 2),
    "2 to 2 engines of 4": ((2, 1, 1), (2, 4), 4),
    "1 to 3 engines of 2": ((1, 1, 1), (3, 2), 2),
    "3 to 2": ((3, 1, 1), (1, 2), 2),
    "2 to 3 engines": ((2, 1, 1), (3, 1), 1),
    "6 to 2 engines of 4": ((6, 1, 1), (2, 4), 4),
}


def push_on_many_devices():
    """Every layout of `MANY`; the names of those that arrived are printed."""
    for name, ((fsdp, sp, tp), (engines, shards), kv_heads) in MANY.items():
        arch = replace(ARCH, width=48, heads=8 * kv_heads, kv_heads=kv_heads, ffn=24, vocab=16)
        used = fsdp * sp * tp
        trainer = make_mesh(jax.devices(), fsdp=fsdp, sp=sp, tp=tp)
        generator = mesh_of(used, engines, shards)
        for mesh, rules, owner in (
            (trainer, TRAINER_RULES, "trainer"), (generator, GENERATOR_RULES, "generator")
        ):  # fmt: skip
            check_divides(arch, mesh, rules, owner)
        host = random_params(arch)
        params = place(host, shardings(arch, trainer, TRAINER_RULES))
        push = WeightPush(arch, trainer=trainer, generator=generator, dtype=BF16)
        try:
            with no_host():
                snapshot = push(params, 7)
                jax.block_until_ready(snapshot.params)
            assert_arrived(snapshot, host, generator, BF16, arch)
            print(f"arrived: {name}", flush=True)
        except Exception as error:
            print(f"{name}: {error}", flush=True)


def test_weights_arrive_whatever_the_counts_of_devices():
    """On 32 simulated devices, which need a process of their own."""
    command = [sys.executable, __file__]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    arrived = [line.removeprefix("arrived: ") for line in done.stdout.splitlines()]
    assert arrived == list(MANY)


def test_the_generators_layout_is_that_of_its_rules(host_params):
    trainer, generator = mesh_of(0, 2, 1), mesh_of(2, 1, 2)
    push = WeightPush(ARCH, trainer=trainer, generator=generator, dtype=F32)
    snapshot = push(on_trainer(host_params, trainer), 0)
    for name, spec in abstract(ARCH)["layers"].items():
        want = spec_of(spec, GENERATOR_RULES)[1:]
        assert tuple(snapshot.params["layers"][1][name].sharding.spec) == tuple(want), name


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 32)
    push_on_many_devices()
