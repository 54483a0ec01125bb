"""Accelerator attention: equal to `attention.py` in interpret mode, and compiled for v5p and H200.

Run as a program, `test_kernels.py tpu` or `gpu` compiles all of it ahead of time, and prints what
each program takes as a line of JSON.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AxisType, Mesh, NamedSharding

from magistral_jax.model import kernels
from magistral_jax.model.attention import cached_attention, grouped_attention, packed_mask
from magistral_jax.model.kernels import packed_prefill, paged_decode, slot_decode
from magistral_jax.model.sharding import make_mesh

ATOL = {"float32": 2e-6, "bfloat16": 2e-2}
PLATFORMS = ("tpu", "gpu")
K, H, PAGE, PAGES = 2, 32, 16, 5
LENGTHS = np.array([1, PAGE, PAGE + 1, 50, PAGE * PAGES], np.int32)

on_each_platform = pytest.mark.parametrize("platform", PLATFORMS)
with_windows = pytest.mark.parametrize("window", [None, 1, PAGE, 21])


def normals(rng, *shape, dtype="float32"):
    return jnp.asarray(rng.normal(size=shape), dtype)


def slots(rng, heads=8, dtype="float32"):
    """Queries [B N H], keys and values [B S K H], and lengths [B]."""
    B, S = len(LENGTHS), PAGE * PAGES
    cached = (normals(rng, B, S, K, H, dtype=dtype) for _ in range(2))
    return normals(rng, B, heads, H, dtype=dtype), *cached, jnp.asarray(LENGTHS)


def reference_decode(q, k, v, lengths, window):
    return cached_attention(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), lengths, window)


def paged(rng, k, v, window):
    """The same tokens in shuffled pages. Whatever must not be read lies in page 0: not a number."""
    B = len(LENGTHS)
    table = 1 + rng.permutation(B * PAGES).reshape(B, PAGES).astype(np.int32)
    start = np.arange(PAGES) * PAGE
    first = LENGTHS - (window or PAGE * PAGES)
    is_dead = (start >= LENGTHS[:, None]) | (start + PAGE <= first[:, None])

    def pool(x):
        tiles = x.reshape(B, PAGES, PAGE, K, H).transpose(0, 1, 3, 2, 4)
        return jnp.full((1 + B * PAGES, K, PAGE, H), jnp.nan, x.dtype).at[table].set(tiles)

    return pool(k), pool(v), jnp.asarray(np.where(is_dead, 0, table))


def agree(out, want, dtype="float32"):
    assert out.dtype == want.dtype == dtype
    out, want = (np.asarray(x.astype(jnp.float32)) for x in (out, want))
    np.testing.assert_allclose(out, want, rtol=0, atol=ATOL[dtype])


@on_each_platform
@with_windows
def test_paged_decode_equals_the_reference(rng, platform, window):
    q, k, v, lengths = slots(rng)
    k_pages, v_pages, table = paged(rng, k, v, window)
    out = paged_decode(
        q, k_pages, v_pages, lengths, table, window=window, platform=platform, interpret=True
    )
    agree(out, reference_decode(q, k, v, lengths, window))


@on_each_platform
@pytest.mark.parametrize("heads, dtype", [(2, "float32"), (6, "float32"), (8, "bfloat16")])
def test_any_number_of_query_heads_and_bfloat16(rng, platform, heads, dtype):
    q, k, v, lengths = slots(rng, heads, dtype)
    k_pages, v_pages, table = paged(rng, k, v, None)
    out = paged_decode(q, k_pages, v_pages, lengths, table, platform=platform, interpret=True)
    agree(out, reference_decode(q, k, v, lengths, None), dtype)


@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize(
    "platform, setting, value",
    [
        ("tpu", "TPU_STEP_PAGES", 1),
        ("tpu", "TPU_STEP_PAGES", 2),
        ("tpu", "TPU_STEP_BYTES", 1),
        ("gpu", "TRITON_PROGRAMS", 1),
        ("gpu", "TRITON_PROGRAMS", len(LENGTHS) * K * 2),
    ],
)
def test_a_slot_in_any_number_of_steps(rng, monkeypatch, platform, setting, value, window):
    """Five pages in steps of one or two; in one split or two."""
    monkeypatch.setattr(kernels, setting, value)
    test_paged_decode_equals_the_reference(rng, platform, window)


@with_windows
def test_a_tpu_fetches_live_pages_only(window):
    """In three steps of two pages, of which a slot has five at most."""
    table = jnp.arange(len(LENGTHS) * PAGES)
    for slot, length in enumerate(LENGTHS):
        places = [partial(kernels._tpu_place, (2, each, PAGES, PAGE, window)) for each in (0, 1)]
        steps = [place(slot, i, LENGTHS, table) for i in range(3) for place in places]
        first, last = max(length - (window or length), 0) // PAGE, (length - 1) // PAGE
        assert {int(page) - slot * PAGES for page, *_ in steps} == set(range(first, last + 1))


@on_each_platform
@with_windows
def test_slot_decode_equals_the_reference(rng, platform, window):
    q, k, v, lengths = slots(rng)
    behind = (np.arange(PAGE * PAGES) >= LENGTHS[:, None])[:, :, None, None]
    k, v = jnp.where(behind, 1e4, k), jnp.where(behind, -1e4, v)
    out = slot_decode(q, k, v, lengths, window=window, platform=platform, interpret=True)
    agree(out, reference_decode(q, k, v, lengths, window))


def packed(rng, tokens=384):
    """Two rows: completions of unequal lengths with padding between; one token, then a long one."""
    segments = np.zeros((2, tokens), np.int32)
    segments[0, :150], segments[0, 152:200], segments[0, 200:370] = 1, 2, 3
    segments[1, 0], segments[1, 1:] = 1, 2
    starts = np.array([[0, 0, 152, 200], [0, 0, 1, 0]])
    positions = np.arange(tokens) - np.take_along_axis(starts, segments, 1)
    q = normals(rng, 2, tokens, 6, H)
    k, v = (normals(rng, 2, tokens, K, H) for _ in range(2))
    return (q, k, v), jnp.asarray(segments), jnp.asarray(positions, jnp.int32)


def reference_packed(q, k, v, segments, positions, window):
    mask = packed_mask(segments, positions)
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return grouped_attention(q, k, v, mask)


def one_device():
    """What the reference's shardings refer to."""
    return jax.set_mesh(make_mesh(jax.devices(), fsdp=1, tp=1))


