"""Attention on accelerators: the functions of `attention.py`, as TPUs and GPUs want them.

No accelerator has run any of this yet. What is tested (`tests/model/test_kernels.py`) is that all
of it compiles ahead of time for v5p and H200, and that in interpret mode, on CPU, it equals
`attention.py`. Each docstring says what that means for its platform.

All work on the local heads of one device: where heads are split, call them inside `shard_map`.

Axes: B rows or slots, T queries, S keys, N query heads, K key/value heads, R = N / K query heads
per K, H head size; P pages of `page` tokens in the pool, n pages a slot can name.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Float, Int

from magistral_jax.model.attention import MASKED, Platform

# A tensor core multiplies at least 16 rows at a time: fewer query heads are padded to that.
TRITON_ROWS = 16
# Two programs for each of an H200's 132 processors; a slot's pages are split until there are.
TRITON_PROGRAMS = 264
# A TPU's grid step costs as much as about 1 MB of HBM traffic, so it should bring more than that.
# VMEM (16 MiB for one kernel) holds two steps, and float32 copies of a page.
TPU_STEP_BYTES = 4 * 2**20
TPU_STEP_PAGES = 16  # each is an input of its own, which takes time to compile


def paged_decode(
    q: Float[Array, "B N H"],
    k_pages: Float[Array, "P K page H"],
    v_pages: Float[Array, "P K page H"],
    lengths: Int[Array, " B"],
    table: Int[Array, "B n"],
    *,
    window: int | None = None,
    platform: Platform,
    interpret: bool = False,
) -> Float[Array, "B N H"]:
    """One query per slot over the slot's first `lengths` (>= 1) tokens, or the last `window`.

    Token t of slot b lies in page `table[b, t // page]`. No other entry of `table` is read, and
    no page outside the window. Both platforms want keys as values, head size last (the CPU pool
    has keys [P K H page]): one page of one head is one contiguous tile, and a new token one row.

    tpu: own Pallas kernel; all of a device's heads in one grid step, pages prefetched by way of
        the table. `page` a multiple of 16, H of 128: with other H, XLA copies the whole pool.
        Compiled for v5p, never executed there; executed in interpret mode only.
    gpu: own Pallas kernel, by way of Triton; one program per slot, head and split of the slot's
        pages, joined afterwards. `page` and H powers of two, at least 16.
        Compiled for H200, never executed there; executed in interpret mode only.
    """
    B, N, H = q.shape
    K = k_pages.shape[1]
    q_BKRH = q.reshape(B, K, N // K, H)
    decode = _tpu_paged if platform == "tpu" else _gpu_paged
    out_BKRH = decode(q_BKRH, k_pages, v_pages, lengths, table, window, interpret)
    return out_BKRH.reshape(B, N, H)


class Partial(NamedTuple):
    """A softmax average over some of the keys: not yet divided by `total`."""

    out: Float[Array, "R H"]
    peak: Float[Array, "R 1"]
    total: Float[Array, "R 1"]


def _nothing_seen(rows: int, head: int) -> Partial:
    column = (rows, 1)
    return Partial(
        jnp.zeros((rows, head), jnp.float32),
        jnp.full(column, MASKED, jnp.float32),
        jnp.zeros(column, jnp.float32),
    )


def _live_pages(length: Any, window: int | None, page: int) -> tuple[Any, Any]:
    """The first page with a token to be seen, and the page after the last."""
    first = 0 if window is None else jnp.maximum(length - window, 0) // page
    return first, pl.cdiv(length, page)


def _see_page(
    so_far: Partial,
    q: Float[Array, "R H"],
    k: Float[Array, "page H"],
    v: Float[Array, "page H"],
    start: Any,
    length: Any,
    window: int | None,
) -> Partial:
    """Adds a page whose first token has position `start`; at least one of its tokens is seen."""
    scores = _dot(q, k, over=(1, 1)) * q.shape[-1] ** -0.5
    at = start + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    is_seen = at < length
    if window is not None:
        is_seen &= at >= length - window
    scores = jnp.where(is_seen, scores, MASKED)
    peak = jnp.maximum(so_far.peak, jnp.max(scores, axis=1, keepdims=True))
    keep, weights = jnp.exp(so_far.peak - peak), jnp.exp(scores - peak)
    return Partial(
        so_far.out * keep + _dot(weights.astype(v.dtype), v, over=(1, 0)),
        peak,
        so_far.total * keep + jnp.sum(weights, axis=1, keepdims=True),
    )


def _dot(x: Array, y: Array, over: tuple[int, int]) -> Array:
    """Both compilers take a product along any axis of its factors, without a transpose."""
    axes = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _tpu_paged(
    q: Float[Array, "B K R H"],
    k_pages: Float[Array, "P K page H"],
    v_pages: Float[Array, "P K page H"],
    lengths: Int[Array, " B"],
    table: Int[Array, "B n"],
    window: int | None,
    interpret: bool,
) -> Float[Array, "B K R H"]:
    B, K, R, H = q.shape
    page, n = k_pages.shape[2], table.shape[1]
    step = TPU_STEP_BYTES // (2 * K * page * H * k_pages.dtype.itemsize)
    step = max(1, min(step, n, TPU_STEP_PAGES))

    q_spec = pl.BlockSpec((None, K, R, H), lambda b, _i, *_refs: (b, 0, 0, 0))
    # A step's pages are that many inputs: each is prefetched from its own place.
    page_specs = [
        pl.BlockSpec((None, K, page, H), partial(_tpu_place, (step, of_step, n, page, window)))
        for of_step in range(step)
    ]
    return pl.pallas_call(
        partial(_tpu_kernel, step=step, window=window),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, pl.cdiv(n, step)),
            in_specs=[q_spec, *page_specs, *page_specs],
            out_specs=q_spec,
            scratch_shapes=[pltpu.VMEM((K, R, width), jnp.float32) for width in (H, 1, 1)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(lengths, table.reshape(-1), q, *[k_pages] * step, *[v_pages] * step)


def _tpu_place(
    of: tuple[int, int, int, int, int | None], slot: Any, i: Any, lengths_ref: Any, table_ref: Any
) -> tuple[Any, int, int, int]:
    """Where in the pool lies page `of_step` of grid step (slot, i)."""
    step, of_step, n, page, window = of
    # Clamped: while there is no live page, an input stays on one, which is copied only once.
    first, last = _live_pages(lengths_ref[slot], window, page)
    at = jnp.clip(i * step + of_step, first, last - 1)
    return table_ref[slot * n + at], 0, 0, 0


def _tpu_kernel(
    lengths_ref: Any, table_ref: Any, q_ref: Any, *refs: Any, step: int, window: int | None
) -> None:
    """Grid step (slot, i): `step` pages of all heads; the scratch holds what the slot has seen."""
    k_refs, v_refs, out_ref, kept_refs = refs[:step], refs[step:-4], refs[-4], refs[-3:]
    K, R, H = q_ref.shape
    page = k_refs[0].shape[1]
    slot, i = pl.program_id(0), pl.program_id(1)
    length = lengths_ref[slot]
    first, last = _live_pages(length, window, page)

    def keep(kept: Partial) -> None:
        for ref, value in zip(kept_refs, kept, strict=True):
            ref[...] = value

    @pl.when(i == 0)
    def _begin() -> None:
        keep(Partial(*(jnp.broadcast_to(x, (K, *x.shape)) for x in _nothing_seen(R, H))))

    for of_step, (k_ref, v_ref) in enumerate(zip(k_refs, v_refs, strict=True)):
        at = i * step + of_step

        @pl.when((at >= first) & (at < last))
        def _see(k_ref: Any = k_ref, v_ref: Any = v_ref, at: Any = at) -> None:
            so_far = Partial(*(ref[...] for ref in kept_refs))
            see = partial(_see_page, start=at * page, length=length, window=window)
            keep(jax.vmap(see)(so_far, q_ref[...], k_ref[...], v_ref[...]))

    @pl.when(i == pl.num_programs(1) - 1)
    def _end() -> None:
        out, _, total = kept_refs
        out_ref[...] = (out[...] / total[...]).astype(out_ref.dtype)


def _gpu_paged(
    q: Float[Array, "B K R H"],
    k_pages: Float[Array, "P K page H"],
    v_pages: Float[Array, "P K page H"],
    lengths: Int[Array, " B"],
    table: Int[Array, "B n"],
    window: int | None,
    interpret: bool,
) -> Float[Array, "B K R H"]:
    B, K, R, H = q.shape
    rows = max(TRITON_ROWS, pl.next_power_of_2(R))
    splits = min(table.shape[1], pl.cdiv(TRITON_PROGRAMS, B * K))
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, rows - R), (0, 0)))

    whole = pl.BlockSpec(memory_space=pl.ANY)
    part_specs = [
        pl.BlockSpec((None, None, None, rows, width), lambda b, h, s: (b, h, s, 0, 0))
        for width in (H, 1, 1)
    ]
    out, peak, total = pl.pallas_call(
        partial(_gpu_kernel, window=window),
        grid=(B, K, splits),
        in_specs=[
            whole,
            whole,
            pl.BlockSpec((None, None, rows, H), lambda b, h, _s: (b, h, 0, 0)),
            whole,
            whole,
        ],
        out_specs=part_specs,
        out_shape=[
            jax.ShapeDtypeStruct((B, K, splits, rows, width), jnp.float32) for width in (H, 1, 1)
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(lengths, table, padded, k_pages, v_pages)

    # A split without pages has a total of zero, and a peak that makes its weight zero.
    weight = jnp.exp(peak - jnp.max(peak, axis=2, keepdims=True))
    joined = jnp.sum(out * weight, axis=2) / jnp.sum(total * weight, axis=2)
    return joined[:, :, :R].astype(q.dtype)


def _gpu_kernel(
    lengths_ref: Any,
    table_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    peak_ref: Any,
    total_ref: Any,
    *,
    window: int | None,
) -> None:
    """Program (slot, head, split): its share of the slot's live pages."""
    slot, head, split = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    page = k_ref.shape[2]
    length, q = lengths_ref[slot], q_ref[...]
    first, last = _live_pages(length, window, page)
    share = pl.cdiv(last - first, pl.num_programs(2))
    start = first + split * share

    def see(at: Any, so_far: Partial) -> Partial:
        tile = (table_ref[slot, at], head)
        return _see_page(so_far, q, k_ref[tile], v_ref[tile], at * page, length, window)

    stop = jnp.minimum(start + share, last)
    seen = jax.lax.fori_loop(start, stop, see, _nothing_seen(*q.shape))
    for ref, value in zip((out_ref, peak_ref, total_ref), seen, strict=True):
        ref[...] = value


