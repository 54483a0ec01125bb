"""The way in: one `Sandbox` per process that judges, and `probe`, which says what can be had.

The sandbox's own process, the launcher, is started from the source of a few files alone, so that it
stays small, loads nothing of this package, and shows nothing of this process.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from signal import SIGKILL
from types import TracebackType

from magistral_jax.types import UserError
from magistral_jax.verifier.sandbox import frames, layers
from magistral_jax.verifier.sandbox.job import Found, Job, Layer, Limits, Ran
from magistral_jax.verifier.sandbox.pipes import exchange, until

_MODULES = (
    "frames",
    "kernel",
    "landlock",
    "seccomp",
    "walls",
    "watch",
    "supervise",
    "run",
    "launcher",
)
_PACKAGE = "magistral_jax.verifier.sandbox"
# Each source becomes a module of its own name, so that the files import each other as ever.
_BOOT = f"""
import sys, types
for name in {_MODULES!r}:
    size = int.from_bytes(sys.stdin.buffer.raw.read(4), "big")
    text = b""
    while len(text) < size:
        text += sys.stdin.buffer.raw.read(size - len(text))
    module = types.ModuleType("{_PACKAGE}." + name)
    sys.modules[module.__name__] = module
    setattr(sys.modules.setdefault("{_PACKAGE}", types.ModuleType("{_PACKAGE}")), name, module)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