@on_each_platform
@with_windows
def test_packed_prefill_equals_the_reference(rng, platform, window):
    qkv, segments, positions = packed(rng)
    with strictness_off():
        out = packed_prefill(*qkv, segments, window=window, platform=platform, interpret=True)
    assert np.isfinite(out).all()
    is_real = np.asarray(segments > 0)
    with one_device():
        want = reference_packed(*qkv, segments, positions, window)
    agree(out[is_real], want[is_real])


@on_each_platform
def test_packed_gradients_equal_the_reference(rng, platform):
    window = 40
    qkv, segments, positions = packed(rng)
    pull = normals(rng, *qkv[0].shape) * (segments > 0)[:, :, None, None].astype(jnp.float32)

    def ours(*qkv):
        return packed_prefill(*qkv, segments, window=window, platform=platform, interpret=True)

    def theirs(*qkv):
        return reference_packed(*qkv, segments, positions, window)

    with strictness_off():
        grads = jax.vjp(ours, *qkv)[1](pull)
    with one_device():
        wanted = jax.vjp(theirs, *qkv)[1](pull)
    for grad, want in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad, want, rtol=0, atol=1e-5)


@contextlib.contextmanager
def strictness_off():
    """jax's own splash attention adds numbers of unlike kinds."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4814848000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150121545728 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 2 }
runtime_version { major: 12 minor: 9 patch: 0 }
"""
NEEDS = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "nvidia", "nvidia.cudnn")}
CALLS = {
    "tpu": {"paged": "tpu_custom_call", "packed": "tpu_custom_call"},
    "gpu": {"paged": "__gpu$xla.gpu.triton", "slot": "__cudnn$fmha", "packed": "__cudnn$fmha"},
}


