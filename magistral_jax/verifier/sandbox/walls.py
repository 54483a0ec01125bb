"""Layer "namespaces": a house of its own for the launcher, and a room in it for each run.

The house (users, mounts, network, names, System V objects) is built once: a read-only root with the
system's programs, an interpreter, and nothing else of the machine. A room adds, per run, users,
mounts, processes and System V objects of its own, and sized folders to write in.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import os
from contextlib import suppress

from magistral_jax.verifier.sandbox import kernel
from magistral_jax.verifier.sandbox.kernel import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
)

HOUSE = "/tmp"
"""Where the root is built, seen by the launcher only."""
INSIDE_ID = 1000
"""The programs' uid and gid, as they see it."""
DEVICES = ("null", "full", "random", "urandom")
"""Not "zero": a shared mapping of it is memory that no process is seen to use (seccomp.py)."""
_SHARED_MEMORY = 16_000_000
_FILES = 8192
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = ("ld.so.cache", "alternatives")
_USERS = f"user:x:{INSIDE_ID}:{INSIDE_ID}::/work:/bin/sh\n"


def build_house(outer_id: int, binds: dict[str, str], masks: list[str]) -> None:
    """Enter namespaces as the user `outer_id` of the machine, and build the root at HOUSE.

    `binds` has further places inside and what of the machine is seen there, read-only; `masks`
    are places inside whose content is hidden. Raises OSError where the machine refuses.
    """
    _enter_as(outer_id)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    sources = {f"/{name}": f"/{name}" for name in _SYSTEM}
    sources |= {f"/etc/{name}": f"/etc/{name}" for name in _ETC}
    sources |= {f"/dev/{name}": f"/dev/{name}" for name in DEVICES}
    # Opened before the uid changes: the interpreter may live in a home that only root may enter.
    opened = {
        inside: (place, os.open(place, os.O_PATH))
        for inside, place in (sources | binds).items()
        if os.path.exists(place) and not os.path.islink(place)
    }
    links = {s: os.readlink(s) for s in sources if os.path.islink(s)}
    os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    os.umask(0o022)
    mount("none", HOUSE, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
    for folder in ("work", "tmp", "dev/shm", "etc", "proc"):
        os.makedirs(f"{HOUSE}/{folder}")
    for name in ("passwd", "group"):
        with open(f"{HOUSE}/etc/{name}", "w") as file:
            file.write(_USERS if name == "passwd" else f"user:x:{INSIDE_ID}:\n")
    for link, target in links.items():
        os.symlink(target, HOUSE + link)
    for inside, (place, fd) in opened.items():
        _show(fd, HOUSE + inside, is_folder=os.path.isdir(f"/proc/self/fd/{fd}"), name=place)
    for place in masks:
        if os.path.isdir(HOUSE + place):
            mount("none", HOUSE + place, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k")
    mount("none", HOUSE, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def enter_room(file_bytes: int, files_bytes: int) -> None:
    """Move this process into a room for one run; its next child is the room's first process.

    `file_bytes` may be written to the working folder beside the `files_bytes` put there.
    """
    kernel.unshare(kernel.NEWUSER | kernel.NEWNS | kernel.NEWPID | kernel.NEWIPC)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    _map_ids("self", INSIDE_ID, INSIDE_ID)
    # Not everywhere to be had; the system call filter refuses nested namespaces in any case.
    with suppress(OSError):
        _write("/proc/sys/user/max_user_namespaces", "0")
    # A mount seen from another user namespace cannot become the root; one made here can.
    mount(HOUSE, HOUSE, "", MS_BIND | MS_REC)
    os.chdir(HOUSE)
    flags = MS_NOSUID | MS_NODEV
    for place, size in (
        ("work", file_bytes + files_bytes + 4096 * 64),
        ("tmp", file_bytes),
        ("dev/shm", _SHARED_MEMORY),
    ):
        mount("none", place, "tmpfs", flags, f"size={size},nr_inodes={_FILES},mode=0755")
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir("/work")


def _enter_as(outer_id: int) -> None:
    """Fresh namespaces, in which INSIDE_ID stands for `outer_id` of the machine."""
    ready, done = os.pipe(), os.pipe()
    # The map has to be written from outside: root may map any uid, a user only its own.
    helper = os.fork()
    if helper == 0:
        code = 1
        try:
            os.close(ready[1])
            if os.read(ready[0], 1):
                _map_ids(str(os.getppid()), outer_id, outer_id)
                code = 0
        finally:
            os._exit(code)
    try:
        kernel.unshare(
            kernel.NEWUSER
            | kernel.NEWNS
            | kernel.NEWNET
            | kernel.NEWIPC
            | kernel.NEWUTS
            | kernel.NEWCGROUP
        )
        os.write(ready[1], b"x")
    finally:
        for fd in (*ready, *done):
            os.close(fd)
        status = os.waitpid(helper, 0)[1]
    if status != 0:
        raise OSError(1, f"the uid {outer_id} could not be mapped into a user namespace")


def _map_ids(process: str, uid: int, gid: int) -> None:
    with suppress(OSError):  # denied already, further out
        _write(f"/proc/{process}/setgroups", "deny")
    _write(f"/proc/{process}/uid_map", f"{INSIDE_ID} {uid} 1")
    _write(f"/proc/{process}/gid_map", f"{INSIDE_ID} {gid} 1")


def _show(fd: int, target: str, *, is_folder: bool, name: str) -> None:
    """Bind what `fd` is open on to a place of the house, read-only."""
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    try:
        mount(f"/proc/self/fd/{fd}", target, "", MS_BIND | MS_REC)
    except OSError as failure:
        raise OSError(failure.errno, f"{name}: {failure.strerror}") from None
    kernel.protect_mount(target, devices=target.startswith(f"{HOUSE}/dev/"))
    os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
