"""The process that starts every program: small, so that forking it is cheap, and single-threaded.

It reads jobs from its stdin and writes results to its stdout, one message each (frames.py). When
its stdin ends or its parent dies, every run ends with it. It is started from source alone
(client.py), outside the package, with nothing in its environment; so it, and the files it is made
of, use the standard library only.
"""

import os
import select
import sys
import tempfile
import time

from magistral_jax.verifier.sandbox import frames, kernel, landlock
from magistral_jax.verifier.sandbox.run import Run
from magistral_jax.verifier.sandbox.supervise import Plan, supervise
from magistral_jax.verifier.sandbox.walls import build_house, enter_room
from magistral_jax.verifier.sandbox.watch import has_children_files

TICK_S = 0.02
_OVERSEERS = 3
"""Processes of ours that count as the program's: its supervisor and who starts it."""
_MORE_TASKS = 256
"""What the rest of the machine may start during a run, where its tasks count as well."""
_FIRST_OF_OTHERS = 1024
"""A descriptor beyond all that the launcher ever has open."""


class Launcher:
    """Runs jobs in one layer. Raises OSError, with what the machine refused, if it cannot."""

    def __init__(self, setting: dict, parent: int | None) -> None:
        """`setting`: layer, uid, binds, masks, read, folder; see client.py."""
        self._parent = parent
        self.layer = setting["layer"]
        self.landlock = landlock.abi()
        self._read = setting["read"]
        self._folder = setting["folder"]
        self._uid = setting["uid"]
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        if not has_children_files(self._proc):
            raise OSError("/proc does not list children (CONFIG_PROC_CHILDREN)")
        if kernel.MACHINE not in kernel.ARCHES:
            raise OSError(f"no system call filter for {kernel.MACHINE}")
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if self.layer == "namespaces":
            build_house(self._uid, setting["binds"], setting["masks"])
        elif self.landlock == 0:
            raise OSError("the kernel has no Landlock, or it is not switched on")

    def run(self, specs: list[dict], blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        """All jobs at once, two of them linked; how each ended."""
        links = _cross_pipes() if len(specs) == 2 else [None]
        runs: list[Run] = []
        try:
            for number, spec in enumerate(specs):
                count = len(spec["names"])
                stdin, files, blobs = blobs[0], blobs[1 : 1 + count], blobs[1 + count :]
                runs.append(self._start(spec, stdin, files, links, number))
            for fd in (fd for pair in links if pair for fd in pair):
                os.close(fd)
            _serve(runs, self._parent)
        finally:
            for run in runs:
                run.end("lost")
        results = [run.result() for run in runs]
        return {"runs": [header for header, _ in results]}, [b for _, bs in results for b in bs]

    def _start(
        self, spec: dict, stdin: bytes, files: list[bytes], links: list, number: int
    ) -> "Run":
        ins = os.pipe() if stdin else None
        out, err, report, life = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        folder = self._make_folder()
        limits = spec["limits"]
        uid = self._uid + number if self.layer == "uid" else self._uid
        spec["processes"] = self._most_processes(limits["tasks"])
        plan = Plan(
            layer=self.layer,
            spec=spec,
            files=files,
            folder=folder,
            read=self._read,
            uid=uid,
            landlock=self.landlock,
            launcher=os.getpid(),
            proc=self._proc,
            stdin=ins[0] if ins else None,
            stdout=out[1],
            stderr=err[1],
            links=links[number],
            report=report[1],
            lifeline=life[0],
        )
        pid = os.fork()
        if pid == 0:
            self._become_supervisor(plan)
        for fd in (out[1], err[1], report[1], life[0], *([ins[0]] if ins else [])):
            os.close(fd)
        if self.layer == "namespaces":
            os.waitpid(pid, 0)
            pid = int.from_bytes(os.read(report[0], 4), "little")
        return Run(
            pid=pid,
            limits=limits,
            given_bytes=sum(map(len, files)),
            stdin=(ins[1], stdin) if ins else None,
            stdout=out[0],
            stderr=err[0],
            report=report[0],
            lifeline=life[1],
            folder=folder,
            proc=self._proc,
            is_namespaced=self.layer == "namespaces",
        )

    def _become_supervisor(self, plan: Plan) -> None:
        """Never returns."""
        prefix = b""
        try:
            _close_others(plan)
            if plan.layer == "namespaces":
                prefix = bytes(4)
                enter_room(plan.spec["limits"]["file_bytes"], sum(map(len, plan.files)))
                first = os.fork()
                if first:
                    os.write(plan.report, first.to_bytes(4, "little"))
                    os._exit(0)
            supervise(plan)
        except BaseException as failure:
            text = f"{type(failure).__name__}: {failure}"
            os.write(plan.report, prefix + frames.pack({"lost": text}, []))
        finally:
            os._exit(1)

    def _make_folder(self) -> str:
        if self.layer == "namespaces":
            return ""
        folder = tempfile.mkdtemp(dir=self._folder)
        os.chmod(folder, 0o711)
        for name in ("work", "tmp"):
            os.mkdir(f"{folder}/{name}", 0o700)
        return folder

    def _most_processes(self, tasks: int) -> int:
        """For RLIMIT_NPROC, which counts a user's tasks wherever they run, but in a user
        namespace, since Linux 5.14, only those in it."""
        version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
        if self.layer == "uid" or (self.layer == "namespaces" and version >= (5, 14)):
            return tasks + _OVERSEERS
        with open("/proc/loadavg") as file:  # its fourth field: running tasks / all tasks
            return tasks + _MORE_TASKS + int(file.read().split()[3].split("/")[1])


def _close_others(plan: Plan) -> None:
    """Keep what the plan names: ends of other pipes must not live on in a run."""
    kept = {plan.proc, plan.stdout, plan.stderr, plan.report, plan.lifeline, *(plan.links or ())}
    if plan.stdin is not None:
        kept.add(plan.stdin)
    low = 0
    for fd in [*sorted(kept), _FIRST_OF_OTHERS]:
        os.closerange(low, fd)
        low = fd + 1
    for _ in range(3):
        os.open("/dev/null", os.O_RDWR)  # 0, 1 and 2, all closed above


def _cross_pipes() -> list[tuple[int, int]]:
    """For each of two runs where it writes and where it reads: what one writes the other reads."""
    to_second, to_first = os.pipe(), os.pipe()
    return [(to_second[1], to_first[0]), (to_first[1], to_second[0])]


def _serve(runs: list[Run], parent: int | None) -> None:
    """Feed, drain and watch until every run is over. Raises EOFError if the parent is gone."""
    next_look = time.monotonic() + TICK_S
    while active := [run for run in runs if not run.is_over]:
        poll = select.poll()
        poll.register(0, 0)  # tells of a hang-up whatever it is asked for
        if parent is not None:
            poll.register(parent, select.POLLIN)
        owners = {}
        for run in active:
            for fd, events in run.descriptors():
                poll.register(fd, events)
                owners[fd] = run
        wait_s = max(0.0, next_look - time.monotonic())
        for fd, _ in poll.poll(wait_s * 1000):
            if fd not in owners:
                raise EOFError
            owners[fd].handle(fd)
        if time.monotonic() >= next_look:
            for run in active:
                if not run.is_over:
                    run.look()
            next_look = time.monotonic() + TICK_S


def main() -> None:
    """Take the setting, say whether it can be had, then run jobs until the input ends."""
    parent = kernel.pidfd(os.getppid())
    setting, _ = frames.read(0)
    try:
        launcher = Launcher(setting, parent)
    except OSError as failure:
        frames.write(1, frames.pack({"refused": failure.strerror or str(failure)}, []))
        return
    frames.write(1, frames.pack({"landlock": launcher.landlock}, []))
    try:
        while True:
            header, blobs = frames.read(0)
            answer, answered = launcher.run(header["jobs"], blobs)
            frames.write(1, frames.pack(answer, answered))
    except (EOFError, BrokenPipeError):
        sys.exit(0)
