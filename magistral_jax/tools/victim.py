"""One process of a run, seen from outside: what it is at, and how to end it there.

Only Linux tells of other processes what is asked here (/proc).
"""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep

from magistral_jax.pulse import Reading, read_pulse

POLL_S = 0.001
_FREEZING_S = 1.0
_WORKER = b"magistral_jax.verifier.server"
SEAL = "seal"
"""The file that makes a folder a checkpoint (`checkpoint.py`)."""


class Victim:
    """A process that plays the run of a folder, begun or gone on with."""

    def __init__(
        self, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.folder, self.log = folder, log
        self._left_by_others = max(numbers(folder), default=-1)
        self.is_resumed = bool(sealed(folder))
        self.started = monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
            )
        self.decoding_since: float | None = None
        """When it was first seen to have sampled anything."""
        self._tokens: int | None = None

    def look(self) -> Reading | None:
        """What this process says of itself; None before it does."""
        reading = read_pulse(self.folder)
        if reading is None or reading.beat < self.started:
            return None  # what the process before has left
        if self._tokens is None:
            self._tokens = reading.tokens
        elif self.decoding_since is None and reading.tokens > self._tokens:
            self.decoding_since = monotonic()
        return reading

    def wait(self, until: Callable[[], bool], *, every_s: float = POLL_S) -> bool:
        """Until something holds; False if the process ends before."""
        while not until():
            if self.code is not None:
                return False
            self.look()
            sleep(every_s)
        return True

    @property
    def code(self) -> int | None:
        """Its exit code, once it is over."""
        return self._process.poll()

    @property
    def is_pushing(self) -> bool:
        reading = self.look()
        return reading is not None and reading.pushing

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint of its own is begun and not sealed. The pulse would also do, but is
        late to say that one is whole."""
        newest = max(numbers(self.folder), default=-1)
        return newest > self._left_by_others and newest not in sealed(self.folder)

    def freeze(self) -> bool:
        """Stop every thread where it is; False if the process is over."""
        if self.code is not None:
            return False
        self._process.send_signal(signal.SIGSTOP)
        deadline = monotonic() + _FREEZING_S
        # "D" waits for a disk, and cannot return to the program any more.
        while not all(state in "TtD" for state in self._states()) and monotonic() < deadline:
            sleep(POLL_S / 10)
        return self.code is None

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> bool:
        """SIGKILL; whether that is what ended it."""
        self._process.kill()
        return self._process.wait() == -signal.SIGKILL

    def kill_worker(self, chance: random.Random) -> bool:
        """SIGKILL one of its verifier processes; False if it has none."""
        workers = self._workers()
        if not workers:
            return False
        try:
            os.kill(chance.choice(workers), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _workers(self) -> list[int]:
        found: list[int] = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                parent = int(_stat(folder / "stat")[1])
                if parent == self._process.pid and _WORKER in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # gone meanwhile
        return sorted(found)

    def _states(self) -> list[str]:
        try:
            threads = list(Path(f"/proc/{self._process.pid}/task").iterdir())
            return [_stat(thread / "stat")[0] for thread in threads]
        except (FileNotFoundError, ProcessLookupError):
            return []


def numbers(folder: Path) -> list[int]:
    """The checkpoints of a run folder, whole or not."""
    inside = folder / "checkpoints"
    if not inside.is_dir():
        return []
    return sorted(int(path.name) for path in inside.iterdir() if path.name.isdigit())


def sealed(folder: Path) -> list[int]:
    return [n for n in numbers(folder) if (folder / "checkpoints" / str(n) / SEAL).is_file()]


def flip_a_bit(folder: Path, chance: random.Random) -> Path:
    """Of a random file below a folder; returns which."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    path = chance.choice(files)
    at, bit = chance.randrange(path.stat().st_size), 1 << chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))
    return path


def _stat(path: Path) -> list[str]:
    """State, parent and so on: what follows the name, which may hold anything."""
    return path.read_text("ascii", "replace").rpartition(")")[2].split()
