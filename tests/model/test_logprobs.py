"""Log-probs and entropy: what they are, and that chunks over the tokens change nothing."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.model.logprobs import chunk_size, score, score_chunk
from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import make_mesh

B, T, V = 2, 12, 11  # V is the size of no other axis


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh(jax.devices(), fsdp=1, tp=1)):
        yield


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_scores_are_those_of_the_distribution_that_is_sampled_from(rng, temperature):
    z = (3 * rng.normal(size=(B, T, V))).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    scores = score_chunk(jnp.asarray(z), jnp.asarray(targets), temperature)
    log_p = log_softmax(z / temperature)
    want = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.logprobs, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        scores.entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-5, atol=1e-5
    )


def test_entropy_of_certainty_is_zero_and_of_ignorance_log_of_the_vocabulary():
    z = jnp.stack([jnp.zeros(V), jnp.zeros(V).at[3].set(200.0)])[None]
    scores = score_chunk(z, jnp.full((1, 2), 3, jnp.int32), 1.0)
    np.testing.assert_allclose(scores.entropy, [[np.log(V), 0.0]], atol=1e-5)
    np.testing.assert_allclose(scores.logprobs, [[-np.log(V), 0.0]], atol=1e-5)


def test_logprobs_carry_the_gradient_and_entropy_carries_none(rng):
    z = rng.normal(size=(1, 3, V)).astype(np.float32)
    targets = np.array([[0, 4, 10]], np.int32)

    def total(z, part):
        return getattr(score_chunk(z, jnp.asarray(targets), 0.5), part).sum()

    want = (np.eye(V)[targets] - np.exp(log_softmax(z / 0.5))) / 0.5
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(z), "logprobs"), want, atol=1e-5)
    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(z), "entropy"), np.zeros(z.shape))


@given(st.integers(1, 300), st.integers(1, 400))
def test_a_chunk_is_the_largest_divisor_that_fits_unless_that_is_small(tokens, at_most):
    size, most = chunk_size(tokens, at_most), min(tokens, at_most)
    divisors = [t for t in range(1, most + 1) if tokens % t == 0]
    assert most / 2 <= size <= most
    assert size == divisors[-1] or divisors[-1] < most / 2
    # What is padded is less than a token for each chunk.
    assert -tokens % size < -(-tokens // size)


ARCH = Architecture(
    layers=1,
    width=8,
    heads=2,
    kv_heads=1,
    head_dim=4,
    ffn=8,
    vocab=V,
    rope_theta=100.0,
    norm_eps=1e-5,
    tie_embeddings=True,
)


@pytest.fixture
def row_loss(rng):
    """A weighted sum of log-probs of fixed rows, and the parameters it is a function of."""
    params = map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
        abstract(ARCH),
    )
    tokens = jnp.asarray(rng.integers(0, V, (B, T + 1)), jnp.int32)
    weights = rng.normal(size=(B, T)).astype(np.float32)
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))

    def loss(params, *, head_tokens, length=T):
        scores = score(
            params,
            ARCH,
            tokens[:, :length],
            tokens[:, 1 : length + 1],
            positions[:, :length],
            jnp.ones((B, length), jnp.int32),
            temperature=1.0,
            dtype=jnp.dtype("float32"),
            remat=False,
            head_tokens=head_tokens,
        )
        return jnp.sum(scores.logprobs * weights[:, :length]), scores

    return loss, params


@pytest.mark.parametrize("length", [T, T - 1])
def test_chunks_change_neither_scores_nor_gradient(row_loss, length):
    """Of rows that chunks divide, and of a prime number of tokens."""
    loss, params = row_loss

    def run(head_tokens):
        of = partial(loss, head_tokens=head_tokens, length=length)
        return jax.jit(jax.grad(of, has_aux=True))(params)

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, run(15), run(B * T))


def test_no_array_of_all_tokens_by_the_vocabulary_exists_forward_or_backward(row_loss):
    """The chunks are there for memory, so read the size of every array of the gradient."""
    loss, params = row_loss

    def largest(head_tokens):
        gradient = jax.grad(partial(loss, head_tokens=head_tokens), has_aux=True)
        shapes = re.findall(r"f32\[([^\]]+)\]", str(jax.make_jaxpr(gradient)(params)))
        axes = [[int(size.split("@")[0]) for size in shape.split(",")] for shape in shapes]
        return max(int(np.prod(sizes)) for sizes in axes if V in sizes)

    assert largest(B * T) >= B * T * V
    assert largest(8) == 8 * V
