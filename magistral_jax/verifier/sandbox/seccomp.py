"""Seccomp: system calls that no program in the sandbox needs, refused by the kernel.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import ctypes
import errno
import struct

from magistral_jax.verifier.sandbox.kernel import (
    ARCHES,
    MACHINE,
    PR_SET_NO_NEW_PRIVS,
    prctl,
    syscall,
)

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST = 462
"""The last call that was weighed (mseal). Newer ones do not exist in here; nor do x32's."""

# Name, number on x86_64, number on aarch64; "-" where the architecture has no such call.
_REFUSED = """
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272,
pidfd_getfd 438 438, process_madvise 440 440, process_mrelease 448 448, memfd_create 319 279,
memfd_secret 447 447, userfaultfd 323 282, bpf 321 280, perf_event_open 298 241,
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, add_key 248 217,
request_key 249 218, keyctl 250 219, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51,
fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, open_tree 428 428,
move_mount 429 429, mount_setattr 442 442, unshare 272 97, setns 308 268, socket 41 198,
kexec_load 246 104, kexec_file_load 320 294, open_by_handle_at 304 265, name_to_handle_at 303 264,
init_module 175 105, finit_module 313 273, delete_module 176 106, reboot 169 142, swapon 167 224,
swapoff 168 225, acct 163 89, quotactl 179 60, quotactl_fd 443 443, syslog 103 116,
lookup_dcookie 212 18, fanotify_init 300 262, nfsservctl 180 42, shmget 29 194, semget 64 190,
msgget 68 186, mq_open 240 180, iopl 172 -, ioperm 173 -, modify_ldt 154 -, uselib 134 -,
ustat 136 -, sysfs 139 -, _sysctl 156 -, set_mempolicy 238 237, mbind 237 235,
migrate_pages 256 238, move_pages 279 239, settimeofday 164 170, clock_settime 227 112,
clock_adjtime 305 266, adjtimex 159 171, sethostname 170 161, setdomainname 171 162,
vhangup 153 58, ioprio_set 251 30,
inotify_init 253 -, inotify_init1 294 26
"""
# A program with its caller's uid (layer "landlock") could change the modes of that user's files,
# which Landlock does not watch. chmod seems to work, as linkers insist on it; the rest is refused.
_FEIGNED = """
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utime 132 -, utimes 235 -,
futimesat 261 -, utimensat 280 88
"""
_REFUSED_TO_ITS_OWNER = """
chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, setxattr 188 5, lsetxattr 189 6,
fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
"""
_TRUNCATE = "truncate 76 45"
_ALLOCATE = "fallocate 285 47"
_SIGNALS = "kill 62 129, tgkill 234 131"
_OTHER_SIGNALS = """
tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_send_signal 424 424
"""
_OF_ITSELF = """
prlimit64 302 261, sched_setaffinity 203 122, sched_setscheduler 144 119, sched_setparam 142 118,
sched_setattr 314 274
"""
_SETPRIORITY, _PERSONALITY, _IOCTL = "setpriority 141 140", "personality 135 92", "ioctl 16 29"
_FCNTL, _MMAP = "fcntl 72 25", "mmap 9 222"
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_SOCKETPAIR, _CLONE, _CLONE3 = "socketpair 53 199", "clone 56 220", "clone3 435 435"
_DOCKER = """
mount 165 40, umount2 166 39, pivot_root 155 41, unshare 272 97, setns 308 268, fsopen 430 430,
move_mount 429 429, mount_setattr 442 442, open_tree 428 428, bpf 321 280, keyctl 250 219
"""
_NEW_NAMESPACES = 0x7E020000
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16


