"""Which token is drawn, and that its log-prob is that of the distribution it was drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magistral_jax.generator import sampling
from magistral_jax.generator.sampling import (
    BLOCK,
    Sampler,
    first_past,
    in_blocks,
    inverse_cdf,
    sample,
    truncate,
    uniforms,
)

ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


@jax.jit
def draw_of(logits, draws):
    return inverse_cdf(in_blocks(logits, jnp.float32(1)), draws, jnp.float32(1))


sample_of = jax.jit(sample)


def drawn(weights, draw):
    logits = jnp.log(jnp.asarray(weights, jnp.float32))[None]
    return int(draw_of(logits, jnp.full(1, draw, jnp.float32))[0])


def spread_weights(vocab, density, seed):
    """Weights over many orders of magnitude, most of them exactly zero."""
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(vocab) < density, rng.random(vocab) ** 6, 0).astype(np.float32)
    weights[rng.integers(vocab)] = 1.0
    return weights


@settings(max_examples=60)
@given(
    st.sampled_from([3, 255, BLOCK, 257, 700]),
    st.sampled_from([0.01, 0.3, 1.0]),
    st.integers(0, 10_000),
    st.floats(0, ALMOST_ONE, width=32),
)
@example(700, 0.3, 0, 0.0)
@example(700, 0.3, 0, ALMOST_ONE)
def test_the_draw_lands_where_the_running_sum_passes_it(vocab, density, seed, draw):
    weights = spread_weights(vocab, density, seed)
    token = drawn(weights, draw)
    assert weights[token] > 0
    cdf = np.cumsum(weights.astype(np.float64)) / weights.sum(dtype=np.float64)
    before = cdf[token - 1] if token else 0.0
    assert before - 1e-5 <= draw <= cdf[token] + 1e-5


@pytest.mark.parametrize("vocab", [5, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
@pytest.mark.parametrize("draw", [0.0, 0.5, ALMOST_ONE])
def test_a_certain_token_is_always_drawn(vocab, draw):
    for token in (0, vocab // 2, vocab - 1):
        assert drawn(np.eye(vocab)[token], draw) == token


def test_the_ends_of_the_draw_are_the_first_and_last_token_with_mass():
    weights = np.zeros(700, np.float32)
    weights[[3, 300, 650]] = 1 / 3
    assert [drawn(weights, u) for u in (0.0, 0.5, ALMOST_ONE)] == [3, 300, 650]


def test_a_running_sum_that_rises_over_a_zero_or_ends_too_low_still_finds_mass():
    """What parallel sums do: the third entry rounds up, and the last stays below the target."""
    running = jnp.array([[0.2, 0.5, 0.6, 0.6, 0.9, 0.9]], jnp.float32)
    parts = jnp.array([[0.2, 0.3, 0.0, 0.1, 0.3, 0.0]], jnp.float32)
    found = [int(first_past(running, parts, jnp.array([t], jnp.float32))[0]) for t in (0.55, 0.95)]
    assert found == [3, 4]


def test_frequencies_are_the_probabilities():
    """Chi-square over 20,000 draws; 37.6 is the 99.9 % point for 15 degrees of freedom."""
    logits = np.random.default_rng(1).normal(size=16).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    n = 20_000
    zero, place = jnp.zeros(n, jnp.int32), jnp.arange(n, dtype=jnp.int32)
    draws = uniforms(jax.random.key(0), zero, zero, place)
    token, _ = sample_of(jnp.broadcast_to(jnp.asarray(logits), (n, 16)), draws, Sampler())
    counts = np.bincount(np.asarray(token), minlength=16)
    chi_square = np.sum((counts - n * probabilities) ** 2 / (n * probabilities))
    assert chi_square < 37.6


def masses_of(kind, vocab):
    """Weights that float32 sums get wrong."""
    weights = np.exp(-np.random.default_rng(2).exponential(3, vocab)).astype(np.float32)
    if kind == "certain":
        weights = (np.arange(vocab) == vocab // 3).astype(np.float32)
    elif kind == "equal":
        weights = np.ones(vocab, np.float32)
    elif kind == "one beside many":
        weights = np.full(vocab, 0.3 / vocab, np.float32)
        weights[vocab - 2] = 0.7
    elif kind == "tiny beside two":
        weights = np.full(vocab, 2.0**-37, np.float32)
        weights[[1, vocab // 2]] = 1.0, 0.999
    elif kind == "masked":
        weights[np.random.default_rng(3).random(vocab) < 0.6] = 0
        weights[[0, vocab - 1]] = 0
    return weights


KINDS = ("spread", "certain", "equal", "one beside many", "tiny beside two", "masked")
DRAWN = 2**23


@jax.jit
def token_of(logits, numbers):
    """The tokens that draws of `uniforms`, given by number, take."""
    rows = jnp.broadcast_to(logits, (*numbers.shape, *logits.shape))
    draws = (numbers.astype(jnp.float32) + 0.5) * 2**-23
    return inverse_cdf(in_blocks(rows, jnp.float32(1)), draws, jnp.float32(1))


def logits_of(masses):
    """And the masses as they come back."""
    logits = jnp.log(jnp.asarray(masses))
    return logits, np.asarray(jnp.exp(logits - jnp.max(logits)))


def assert_rates(rates, masses, of):
    shares = masses.astype(np.float64) / masses.sum(dtype=np.float64)
    assert np.abs(rates - shares[of]).max() <= 2**-23 + 2**-40
    assert not rates[masses[of] == 0].any()


@pytest.mark.parametrize("kind", ["spread", "tiny beside two", "masked"])
def test_over_all_draws_each_token_comes_as_often_as_its_mass_says(monkeypatch, kind):
    """Over all 2^23 of them, in blocks of 8."""
    monkeypatch.setattr(sampling, "BLOCK", 8)
    logits, masses = logits_of(masses_of(kind, 22))
    counts = np.zeros(22, int)
    for start in range(0, DRAWN, 2**20):
        counts += np.bincount(token_of(logits, start + jnp.arange(2**20)), minlength=22)
    assert counts.sum() == DRAWN
    assert_rates(counts / DRAWN, masses, np.arange(22))


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_in_a_large_vocabulary(kind):
    """The heaviest tokens, their neighbours and some others: how many draws lie between the first
    beyond the token before and the first beyond the token, found by halving."""
    vocab, heaviest = 131_072, 6
    logits, masses = logits_of(masses_of(kind, vocab))
    top = np.argsort(masses)[-heaviest:]
    others = np.random.default_rng(4).integers(1, vocab - 1, 10)
    chosen = np.array([*top, *(top + 1) % vocab, 0, vocab - 1, *others])
    beyond = np.concatenate([chosen - 1, chosen])
    low, high = np.zeros((2, len(beyond)), np.int64)
    high += DRAWN
    while (low < high).any():
        middle = (low + high) // 2
        is_beyond = np.asarray(token_of(logits, jnp.asarray(middle, jnp.int32))) > beyond
        low, high = np.where(is_beyond, low, middle + 1), np.where(is_beyond, middle, high)
        low = np.minimum(low, high)
    before, after = low.reshape(2, -1)
    assert_rates((after - before) / DRAWN, masses, chosen)


def test_a_draw_is_neither_zero_nor_one():
    place = jnp.arange(10_000, dtype=jnp.int32)
    odd = np.asarray(uniforms(jax.random.key(0), place, place, place)) * 2.0**24
    assert (odd % 2 == 1).all() and 0 < odd.min() < odd.max() < 2**24


def names(*rows):
    return tuple(jnp.asarray(column, jnp.int32) for column in zip(*rows, strict=True))


def test_a_draw_depends_on_its_name_and_on_nothing_else():
    named = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (5, 3, 900)]
    key = jax.random.key(3)
    together = np.asarray(uniforms(key, *names(*named)))
    assert len(set(together.tolist())) == len(named)
    assert together[::-1].tolist() == np.asarray(uniforms(key, *names(*named[::-1]))).tolist()
    for name, draw in zip(named, together, strict=True):
        assert np.asarray(uniforms(key, *names(name)))[0] == draw
    assert not np.any(np.asarray(uniforms(jax.random.key(4), *names(*named))) == together)


LOGITS = 3 * np.random.default_rng(0).normal(size=(6, 300)).astype(np.float32)
DRAWS = np.random.default_rng(1).random(6, np.float32)


def log_softmax(z):
    z = z.astype(np.float64) - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_the_log_prob_is_that_of_the_tempered_distribution(temperature):
    token, logprob = sample_of(
        jnp.asarray(LOGITS), jnp.asarray(DRAWS), Sampler(temperature=temperature)
    )
    expected = log_softmax(LOGITS / temperature)
    np.testing.assert_allclose(logprob, expected[np.arange(6), token], atol=1e-5)
    cdf = np.cumsum(np.exp(expected), axis=-1)
    assert np.asarray(token).tolist() == np.argmax(cdf > DRAWS[:, None], axis=-1).tolist()


def test_temperature_zero_is_greedy_and_certain():
    token, logprob = sample_of(jnp.asarray(LOGITS), jnp.asarray(DRAWS), Sampler(temperature=0.0))
    assert np.asarray(token).tolist() == LOGITS.argmax(axis=-1).tolist()
    assert np.asarray(logprob).tolist() == [0.0] * 6


def allowed(z, top_k, top_p):
    """Tokens that top-k and top-p leave, by sorting one row at a time."""
    keep = np.ones(len(z), bool)
    order = np.argsort(-z)
    if top_k:
        keep[order[top_k:]] = False
    if top_p < 1:
        mass = np.cumsum(np.exp(log_softmax(z))[order])
        keep[order[1 + int(np.argmax(mass >= top_p)) :]] = False
    return keep


@pytest.mark.parametrize(
    "top_k, top_p", [(1, 1.0), (7, 1.0), (0, 0.5), (0, 0.95), (0, 1e-6), (5, 0.9), (1000, 1.0)]
)
def test_truncation_keeps_the_likeliest_and_renormalises(top_k, top_p):
    temperature = 0.7
    z = LOGITS / np.float32(temperature)
    keep = np.stack([allowed(row, top_k, top_p) for row in z])
    kept = np.isfinite(
        np.asarray(truncate(jnp.asarray(LOGITS), jnp.float32(temperature), top_k, top_p))
    )
    np.testing.assert_array_equal(kept, keep)
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = log_softmax(np.where(keep, z, -1e9))
    for draw in (0.0, 0.4, ALMOST_ONE):
        draws = jnp.full(6, draw, jnp.float32)
        token, logprob = sample_of(jnp.asarray(LOGITS), draws, sampler)
        assert keep[np.arange(6), token].all()
        np.testing.assert_allclose(logprob, expected[np.arange(6), token], atol=1e-5)
