"""What a folder of Hugging Face safetensors holds, read strictly, and written.

Every length, range and name is checked before any tensor is read, and no length is believed
before the file is seen to be that long: a folder that is cut, damaged or made to deceive is
refused in one message.

    header length (u64) · header: JSON, name -> dtype, shape, data_offsets · tensor data
"""

import json
import math
import os
import re
import reprlib
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from magistral_jax.types import UserError

Made = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]
"""A tensor to be written: its name, its shape, and what makes it."""

_DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_METADATA = "__metadata__"
_ALIGNMENT = 8
_MOST_HEADER = 100_000_000
"""Bytes of JSON, as in the safetensors library: parsing takes many times that in memory."""
_MOST_AXES = 8
_SHARD = re.compile(r"(?!.*\.\.)[\w.+ -]+\.safetensors", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LISTED = 8
# What a file says is shown as Python writes it, and cut: it may hold a megabyte, or a control code.
_shown = reprlib.Repr(maxlevel=2, maxdict=4, maxlist=8, maxstring=200, maxlong=40).repr


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of the folder: what it is, and which bytes of which file hold it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """"F32", "F16" or "BF16"."""
    path: Path
    start: int
    """First byte, counted from the start of the file."""
    size: int
    """Bytes."""


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's weights, by name, each known to lie whole in its file.

    The weights are model.safetensors, or all shards that model.safetensors.index.json names.
    Anything less than whole is a `UserError`.
    """
    index, single = folder / _INDEX, folder / _SINGLE
    try:
        if index.is_file():
            return _read_shards(index)
        if single.is_file():
            return _read_file(single)
        present = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(
            f"model.source: the weights in {folder} cannot be read ({error}). Make them readable, "
            "or name another source."
        ) from None
    raise UserError(_no_weights(folder, present))


def read_tensor(tensor: StoredTensor, rows: slice = slice(None)) -> Float32[np.ndarray, "..."]:
    """Those rows of the tensor's first axis, in float32; nothing else is read.

    Memory: the rows as they are stored, and their cast. They are read, not mapped, so that the
    page cache does not count as this process's memory.
    """
    dtype, shape, skipped = _DTYPES[tensor.dtype], tensor.shape, 0
    if shape:
        first, last, step = rows.indices(shape[0])
        assert step == 1, rows
        shape = (max(last - first, 0), *shape[1:])
        skipped = first * math.prod(shape[1:]) * dtype.itemsize
    else:
        assert rows == slice(None), (tensor, rows)
    count = math.prod(shape)
    try:
        flat = np.fromfile(tensor.path, dtype, count=count, offset=tensor.start + skipped)
    except OSError as error:
        raise _refusal(
            tensor.path, f"tensor {_shown(tensor.name)} cannot be read ({error})"
        ) from None
    if len(flat) != count:
        raise _refusal(
            tensor.path,
            f"tensor {_shown(tensor.name)} holds {len(flat)} of the expected {count} numbers: the "
            "file has changed since it was checked",
        )
    return flat.reshape(shape).astype(np.float32, copy=False)


def write_folder(
    folder: Path,
    tensors: Iterable[Made],
    *,
    dtype: Literal["F32", "BF16"],
    shard_bytes: int = 5 * 10**9,
) -> list[Path]:
    """The files written into `folder`, which others read as they read any model's weights.

    Tensors keep their order. One array exists at a time: each is made when its turn comes, cast,
    written and let go. A shard holds at most `shard_bytes`, or one tensor; several shards are
    followed by their index. Every file gets its name only when it is whole. Weights already there
    are never overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = [name for name in (_SINGLE, _INDEX) if (folder / name).exists()]
    if taken:
        raise UserError(
            f"{folder} already holds {taken[0]}; weights are not overwritten. Name another folder."
        )
    shards = _planned(list(tensors), _DTYPES[dtype].itemsize, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / _SINGLE, shards[0], dtype)
        return [folder / _SINGLE]
    paths = [
        folder / f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for path, shard in zip(paths, shards, strict=True):
        _write_file(path, shard, dtype)
    total = sum(math.prod(shape) for shard in shards for _, shape, _ in shard)
    where = {name: p.name for p, shard in zip(paths, shards, strict=True) for name, _, _ in shard}
    index = {"metadata": {"total_size": total * _DTYPES[dtype].itemsize}, "weight_map": where}
    # Last: until it is there, no reader takes the folder for a whole one.
    with _whole(folder / _INDEX) as stream:
        stream.write(json.dumps(index, indent=2).encode())
    return [*paths, folder / _INDEX]


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """The tensors of all shards, which are exactly those the index names."""
    where = _weight_map(index)
    folder, shards = index.parent, sorted(set(where.values()))
    lost = [shard for shard in shards if not (folder / shard).is_file()]
    if lost:
        raise _refusal(index, f"it names {_listed(lost)}, expected beside it, and not there")
    if _SINGLE not in shards and (folder / _SINGLE).exists():
        raise _refusal(
            index, f"{_SINGLE} lies beside it, and it does not name it: expected only one of them"
        )
    tensors: dict[str, StoredTensor] = {}
    wrong: list[str] = []
    for shard in shards:
        found = _read_file(folder / shard)
        named = {name for name, place in where.items() if place == shard}
        wrong += [f"{_shown(name)} is not in {shard}" for name in sorted(named - found.keys())]
        for name in sorted(found.keys() - named):
            place = f"expects it in {where[name]}" if name in where else "does not name it"
            wrong.append(f"{_shown(name)} is in {shard}, and the index {place}")
        tensors |= found
    if wrong:
        raise _refusal(index, "it is not the index of these shards: " + _listed(wrong))
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor, by name: a file beside the index and nowhere else."""
    size = index.stat().st_size
    if size > _MOST_HEADER:
        raise _refusal(index, f"it has {size} bytes; expected at most {_MOST_HEADER}")
    where = _object(index, index.read_bytes(), "it").get("weight_map")
    if not isinstance(where, dict) or not where:
        raise _refusal(index, f"its weight_map is {_shown(where)}; expected tensor names to files")
    for name, shard in where.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise _refusal(
                index,
                f"it places tensor {_shown(name)} in {_shown(shard)}; expected the name of a "
                ".safetensors file beside it",
            )
    return where


def _read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, in the order they lie in, without hole or overlap to its end."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        first = stream.read(8)
        if len(first) < 8:
            raise _refusal(path, f"it has {size} bytes; expected at least 8, its header's length")
        (length,) = struct.unpack("<Q", first)
        if length > _MOST_HEADER:
            raise _refusal(
                path, f"its header claims {length} bytes; expected at most {_MOST_HEADER}"
            )
        if length > size - 8:
            raise _refusal(
                path, f"its header claims {length} bytes; expected at most the {size - 8} behind it"
            )
        header = _object(path, stream.read(length), "its header")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _refusal(path, f"its {_METADATA} is {_shown(metadata)}; expected texts by name")
    data = 8 + length
    tensors = [_located(path, name, entry, data, size) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
    end = data
    for tensor in tensors:
        if tensor.start != end:
            fault = "overlaps the one before" if tensor.start < end else "leaves a hole before it"
            raise _refusal(
                path,
                f"tensor {_shown(tensor.name)} {fault}: it begins at byte {tensor.start}, "
                f"expected {end}",
            )
        end += tensor.size
    if end != size:
        raise _refusal(path, f"it has {size} bytes; expected {end}, where its last tensor ends")
    return {tensor.name: tensor for tensor in tensors}


def _located(path: Path, name: str, entry: Any, data: int, size: int) -> StoredTensor:
    """The tensor that a header's entry describes, if it can lie in a file of `size` bytes."""

    def refusal(what: str) -> UserError:
        return _refusal(path, f"tensor {_shown(name)} {what}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(f"is described by {_shown(entry)}; expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise refusal(f"has dtype {_shown(dtype)}; expected weights in {', '.join(_DTYPES)}")
    # An axis of length 0 hides the others from the product, but not from numpy.
    if not _are_counts(shape, range(_MOST_AXES + 1)) or math.prod(n or 1 for n in shape) >= 2**60:
        raise refusal(f"has shape {_shown(shape)}; expected up to {_MOST_AXES} lengths")
    if not _are_counts(offsets, range(2, 3)) or offsets[0] > offsets[1]:
        raise refusal(f"has data_offsets {_shown(offsets)}; expected its first byte and its end")
    begin, end = offsets
    if data + end > size:
        raise refusal(f"would end at byte {data + end}; expected at most the file's {size}")
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != expected:
        raise refusal(
            f"has {end - begin} bytes; expected {expected} for {dtype} of shape {_shown(shape)}"
        )
    return StoredTensor(
        name=name, shape=tuple(shape), dtype=dtype, path=path, start=data + begin, size=expected
    )


def _are_counts(values: Any, lengths: range) -> bool:
    """Whether this is a list of that many whole numbers, none negative, each below 2**60."""
    return (
        isinstance(values, list)
        and len(values) in lengths
        and all(type(n) is int and 0 <= n < 2**60 for n in values)
    )


def _object(path: Path, text: bytes, what: str) -> dict[str, Any]:
    """The JSON object that `text` is. No object in it names a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = sorted(name for name, _ in pairs)
            twice = next(a for a, b in pairwise(names) if a == b)
            raise ValueError(f"{_shown(twice)} is in it twice")
        return found

    try:
        # The format has "{" as the first byte: nothing may come before it.
        if text[:1] != b"{":
            raise ValueError(f"it begins with {text[:1]!r}")
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"{what} is not the expected JSON object ({error})") from None


def _refusal(path: Path, what: str) -> UserError:
    return UserError(
        f"model.source: {path} is no safetensors that can be read: {what}. Fetch it again, or name "
        "another source."
    )


def _no_weights(folder: Path, present: list[str]) -> str:
    intro = f"model.source: {folder} holds neither {_SINGLE} nor {_INDEX}; it holds "
    found = _listed(present) if present else "nothing"
    if any(name.endswith(_PICKLES) for name in present):
        return (
            f"{intro}{found}. Pickles can run code and are never read: convert them to "
            "safetensors, or name another source."
        )
    return f"{intro}{found}. Fetch the weights, or name another source."


def _listed(items: list[str]) -> str:
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return ", ".join([*items[:_LISTED], *more])


def _planned(tensors: list[Made], itemsize: int, shard_bytes: int) -> list[list[Made]]:
    """The tensors of each file, in their order; no file above `shard_bytes` that could be split."""
    names = {name for name, _, _ in tensors}
    assert len(names) == len(tensors) and _METADATA not in names, "a name twice, or a reserved one"
    shards: list[list[Made]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        size = math.prod(tensor[1]) * itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    return shards


def _write_file(path: Path, tensors: list[Made], dtype: str) -> None:
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    end = 0
    for name, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with _whole(path) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape, make in tensors:
            # No name is given to the array here: it must be gone before the next is made.
            stream.write(_bytes(make, name, shape, _DTYPES[dtype]))


def _bytes(
    make: Callable[[], np.ndarray], name: str, shape: tuple[int, ...], dtype: np.dtype
) -> memoryview:
    array = make()
    assert array.shape == shape, f"tensor {name} was promised as {shape} and made as {array.shape}"
    # A not-a-number is written as one: what the weights are is for whoever made them to judge.
    with np.errstate(invalid="ignore"):
        return memoryview(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8))


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes appear at `path` at once, when all are on disk, or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
