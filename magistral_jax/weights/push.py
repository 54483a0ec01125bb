"""Trainer layout -> generator layout, without touching the host (Magistral, section 3).

`jax.device_put` between meshes goes through host memory unless the partition is already the one
wanted. So the push has at most three moves, all asynchronous:

    cast     one jit on the trainer's devices: compute dtype, one array per layer, and the
             generator's partition over a view of the trainer's devices ("the wire layout")
    move     `device_put` of equal partitions between the two sets of devices
    spread   only where the trainer's devices cannot be cut as fine as the generator's: a jit there
"""

from functools import partial
from math import gcd

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import Mesh, NamedSharding

from magistral_jax.model.params import Architecture, ArraySpec, Params, abstract, map_specs, unstack
from magistral_jax.model.sharding import GENERATOR_RULES, make_mesh, spec_of
from magistral_jax.types import Snapshot


class WeightPush:
    """The compiled plan from one mesh to the other. `__call__` returns without waiting."""

    def __init__(
        self, arch: Architecture, *, trainer: Mesh, generator: Mesh, dtype: jnp.dtype
    ) -> None:
        self._arch, self._dtype = arch, dtype
        # Parts of a wire: no finer than the generator's, since its heads may not divide further.
        parts = gcd(trainer.devices.size, generator.shape["tp"])
        sources, targets = trainer.devices.size // parts, generator.devices.size // parts
        # The devices as (replicas, tp): every part of the wire exists on one of each replica.
        wire_from = make_mesh(trainer.devices.flat, fsdp=sources, tp=parts)
        wire_to = make_mesh(generator.devices.flat, fsdp=targets, tp=parts)
        # From the trainer's partition to one of several replicas XLA knows no way but by the whole
        # array, and warns of it unless told to.
        self._whole = NamedSharding(trainer, P()) if sources > 1 else None
        self._cast = jax.jit(self._to_generator_layout, out_shardings=self._layout(wire_from))
        # With more replicas than the generator takes, only the first ones travel.
        self._sent = make_mesh(trainer.devices.flat, fsdp=min(sources, targets), tp=parts)
        self._drop_replicas = sources > targets
        self._moved = self._layout(wire_to)
        final = self._layout(generator)
        # Without a spread the same shards go under the generator's own mesh: no data moves.
        spread = jax.jit(lambda tree: tree, out_shardings=final)
        is_finer = generator.shape["tp"] > parts
        self._finish = spread if is_finer else partial(jax.device_put, device=final)

    def __call__(self, params: Params, version: int) -> Snapshot:
        """A snapshot on the generator's devices, in buffers of its own.

        The trainer may donate `params` to its next step at once: the cast reads them first.
        """
        tree = self._cast(params)
        if self._drop_replicas:
            tree = jax.tree.map(self._first_replicas, tree)
        tree = jax.device_put(tree, self._moved)
        return Snapshot(version=version, params=self._finish(tree))

    def _to_generator_layout(self, params: Params) -> Params:
        def cast(spec: ArraySpec, array: jax.Array) -> jax.Array:
            # Norm gains stay float32: the network multiplies with them in float32. The copy keeps
            # jit from handing through the trainer's own buffer, which the next step donates.
            dtype = jnp.float32 if "norm" in spec.axes else self._dtype
            return jnp.array(array.astype(dtype), copy=True)

        tree = unstack(map_specs(cast, abstract(self._arch), params), self._arch.layers)
        return tree if self._whole is None else jax.tree.map(self._gather, tree)

    def _gather(self, array: jax.Array) -> jax.Array:
        return jax.reshard(array, self._whole)

    def _layout(self, mesh: Mesh) -> Params:
        def per_array(spec: ArraySpec) -> NamedSharding:
            return NamedSharding(mesh, spec_of(spec, GENERATOR_RULES))

        tree = map_specs(per_array, abstract(self._arch))
        one_layer = {
            name: NamedSharding(mesh, P(*sharding.spec[1:]))
            for name, sharding in tree["layers"].items()
        }
        return {**tree, "layers": (one_layer,) * self._arch.layers}

    def _first_replicas(self, array: jax.Array) -> jax.Array:
        keep = set(self._sent.devices.flat)
        shards = [s.data for s in array.addressable_shards if s.device in keep]
        sharding = NamedSharding(self._sent, array.sharding.spec)  # pyright: ignore[reportAttributeAccessIssue]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)
