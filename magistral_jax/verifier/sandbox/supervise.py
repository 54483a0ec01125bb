"""The two processes of one run: the supervisor, ours to the end, and the program it starts.

The supervisor is the first process of its room, or else the adoptive parent of all that the program
leaves behind. It ends when the program does, when it is told to, or when its launcher dies, and
nothing that the program started outlives it.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import fcntl
import os
import resource
import select
import signal
import stat
import time
from contextlib import suppress
from dataclasses import dataclass

from magistral_jax.verifier.sandbox import frames, kernel, landlock, seccomp
from magistral_jax.verifier.sandbox.walls import DEVICES
from magistral_jax.verifier.sandbox.watch import Watch

OPEN_FILES = 128
ADDRESS_SPACE = 32 * 1024**3
"""Far more than any program needs; it bounds the page tables that one can make."""
_SLACK = 1024**3
_STACKS = 20
"""Threads that may have stacks at once: the whole of a stack counts as data."""
# Not /usr/local and the like, where the machine's owner installs things.
_USR = ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "include", "share")
_SYSTEM = (*(f"/usr/{name}" for name in _USR), *(f"/{name}" for name in _USR[:5]))
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
_EXEC_FAILED = 127


@dataclass
class Plan:
    """One run, as the launcher hands it to its supervisor."""

    layer: str
    spec: dict
    """argv, variables, limits, keep, names: as in the message (client.py)."""
    files: list[bytes]
    folder: str
    """Where the program may write: it has "work" and "tmp" in it; "" for the room's root."""
    read: list[str]
    """Further paths that it may read."""
    uid: int
    """Its uid and gid in layer "uid"."""
    landlock: int
    launcher: int
    """The launcher's pid."""
    proc: int
    """A descriptor of the machine's /proc."""
    stdin: int | None
    stdout: int
    stderr: int
    links: tuple[int, int] | None
    """What the program finds as descriptors 3, to write, and 4, to read."""
    report: int
    lifeline: int
    """Ends when the launcher wants the run to end, or has died itself."""


def supervise(plan: Plan) -> None:
    """Run the program, end all of it, report. Never returns."""
    code = 1
    try:
        # The one signal that Python handles: the program's, where we are the first process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if plan.layer == "namespaces":
            kernel.drop_capabilities()
        elif plan.layer == "landlock" and plan.landlock >= landlock.SIGNALS_ABI:
            landlock.keep_signals_inside()
            _assert_fenced(plan.launcher)
        work = _put_files(plan)
        report = _run(plan, work)
        frames.write(plan.report, report)
        code = 0
    except BaseException as failure:
        message = frames.pack({"lost": f"{type(failure).__name__}: {failure}"}, [])
        frames.write(plan.report, message)
    finally:
        try:
            if plan.folder:
                remove_folder(plan.folder)
        finally:
            os._exit(code)


def _run(plan: Plan, work: int) -> bytes:
    started, starting = os.pipe()
    program = os.fork()
    if program == 0:
        _become_program(plan, work, starting)
    for fd in (plan.stdin, plan.stdout, plan.stderr, starting, *(plan.links or ())):
        if fd is not None:
            os.close(fd)
    failure = os.read(started, 1000)
    try:
        status = None if failure else _wait(program, plan.lifeline)
    finally:
        _end_all(plan, program)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    header = {"status": status, "cpu_s": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss}
    if failure:
        header["lost"] = failure.decode("utf-8", "replace")
    kept = _kept_files(plan.spec["keep"], work, plan.spec["limits"]["file_bytes"])
    if status is None or os.waitstatus_to_exitcode(status) < 0:
        kept = {}
    return frames.pack({**header, "kept": list(kept)}, list(kept.values()))


def _wait(program: int, lifeline: int) -> int | None:
    """The program's wait status; None if the launcher wants an end before."""
    ended = kernel.pidfd(program)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    if ended is not None:
        poll.register(ended, select.POLLIN)
    while True:
        events = poll.poll(50 if ended is not None else 2)
        # Orphans come to us as well; unless waited for they would count as tasks.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == program:
                return status
            if pid == 0:
                break
        if any(fd == lifeline for fd, _ in events):
            return None


