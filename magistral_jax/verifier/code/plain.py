"""Plain data between two processes that do not trust each other, and the frames it travels in.

Data is None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset,
and the built-in types themselves. What is sent of a subclass is what its base class holds, read by
the base class's own methods; what is received is of exactly these types, so no method of the
sender's comes along. Everything else travels as a handle: a number that stands for an object which
stays where it is.

Stdlib only, and imports nothing of this package: it runs in the sandbox, beside serve.py and
tester.py.
"""

import builtins
import json
import os

MAX_BYTES = 8_000_000
MAX_DEPTH = 100
_SMALL = 1 << 62


class Refused(Exception):
    """This value cannot be sent, or what came is not what was agreed."""


class Link:
    """Frames over two descriptors. A frame is four bytes of length and that much JSON."""

    def __init__(self, write_fd, read_fd):
        self._write_fd = write_fd
        self._read_fd = read_fd

    def send(self, message):
        data = json.dumps(message).encode("ascii")
        if len(data) > MAX_BYTES:
            raise Refused(f"too large: {len(data)} bytes")
        rest = memoryview(len(data).to_bytes(4, "big") + data)
        while rest:
            rest = rest[os.write(self._write_fd, rest) :]

    def receive(self):
        """The next frame. Raises EOFError at the end, Refused for what is no frame."""
        length = int.from_bytes(self._read(4), "big")
        if length > MAX_BYTES:
            raise Refused(f"a frame of {length} bytes")
        try:
            return json.loads(self._read(length))
        except (ValueError, RecursionError):
            raise Refused("a frame that is no JSON") from None

    def _read(self, length):
        data = bytearray()
        while len(data) < length:
            chunk = os.read(self._read_fd, min(length - len(data), 1 << 16))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)


def encode(value, handle, depth=0):
    """The value as JSON. `handle(value)` gives the number of what is no data, or raises Refused."""
    if depth > MAX_DEPTH:
        raise Refused("nested too deeply")
    if value is None or value is True or value is False:
        return value
    kind = type(value).__mro__
    if int in kind:
        value = int.__int__(value)
        return value if -_SMALL < value < _SMALL else ["n", hex(value)]
    if float in kind:
        return ["f", float.hex(value)]
    if str in kind:
        return str.__str__(value)
    if complex in kind:
        value = complex.__add__(value, 0j)
        return ["c", value.real.hex(), value.imag.hex()]
    for tag, base in (("b", bytes), ("y", bytearray)):
        if base in kind:
            return [tag, base.hex(value)]
    for tag, base in (("l", list), ("t", tuple), ("s", set), ("z", frozenset)):
        if base in kind:
            return [tag, *(encode(item, handle, depth + 1) for item in base.__iter__(value))]
    if dict in kind:
        items = [part for pair in dict.items(value) for part in pair]
        return ["d", *(encode(item, handle, depth + 1) for item in items)]
    if type in kind and getattr(builtins, value.__name__, None) is value:
        return ["k", value.__name__]
    return ["h", handle(value)]


def decode(data, handle, depth=0):
    """The value again. `handle(number)` gives what stands for an object of the other side.

    Raises Refused for anything that `encode` does not make.
    """
    if data is None or isinstance(data, bool | int | str):
        return data
    if not (isinstance(data, list) and data and isinstance(data[0], str)) or depth > MAX_DEPTH:
        raise Refused("not plain data")
    tag, *parts = data
    try:
        if tag == "n":
            return int(parts[0], 16)
        if tag == "f":
            return float.fromhex(parts[0])
        if tag == "c":
            return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
        if tag == "b":
            return bytes.fromhex(parts[0])
        if tag == "y":
            return bytearray.fromhex(parts[0])
        if tag == "k":
            return _builtin_type(parts[0])
        if tag == "h" and type(parts[0]) is int:
            return handle(parts[0])
        items = [decode(part, handle, depth + 1) for part in parts]
        if tag == "d":
            return dict(zip(items[::2], items[1::2], strict=True))
        return {"l": list, "t": tuple, "s": set, "z": frozenset}[tag](items)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError):
        raise Refused("not plain data") from None


def _builtin_type(name):
    kind = getattr(builtins, name)
    if type(kind) is not type:
        raise TypeError
    return kind
