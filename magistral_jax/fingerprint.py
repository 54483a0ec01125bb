"""A checksum per array, computed where the array is.

Orbax gives flipped bits back as numbers. A digest of files tells that a file has changed since it
was written; this tells that what was read is what was meant to be written, on whatever mesh.

The bits of an array are words w_i of 32 bits (narrower types are widened). A lane is the sum of
w_i (2 h(i) + 1) modulo 2**32, with h a hash of the position: the factor is odd, so that any change
of one word changes the sum, and two lanes with different hashes make up the checksum. The sum does
not depend on its order, hence not on how the array is split over devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

_LANES = (0x9E3779B9, 0x85EBCA6B)
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def lanes(tree: Any) -> Any:
    """The sums of each array, still on their devices: nobody waits, the arrays may be donated."""
    return jax.tree.map(_lanes_of, tree)


def _lanes_of(array: Shaped[Array, "..."]) -> UInt32[Array, " lanes"]:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize])
    words = words.astype(jnp.uint32)
    position = jnp.zeros_like(words)
    for axis in range(words.ndim):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = _mixed(position + iota + np.uint32(axis + 1))
    sums = [
        jnp.sum(words * (2 * _mixed(position ^ np.uint32(lane)) + 1), dtype=jnp.uint32)
        for lane in _LANES
    ]
    return jnp.stack(sums)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation of the 32-bit numbers without visible order (the finish of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def named(sums: Any) -> dict[str, str]:
    """What `lanes` gave, as path of each array -> its checksum, 16 hexadecimal digits."""
    return {path: "".join(f"{n:08x}" for n in x) for path, x in by_path(jax.device_get(sums))}


def fingerprints(tree: Any) -> dict[str, str]:
    """Path of each array of a tree -> its checksum."""
    return named(lanes(tree))


def shapes(tree: Any) -> dict[str, str]:
    """Path of each array of a tree -> its type, as "float32[3,4]"."""
    return {
        path: f"{np.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"
        for path, x in by_path(tree)
    }


def by_path(tree: Any) -> list[tuple[str, Any]]:
    """(path, array) of every array of a tree, as "params/layers/wq"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]
