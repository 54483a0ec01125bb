"""Logical axis -> mesh axis, and the two meshes: the trainer's and the generator's.

Both meshes have the axes ("fsdp", "sp", "tp") and use explicit sharding: shardings are part of
array types, so a contraction that would silently gather is an error at trace time. "sp" splits the
tokens of the trainer's rows; the generator has none.
"""

from collections.abc import Iterable, Sequence
from math import gcd
from typing import Any

import jax
import numpy as np
from jax import P
from jax.sharding import AxisType, Mesh, NamedSharding

from magistral_jax.config import MeshConfig, ModelConfig
from magistral_jax.model.attention import Kernels
from magistral_jax.model.params import Architecture, ArraySpec, Params, abstract, map_specs
from magistral_jax.types import UserError

Rules = dict[str, str | None]

TRAINER_RULES: Rules = {
    "layers": None,
    "vocab": "tp",
    "embed": "fsdp",
    "norm": None,
    "heads": "tp",
    "kv_heads": "tp",
    "head_dim": None,
    "ffn": "tp",
}
"""Fully sharded data parallel over the width, tensor parallel over heads, ffn and vocabulary."""

WORDS = {"embed": "width"}
"""Logical axes that the config calls something else."""

GENERATOR_RULES: Rules = {**TRAINER_RULES, "embed": None}
"""Tensor parallel only: decoding cannot afford to gather weights at each step."""


def make_mesh(devices: Iterable[Any], *, fsdp: int, tp: int, sp: int = 1) -> Mesh:
    """A mesh ("fsdp", "sp", "tp") over the first `fsdp * sp * tp` devices."""
    grid = np.array(list(devices)[: fsdp * sp * tp], dtype=object).reshape(fsdp, sp, tp)
    return Mesh(grid, ("fsdp", "sp", "tp"), axis_types=(AxisType.Explicit,) * 3)


def row_spec(mesh: Mesh) -> P:
    """Of packed rows [B T]: rows over "fsdp", their tokens over "sp" where it is more than one."""
    return P("fsdp", "sp" if mesh.shape["sp"] > 1 else None)


def make_meshes(config: MeshConfig, devices: Sequence[Any] | None = None) -> tuple[Mesh, Mesh]:
    """Trainer's and generator's mesh: disjoint where there are devices enough, shared on one."""
    devices = jax.devices() if devices is None else devices
    wanted = config.trainer_devices + config.generator_devices
    if len(devices) >= wanted:
        trainer, generator = devices, devices[config.trainer_devices :]
    elif config.trainer_devices == 1 and config.generator_devices == 1:
        trainer = generator = devices
    else:
        raise UserError(
            f"the meshes need {wanted} devices ({config.trainer_devices} for the trainer: "
            "mesh.trainer_fsdp x mesh.trainer_sp x mesh.trainer_tp; "
            f"{config.generator_devices} for the generator: mesh.generator_engines x "
            f"mesh.generator_tp) and this machine has {len(devices)}. Lower them; with 1 and 1 "
            "both share one device."
        )
    return (
        make_mesh(trainer, fsdp=config.trainer_fsdp, sp=config.trainer_sp, tp=config.trainer_tp),
        make_mesh(generator, fsdp=config.generator_engines, tp=config.generator_tp),
    )


def engine_meshes(generator: Mesh) -> list[Mesh]:
    """The mesh of each engine: a row of the generator's."""
    if generator.shape["fsdp"] == 1:
        return [generator]
    return [make_mesh(row.flat, fsdp=1, tp=row.size) for row in generator.devices]


def kernels_of(config: ModelConfig, mesh: Mesh) -> Kernels | None:
    """The kernels of the mesh's devices, if the config asks for them."""
    if config.attention == "xla":
        return None
    platform = mesh.devices.flat[0].platform
    if platform not in ("tpu", "gpu"):
        raise UserError(
            f'model.attention is "kernels" and the devices are {platform}s: the kernels are for '
            'TPU and GPU. Set model.attention = "xla".'
        )
    return Kernels(platform)


def spec_of(array: ArraySpec, rules: Rules) -> P:
    """Partition of one array; two logical axes on one mesh axis are refused."""
    mesh_axes = [rules[name] for name in array.axes]
    used = [axis for axis in mesh_axes if axis is not None]
    assert len(used) == len(set(used)), f"{array.axes} put two axes on one mesh axis: {mesh_axes}"
    return P(*mesh_axes)


def check_divides(arch: Architecture, mesh: Mesh, rules: Rules, owner: str) -> None:
    """Refuse a mesh that cannot split this architecture evenly, naming sizes and field."""
    split: dict[str, dict[str, int]] = {}

    def note(array: ArraySpec) -> None:
        for size, name in zip(array.shape, array.axes, strict=True):
            if (axis := rules[name]) is not None:
                split.setdefault(axis, {})[WORDS.get(name, name)] = size

    map_specs(note, abstract(arch))
    for axis, sizes in split.items():
        field, parts = f"mesh.{owner}_{axis}", mesh.shape[axis]
        if uneven := [f"{name} ({size})" for name, size in sizes.items() if size % parts]:
            common = gcd(*sizes.values())
            fitting = ", ".join(str(n) for n in range(1, parts) if common % n == 0)
            raise UserError(
                f"{field} ({parts}) must divide the model's {', '.join(uneven)}. Below {parts}, "
                f"{field} may be {fitting}."
            )


def shardings(arch: Architecture, mesh: Mesh, rules: Rules) -> Params:
    """`NamedSharding` of every array of the stacked tree."""
    return map_specs(lambda array: NamedSharding(mesh, spec_of(array, rules)), abstract(arch))


def place(host: Params, onto: Params) -> Params:
    """Host arrays on their devices, each device given only its shard."""

    def put(array: np.ndarray, sharding: NamedSharding) -> Any:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, host, onto)