def _end_all(plan: Plan, program: int) -> None:
    """Kill whatever the program left, and wait until the kernel has done so."""
    if plan.layer == "namespaces":
        assert os.getpid() == 1, "not the first process of a namespace"
        _kill_all_in_reach()
    elif plan.layer == "uid":
        _kill_all_of(plan.uid)
    elif plan.landlock >= landlock.SIGNALS_ABI:
        _kill_all_in_reach()
    else:
        _kill_tree(plan.proc)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill_all_in_reach() -> None:
    """All but this process, in one step that no fork can slip through."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def _kill_all_of(uid: int) -> None:
    """The same, as seen by a process with that uid."""
    killer = os.fork()
    if killer == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            if os.getresuid() == (uid, uid, uid) and uid > 0:
                _kill_all_in_reach()
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def _assert_fenced(launcher: int) -> None:
    """The launcher has our uid: if it is out of reach, so is everything but our own children."""
    try:
        os.kill(launcher, 0)
    except PermissionError:
        return
    raise RuntimeError("Landlock does not keep signals inside")


def _kill_tree(proc: int) -> None:
    """Kill process by process until none is left to wait for.

    One look is not enough: what its parent leaves behind at that moment may be nowhere to be seen.
    """
    watch = Watch(proc, os.getpid())
    try:
        while True:
            # What is stopped forks no more, so that a bomb is outrun before it is killed.
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in watch.pids():
                    _signal(pid, number)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.001)
    except ChildProcessError:
        return


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _become_program(plan: Plan, work: int, starting: int) -> None:
    """Put on every restraint and turn into the program. Never returns."""
    try:
        os.fchdir(work)
        os.setsid()
        _place_descriptors(plan)
        _allow_no_more(plan)
        if plan.layer == "uid":
            # Else /dev/stdin and the like, which open a pipe anew, are refused to the program.
            for fd in (1, 2) if plan.stdin is None else (0, 1, 2):
                os.fchown(fd, plan.uid, plan.uid)
            kernel.drop_bounding_capabilities()
            os.setgroups([])
            os.setresgid(plan.uid, plan.uid, plan.uid)
            os.setresuid(plan.uid, plan.uid, plan.uid)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        _fence_files(plan)
        _forget_signals()
        shares_uid = plan.layer == "landlock"
        seccomp.install(
            seccomp.sandbox_filter(
                shares_uid=shares_uid,
                on_disk=bool(plan.folder),
                truncates=plan.landlock >= landlock.TRUNCATE_ABI,
                pid=os.getpid() if shares_uid and plan.landlock < landlock.SIGNALS_ABI else 0,
            )
        )
    except BaseException as failure:
        os.write(starting, f"{type(failure).__name__}: {failure}".encode()[:1000])
        os._exit(_EXEC_FAILED)
    argv = plan.spec["argv"]
    try:
        os.execve(argv[0], argv, _environment(plan))
    except (OSError, ValueError) as failure:
        os.write(2, f"{argv[0]}: {failure}\n".encode("utf-8", "replace"))
    os._exit(_EXEC_FAILED)


def _forget_signals() -> None:
    """What a judge ignores or blocks would be ignored and blocked in its programs, too."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)


def _environment(plan: Plan) -> dict[str, str]:
    """All that a program finds: nothing of the launcher's, which has next to nothing itself."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": f"{plan.folder}/work",
        "TMPDIR": f"{plan.folder}/tmp",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        **plan.spec["variables"],
    }


def _place_descriptors(plan: Plan) -> None:
    """0, 1 and 2, with 3 and 4 where runs are linked. All others close on exec."""
    source = os.open("/dev/null", os.O_RDONLY) if plan.stdin is None else plan.stdin
    wanted = [source, plan.stdout, plan.stderr, *(plan.links or ())]
    # First out of the way: what is wanted as 4 may now be number 3.
    safe = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in wanted]
    for place, fd in enumerate(safe):
        os.dup2(fd, place, inheritable=True)


def _allow_no_more(plan: Plan) -> None:
    """Hard limits. Those on memory are backstops: the launcher watches what is in use."""
    limits = plan.spec["limits"]
    stack = limits["stack_bytes"]
    data = limits["memory_bytes"] + _SLACK + _STACKS * stack
    seconds = int(limits["cpu_s"]) + 2
    wanted = [
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_DATA, data),
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_STACK, stack),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NPROC, plan.spec["processes"]),
    ]
    for limit, most in wanted:
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    # Should the machine run out of memory, this is what the kernel is to kill first.
    try:
        fd = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=plan.proc)
        os.write(fd, b"1000")
        os.close(fd)
    except OSError:
        pass


def _fence_files(plan: Plan) -> None:
    devices = [f"/dev/{name}" for name in DEVICES]
    if plan.layer == "namespaces":
        if plan.landlock:
            landlock.restrict(read=["/"], write=["/work", "/tmp", "/dev/shm"], devices=devices)
        return
    landlock.restrict(
        read=[*_SYSTEM, *_SYSTEM_FILES, *plan.read],
        write=[f"{plan.folder}/work", f"{plan.folder}/tmp"],
        devices=devices,
    )


def _put_files(plan: Plan) -> int:
    """Write the job's files; the working folder's descriptor."""
    work = f"{plan.folder}/work"
    names = plan.spec["names"]
    folders = {work, f"{plan.folder}/tmp"} if plan.folder else set()
    for name, content in zip(names, plan.files, strict=True):
        path = f"{work}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        while os.path.dirname(path) != work:
            path = os.path.dirname(path)
            folders.add(path)
        fd = os.open(f"{work}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o755)
        frames.write(fd, content)
        os.close(fd)
    if plan.layer == "uid":
        for path in [*folders, *(f"{work}/{name}" for name in names)]:
            os.chown(path, plan.uid, plan.uid)
    return os.open(work, os.O_RDONLY | os.O_DIRECTORY)


def _kept_files(names: list[str], work: int, most: int) -> dict[str, bytes]:
    """Plain files right in the working folder; never what a link leads to."""
    kept = {}
    for name in names:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=work)
        except OSError:
            continue
        about = os.fstat(fd)
        if stat.S_ISREG(about.st_mode) and about.st_size <= most:
            with os.fdopen(fd, "rb", closefd=False) as file:
                kept[name] = file.read(most)
        os.close(fd)
    return kept


def remove_folder(path: str) -> None:
    """Remove a run's folder, however deep and whatever modes it was left with.

    Nothing that could change it is alive. Folders are moved up and emptied in turn, so that
    depth costs no recursion and no long path.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    count = 0
    while folders := _unlink_all(top):
        for name in folders:
            os.chmod(name, 0o700, dir_fd=top)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            for deeper in _unlink_all(inner):
                count += 1
                # Moving a folder rewrites its "..", which takes the right to write to it.
                os.chmod(deeper, 0o700, dir_fd=inner)
                os.rename(deeper, f"\n{count}", src_dir_fd=inner, dst_dir_fd=top)
            os.close(inner)
            os.rmdir(name, dir_fd=top)
    os.close(top)
    os.rmdir(path)


def _unlink_all(folder: int) -> list[str]:
    """Remove all that is no folder; the names of those that are."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=folder)
    return folders