def install(filters: bytes) -> None:
    """Put a filter on this process for good."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    program = ctypes.create_string_buffer(filters, len(filters))
    where = struct.pack("@HP", len(filters) // 8, ctypes.addressof(program))
    set_mode_filter = 1
    syscall("seccomp", set_mode_filter, 0, where)


def sandbox_filter(*, shares_uid: bool, on_disk: bool, truncates: bool, pid: int) -> bytes:
    """What a sandboxed program runs under.

    `shares_uid`: it runs with its caller's uid, whose files and processes it could touch.
    `on_disk`: its files are on a disk, not in a sized tmpfs. `truncates`: the kernel keeps it from
    truncating what it cannot write. `pid`: the only process it may signal, 0 for those it sees.
    """
    lines = _prologue() + _each(_REFUSED, errno.EPERM)
    lines += _each(_CLONE3, errno.ENOSYS)  # libc then falls back to clone, whose flags we can read
    lines += _unless(_CLONE, [(0, _ANY_BIT, _NEW_NAMESPACES, False)])
    lines += _no_shared_memory()
    lines += _unless(_SOCKETPAIR, [(0, _EQUAL, 1, True)])
    lines += _unless(_PERSONALITY, [(0, _EQUAL, 0xFFFFFFFF, True)])
    for request in (0x5412, 0x541C):  # TIOCSTI and TIOCLINUX: typing into a terminal
        lines += _unless(_IOCTL, [(1, _EQUAL, request, False)])
    for name in _OF_ITSELF.split(","):
        lines += _unless(name, [(0, _EQUAL, 0, True)])
    lines += _unless(_SETPRIORITY, [(0, _EQUAL, 0, True), (1, _EQUAL, 0, True)])
    if shares_uid:
        lines += _each(_FEIGNED, 0) + _each(_REFUSED_TO_ITS_OWNER, errno.EPERM)
        if not truncates:
            lines += _each(_TRUNCATE, errno.EPERM)
    if on_disk:
        lines += _each(_ALLOCATE, errno.EOPNOTSUPP)
    if pid:
        lines += _each(_OTHER_SIGNALS, errno.EPERM)
        for name in _SIGNALS.split(","):
            lines += _unless(name, [(0, _EQUAL, pid, True)])
        # The owner of a file can be anyone, and is sent a signal of choice when data comes.
        lines += _unless(_FCNTL, [(1, _EQUAL, owner, False) for owner in (8, 15)])
        lines += _unless(_IOCTL, [(1, _EQUAL, owner, False) for owner in (0x8901, 0x8902)])
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def container_filter() -> bytes:
    """What a container usually denies to those in it, for tests: no namespaces, no mounts."""
    lines = _prologue() + _each(_DOCKER, errno.EPERM) + _each(_CLONE3, errno.ENOSYS)
    lines += _unless(_CLONE, [(0, _ANY_BIT, _NEW_NAMESPACES, False)])
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _prologue() -> list[bytes]:
    return [
        _line(_LOAD, _ARCH_AT),
        _line(_EQUAL, _AUDIT_ARCH[MACHINE], 1, 0),
        _line(_RETURN, _KILL),
        _line(_LOAD, _NUMBER_AT),
        _line(_GREATER, _NEWEST, 0, 1),
        _refuse(errno.ENOSYS),
    ]


def _each(names: str, error: int) -> list[bytes]:
    """Answer these calls with an error; the number is loaded and stays so."""
    lines = []
    for number in _numbers(names):
        lines += [_line(_EQUAL, number, 0, 1), _refuse(error)]
    return lines


def _unless(name: str, conditions: list[tuple[int, int, int, bool]]) -> list[bytes]:
    """Refuse a call unless each (argument, test, value, answer) holds of its low 32 bits."""
    tests = []
    for argument, test, value, answer in conditions:
        where = _ARGUMENTS_AT + 8 * argument
        jumps = (1, 0) if answer else (0, 1)
        tests += [_line(_LOAD, where), _line(test, value, *jumps), _refuse(errno.EPERM)]
    tests.append(_line(_LOAD, _NUMBER_AT))
    return [
        line for number in _numbers(name) for line in [_line(_EQUAL, number, 0, len(tests)), *tests]
    ]


def _no_shared_memory() -> list[bytes]:
    """Refuse anonymous memory that is shared: it stays when all but a page of it is unmapped, and
    then no process is seen to use it."""
    tests = [
        _line(_LOAD, _ARGUMENTS_AT + 8 * 3),
        _line(_ANY_BIT, _MAP_ANONYMOUS, 0, 2),
        _line(_ANY_BIT, _MAP_SHARED, 0, 1),
        _refuse(errno.EPERM),
        _line(_LOAD, _NUMBER_AT),
    ]
    (number,) = _numbers(_MMAP)
    return [_line(_EQUAL, number, 0, len(tests)), *tests]


def _numbers(names: str) -> list[int]:
    rows = [name.split()[1 + ARCHES.index(MACHINE)] for name in names.split(",")]
    return [int(number) for number in rows if number != "-"]


def _refuse(error: int) -> bytes:
    return _line(_RETURN, 0x00050000 | error)


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
