"""Attention in blocks is attention: forward and backward, whole and split over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import NamedSharding

from magistral_jax.model import blocked, transformer
from magistral_jax.model.attention import grouped_attention, packed_mask
from magistral_jax.model.blocked import blocked_attention
from magistral_jax.model.sharding import make_mesh

K, H = 2, 16
LENGTHS = ((30, 1, 7, 50), (96,), (40, 56), (3, 90))
"""Of the completions of each row of 96 tokens; what is left of a row is padding."""
ROW = 96


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 16)


def rows(lengths=LENGTHS, row=ROW):
    """Segments and positions."""
    segments, positions = np.zeros((2, len(lengths), row), np.int32)
    for b, of_row in enumerate(lengths):
        at = 0
        for number, length in enumerate(of_row):
            segments[b, at : at + length] = number + 1
            positions[b, at : at + length] = np.arange(length)
            at += length
    return jnp.asarray(segments), jnp.asarray(positions)


def drawn(rng, heads, dtype="float32"):
    shapes = [(len(LENGTHS), ROW, n, H) for n in (heads, K, K, heads)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def plain(q, k, v, segments, positions, window):
    mask = packed_mask(segments, positions)
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return grouped_attention(q, k, v, mask)


def with_gradient(attend, q, k, v, d_out):
    """Output and the gradients of q, k and v, as numpy."""

    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    return [np.asarray(x.astype(jnp.float32)) for x in run(q, k, v)]


@pytest.mark.parametrize("window", [None, 1, 9, 40])
@pytest.mark.parametrize(
    "heads, mesh", [(2, (1, 1, 1)), (6, (1, 1, 1)), (4, (2, 2, 1)), (4, (1, 2, 2)), (2, (1, 4, 1))]
)
def test_blocks_give_what_the_whole_gives(rng, heads, mesh, window):
    segments, positions = rows()
    *qkv, d_out = drawn(rng, heads)
    real = (segments > 0)[:, :, None, None]
    d_out = jnp.where(real, d_out, 0.0)  # as in training: padding has no loss
    one = make_mesh(jax.devices(), fsdp=1, tp=1)
    with jax.set_mesh(one):
        whole = partial(plain, segments=segments, positions=positions, window=window)
        want = with_gradient(whole, *qkv, d_out)
    fsdp, sp, tp = mesh
    mesh = make_mesh(jax.devices(), fsdp=fsdp, sp=sp, tp=tp)
    by = NamedSharding(mesh, P("fsdp", "sp", "tp", None))
    with jax.set_mesh(mesh):
        qkv = [jax.device_put(x, by) for x in qkv]
        places = jax.device_put(positions, NamedSharding(mesh, P("fsdp", "sp")))
        attend = partial(blocked_attention, positions=places, window=window)
        found = with_gradient(attend, *qkv, jax.device_put(d_out, by))
    keep = np.asarray(real)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got * keep, expected * keep, rtol=0, atol=1e-5)
        assert np.isfinite(got).all()


def test_rows_that_are_no_whole_number_of_blocks(rng, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 40)
    test_blocks_give_what_the_whole_gives(rng, 4, (1, 1, 1), None)
    monkeypatch.setattr(blocked, "BLOCK", 500)
    test_blocks_give_what_the_whole_gives(rng, 4, (1, 1, 1), 9)


def test_in_bfloat16_too(rng):
    segments, positions = rows()
    *qkv, d_out = drawn(rng, 4, "bfloat16")
    mesh = make_mesh(jax.devices(), fsdp=1, tp=1)
    d_out = jnp.where((segments > 0)[:, :, None, None], d_out, 0)
    with jax.set_mesh(mesh):
        whole = partial(plain, segments=segments, positions=positions, window=None)
        want = with_gradient(whole, *qkv, d_out)
        attend = partial(blocked_attention, positions=positions, window=None)
        found = with_gradient(attend, *qkv, d_out)
    keep = np.asarray(segments > 0)[:, :, None, None]
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got * keep, expected * keep, rtol=0, atol=0.06)


def test_blocks_of_other_completions_are_skipped(rng, monkeypatch):
    """The bounds of the inner loop, row by row: 6 blocks of queries over 6 of keys."""
    spans = []
    honest = blocked._span

    def watched(first, last, block):
        found = honest(first, last, block)
        jax.debug.callback(lambda a, b: spans.append((int(a), int(b))), *found, ordered=True)
        return found

    monkeypatch.setattr(blocked, "_span", watched)
    _, positions = rows(((32, 32, 32),))
    q, k, v, _ = (x[:1] for x in drawn(rng, 2))
    with jax.set_mesh(make_mesh(jax.devices(), fsdp=1, tp=1)):
        jax.block_until_ready(blocked_attention(q, k, v, positions, None))
        jax.effects_barrier()
    assert spans == [(0, 1), (0, 2), (2, 3), (2, 4), (4, 5), (4, 6)]


def test_long_rows_are_computed_in_blocks(rng, monkeypatch):
    """And short ones are not: what the sampler computes adds as they do."""
    calls = []
    monkeypatch.setattr(transformer, "blocked_attention", lambda *args: calls.append(1) or args[0])
    segments, positions = rows()
    q, k, v, _ = drawn(rng, 2)
    with jax.set_mesh(make_mesh(jax.devices(), fsdp=1, tp=1)):
        for row in (ROW - 1, ROW):
            attend = transformer.attend_packed(
                segments[:, :row], positions[:, :row], long_row=ROW - 1
            )
            attend(None, q[:, :row], k[:, :row], v[:, :row], None)
    assert len(calls) == 1
