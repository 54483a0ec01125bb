"""A question to another process and its answer, through two pipes that do not block.

The pool, its servers and the sandbox share it, so it imports nothing of the package.
"""

import os
import select
import time
from collections.abc import Callable

_CHUNK = 1 << 16


def exchange(
    to: int,
    back: int,
    message: bytes,
    *,
    is_whole: Callable[[bytearray], bool],
    left: Callable[[], float],
    most: int,
) -> bytes:
    """What comes back while `message` is being fed, up to where it is whole.

    Reads and writes at once, so neither side waits for the other with its pipe full. `left` says
    for how long to wait before it is asked again, and raises what it likes when time is up. Raises
    EOFError if the other side has ended or says more than `most` bytes.
    """
    unsent, received = memoryview(message), bytearray()
    poll = select.poll()
    poll.register(back, select.POLLIN)
    if unsent:
        poll.register(to, select.POLLOUT)
    while not is_whole(received):
        for fd, _ in poll.poll(1000 * left()):
            if fd == back:
                chunk = os.read(back, _CHUNK)
                received += chunk
                if not chunk or len(received) > most:
                    raise EOFError("the other side has " + ("ended" if not chunk else "no end"))
                continue
            try:
                unsent = unsent[os.write(to, unsent) :]
            except BrokenPipeError:
                raise EOFError("the other side does not listen") from None
            if not unsent:
                poll.unregister(to)
    return bytes(received)


def is_line(received: bytearray) -> bool:
    return received.endswith(b"\n")


def until(deadline: float) -> Callable[[], float]:
    """Seconds left before a moment of time.monotonic(), for `exchange`."""

    def left() -> float:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no answer in time")
        return seconds

    return left
