"""The parameter tree: what is in it, how it starts, and its two layouts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from magistral_jax.config import ShapeConfig
from magistral_jax.model.params import Architecture, ArraySpec, abstract, initialise, unstack
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, shardings

SHAPE = ShapeConfig(layers=3, width=64, heads=4, kv_heads=2, head_dim=16, ffn=96)
ARCH = Architecture.from_config(SHAPE, vocab=50)


def drawn_on(fsdp, tp):
    mesh = make_mesh(jax.devices(), fsdp=fsdp, tp=tp)
    with jax.set_mesh(mesh):
        return initialise(ARCH, jax.random.key(0), shardings(ARCH, mesh, TRAINER_RULES))


@pytest.fixture(scope="module")
def params():
    return drawn_on(1, 1)


def test_the_tree_holds_these_shapes(params):
    shapes = jax.tree.map(lambda array: array.shape, params)
    assert shapes == {
        "embed": (50, 64),
        "layers": {
            "attn_norm": (3, 64),
            "wq": (3, 64, 4, 16),
            "wk": (3, 64, 2, 16),
            "wv": (3, 64, 2, 16),
            "wo": (3, 4, 16, 64),
            "mlp_norm": (3, 64),
            "w_gate": (3, 64, 96),
            "w_up": (3, 64, 96),
            "w_down": (3, 96, 64),
        },
        "final_norm": (64,),
    }
    assert {array.dtype for array in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_head_of_its_own_only_where_embeddings_are_not_tied():
    untied = Architecture.from_config(ShapeConfig(width=64, tie_embeddings=False), vocab=50)
    assert "head" not in abstract(ARCH)
    assert abstract(untied)["head"].shape == (64, 50)


def test_every_axis_of_every_array_has_a_logical_name():
    is_spec = {"is_leaf": lambda x: isinstance(x, ArraySpec)}
    for spec in jax.tree.leaves(abstract(ARCH), **is_spec):
        assert len(spec.axes) == len(spec.shape)
        assert set(spec.axes) <= set(TRAINER_RULES)


def test_initial_draws_keep_the_scale_of_what_flows_through(params):
    layers = params["layers"]
    for name in ("wq", "wk", "wv", "w_gate", "w_up"):
        assert np.std(layers[name]) == pytest.approx(64**-0.5, rel=0.1), name
    branch = (2 * 3) ** -0.5
    assert np.std(layers["wo"]) == pytest.approx(branch * (4 * 16) ** -0.5, rel=0.1)
    assert np.std(layers["w_down"]) == pytest.approx(branch * 96**-0.5, rel=0.1)
    assert np.std(params["embed"]) == pytest.approx(64**-0.5, rel=0.1)
    for gain in (layers["attn_norm"], layers["mlp_norm"], params["final_norm"]):
        np.testing.assert_array_equal(gain, np.ones(gain.shape))


def test_no_two_arrays_and_no_two_layers_start_alike(params):
    layers = params["layers"]
    assert not np.array_equal(layers["wk"], layers["wv"])
    assert not np.array_equal(layers["w_gate"], layers["w_up"])
    assert not np.array_equal(layers["wq"][0], layers["wq"][1])


def test_the_initial_draw_does_not_depend_on_the_mesh(params):
    """But for the last bit: XLA scales a draw by the instructions that a shard's size suggests."""
    sharded = drawn_on(2, 2)
    assert sharded["embed"].sharding.spec == P("tp", "fsdp")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), sharded, params)


def test_unstacking_cuts_every_array_of_the_layers_and_nothing_else(params):
    tree = unstack(params, ARCH.layers)
    assert tree["embed"] is params["embed"] and len(tree["layers"]) == 3
    for i, layer in enumerate(tree["layers"]):
        assert layer.keys() == params["layers"].keys()
        for name, array in layer.items():
            np.testing.assert_array_equal(array, params["layers"][name][i])
