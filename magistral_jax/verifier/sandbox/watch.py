"""What a tree of processes uses, read from /proc.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import os
from dataclasses import dataclass

_TICK = os.sysconf("SC_CLK_TCK")
_MEMORY = (b"RssAnon:", b"RssShmem:", b"VmPTE:", b"HugetlbPages:")


@dataclass(frozen=True)
class Usage:
    """Of all processes below the root, which itself does not count."""

    tasks: int
    memory_bytes: int
    """Anonymous and shared memory, and page tables, which a program can grow, too. A page that
    several processes map counts for each of them."""
    cpu_s: float
    waited_s: float
    """Time that they were ready to run and had no CPU; 0 where the kernel does not tell."""


class Watch:
    """Looks at one tree again and again; remembers what ended processes had used."""

    def __init__(self, proc: int, root: int) -> None:
        """`proc` is a descriptor of /proc, in which `root` is the pid to look below."""
        self._proc = proc
        self._root = root
        self._cpu: dict[int, float] = {}
        self._waited: dict[int, int] = {}

    def look(self, most_tasks: int) -> Usage:
        """The use up to now. Stops counting once more than `most_tasks` are seen."""
        tasks = memory = 0
        reaped_s = self._cpu_of(self._root)[1]
        queue = self._children(self._root, [self._root])
        while queue and tasks <= most_tasks:
            pid = queue.pop()
            status = self._read(f"{pid}/status")
            threads = [pid]
            if _field(status, b"Threads:") > 1:
                threads = self._threads(pid)
            tasks += len(threads)
            memory += 1024 * sum(_field(status, name) for name in _MEMORY)
            own_s, children_s = self._cpu_of(pid)
            self._cpu[pid] = max(own_s, self._cpu.get(pid, 0.0))
            reaped_s += own_s + children_s
            for thread in threads:
                self._note_wait(pid, thread)
            queue += self._children(pid, threads)
        return Usage(
            tasks=tasks,
            memory_bytes=memory,
            # Children that were waited for are in their parent's sum, or were seen alive.
            cpu_s=max(sum(self._cpu.values()), reaped_s),
            waited_s=sum(self._waited.values()) / 1e9,
        )

    def divided_memory(self) -> int | None:
        """The same bytes, each page that several processes map counted once (Linux 5.0).

        None where we may not look so closely. It walks every page: not for each look.
        """
        total = 0
        for pid in self.pids():
            rollup = self._read(f"{pid}/smaps_rollup")
            if b"Pss_Anon:" not in rollup:
                if self._read(f"{pid}/statm")[:2] in (b"", b"0 "):
                    continue  # it has ended meanwhile
                return None
            total += sum(_field(rollup, name) for name in (b"Pss_Anon:", b"Pss_Shmem:"))
            total += _field(self._read(f"{pid}/status"), b"VmPTE:")
        return 1024 * total

    def pids(self) -> list[int]:
        """Every process below the root now."""
        seen: list[int] = []
        queue = self._children(self._root, self._threads(self._root))
        while queue:
            pid = queue.pop()
            seen.append(pid)
            queue += self._children(pid, self._threads(pid))
        return seen

    def _cpu_of(self, pid: int) -> tuple[float, float]:
        """Seconds of the process itself, and of the children that it waited for."""
        # The name, in brackets, may hold blanks and brackets itself.
        fields = self._read(f"{pid}/stat").rpartition(b")")[2].split()
        if len(fields) < 15:
            return 0.0, 0.0
        own, own_system, children, children_system = (int(field) for field in fields[11:15])
        return (own + own_system) / _TICK, (children + children_system) / _TICK

    def _note_wait(self, pid: int, thread: int) -> None:
        fields = self._read(f"{pid}/task/{thread}/schedstat").split()
        if len(fields) == 3:
            self._waited[thread] = int(fields[1])

    def _threads(self, pid: int) -> list[int]:
        try:
            folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
        except OSError:
            return []
        try:
            return [int(name) for name in os.listdir(folder)]
        except OSError:
            return []
        finally:
            os.close(folder)

    def _children(self, pid: int, threads: list[int]) -> list[int]:
        lines = [self._read(f"{pid}/task/{thread}/children") for thread in threads]
        return [int(word) for line in lines for word in line.split()]

    def _read(self, path: str) -> bytes:
        """The file's text, nothing if the process is gone."""
        try:
            fd = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        except OSError:
            return b""
        try:
            return os.read(fd, 8192)
        except OSError:
            return b""
        finally:
            os.close(fd)


def has_children_files(proc: int) -> bool:
    """Whether this kernel lists a task's children, which the watch needs."""
    try:
        os.close(os.open(f"self/task/{os.getpid()}/children", os.O_RDONLY, dir_fd=proc))
    except OSError:
        return False
    return True


def _field(status: bytes, name: bytes) -> int:
    at = status.find(b"\n" + name)
    return int(status[at + 1 + len(name) :].split(None, 1)[0]) if at >= 0 else 0
