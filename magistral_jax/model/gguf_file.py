"""What a .gguf file holds: metadata, and where each tensor lies; read strictly.

Every count and length is checked against the bytes left in the file before it is believed, so a
truncated or damaged file is refused before any tensor is read. (gguf's own reader trusts them,
and takes seconds to walk a vocabulary.) A network split over several files is named by its first,
and read from all of them, as llama.cpp does.

    magic "GGUF" · version · tensor count · metadata count
    metadata: name, type, value · tensors: name, shape, type, offset · padding · tensor data
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from jaxtyping import Float32

from magistral_jax.types import UserError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_LISTED = 8
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
    path: Path
    """The file, which may be one part of several."""
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
    """Metadata, and the tensors of all parts; anything less than whole is a `UserError`.

    Of a split network `path` is the first part, which holds the metadata.
    """
    first = _read_file(path)
    count, name = first.metadata.get("split.count", 1), _PART.fullmatch(path.name)
    if count == 1 and (name is None or int(name["count"]) <= 1):
        return first
    if name is None or int(name["count"]) != count or _number(first) != int(name["number"]):
        raise _split_refusal(
            path,
            f"its metadata says part {_number(first)} of {count}, which is what its name must end "
            "in, as in net-00001-of-00003.gguf. Give it the name it was made under",
        )
    if int(name["number"]) != 1:
        raise _split_refusal(path, f"it is part {_number(first)} of {count}. Name the first")
    paths = [
        path.with_name(f"{name['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)
    ]
    lost = [part.name for part in paths if not part.is_file()]
    if lost:
        listed = ", ".join([*lost[:_LISTED], *(["..."] if len(lost) > _LISTED else [])])
        raise _split_refusal(path, f"of its {count} parts {listed} are not beside it. Fetch them")
    return _joined(path, first, paths)


def _joined(path: Path, first: Header, others: list[Path]) -> Header:
    tensors = dict(first.tensors)
    for number, other in enumerate(others, 2):
        part = _read_file(other)
        if _number(part) != number or part.metadata["split.count"] != len(others) + 1:
            raise _split_refusal(other, f"it is not part {number} of {len(others) + 1}")
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise _split_refusal(other, f"it holds {min(twice)}, as a part before it does")
        tensors |= part.tensors
    promised = first.metadata.get("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise _split_refusal(path, f"its parts hold {len(tensors)} of {promised} tensors")
    return Header(metadata=first.metadata, tensors=tensors)


def _number(part: Header) -> int:
    """Which part of a split network this is, counted from 1; 0: none."""
    number = part.metadata.get("split.no")
    return number + 1 if isinstance(number, int) and "split.count" in part.metadata else 0


def _split_refusal(path: Path, why: str) -> UserError:
    return UserError(
        f"model.source: {path} is a part of a split network that cannot be read: {why}, or name "
        "another file."
    )


def _read_file(path: Path) -> Header:
    """Metadata and tensors of this one file."""
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


def read_tensor(tensor: StoredTensor, rows: slice = slice(None)) -> Float32[np.ndarray, "..."]:
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
        return _dequantised(tensor, 0, tensor.shape[0])[rows]
    return _dequantised(tensor, first, last)


def _dequantised(tensor: StoredTensor, first: int, last: int) -> Float32[np.ndarray, "..."]:
    """Rows `first` to `last`, which are whole blocks."""
    shape = (last - first, *tensor.shape[1:])
    # Multiplied first: the one line of a tensor of one axis is not made of so many equal rows.
    skipped, end = (row * tensor.size // tensor.shape[0] for row in (first, last))
    raw = np.fromfile(tensor.path, np.uint8, count=end - skipped, offset=tensor.start + skipped)
    try:
        array = dequantize(raw.reshape(*shape[:-1], -1), tensor.kind)
    except NotImplementedError:
        raise UserError(
            f"model.source: tensor {tensor.name} of {tensor.path} is stored as {tensor.kind.name}, "
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
    return StoredTensor(
        name=name, shape=shape, kind=known, path=cursor.path, start=start, size=size
    )


class _Cursor:
    """Reads forward through the header and never past the end of the file."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self.path = path
        self.size = path.stat().st_size
        self.place = 0

    def refusal(self, why: str) -> UserError:
        return UserError(
            f"model.source: {self.path} ({self.size} bytes) is not a whole GGUF file that can "
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
