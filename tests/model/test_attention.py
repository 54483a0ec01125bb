"""Who sees whom, as pictures; and both attentions against one head at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.model.attention import cached_attention, grouped_attention, packed_mask
from magistral_jax.model.sharding import make_mesh

K, H = 2, 4


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh(jax.devices(), fsdp=1, tp=1)):
        yield


def picture(mask) -> list[str]:
    return [" ".join("1" if seen else "." for seen in row) for row in np.asarray(mask)]


def mask_of(segments, positions):
    return packed_mask(jnp.array([segments], jnp.int32), jnp.array([positions], jnp.int32))


def test_two_completions_and_padding_in_a_row():
    mask = mask_of([1, 1, 1, 2, 2, 0, 0], [0, 1, 2, 0, 1, 0, 0])
    assert picture(mask[0]) == [
        "1 . . . . . .",
        "1 1 . . . . .",
        "1 1 1 . . . .",
        ". . . 1 . . .",
        ". . . 1 1 . .",
        ". . . . . . .",
        ". . . . . . .",
    ]


def test_padding_between_completions_is_seen_by_nobody():
    mask = mask_of([1, 0, 2, 2, 0], [0, 0, 0, 1, 0])
    assert picture(mask[0]) == [
        "1 . . . .",
        ". . . . .",
        ". . 1 . .",
        ". . 1 1 .",
        ". . . . .",
    ]


def test_rows_of_a_batch_do_not_share_segments():
    segments, positions = jnp.array([[1, 1], [1, 0]], jnp.int32), jnp.array([[0, 1], [0, 0]])
    mask = packed_mask(segments, positions.astype(jnp.int32))
    assert [picture(rows) for rows in mask] == [["1 .", "1 1"], ["1 .", ". ."]]


def one_query(q, keys, values):
    scores = np.exp([q @ k / np.sqrt(H) for k in keys.astype(np.float64)])
    return (scores / scores.sum()) @ values.astype(np.float64)


def normals(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("N", [2, 6])
def test_each_query_averages_the_values_it_may_see(rng, N):
    q, k, v = normals(rng, 2, 5, N, H), normals(rng, 2, 7, K, H), normals(rng, 2, 7, K, H)
    mask = rng.random((2, 5, 7)) < 0.5
    mask[:, :, 0] = True
    out = np.asarray(jax.jit(grouped_attention)(q, k, v, mask))
    for b, t, n in np.ndindex(2, 5, N):
        kv, on = n // (N // K), mask[b, t]
        want = one_query(q[b, t, n], k[b, on, kv], v[b, on, kv])
        np.testing.assert_allclose(out[b, t, n], want, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_has_a_finite_output_and_gradient(rng):
    qkv = [normals(rng, 1, 2, K, H) for _ in range(3)]
    mask = jnp.zeros((1, 2, 2), bool)

    @jax.jit
    def both(q, k, v):
        out, back = jax.vjp(lambda *qkv: grouped_attention(*qkv, mask), q, k, v)
        return out, back(jnp.ones_like(out))

    out, grads = both(*qkv)
    assert np.isfinite(out).all()
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("N", [2, 6])
def test_a_cached_query_sees_its_length_and_no_further(rng, N):
    """Behind the length lies what earlier sequences left in the slot."""
    q, k, v = normals(rng, 3, N, H), normals(rng, 3, 8, K, H), normals(rng, 3, 8, K, H)
    lengths = np.array([1, 5, 8], np.int32)
    for slot, length in enumerate(lengths):
        k[slot, length:], v[slot, length:] = 1e4, -1e4
    out = np.asarray(
        jax.jit(cached_attention)(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), lengths)
    )
    assert out.shape == (3, N, H)
    for slot, n in np.ndindex(3, N):
        kv, length = n // (N // K), lengths[slot]
        want = one_query(q[slot, n], k[slot, :length, kv], v[slot, :length, kv])
        np.testing.assert_allclose(out[slot, n], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("N", [2, 6])
def test_decoding_and_the_packed_row_agree_to_the_bit_in_bfloat16(rng, N):
    """What keeps the sampler's log-probs equal to the trainer's (module docstring).

    As large as a small model's attention: with less to add up, another order rarely shows.
    """
    S, H = 256, 64
    q, k, v = (2 * normals(rng, 1, S, heads, H) for heads in (N, K, K))
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    packed = np.asarray(jax.jit(grouped_attention)(q, k, v, np.tri(S, dtype=bool)[None]))[0]
    decode = jax.jit(cached_attention)
    for slots in (2, 32):
        k_slots = np.broadcast_to(k.transpose(0, 2, 3, 1), (slots, K, H, S))
        v_slots = np.broadcast_to(v.transpose(0, 2, 1, 3), (slots, K, S, H))
        for start in range(0, S, slots):
            now = slice(start, start + slots)
            lengths = np.arange(start + 1, start + slots + 1, dtype=np.int32)
            decoded = np.asarray(decode(q[0, now], k_slots, v_slots, lengths))
            np.testing.assert_array_equal(decoded, packed[now], err_msg=f"{slots} slots, {start}")
