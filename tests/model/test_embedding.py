"""The gradient of the embedding table is the sum of its tokens' gradients, however many they are.

A table with a row of its own for every place in the batch gives each token's gradient by itself,
with nothing added up; numpy adds them in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import NamedSharding

from magistral_jax.model.logprobs import score
from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings

V, D = 64, 16
FREQUENT = 7


ARCH = Architecture(
    layers=1,
    width=D,
    heads=4,
    kv_heads=4,
    head_dim=4,
    ffn=16,
    vocab=V,
    rope_theta=100.0,
    norm_eps=1e-5,
    tie_embeddings=False,
)


def host_params():
    rng = np.random.default_rng(0)
    return map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
        abstract(ARCH),
    )


def rows_of(shape):
    """Tokens of which a fifth are one word, each row one sequence."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, V, shape).astype(np.int32)
    tokens[rng.random(shape) < 0.2] = FREQUENT
    return tokens, np.roll(tokens, -1, axis=1)


def gradient(params, inputs, targets, dtype, mesh=(1, 1, 1)):
    """Of minus the mean log-prob, so all tokens pull the same way; and the log-probs."""
    fsdp, sp, tp = mesh
    mesh = make_mesh(jax.devices(), fsdp=fsdp, sp=sp, tp=tp)
    rows = NamedSharding(mesh, P("fsdp", "sp" if sp > 1 else None))
    positions = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
    segments = np.ones(inputs.shape, np.int32)

    def loss(params, *batch):
        scores = score(
            params, ARCH, *batch, temperature=1.0, dtype=jnp.dtype(dtype), remat=False,
            head_tokens=inputs.size,
        )  # fmt: skip
        return -jnp.mean(scores.logprobs), scores.logprobs

    placed = place(params, shardings(ARCH, mesh, TRAINER_RULES))
    batch = jax.device_put((inputs, targets, positions, segments), rows)
    with jax.set_mesh(mesh):
        (_, logprobs), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, *batch)
    assert found["embed"].sharding.is_equivalent_to(placed["embed"].sharding, 2)
    return jax.device_get(found), np.asarray(logprobs)


def added_up(params, inputs, targets, dtype):
    """The gradients, the table's added up in float64; and the log-probs."""
    apart = {**params, "embed": params["embed"][inputs.ravel()]}
    places = np.arange(inputs.size, dtype=np.int32).reshape(inputs.shape)
    found, logprobs = gradient(apart, places, targets, dtype)
    total = np.zeros((V, D))
    np.add.at(total, inputs.ravel(), found["embed"].astype(np.float64))
    return {**found, "embed": total}, logprobs


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def test_a_word_that_stands_13000_times_gets_the_sum_of_its_gradients_in_bf16():
    batch = rows_of((256, 256))
    params = host_params()
    got, logprobs = gradient(params, *batch, "bfloat16")
    want, same = added_up(params, *batch, "bfloat16")
    np.testing.assert_array_equal(logprobs, same)
    assert error(got["embed"][FREQUENT], want["embed"][FREQUENT]) < 0.001
    assert error(got["embed"], want["embed"]) < 0.001
    for name, found in got["layers"].items():
        np.testing.assert_array_equal(found, want["layers"][name], err_msg=name)
    np.testing.assert_array_equal(got["head"], want["head"])


@pytest.fixture(scope="module")
def added_up_of_4096():
    return added_up(host_params(), *rows_of((4, 1024)), "bfloat16")[0]


@pytest.mark.parametrize("mesh", [(2, 1, 2), (1, 2, 1)])
def test_so_it_does_on_every_mesh(added_up_of_4096, mesh):
    """fsdp splits rows and the width, sp the tokens of a row, tp the vocabulary."""
    got, _ = gradient(host_params(), *rows_of((4, 1024)), "bfloat16", mesh)
    # Sums over tp round otherwise, and so do the cotangents.
    assert error(got["embed"], added_up_of_4096["embed"]) < 0.01
