"""Trainer layout -> generator layout, without touching the host (Magistral, section 3).

`jax.device_put` between meshes goes through host memory unless the partition is already the one
wanted. So the push has at most three moves, all asynchronous:

    cast     one jit on the trainer's devices: compute dtype, one array per layer, and the
             generator's partition over a view of the trainer's devices ("the wire layout")
    move     `device_put` of equal partitions between the two sets of devices
    spread   only where the generator has more devices than the trainer: a jit on its mesh
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import Mesh, NamedSharding

from magistral_jax.model.params import Architecture, ArraySpec, Params, abstract, map_specs, unstack
from magistral_jax.model.sharding import GENERATOR_RULES, make_mesh, spec_of
from magistral_jax.types import Snapshot, UserError


class WeightPush:
    """The compiled plan from one mesh to the other. `__call__` returns without waiting."""

    def __init__(
        self, arch: Architecture, *, trainer: Mesh, generator: Mesh, dtype: jnp.dtype
    ) -> None:
        sources, targets = trainer.devices.size, generator.devices.size
        if max(sources, targets) % min(sources, targets):
            raise UserError(
                f"{sources} trainer devices cannot be laid over {targets} generator devices: one "
                "count must be a multiple of the other. Change mesh.trainer_fsdp, mesh.trainer_tp "
                "or mesh.generator_tp."
            )
        self._arch, self._dtype = arch, dtype
        shared = min(sources, targets)
        # The trainer's devices as (replicas, tp): every generator shard exists on one of them.
        wire_from = make_mesh(trainer.devices.flat, fsdp=sources // shared, tp=shared)
        wire_to = make_mesh(generator.devices.flat, fsdp=targets // shared, tp=shared)
        self._cast = jax.jit(self._to_generator_layout, out_shardings=self._layout(wire_from))
        # With more trainer devices than the generator has, only the first replica travels.
        self._head_of_wire = make_mesh(trainer.devices.flat, fsdp=1, tp=shared)
        self._moved = self._layout(wire_to)
        self._drop_replicas = sources > targets
        final = self._layout(generator)
        # Without a spread the same shards go under the generator's own mesh: no data moves.
        spread = jax.jit(lambda tree: tree, out_shardings=final)
        self._finish = spread if targets > shared else partial(jax.device_put, device=final)

    def __call__(self, params: Params, version: int) -> Snapshot:
        """A snapshot on the generator's devices, in buffers of its own.

        The trainer may donate `params` to its next step at once: the cast reads them first.
        """
        tree = self._cast(params)
        if self._drop_replicas:
            tree = jax.tree.map(self._first_replica, tree)
        tree = jax.device_put(tree, self._moved)
        return Snapshot(version=version, params=self._finish(tree))

    def _to_generator_layout(self, params: Params) -> Params:
        def cast(spec: ArraySpec, array: jax.Array) -> jax.Array:
            # Norm gains stay float32: the network multiplies with them in float32. The copy keeps
            # jit from handing through the trainer's own buffer, which the next step donates.
            dtype = jnp.float32 if "norm" in spec.axes else self._dtype
            return jnp.array(array.astype(dtype), copy=True)

        return unstack(map_specs(cast, abstract(self._arch), params), self._arch.layers)

    def _layout(self, mesh: Mesh) -> Params:
        def per_array(spec: ArraySpec) -> NamedSharding:
            return NamedSharding(mesh, spec_of(spec, GENERATOR_RULES))

        tree = map_specs(per_array, abstract(self._arch))
        one_layer = {
            name: NamedSharding(mesh, P(*sharding.spec[1:]))
            for name, sharding in tree["layers"].items()
        }
        return {**tree, "layers": (one_layer,) * self._arch.layers}

    def _first_replica(self, array: jax.Array) -> jax.Array:
        keep = set(self._head_of_wire.devices.flat)
        shards = [s.data for s in array.addressable_shards if s.device in keep]
        sharding = NamedSharding(self._head_of_wire, array.sharding.spec)  # pyright: ignore[reportAttributeAccessIssue]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)
