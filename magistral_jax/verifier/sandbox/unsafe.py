"""Programs as plain processes of this user, for machines without any sandbox. Only on demand.

Limits hold and leftovers of the process group are killed; but the program reads what the user
reads, reaches the network, and a child of it in a session of its own lives on.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from shutil import which

from magistral_jax.verifier.sandbox.job import Job, Ran

_WALL = 4


class UnsafeSandbox:
    """No sandbox at all; the interface is `client.Sandbox`'s."""

    layer = "none"
    python: str = sys.executable
    cxx: str | None = which("g++")

    def run(self, job: Job) -> Ran:
        """How the program ended."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process, files = _start(job, Path(folder))
            return _finish(job, process, files, Path(folder))

    def run_linked(self, first: Job, second: Job) -> tuple[Ran, Ran]:
        """Both at once; each one's fd 3 is the other's fd 4."""
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as one,
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as two,
        ):
            (back, there), (forth, here) = os.pipe(), os.pipe()
            # The first writes to 3, which the second reads at 4, and the other way round.
            a = _start(first, Path(one), link=(there, forth))
            b = _start(second, Path(two), link=(here, back))
            for fd in (back, there, forth, here):
                os.close(fd)
            ended = _finish(second, *b, Path(two))
            return _finish(first, *a, Path(one)), ended

    def close(self) -> None:
        """Nothing is held."""


_Outputs = tuple[Path, Path]


def _start(
    job: Job, folder: Path, link: tuple[int, int] | None = None
) -> tuple["subprocess.Popen[bytes]", _Outputs]:
    work = folder / "work"
    for name, data in {**job.files, "../stdin": job.stdin}.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755)

    def set_up() -> None:
        if link:
            high = [os.dup(fd) for fd in link]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)
        limits = job.limits
        for which_one, most in (
            (resource.RLIMIT_CPU, max(1, round(limits.cpu_s))),
            (resource.RLIMIT_DATA, limits.memory_bytes),
            (resource.RLIMIT_FSIZE, max(limits.file_bytes, limits.stdout_bytes + 1)),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(which_one, (most, most))

    out, err = folder / "out", folder / "err"
    with (folder / "stdin").open("rb") as stdin, out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            job.argv,
            cwd=work,
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=set_up,
            pass_fds=(3, 4) if link else (),
        )
    return process, (out, err)


def _finish(job: Job, process: "subprocess.Popen[bytes]", outputs: _Outputs, folder: Path) -> Ran:
    began, ended = time.monotonic(), "exit"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        process.wait(_WALL * job.limits.cpu_s)
    except subprocess.TimeoutExpired:
        ended = "timeout"
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if code < 0 and ended == "exit":
        # The kernel's own count for the limit and the one that it tells differ by some ticks.
        ended = "timeout" if cpu_s >= 0.8 * job.limits.cpu_s else "signal"
    with outputs[0].open("rb") as file:
        stdout = file.read(job.limits.stdout_bytes + 1)
    if len(stdout) > job.limits.stdout_bytes:
        ended = "output"
    kept = {name: folder / "work" / name for name in job.keep}
    return Ran(
        ended=ended,  # pyright: ignore[reportArgumentType]
        code=abs(code),
        stdout=stdout,
        stderr=outputs[1].read_bytes()[-2000:],
        cpu_s=cpu_s,
        wall_s=time.monotonic() - began,
        files={name: path.read_bytes() for name, path in kept.items() if path.is_file()},
    )
