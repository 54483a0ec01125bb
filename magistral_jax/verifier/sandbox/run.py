"""One run, seen from the launcher: its pipes, its use of the machine, and how it ended.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import errno
import os
import select
import signal
import time

from magistral_jax.verifier.sandbox import frames
from magistral_jax.verifier.sandbox.supervise import remove_folder
from magistral_jax.verifier.sandbox.watch import Usage, Watch

_WALL = 1.4
_PLAIN_WALL = 4.0
"""Wall time in multiples of the CPU limit: without and with the waits for a busy CPU."""
_MAPPED_FILES = 32 * 1024**2
"""What the peak of a process counts beyond its own memory: the libraries it has mapped."""
_STDERR_TAIL = 2000
_CHUNK = 65536
_READS = 16
"""Chunks from one pipe before the others, and the limits, have their turn."""
_DISK_LOOKS = 10
"""Looks between two at what a run has on disk, where no sized tmpfs holds it."""
_DISK_FILES = 8192
_SWEEP_S = 10.0
"""For a supervisor to end what it supervises; after that the launcher gives up."""


class Run:
    """One program at work, seen from outside."""

    def __init__(
        self,
        *,
        pid: int,
        limits: dict,
        given_bytes: int,
        stdin: tuple[int, bytes] | None,
        stdout: int,
        stderr: int,
        report: int,
        lifeline: int,
        folder: str,
        proc: int,
        is_namespaced: bool,
    ) -> None:
        self._pid = pid
        self._limits = limits
        self._given_bytes = given_bytes
        self._stdin = stdin[0] if stdin else -1
        self._unsent = memoryview(stdin[1]) if stdin else memoryview(b"")
        self._texts = {stdout: bytearray(), stderr: bytearray(), report: bytearray()}
        self._stdout, self._stderr, self._report = stdout, stderr, report
        self._open = set(self._texts)
        self._lifeline = lifeline
        self._folder = folder
        self._is_namespaced = is_namespaced
        self._watch = Watch(proc, pid)
        self._usage = Usage(tasks=0, memory_bytes=0, cpu_s=0.0, waited_s=0.0)
        self._looks = 0
        self._is_over_memory = False
        self._started = time.monotonic()
        self._wall_s = 0.0
        self._cpu_s = 0.0
        self._ended: str | None = None
        for fd in (*self._texts, *([self._stdin] if stdin else [])):
            os.set_blocking(fd, False)

    @property
    def is_over(self) -> bool:
        return self._ended is not None

    def descriptors(self) -> list[tuple[int, int]]:
        """What to wait for, and for which events."""
        wanted = [(fd, select.POLLIN) for fd in self._open]
        if self._stdin >= 0:
            wanted.append((self._stdin, select.POLLOUT))
        return wanted

    def handle(self, fd: int) -> None:
        """Move what can be moved through a descriptor."""
        if self.is_over:
            return  # an event before this one, of the same wait, ended it
        if fd == self._stdin:
            self._feed()
        elif fd in self._texts and not self._drain(fd):
            self._open.discard(fd)
            if fd == self._report:
                # Its last words, or the supervisor died without any.
                self.end("exit" if self._has_reported() else "lost")
        elif len(self._texts[self._stdout]) > self._limits["stdout_bytes"]:
            self.end("output")

    def look(self) -> None:
        """Hold what the run uses against its limits."""
        if self._texts[self._report]:
            return  # the program has ended, and its supervisor is telling so
        self._usage = usage = self._watch.look(self._limits["tasks"])
        self._looks += 1
        wall_s = time.monotonic() - self._started
        limit_s = self._limits["cpu_s"]
        is_late = wall_s > _PLAIN_WALL * limit_s or wall_s - usage.waited_s > _WALL * limit_s
        is_crowded = usage.tasks > self._limits["tasks"]
        if usage.cpu_s > limit_s or is_late:
            self.end("timeout")
        elif is_crowded or self._is_greedy(usage):
            self.end("memory")
        elif self._folder and self._looks % _DISK_LOOKS == 0 and self._overfills_disk():
            self.end("output")

    def _is_greedy(self, usage: Usage) -> bool:
        """Whether the limit on memory is passed, now and at the look before.

        Processes that share pages, as after a fork, are not taken for more than they hold; and a
        child between fork and exec, which has all of its parent's, may be gone at the next look.
        """
        most = self._limits["memory_bytes"]
        was_over, self._is_over_memory = self._is_over_memory, usage.memory_bytes > most
        if not self._is_over_memory or usage.tasks == 1:
            return self._is_over_memory
        if not was_over and usage.memory_bytes < 2 * most:
            return False
        divided = self._watch.divided_memory()
        return divided is None or divided > most

    def end(self, reason: str) -> None:
        """End the run if it has not ended; returns when nothing of it is alive."""
        if self._ended is not None:
            return
        self._wall_s = time.monotonic() - self._started
        self._ended = reason
        os.close(self._lifeline)
        if self._pid <= 0:  # it never came to life
            self._close()
            return
        if self._is_namespaced and reason != "exit":
            os.kill(self._pid, signal.SIGKILL)
        self._hear_out()
        used = os.wait4(self._pid, 0)[2]
        self._cpu_s = max(self._usage.cpu_s, used.ru_utime + used.ru_stime)
        for fd in self._open:
            self._drain(fd)
        self._close()
        if self._folder:
            remove_folder(self._folder)

    def result(self) -> tuple[dict, list[bytes]]:
        """How it ended: the message's fields, then stdout, stderr and the kept files."""
        header, kept = {}, []
        if self._has_reported():
            header, kept = frames.unpack(self._texts[self._report])
        stdout = bytes(self._texts[self._stdout])
        stderr = bytes(self._texts[self._stderr][-_STDERR_TAIL:])
        cpu_s = header.get("cpu_s", self._cpu_s)
        ended, code = self._verdict(header, cpu_s)
        if ended == "lost":
            stderr = str(header.get("lost", "the supervisor died")).encode()
        if ended != "exit":
            kept = []
        fields = {
            "ended": ended,
            "code": code,
            "cpu_s": cpu_s,
            "wall_s": self._wall_s,
            "kept": header.get("kept", []) if kept else [],
        }
        return fields, [stdout[: self._limits["stdout_bytes"]], stderr, *kept]

    def _verdict(self, header: dict, cpu_s: float) -> tuple[str, int]:
        if "lost" in header or self._ended == "lost":
            return "lost", 0
        if self._ended != "exit":
            return str(self._ended), 0
        code = os.waitstatus_to_exitcode(header["status"]) if header["status"] is not None else 0
        # What no look caught in time is told by the sums that the kernel keeps.
        if cpu_s > self._limits["cpu_s"] or -code == signal.SIGXCPU:
            return "timeout", 0
        if 1024 * header["peak"] > self._limits["memory_bytes"] + _MAPPED_FILES:
            return "memory", 0
        if len(self._texts[self._stdout]) > self._limits["stdout_bytes"]:
            return "output", 0
        if -code == signal.SIGXFSZ:
            return "output", 0
        return ("exit", code) if code >= 0 else ("signal", -code)

    def _has_reported(self) -> bool:
        size = frames.size_of(self._texts[self._report])
        return size is not None and len(self._texts[self._report]) >= size

    def _feed(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin, self._unsent[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")
        if not self._unsent:
            os.close(self._stdin)
            self._stdin = -1

    def _drain(self, fd: int) -> bool:
        """Take what is there, up to a measure; False once the pipe has ended."""
        text = self._texts[fd]
        for _ in range(_READS):
            try:
                chunk = os.read(fd, _CHUNK)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            text += chunk
            if fd == self._stderr:
                del text[:-_STDERR_TAIL]
            elif fd == self._stdout and len(text) > self._limits["stdout_bytes"]:
                return True
        return True

    def _hear_out(self) -> None:
        """Read the supervisor's report to its end, so that it does not wait for us to."""
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        deadline = time.monotonic() + _SWEEP_S
        while self._report in self._open:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("a supervisor does not end")
            if not self._drain(self._report):
                self._open.discard(self._report)

    def _overfills_disk(self) -> bool:
        most = 2 * self._limits["file_bytes"] + self._given_bytes
        used = files = 0
        folders = [self._folder]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        files += 1
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        used += 512 * entry.stat(follow_symlinks=False).st_blocks
                        if used > most or files > _DISK_FILES:
                            return True
            except OSError as failure:
                if failure.errno == errno.ENAMETOOLONG:
                    return True  # nobody builds so deep for a purpose
        return False

    def _close(self) -> None:
        for fd in (*self._texts, *([self._stdin] if self._stdin >= 0 else [])):
            os.close(fd)
        self._stdin = -1
