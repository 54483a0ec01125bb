"""What goes into the sandbox and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Layer = Literal["auto", "namespaces", "uid", "landlock"]
Ended = Literal["exit", "signal", "timeout", "memory", "output", "lost"]

PYTHON_STACK = 8 * 1024**2
COMPILED_STACK = 256 * 1024**2
"""Contest programs in C++ recurse deeply; the stack's limit is also every thread's stack."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may use, over all its processes together unless it says otherwise."""

    cpu_s: float = 4.0
    """CPU time. The wall backstop is 1.4 times this, not counting waits for a busy CPU."""
    memory_bytes: int = 300_000_000
    """Memory in use, not address space. Files in /tmp and /dev/shm have their own limit."""
    stdout_bytes: int = 1_000_000
    file_bytes: int = 16_000_000
    """Of one file, and of all files in the working folder; /tmp has as much again."""
    tasks: int = 64
    """Processes and threads."""
    stack_bytes: int = PYTHON_STACK
    """Of each thread."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One program to run. Example: Job(argv=(sandbox.python, "a.py"), files={"a.py": b"..."})"""

    argv: tuple[str, ...]
    """argv[0] is a path inside the sandbox: `Sandbox.python`, `Sandbox.cxx`, or "./a.out"."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Put into the fresh working folder, executable; names may have folders: "data/a.txt"."""
    stdin: bytes = b""
    limits: Limits = Limits()
    keep: tuple[str, ...] = ()
    """Files of the working folder to bring back, each up to `limits.file_bytes`."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a run ended. Nothing of it is alive, and nothing of it is on disk."""

    ended: Ended
    """"lost" is the sandbox's own failure, told in `stderr`; every other end is the program's."""
    code: int
    """The exit code, or the signal's number."""
    stdout: bytes
    stderr: bytes
    """Its last 2,000 bytes."""
    cpu_s: float
    wall_s: float
    files: Mapping[str, bytes]
    """Those of `keep` that were there as plain files and not too large; only after "exit"."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What this machine offers."""

    layer: str
    python: str
    """The interpreter's path inside."""
    python_version: str
    cxx: str | None
    """The C++ compiler's path inside, if one works there."""
    landlock: int
    """The version of Landlock's interface; 0 if the kernel has none."""
    notes: tuple[str, ...]
    """What was tried and could not be had, in words."""

    def __str__(self) -> str:
        lines = [
            f"sandbox: layer {self.layer}; python {self.python_version} ({self.python}); "
            f"C++ {self.cxx or 'not found'}; Landlock ABI {self.landlock or 'none'}",
            *self.notes,
        ]
        return "\n".join(lines)
