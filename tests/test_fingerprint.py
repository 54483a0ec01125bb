"""A checksum that any changed word changes, and that no split over devices does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import NamedSharding

from magistral_jax.fingerprint import fingerprints, lanes, named
from magistral_jax.model.sharding import make_mesh

DTYPES = ("float32", "bfloat16", "int32", "uint32", "int8", "bool")


def array_of(dtype, rng, shape=(8, 12, 4)):
    return np.asarray(jnp.asarray(rng.integers(0, 2, shape) * rng.normal(size=shape)).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_changes_it(dtype, rng):
    array = array_of(dtype, rng)
    (before,) = fingerprints({"x": jnp.asarray(array)}).values()
    for _ in range(50):
        changed = array.copy()
        place = rng.integers(array.size)
        if dtype == "bool":
            changed.flat[place] ^= True
        else:
            words = changed.view(f"u{array.dtype.itemsize}")
            words.flat[place] ^= 1 << int(rng.integers(8 * array.dtype.itemsize))
        assert fingerprints({"x": jnp.asarray(changed)})["x"] != before


def test_where_words_stand_counts(rng):
    array = rng.normal(size=(6, 5)).astype("f4")
    found = {
        fingerprints({"x": jnp.asarray(x)})["x"]
        for x in (array, array[::-1].copy(), array[:, ::-1].copy(), array.reshape(5, 6), 0 * array)
    }
    assert len(found) == 5


@pytest.mark.parametrize("split", [P(), P("fsdp"), P(None, "tp"), P("tp", "fsdp")])
def test_it_is_the_same_on_every_mesh(split, rng):
    array = array_of("float32", rng)
    mesh = make_mesh(jax.devices(), fsdp=2, tp=2)
    placed = jax.device_put(array, NamedSharding(mesh, split))
    assert fingerprints({"x": placed}) == fingerprints({"x": jnp.asarray(array)})


def test_it_names_arrays_by_their_place_in_the_tree(rng):
    tree = {"a": [jnp.ones(2), jnp.zeros(())], "b": {"c": jnp.ones((0, 3))}}
    found = fingerprints(tree)
    assert list(found) == ["a/0", "a/1", "b/c"]
    assert all(len(text) == 16 for text in found.values())


def test_sums_once_begun_are_of_what_was_there_though_the_buffers_are_taken(rng):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.asarray(rng.normal(size=(500, 500)).astype("f4"))
    for _ in range(5):
        expected = fingerprints({"x": jnp.array(x, copy=True)})
        sums = lanes({"x": x})
        x = step(x)
        assert named(sums) == expected
