"""Rows read alone are the rows of the whole, as gguf itself dequantises the whole."""

import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from magistral_jax.model.gguf_file import read_header, read_tensor

QUANTISED_HERE = [
    *(Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0),
    *(Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1),
]
# gguf only reads these. Where a block of each keeps its scales: float16 numbers, which random
# bytes would make infinite.
SCALES = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
ROWS = [
    *(slice(None), slice(0, 1), slice(2, 5), slice(4, None), slice(-2, None), slice(None, -3)),
    *(slice(3, 3), slice(5, 2), slice(4, 99), slice(99, None)),
]


def raw_rows(rng, kind, shape):
    """The bytes of random numbers of that shape, [..., bytes of a line]."""
    if kind in QUANTISED_HERE:
        return gguf.quants.quantize(rng.standard_normal(shape).astype(np.float32), kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = shape[-1] // block
    raw = rng.integers(0, 256, (*shape[:-1], blocks, block_bytes), np.uint8)
    for place in SCALES[kind]:
        scale = rng.standard_normal((*shape[:-1], blocks, 1)).astype(np.float16)
        raw[..., place : place + 2] = scale.view(np.uint8)
    return raw.reshape(*shape[:-1], blocks * block_bytes)


def write(path, tensors):
    """A file of these tensors, {name: (raw bytes, kind)}."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (raw, kind) in tensors.items():
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", [*QUANTISED_HERE, *SCALES], ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(7, 512), (7, 3, 256)])
def test_rows_read_alone_are_the_rows_of_the_whole(shape, kind, rng, tmp_path):
    before, raw = raw_rows(rng, kind, shape), raw_rows(rng, kind, shape)
    # Not the first tensor: its rows are counted from its own start.
    path = write(tmp_path / "net.gguf", {"before": (before, kind), "w": (raw, kind)})
    whole = gguf.quants.dequantize(raw, kind)
    assert whole.shape == shape and np.isfinite(whole).all()
    tensor = read_header(path).tensors["w"]
    for rows in ROWS:
        found = read_tensor(tensor, rows)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, whole[rows], err_msg=str(rows), strict=True)
    np.testing.assert_array_equal(read_tensor(tensor), whole, strict=True)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0], ids=lambda kind: kind.name)
def test_a_tensor_of_one_axis_is_cut_even_inside_a_block(kind, rng, tmp_path):
    raw = raw_rows(rng, kind, (64,))
    path = write(tmp_path / "net.gguf", {"w": (raw, kind)})
    whole = gguf.quants.dequantize(raw, kind)
    tensor = read_header(path).tensors["w"]
    for rows in [slice(None), slice(3, 40), slice(5, 5)]:
        np.testing.assert_array_equal(read_tensor(tensor, rows), whole[rows], strict=True)


def test_only_the_rows_asked_for_are_in_memory(tmp_path):
    raw = gguf.quants.quantize(np.ones((1000, 1024), np.float32), Kind.F16)
    path = write(tmp_path / "net.gguf", {"w": (raw, Kind.F16)})
    tensor = read_header(path).tensors["w"]
    tracemalloc.start()
    try:
        read_tensor(tensor, slice(500, 510))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stored, cast = 10 * 1024 * 2, 10 * 1024 * 4
    assert peak < stored + cast + 20_000


def test_rows_with_gaps_are_no_rows(tmp_path):
    path = write(tmp_path / "net.gguf", {"w": (np.ones((4, 4), np.float32), Kind.F32)})
    with pytest.raises(AssertionError):
        read_tensor(read_header(path).tensors["w"], slice(0, 4, 2))
