"""Runs the corpus in one layer and prints, as JSON lines, how each program ended and what it left.

A process of its own, so that it can be started as another user and in a container's conditions:
run_corpus.py LAYER (free | container) (all | NAME...), with the package on PYTHONPATH and an empty
folder as TMPDIR.
"""

import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attacks import ALL_ATTACKS
from compiled import COMPILED, COMPILED_X86, COMPILING
from corpus import PLAIN, Case

from magistral_jax.verifier.sandbox import seccomp
from magistral_jax.verifier.sandbox.client import Sandbox
from magistral_jax.verifier.sandbox.job import COMPILED_STACK, Job, Limits, Ran

CASES = [*PLAIN, *ALL_ATTACKS, *COMPILED, *COMPILED_X86, *COMPILING]
CPU_S = 1.0
LOAD_S = 0.5
"""What a sudden load may add to a time-out; test_sandbox.py is stricter."""
COMPILE = Limits(cpu_s=4.0, memory_bytes=1_000_000_000, file_bytes=32_000_000)
SECRET = b"NOBODY-MAY-READ-THIS"
SHARED = ("/tmp", "/var/tmp", "/dev/shm")


class Outside:
    """What a program must not touch: a file, a process, a network; and what it must not leave."""

    def __init__(self) -> None:
        self._scratch = Path(tempfile.gettempdir())
        self._home = Path(tempfile.mkdtemp(dir=self._scratch))
        self._home.chmod(0o755)
        self.secret = self._home / "secret.txt"
        self.secret.write_bytes(SECRET)
        self.secret.chmod(0o644)
        os.utime(self.secret, (1e9, 1e9))
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.port))
        self._abstract = socket.socket(socket.AF_UNIX)
        self._abstract.bind(f"\0sandbox-{self.port}")
        self._abstract.listen()
        self._victim = subprocess.Popen(["sleep", "1000"])
        self._mask = os.sched_getaffinity(self._victim.pid)
        self._uids: set[int] = set()
        self._before: set[int] = set()
        self._entries: set[str] = set()

    def fill(self, text: str) -> str:
        places = {"@SECRET@": self.secret, "@PORT@": self.port, "@VICTIM@": self._victim.pid}
        for place, value in places.items():
            text = text.replace(place, str(value))
        return text

    def start(self, sandbox: Sandbox) -> None:
        """From here on nothing may be added by the users that the sandbox's programs have."""
        slot = sandbox._slot
        self._uids = {os.geteuid()} if slot is None else {slot.uid, slot.uid + 1}
        self._before = self._pids()
        self._entries = self._left_files()

    def faults(self) -> list[str]:
        """What has been touched or left since the start."""
        found = [f"process {pid} is left" for pid in self._pids() - self._before]
        found += [f"file {path} is left" for path in self._left_files() - self._entries]
        inside = [p for p in self._scratch.iterdir() if p != self._home]
        found += [f"{path} is left" for path in inside]
        about = self.secret.stat()
        if (about.st_mode & 0o777, about.st_mtime) != (0o644, 1e9):
            found.append("the secret's modes or times have changed")
        if self.secret.read_bytes() != SECRET or len(list(self._home.iterdir())) != 1:
            found.append("the secret has changed")
        if self._victim.poll() is not None:
            found.append("the victim is dead")
        elif os.sched_getaffinity(self._victim.pid) != self._mask:
            found.append("the victim was pinned")
        elif resource.prlimit(self._victim.pid, resource.RLIMIT_CPU)[0] >= 0:
            found.append("the victim was limited")
        with selectors.DefaultSelector() as selector:
            for listener in (self._tcp, self._udp, self._abstract):
                selector.register(listener, selectors.EVENT_READ)
            found += ["a packet came out" for _ in selector.select(0)]
        return found

    def close(self) -> None:
        self._victim.kill()
        self._victim.wait()
        self.secret.unlink()
        self._home.rmdir()

    def _pids(self) -> set[int]:
        found = set()
        for entry in os.scandir("/proc"):
            try:
                if entry.name.isdigit() and entry.stat().st_uid in self._uids:
                    stat = Path(entry.path, "stat").read_text()
                    # A launcher may have been replaced: it is this process's own child.
                    if int(stat.rpartition(")")[2].split()[1]) != os.getpid():
                        found.add(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def _left_files(self) -> set[str]:
        found = set()
        for folder in SHARED:
            for entry in os.scandir(folder):
                try:
                    if entry.stat(follow_symlinks=False).st_uid in self._uids:
                        found.add(entry.path)
                except FileNotFoundError:
                    continue
        return found - {str(self._scratch)}


def run(case: Case, sandbox: Sandbox, outside: Outside) -> tuple[Ran, bool]:
    """The program's run, or the compiler's if that is where it ended, which the bool tells."""
    source = outside.fill(case.source).encode()
    options = {"cpu_s": CPU_S, **case.limits}
    if case.language == "python":
        argv = (sandbox.python, "-I", "-S", "main.py")
        files = {"main.py": source}
    else:
        assert sandbox.cxx is not None
        compiled = sandbox.run(
            Job(
                argv=(sandbox.cxx, "-std=c++20", "-O1", "-pthread", "main.cpp", "-o", "a.out"),
                files={"main.cpp": source},
                limits=COMPILE,
                keep=("a.out",),
            )
        )
        if compiled.ended != "exit" or compiled.code or "a.out" not in compiled.files:
            return compiled, True
        argv, files = ("./a.out",), {"a.out": compiled.files["a.out"]}
        options["stack_bytes"] = COMPILED_STACK
    limits = Limits(**options)
    job = Job(argv=argv, files=files, stdin=case.stdin, limits=limits, keep=case.keep)
    return sandbox.run(job), False


def judge(case: Case, sandbox: Sandbox, outside: Outside) -> dict:
    """One line of the report: faults are empty if all is well."""
    began = time.monotonic()
    ran, in_compiler = run(case, sandbox, outside)
    seconds = time.monotonic() - began
    passed = ran.ended == "exit" and ran.code == 0 and not in_compiler
    how = ran.ended
    if in_compiler and ran.ended != "lost":
        how = "compile"
    elif ran.ended == "exit":
        how = "wrong"
    faults = outside.faults()
    if case.prints is not None:
        if not passed or ran.stdout.decode() != case.prints:
            faults.append(f"should pass, but {ran.ended} {ran.code} {ran.stdout[-100:]!r}")
    elif how not in case.ends:
        faults.append(f"should end as {case.ends}, but {how} {ran.code} {ran.stdout[-100:]!r}")
    if SECRET in ran.stdout + ran.stderr + b"".join(ran.files.values()):
        faults.append("the secret got out")
    if ran.files:
        faults.append(f"kept {list(ran.files)}")
    # On a busy machine a program has to wait for its time, of which the backstop knows.
    load = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    latest_s = CPU_S * min(1.5 * load, 4.0) + LOAD_S
    if ran.ended == "timeout" and ran.wall_s > latest_s and not in_compiler:
        faults.append(f"slow: told after {ran.wall_s:.2f} s")
    about = {"name": case.name, "how": how, "code": ran.code, "seconds": round(seconds, 3)}
    about |= {
        "cpu_s": ran.cpu_s,
        "wall_s": ran.wall_s,
        "stderr": ran.stderr[-300:].decode("utf-8", "replace"),
    }
    return about | {"faults": faults}


def main() -> None:
    layer, conditions, *names = sys.argv[1:]
    if conditions == "container":
        seccomp.install(seccomp.container_filter())
    chosen = CASES if names == ["all"] else [case for case in CASES if case.name in names]
    assert names == ["all"] or len(chosen) == len(names), set(names) - {c.name for c in chosen}
    outside = Outside()
    try:
        with Sandbox(layer) as sandbox:
            print(json.dumps({"found": str(sandbox.found()), "layer": sandbox.layer}), flush=True)
            outside.start(sandbox)
            for case in chosen:
                if case.language == "cpp" and sandbox.cxx is None:
                    continue
                print(json.dumps(judge(case, sandbox, outside)), flush=True)
        time.sleep(0.2)
        print(json.dumps({"name": "afterwards", "how": "", "faults": outside.faults()}))
    finally:
        outside.close()


if __name__ == "__main__":
    main()