@on_each_platform
def test_everything_compiles_ahead_of_time(platform):
    """No kernel is lost on the way, and none costs a copy of the cache."""
    for name in NEEDS[platform]:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"compiling for {platform} needs the package {name}")
    repo = Path(__file__).resolve().parents[2]
    here = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": str(repo)}
    command = [sys.executable, __file__, platform]
    done = subprocess.run(
        command,
        env=os.environ | here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    programs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(programs) == 9
    for program in programs:
        kind = program["name"].split()[0]
        assert CALLS[platform].get(kind, "") in program["text"], program["name"]
        if kind != "packed":
            assert program["temp_mb"] < program["arguments_mb"] / 4, program["name"]


def compile_everything(platform):
    """A device's share of a 24B model's heads, four devices, as the engine calls them."""
    backend, what = {
        "tpu": ("tpu", {"topology_name": "v5p:2x2x1"}),
        "gpu": ("cuda", {"topology": "1x1x4", "target_config": H200}),
    }[platform]
    topology = topologies.get_topology_desc(platform=backend, **what)
    mesh = Mesh(np.array(topology.devices).ravel(), ("tp",), axis_types=(AxisType.Explicit,))
    # Triton asks which GPU it compiles for; where there is one, it asks that.
    kind = topology.devices[0].device_kind
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=backend)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh.update(abstract_device=device)):
        for name, function, out_spec, arguments in programs_of(platform):
            specs = tuple(spec for _, spec, _ in arguments)
            local = jax.shard_map(function, in_specs=specs, out_specs=out_spec, check_vma=False)
            shapes = [
                jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
                for shape, spec, dtype in arguments
            ]
            start = time.perf_counter()
            program = jax.jit(local).lower(*shapes).compile()
            memory = program.memory_analysis()
            row = {
                "name": name,
                "seconds": round(time.perf_counter() - start, 2),
                "temp_mb": round(memory.temp_size_in_bytes / 1e6, 2),
                "arguments_mb": round(memory.argument_size_in_bytes / 1e6, 2),
                "text": program.as_text(),
            }
            print(json.dumps(row))


def programs_of(platform):
    """(name, function, spec of what it returns, [(shape, spec, dtype) of each argument])."""
    B, S, N, K, H, page, T = 64, 8192, 32, 8, 128, 64, 8192
    q = ((B, N, H), P(None, "tp", None), jnp.bfloat16)
    pool = ((B * S // page, K, page, H), P(None, "tp", None, None), jnp.bfloat16)
    slot = ((B, S, K, H), P(None, None, "tp", None), jnp.bfloat16)
    lengths, table = ((B,), P(None), jnp.int32), ((B, S // page), P(None, None), jnp.int32)
    row_q, row_kv = (
        ((1, T, heads, H), P(None, None, "tp", None), jnp.bfloat16) for heads in (N, K)
    )
    row = [row_q, row_kv, row_kv, ((1, T), P(None, None), jnp.int32)]

    # Three queries to a key: no power of two. Eight heads to a device, in float32: much VMEM.
    wide_q, wide = ((B, 96, H), q[1], jnp.float32), ((256, 32, 128, H), pool[1], jnp.float32)
    decode = partial(paged_decode, platform=platform)
    yield "paged wide", decode, q[1], [wide_q, wide, wide, lengths, table]

    for window in (None, 4096):
        each = {"window": window, "platform": platform}
        prefill = partial(packed_prefill, **each)

        def backward(q, k, v, segments, prefill=prefill):
            out, back = jax.vjp(lambda *qkv: prefill(*qkv, segments), q, k, v)
            return back(out)

        decode, slots = partial(paged_decode, **each), partial(slot_decode, **each)
        yield f"paged {window}", decode, q[1], [q, pool, pool, lengths, table]
        yield f"slot {window}", slots, q[1], [q, slot, slot, lengths]
        yield f"packed {window}", prefill, row_q[1], row
        yield f"packed {window} backward", backward, row_q[1], row


if __name__ == "__main__":
    compile_everything(sys.argv[1])
