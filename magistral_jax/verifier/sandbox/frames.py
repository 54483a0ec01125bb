"""Messages on a pipe: a JSON header and blobs of bytes. Both ends use this file.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import json
import os
import struct

_SIZES = struct.Struct(">IQ")


def pack(header: dict, blobs: list[bytes]) -> bytes:
    """One message. The header gains the blobs' sizes under "sizes"."""
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    return b"".join([_SIZES.pack(len(text), sum(map(len, blobs))), text, *blobs])


def size_of(data: bytes | bytearray) -> int | None:
    """The length of the message that `data` starts, once enough of it is there to tell."""
    if len(data) < _SIZES.size:
        return None
    text, blobs = _SIZES.unpack_from(data)
    return _SIZES.size + text + blobs


def unpack(data: bytes | bytearray) -> tuple[dict, list[bytes]]:
    """The header and the blobs of a complete message."""
    length, _ = _SIZES.unpack_from(data)
    at = _SIZES.size + length
    header = json.loads(data[_SIZES.size : at])
    blobs = []
    for size in header["sizes"]:
        blobs.append(bytes(data[at : at + size]))
        at += size
    return header, blobs


def read(fd: int) -> tuple[dict, list[bytes]]:
    """The next message of a blocking pipe. Raises EOFError if the pipe ends first."""
    data = bytearray()
    while (size := size_of(data)) is None or len(data) < size:
        wanted = _SIZES.size - len(data) if size is None else min(size - len(data), 1 << 20)
        chunk = os.read(fd, wanted)
        if not chunk:
            raise EOFError
        data += chunk
    return unpack(data)


def write(fd: int, data: bytes) -> None:
    """All of `data` into a blocking pipe."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
