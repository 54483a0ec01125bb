"""Where a process that hangs is: it writes its stack when asked by a signal, the kernel the rest.

A file without a name, made by the pool, takes the stacks: neither what is judged nor what a program
in the sandbox prints can be mistaken for them.
"""

import faulthandler
import os
import re
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_LOOK_S = 0.05
_MOST_BYTES = 100_000
_INNERMOST = 4


def tell_when_asked(fd: int) -> None:
    """Write the stacks of this process to `fd` whenever asked. Forks do the same; programs that
    they start do not get the descriptor."""
    os.set_inheritable(fd, False)
    faulthandler.register(signal.SIGUSR1, file=fd, all_threads=True)


class Stacks:
    """The file in which one server after another, and its judge, say where they are."""

    def __init__(self) -> None:
        self._fd, path = tempfile.mkstemp()
        os.unlink(path)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def ask(self, server: int, within_s: float) -> str:
        """In one line where the server and its judge are; below it, all that they wrote.

        Only for a server that is not waited for yet, and that is killed afterwards.
        """
        facts = _facts(server)
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGSTOP)  # else its judge's number might soon be another's
        judges = _children(server)
        share_s = within_s / (1 + len(judges))
        told = [(f"its judge {pid}", _facts(pid), self._written(pid, share_s)) for pid in judges]
        told.insert(0, ("it", facts, self._written(server, share_s)))
        line = "; ".join(f"{who}{fact} {_place(text)}" for who, fact, text in told)
        below = [f"{who}:\n{text}" for who, _, text in told if text]
        return "\n".join([line, *below]).rstrip().replace("\n", "\n  ")

    def _written(self, pid: int, within_s: float) -> str:
        """What a process writes when asked; empty if it does not."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)  # theirs, too: it is one open file
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGUSR1)
        end, before, text = time.monotonic() + within_s, b"", b""
        while time.monotonic() < end and not (text and text == before):
            time.sleep(_LOOK_S)
            before, text = text, os.pread(self._fd, _MOST_BYTES, 0)
        return text.decode("utf-8", "replace")


def _place(text: str) -> str:
    """The newest calls of the thread that was asked, newest first."""
    calls = re.findall(r'File "(.+)", line (\d+) in (.+)', text.rpartition("Current thread")[2])
    places = [f"{name} ({Path(file).name}:{line})" for file, line, name in calls[:_INNERMOST]]
    return "hangs in " + " <- ".join(places) if places else "cannot be asked where it hangs"


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _facts(pid: int) -> str:
    """What the kernel says of a process, like " (sleeping in pipe_read)"; nothing if nothing."""
    state = at = ""
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        state = status.split("State:")[1].splitlines()[0].partition("(")[2].rstrip(")")
        at = Path(f"/proc/{pid}/wchan").read_text()
    return f" ({state}{'' if at in ('', '0') else ' in ' + at})" if state else ""