"""
_START_S = 30.0
_GRACE_S = 15.0
_OVERHEAD_BYTES = 100_000
_VERSION = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
_OLDEST = (3, 10)
_TRIAL = Limits(cpu_s=10.0, memory_bytes=1_500_000_000, file_bytes=64_000_000)


class Sandbox:
    """Runs programs, one call at a time; not for use by two threads at once.

    Raises UserError, naming what is missing, if the layer (or, for "auto", any safe layer) cannot
    be had. `read_only` are existing folders that every run may read: see `mount_point`.
    """

    layer: str
    python: str
    """The interpreter's path inside."""

    def __init__(self, layer: Layer = "auto", *, read_only: Sequence[Path] = ()) -> None:
        self._read_only = [path.resolve() for path in read_only]
        self._process: subprocess.Popen[bytes] | None = None
        self._slot = layers.Slot() if os.geteuid() == 0 else None
        self.notes: list[str] = []
        try:
            self._choose(layer)
        except BaseException:
            self.close()
            raise
        self._cxx: str | bool | None = False

    @property
    def cxx(self) -> str | None:
        """The path inside of a C++ compiler that works there; tried at the first question."""
        if isinstance(self._cxx, bool):
            self._cxx = next(filter(self._compiles, layers.compilers()), None)
        return self._cxx

    def mount_point(self, folder: Path) -> str:
        """Where a folder of `read_only` is seen by the programs."""
        number = self._read_only.index(folder.resolve())
        if self.layer == "namespaces":
            return f"/ro/{number}"
        return str(self._read_only[number])

    def run(self, job: Job) -> Ran:
        """Run one program to its end. Raises ValueError for names that leave the folder."""
        return self._run_steadily([job])[0]

    def run_linked(self, first: Job, second: Job) -> tuple[Ran, Ran]:
        """Run two programs at once, each in a sandbox of its own, joined by two pipes.

        What one writes to its descriptor 3 the other reads from its descriptor 4. When one ends,
        the other reads an end of file.
        """
        ran = self._run_steadily([first, second])
        return ran[0], ran[1]

    def found(self) -> Found:
        """What was found, for printing and recording."""
        return Found(
            layer=self.layer,
            python=self.python,
            python_version=self._version,
            cxx=self.cxx,
            landlock=self._landlock,
            notes=tuple(self.notes),
        )

    def close(self) -> None:
        """End the launcher, and with it everything it runs."""
        self._stop()
        if self._slot is not None:
            self._slot.free()
            self._slot = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _choose(self, layer: Layer) -> None:
        is_root = os.geteuid() == 0
        tried = [layer] if layer != "auto" else ["namespaces", "uid" if is_root else "landlock"]
        if (layer == "uid" and not is_root) or (layer == "landlock" and is_root):
            need = "root" if layer == "uid" else "an ordinary user: root could undo it"
            raise UserError(f"verifier.sandbox is {layer!r}, which needs {need}.")
        if sys.platform != "linux":
            raise UserError(f"The sandbox needs Linux; this is {sys.platform}.")
        for name in tried:
            self.layer = name
            try:
                self._prepare()
                self._start()
                self._find_python()
                return
            except _Refused as refusal:
                self._stop()
                self.notes.append(f"layer {name} cannot be had: {refusal}")
        raise UserError(
            f"No sandbox for programs (verifier.sandbox = {layer!r}): "
            + "; ".join(self.notes)
            + "."
        )

    def _prepare(self) -> None:
        self._variables: dict[str, str] = {}
        if self.layer == "namespaces":
            self._setting, python, self._variables = layers.namespaces_view(self._read_only)
            self._pythons = [python]
        else:
            try:
                self._setting = layers.shared_view(self._read_only)
            except FileNotFoundError as failure:
                raise _Refused(failure.strerror or str(failure)) from failure
            self._pythons = layers.shared_pythons()
        uid = self._slot.uid if self._slot is not None else os.geteuid()
        self._setting |= {"layer": self.layer, "uid": uid}

    def _find_python(self) -> None:
        seen = []
        for python in self._pythons:
            ran = self.run(Job(argv=(python, "-I", "-S", "-c", _VERSION), limits=_TRIAL))
            version = ran.stdout.decode("ascii", "replace").strip()
            if ran.ended == "lost":
                raise _Refused(ran.stderr.decode("utf-8", "replace"))
            if ran.ended == "exit" and ran.code == 0 and _numbers(version) >= _OLDEST:
                self.python, self._version = python, version
                return
            told = version or ran.stderr.decode("utf-8", "replace").strip()
            seen.append(f"{python} ({told or ran.ended})")
        raise _Refused(f"no Python {_OLDEST[0]}.{_OLDEST[1]} works inside, tried {', '.join(seen)}")

    def _compiles(self, compiler: str) -> bool:
        job = Job(
            argv=(compiler, "-std=c++20", "a.cpp", "-o", "a.out"),
            files={"a.cpp": b"#include <concepts>\nint main() { return 0; }\n"},
            keep=("a.out",),
            limits=_TRIAL,
        )
        ran = self.run(job)
        if ran.code == 0 and "a.out" in ran.files:
            return True
        self.notes.append(f"{compiler} does not work inside: {ran.ended} {ran.code} {ran.stderr!r}")
        return False

    def _run_steadily(self, jobs: list[Job]) -> list[Ran]:
        """Run again, once, what a killer from outside (a machine out of memory) may have ended."""
        ran = self._run_all(jobs)
        is_odd = any(r.ended == "lost" or (r.ended, r.code) == ("signal", SIGKILL) for r in ran)
        return self._run_all(jobs) if is_odd else ran

    def _run_all(self, jobs: list[Job]) -> list[Ran]:
        message = frames.pack(
            {"jobs": [self._spec(job) for job in jobs]},
            [blob for job in jobs for blob in (job.stdin, *job.files.values())],
        )
        # The launcher enforces the limits; this deadline is for a launcher that fails.
        budget_s = _GRACE_S + 4 * max(job.limits.cpu_s for job in jobs)
        most = _OVERHEAD_BYTES + sum(
            job.limits.stdout_bytes + len(job.keep) * job.limits.file_bytes for job in jobs
        )
        try:
            if self._process is None or self._process.poll() is not None:
                self._stop()
                self._start()
            header, blobs = self._exchange(message, budget_s, most)
            return _results(header, blobs)
        except (_Refused, TimeoutError, EOFError, OSError, ValueError, KeyError) as failure:
            reason = f"{type(failure).__name__}: {failure} {self._last_words()}"
            self._stop()
            return [_lost(reason) for _ in jobs]

    def _spec(self, job: Job) -> dict:
        for name in (*job.files, *job.keep):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name:
                raise ValueError(f"a job's file is named {name!r}; it must stay in its folder")
        for name in job.keep:
            if "/" in name:
                raise ValueError(f"a job keeps {name!r}; only files right in its folder are kept")
        return {
            "argv": list(job.argv),
            "names": list(job.files),
            "keep": list(job.keep),
            "limits": asdict(job.limits),
            "variables": self._variables,
        }

    def _start(self) -> None:
        python, _ = layers.own_python()
        environment = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
        try:
            self._process = process = subprocess.Popen(
                [str(python), "-I", "-S", "-B", "-c", _BOOT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        except OSError as failure:
            raise _Refused(f"its launcher does not start: {failure}") from failure
        assert process.stdin is not None and process.stdout is not None
        assert process.stderr is not None
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)
        here = Path(__file__).parent
        sources = [(here / f"{name}.py").read_bytes() for name in _MODULES]
        message = b"".join(len(text).to_bytes(4, "big") + text for text in sources)
        message += frames.pack(self._setting, [])
        try:
            header, _ = self._exchange(message, _START_S, _OVERHEAD_BYTES)
        except (TimeoutError, EOFError) as failure:
            words = self._last_words()
            raise _Refused(f"its launcher fails: {type(failure).__name__} {words}") from failure
        if "refused" in header:
            raise _Refused(header["refused"])
        self._landlock = int(header["landlock"])

    def _exchange(self, message: bytes, budget_s: float, most: int) -> tuple[dict, list[bytes]]:
        """Send a message while receiving the answer, of up to `most` bytes."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        answer = exchange(
            process.stdin.fileno(),
            process.stdout.fileno(),
            message,
            is_whole=_is_message,
            left=until(time.monotonic() + budget_s),
            most=most,
        )
        return frames.unpack(answer)

    def _last_words(self) -> str:
        if self._process is None or self._process.stderr is None:
            return ""
        with suppress(OSError):
            return (os.read(self._process.stderr.fileno(), 10_000) or b"").decode(
                "utf-8", "replace"
            )[-500:]
        return ""

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Its end makes every supervisor end what it watches over, however it comes.
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_START_S)


class _Refused(Exception):
    """The machine does not grant this layer; the message says what was refused."""


def probe(layer: Layer = "auto") -> Found:
    """What this machine offers. Raises UserError as `Sandbox` does."""
    with Sandbox(layer) as sandbox:
        return sandbox.found()


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(p.isdecimal() for p in parts) else ()


def _is_message(received: bytearray) -> bool:
    size = frames.size_of(received)
    return size is not None and len(received) >= size


def _results(header: dict, blobs: list[bytes]) -> list[Ran]:
    results = []
    for run in header["runs"]:
        stdout, stderr, *blobs = blobs
        kept, blobs = blobs[: len(run["kept"])], blobs[len(run["kept"]) :]
        results.append(
            Ran(
                ended=run["ended"],
                code=run["code"],
                stdout=stdout,
                stderr=stderr,
                cpu_s=run["cpu_s"],
                wall_s=run["wall_s"],
                files=dict(zip(run["kept"], kept, strict=True)),
            )
        )
    return results


def _lost(reason: str) -> Ran:
    return Ran(
        ended="lost",
        code=0,
        stdout=b"",
        stderr=reason.encode("utf-8", "replace")[-2000:],
        cpu_s=0.0,
        wall_s=0.0,
        files={},
    )
