"""The kernel's calls that Python 3.12 lacks, through ctypes. Each raises OSError.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import ctypes
import errno
import os
import platform

MACHINE = platform.machine()
ARCHES = ("x86_64", "aarch64")

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 4, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
_CLEAR_ALL = 4
# No root, no fix-up on setuid, no ambient capabilities; each locked.
_SECURE = 0x01 | 0x02 | 0x04 | 0x08 | 0x40 | 0x80

# Numbers on x86_64 and aarch64. From 424 on all architectures count alike.
_NUMBERS = {
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(name: str, *arguments: "int | bytes | ctypes.Array[ctypes.c_char]") -> int:
    """The system call by its name; integers pass as longs, bytes as pointers to them."""
    if MACHINE not in ARCHES:
        raise OSError(errno.ENOSYS, f"{name}: no system call numbers for {MACHINE}")
    number = _NUMBERS[name][ARCHES.index(MACHINE)]
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), name)


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for fresh ones."""
    _checked(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """One of the PR_ options, with its one or two values."""
    words = (ctypes.c_ulong(value), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0))
    _checked(_libc.prctl(ctypes.c_int(option), *words), f"prctl({option})")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _checked(result, f"mount {kind or 'bind'} {source} on {target}")


def unmount(target: str) -> None:
    """Take a mount and all below it out of view, at once."""
    _checked(_libc.umount2(target.encode(), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of this mount namespace; the old root is then at `old`."""
    syscall("pivot_root", new.encode(), old.encode())


def protect_mount(target: str, devices: bool = False) -> None:
    """Make a bind mount read-only and deaf to setuid; without `devices`, to device files too."""
    flags = MS_RDONLY | MS_NOSUID | (0 if devices else MS_NODEV)
    attributes = flags.to_bytes(8, "little") + bytes(24)
    here, recursive = -100, 0x8000
    try:
        syscall("mount_setattr", here, target.encode(), recursive, attributes, len(attributes))
    except OSError as failure:
        if failure.errno != errno.ENOSYS:
            raise
        # Before Linux 5.12: what the mount already forbids has to be said again.
        kept = os.statvfs(target).f_flag & ~0x1000
        mount("", target, "", MS_REMOUNT | MS_BIND | flags | kept)


def drop_bounding_capabilities() -> None:
    """Give up what a later exec could bring back."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            return  # past the last one that this kernel knows


def drop_capabilities() -> None:
    """Give up every capability for good."""
    drop_bounding_capabilities()
    prctl(PR_CAP_AMBIENT, _CLEAR_ALL)
    prctl(PR_SET_SECUREBITS, _SECURE)
    header = (0x20080522).to_bytes(4, "little") + bytes(4)
    syscall("capset", header, bytes(24))


def pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None before Linux 5.3."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
