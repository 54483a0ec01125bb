"""What a .gguf file holds: metadata, and where each tensor lies; read strictly.

Every count and length is checked against the bytes left in the file before it is believed, so a
truncated or damaged file is refused before any tensor is read. (gguf's own reader trusts them,
and takes seconds to walk a vocabulary.)

    magic "GGUF" · version · tensor count · metadata count
    metadata: name, type, value · tensors: name, shape, type, offset · padding · tensor data
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from jaxtyping import Float32

from magistral_jax.types import UserError

_VERSIONS = (2, 3)
_MOST_AXES = 4
_DEFAULT_ALIGNMENT = 32
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor in the file: what it is and which bytes hold it."""

    name: str
    shape: tuple[int, ...]
    """In numpy's order, slowest axis first: [out, in] for a linear layer."""
    kind: GGMLQuantizationType
    start: int
    """First byte, counted from the start of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Header:
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    """By name, in the file's order."""


def read_header(path: Path) -> Header:
    """Metadata and tensors of a whole GGUF file; anything less than whole is a `UserError`."""
    with path.open("rb") as stream:
        cursor = _Cursor(stream, path)
        if cursor.bytes(4) != b"GGUF":
            raise cursor.refusal("it does not begin with the letters GGUF")
        (version,) = cursor.unpack("I")
        if version not in _VERSIONS:
            big_endian = version & 0xFFFF == 0
            what = "big-endian" if big_endian else f"of version {version}"
            raise cursor.refusal(f"it is {what}; versions 2 and 3, little-endian, can be read")
        tensor_count, metadata_count = cursor.unpack("QQ")
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = cursor.text()
            if key in metadata:
                raise cursor.refusal(f"its metadata names {key} twice")
            metadata[key] = cursor.value()
        described = [_describe(cursor) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise cursor.refusal(f"its general.alignment is {alignment!r}")
        data_start = -(-cursor.place // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for name, shape, kind, offset in described:
            if name in tensors:
                raise cursor.refusal(f"tensor {name} is in it twice")
            tensors[name] = _locate(cursor, name, shape, kind, data_start + offset)
    return Header(metadata=metadata, tensors=tensors)


def read_tensor(
    path: Path, tensor: StoredTensor, rows: slice = slice(None)
) -> Float32[np.ndarray, "..."]:
    """Those rows of the tensor's first axis, dequantised to float32; no others are read.

    Blocks run along the last axis, so a tensor of one axis has no rows that stand alone: it is
    read whole, and cut.
    """
    first, last, step = rows.indices(tensor.shape[0])
    assert step == 1, rows
    if first >= last:
        # gguf cannot dequantise nothing.
        return np.empty((0, *tensor.shape[1:]), np.float32)
    if len(tensor.shape) == 1:
        return _dequantised(path, tensor, 0, tensor.shape[0])[rows]
    return _dequantised(path, tensor, first, last)


def _dequantised(
    path: Path, tensor: StoredTensor, first: int, last: int
) -> Float32[np.ndarray, "..."]:
    """Rows `first` to `last`, which are whole blocks."""
    shape = (last - first, *tensor.shape[1:])
    # Multiplied first: the one line of a tensor of one axis is not made of so many equal rows.
    skipped, end = (row * tensor.size // tensor.shape[0] for row in (first, last))
    raw = np.fromfile(path, np.uint8, count=end - skipped, offset=tensor.start + skipped)
    try:
        array = dequantize(raw.reshape(*shape[:-1], -1), tensor.kind)
    except NotImplementedError:
        raise UserError(
            f"model.source: tensor {tensor.name} of {path} is stored as {tensor.kind.name}, "
            "which gguf cannot dequantise. Use a file in another quantisation."
        ) from None
    assert array.shape == shape, (tensor, array.shape)
    return array


Description = tuple[str, tuple[int, ...], int, int]


def _describe(cursor: "_Cursor") -> Description:
    """Name, shape, kind and offset of the next tensor."""
    name = cursor.text()
    (axes,) = cursor.unpack("I")
    if not 1 <= axes <= _MOST_AXES:
        raise cursor.refusal(f"tensor {name} has {axes} axes")
    # The file names the fastest axis first.
    shape = cursor.unpack(f"{axes}Q")[::-1]
    kind, offset = cursor.unpack("IQ")
    return name, shape, kind, offset


def _locate(
    cursor: "_Cursor", name: str, shape: tuple[int, ...], kind: int, start: int
) -> StoredTensor:
    try:
        known = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        raise cursor.refusal(f"tensor {name} has unknown type {kind}") from None
    if math.prod(shape) == 0 or shape[-1] % block != 0:
        raise cursor.refusal(f"tensor {name} of shape {shape} is not made of blocks of {block}")
    size = math.prod(shape) // block * block_bytes
    if start + size > cursor.size:
        raise cursor.refusal(f"tensor {name} would end at byte {start + size}")
    return StoredTensor(name=name, shape=shape, kind=known, start=start, size=size)


class _Cursor:
    """Reads forward through the header and never past the end of the file."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self.size = path.stat().st_size
        self.place = 0

    def refusal(self, why: str) -> UserError:
        return UserError(
            f"model.source: {self._path} ({self.size} bytes) is not a whole GGUF file that can "
            f"be read: {why}. Fetch it again, or name another file."
        )

    def bytes(self, count: int) -> bytes:
        if count > self.size - self.place:
            raise self.refusal(f"it ends inside its header, {count} bytes short of the next field")
        self.place += count
        return self._stream.read(count)

    def unpack(self, layout: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))

    def text(self) -> str:
        (length,) = self.unpack("Q")
        return self.bytes(length).decode("utf-8", "replace")

    def value(self) -> Any:
        """The next metadata value: a number, a text, or a list of either."""
        (kind,) = self.unpack("I")
        if kind != GGUFValueType.ARRAY:
            return self._values(kind, 1)[0]
        kind, count = self.unpack("IQ")
        return self._values(kind, count)

    def _values(self, kind: int, count: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.refusal(f"its metadata holds a value of unknown type {kind}")
        code = _SCALARS[GGUFValueType(kind)]
        # struct refuses a repeat count that does not fit a machine word, so check before it does.
        if count > self.size:
            raise self.refusal(f"its metadata promises a list of {count} values")
        return list(self.unpack(f"{count}{code}"))
