"""Whatever meshes a config asks for: refused by name before there are weights, or they work."""

from itertools import product

import jax
import pytest

from magistral_jax.build import Run
from magistral_jax.config import MeshConfig, ModelConfig, RunConfig, ShapeConfig
from magistral_jax.model.params import Architecture
from magistral_jax.types import UserError

# Heads of SmolLM2, whose three pairs no two devices can share.
SHAPE = ShapeConfig(layers=1, width=12, heads=9, kv_heads=3, head_dim=4, ffn=12)
VOCAB = 264


def meshes():
    """All for four devices and one too many."""
    for fsdp, sp, tp, engines, shards in product(
        (1, 2, 3), (1, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3)
    ):
        if fsdp * sp * tp + engines * shards <= 5:
            yield MeshConfig(
                trainer_fsdp=fsdp,
                trainer_sp=sp,
                trainer_tp=tp,
                generator_engines=engines,
                generator_tp=shards,
            )


def refusal(mesh):
    """What must be said of it, if anything."""
    wanted = mesh.trainer_devices + mesh.generator_devices
    if wanted > 4:
        return ("mesh.trainer_fsdp", f"need {wanted} devices", "this machine has 4")
    for field in ("trainer_tp", "generator_tp"):
        if getattr(mesh, field) == 2:
            return (f"mesh.{field} (2)", "heads (9)", "kv_heads (3)", f"mesh.{field} may be 1.")
    return None


def test_every_mesh_of_four_devices_is_refused_or_gets_its_weights(monkeypatch):
    refused, worked = 0, 0
    for mesh in meshes():
        config = RunConfig(model=ModelConfig(shape=SHAPE), mesh=mesh)
        if (told := refusal(mesh)) is not None:
            with pytest.raises(UserError) as error:
                Run(config)
            assert all(part in str(error.value) for part in told), (mesh, str(error.value))
            refused += 1
            continue
        run = Run(config)
        assert run.arch == Architecture.from_config(SHAPE, VOCAB)
        params = run.initial_params()
        with jax.transfer_guard_device_to_host("disallow"):
            snapshot = run.published(params, 1)
        found = {leaf.sharding.mesh for leaf in jax.tree.leaves(snapshot.params)}
        assert found == {run.generator_mesh}, mesh
        worked += 1
    assert (refused, worked) == (20, 10)


def test_kernels_without_their_devices_are_refused_before_there_are_weights():
    run = Run(RunConfig(model=ModelConfig(shape=SHAPE, attention="kernels", dtype="bfloat16")))
    with pytest.raises(UserError, match=r'attention is "kernels" and the devices are cpus.*"xla"'):
        run.check_weights()
