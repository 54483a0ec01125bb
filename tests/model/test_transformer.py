"""The decoder against a plain one: numpy, float64, a token and a head at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.model.params import Architecture, abstract, map_specs, unstack
from magistral_jax.model.rope import rope, rotate
from magistral_jax.model.sharding import make_mesh
from magistral_jax.model.transformer import (
    attend_packed,
    head_weight,
    logits,
    sum_of_width,
    transform,
)

HEADS = {"grouped": (4, 2), "one for all": (4, 1), "one for each": (2, 2)}
SHAPES = [("grouped", True), ("grouped", False), ("one for all", False), ("one for each", True)]
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5], np.int32)


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh(jax.devices(), fsdp=1, tp=1)):
        yield


def make_arch(heads, *, tied, layers=2) -> Architecture:
    N, K = HEADS[heads]
    # A large epsilon and a small base, so that neither can be left out unseen.
    return Architecture(
        layers=layers,
        width=12,
        heads=N,
        kv_heads=K,
        head_dim=4,
        ffn=10,
        vocab=11,
        rope_theta=50.0,
        norm_eps=0.05,
        tie_embeddings=tied,
    )


def make_params(arch, rng):
    """Values of order one everywhere, gains included."""
    return map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.25).astype(np.float32),
        abstract(arch),
    )


def reference_logits(params, arch, tokens):
    """The next token's logits after each token, a token and a head at a time, in float64."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    H, repeat = arch.head_dim, arch.heads // arch.kv_heads

    def norm(x, gain):
        return x / np.sqrt(np.mean(x * x) + arch.norm_eps) * gain

    def turned(x, position):
        out = x.copy()
        for i in range(H // 2):
            angle = position * arch.rope_theta ** (-2 * i / H)
            a, b = x[i], x[i + H // 2]
            out[i] = a * np.cos(angle) - b * np.sin(angle)
            out[i + H // 2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    layers = [{name: w[i] for name, w in params["layers"].items()} for i in range(arch.layers)]
    seen = [[([], []) for _ in range(arch.kv_heads)] for _ in layers]
    scores = []
    for position, token in enumerate(tokens):
        x = params["embed"][token]
        for w, heads_seen in zip(layers, seen, strict=True):
            h = norm(x, w["attn_norm"])
            for kv, (keys, values) in enumerate(heads_seen):
                keys.append(turned(h @ w["wk"][:, kv], position))
                values.append(h @ w["wv"][:, kv])
            out = np.zeros(arch.width)
            for head in range(arch.heads):
                keys, values = heads_seen[head // repeat]
                q = turned(h @ w["wq"][:, head], position)
                weights = np.exp([q @ k / np.sqrt(H) for k in keys])
                read = sum(p * v for p, v in zip(weights / weights.sum(), values, strict=True))
                out += read @ w["wo"][head]
            x = x + out
            h = norm(x, w["mlp_norm"])
            gate = h @ w["w_gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w_up"])) @ w["w_down"]
        head = params["embed"].T if arch.tie_embeddings else params["head"]
        scores.append(norm(x, params["final_norm"]) @ head)
    return np.array(scores)


@partial(jax.jit, static_argnums=1, static_argnames="remat")
def forward(params, arch, tokens, positions, segments, *, remat=False):
    attend = attend_packed(segments, positions)
    dtype = jnp.dtype("float32")
    hidden, _ = transform(params, arch, tokens, positions, attend=attend, dtype=dtype, remat=remat)
    return logits(hidden, head_weight(params, dtype), tied=arch.tie_embeddings)


def alone(params, arch, tokens, **options):
    """Logits of one sequence in a row of its own."""
    row = np.asarray(tokens, np.int32)[None]
    positions = np.arange(row.shape[1], dtype=np.int32)[None]
    return np.asarray(forward(params, arch, row, positions, np.ones_like(row), **options)[0])


@pytest.mark.parametrize("heads, tied", SHAPES)
def test_forward_matches_the_plain_decoder(rng, heads, tied):
    arch = make_arch(heads, tied=tied)
    params = make_params(arch, rng)
    want = reference_logits(params, arch, TOKENS)
    np.testing.assert_allclose(alone(params, arch, TOKENS), want, rtol=1e-4, atol=1e-4)


def test_stacked_recomputed_and_unrolled_layers_are_the_same_network(rng):
    arch = make_arch("grouped", tied=True, layers=3)
    params = make_params(arch, rng)
    want = reference_logits(params, arch, TOKENS)
    for variant in (
        alone(params, arch, TOKENS, remat=True),
        alone(unstack(params, arch.layers), arch, TOKENS),
    ):
        np.testing.assert_allclose(variant, want, rtol=1e-4, atol=1e-4)


def test_a_packed_sequence_is_the_sequence_alone(rng):
    """Three sequences in two rows; whatever stands in the padding is of no effect."""
    arch = make_arch("grouped", tied=True)
    params = make_params(arch, rng)
    first, second, third = TOKENS[:5], TOKENS[2:8], TOKENS[:9]
    tokens = rng.integers(0, arch.vocab, (3, 12)).astype(np.int32)
    positions = rng.integers(0, 9, tokens.shape).astype(np.int32)
    segments = np.zeros_like(tokens)
    for row, start, number, sequence in ((0, 0, 1, first), (0, 6, 2, second), (1, 1, 1, third)):
        place = (row, slice(start, start + len(sequence)))
        tokens[place], positions[place] = sequence, np.arange(len(sequence))
        segments[place] = number
    out = np.asarray(forward(params, arch, tokens, positions, segments))
    assert np.isfinite(out).all()
    for got, sequence in ((out[0, :5], first), (out[0, 6:], second), (out[1, 1:10], third)):
        want = reference_logits(params, arch, sequence)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_token_says_nothing_about_those_before_it(rng):
    arch = make_arch("grouped", tied=True)
    params = make_params(arch, rng)
    changed = TOKENS.copy()
    changed[5] = 0
    before, after = alone(params, arch, TOKENS), alone(params, arch, changed)
    np.testing.assert_array_equal(before[:5], after[:5])
    assert (np.abs(before[5:] - after[5:]).max(axis=1) > 1e-3).all()


def test_rotation_turns_halves_and_leaves_position_zero():
    """Two numbers of a head turn together when they are half a head apart."""
    x = jnp.array([[[[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]]]])
    turned = np.asarray(rotate(x, rope(jnp.array([[3, 3]], jnp.int32), 4, 50.0)))[0, :, 0]
    slow = 3 * 50.0**-0.5
    want = [[np.cos(3), 0, np.sin(3), 0], [0, np.cos(slow), 0, np.sin(slow)]]
    np.testing.assert_allclose(turned, want, atol=1e-6)
    unmoved = rotate(x, rope(jnp.zeros((1, 2), jnp.int32), 4, 50.0))
    np.testing.assert_array_equal(unmoved, x)


@pytest.mark.parametrize("width", [1, 12, 128, 576])
def test_the_sum_over_the_width_does_not_depend_on_the_rows_beside_it(rng, width):
    x = rng.normal(size=(16, 48, width)).astype(np.float32)
    total = jax.jit(lambda x: sum_of_width(jnp.square(x)))
    whole = np.asarray(total(x))
    np.testing.assert_array_equal(total(x[3:4]), whole[3:4])
    np.testing.assert_array_equal(total(x[:, 7:8]), whole[:, 7:8])
    np.testing.assert_array_equal(total(x[3:4, 7:8]), whole[3:4, 7:8])
    want = np.sum(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(whole, want, rtol=1e-5)