def slot_decode(
    q: Float[Array, "B N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    lengths: Int[Array, " B"],
    *,
    window: int | None = None,
    platform: Platform,
    interpret: bool = False,
) -> Float[Array, "B N H"]:
    """One query per slot over the first `lengths` (>= 1) cached tokens, or the last `window`.

    tpu: einsum, which is bound by the cache's way through HBM as a kernel would be.
        Compiled for v5p, never executed there; the same program was executed on CPU.
    gpu: cuDNN: 16-bit floats, H at most 128 and a multiple of 8. A window is a mask of B x S:
        cuDNN's own is counted from where a causal query would be, here position 0.
        Compiled for H200 (cuDNN picks its engine when first executed), never executed there;
        `interpret` puts jax.nn's plain XLA in cuDNN's place, with the same arguments, and only
        that was executed.
    """
    B, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    at_S = jnp.arange(S)[None, :]
    near_BS = None if window is None else at_S >= lengths[:, None] - window
    if platform == "gpu":
        return jax.nn.dot_product_attention(
            q[:, None],
            k,
            v,
            mask=None if near_BS is None else near_BS[:, None, None, :],
            key_value_seq_lengths=lengths,
            implementation="xla" if interpret else "cudnn",
        )[:, 0]
    seen_BS = at_S < lengths[:, None]
    if near_BS is not None:
        seen_BS &= near_BS
    q_BKRH = q.reshape(B, K, N // K, H)
    scores_BKRS = jnp.einsum("BKRH,BSKH->BKRS", q_BKRH, k, preferred_element_type=jnp.float32)
    scores_BKRS = jnp.where(seen_BS[:, None, None, :], scores_BKRS * H**-0.5, MASKED)
    weights_BKRS = jax.nn.softmax(scores_BKRS, axis=-1).astype(v.dtype)
    out_BKRH = jnp.einsum("BKRS,BSKH->BKRH", weights_BKRS, v, preferred_element_type=jnp.float32)
    return out_BKRH.reshape(B, N, H).astype(q.dtype)


def packed_prefill(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    *,
    window: int | None = None,
    platform: Platform,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal attention within each completion of a packed row. Has gradients.

    A completion's tokens are neighbours, in order. What padding (segment 0) gets is finite and
    means nothing: it sees earlier padding, where the reference averages over the whole row.

    tpu: splash attention; T a multiple of 128. Forward and backward compiled for v5p, never
        executed there; executed in interpret mode only.
    gpu: cuDNN: 16-bit floats, H at most 128 and a multiple of 8. The segments are a mask of
        B x T x T in memory, which limits T. Forward and backward compiled for H200, never
        executed there; `interpret` as in `slot_decode`, and only that was executed.
    """
    if platform == "gpu":
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=(segments[:, :, None] == segments[:, None, :])[:, None],
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="xla" if interpret else "cudnn",
        )
    T, N, H = q.shape[1:]
    attend = _splash(T, N, window, interpret)

    def row(q: Array, k: Array, v: Array, segments: Array) -> Array:
        return attend(q, k, v, segment_ids=splash.SegmentIds(segments, segments))

    # Splash does not scale its scores.
    scaled = (q * H**-0.5).transpose(0, 2, 1, 3)
    out = jax.vmap(row)(scaled, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), segments)
    return out.transpose(0, 2, 1, 3)


def _splash(tokens: int, heads: int, window: int | None, interpret: bool) -> Any:
    """The kernel for one row: q [N T H], k and v [K T H]."""
    shape = (tokens, tokens)
    mask = (
        splash_mask.CausalMask(shape)
        if window is None
        else splash_mask.LocalMask(shape, (window - 1, 0), offset=0)
    )
    block = next((size for size in (512, 256) if tokens % size == 0), 128)
    of = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: Any = {f"block_{name}": block for name in of}
    return splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
