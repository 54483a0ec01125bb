"""Landlock: what of the file system a process may touch, told by the process itself.

Stdlib only: the launcher (launcher.py) runs it outside the package.
"""

import os
import stat
import struct

from magistral_jax.verifier.sandbox.kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
# What each version of the interface knows of rights to files: its bits, counted from 0.
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET = 0b11
_SCOPE_SOCKETS, _SCOPE_SIGNALS = 1, 2
SIGNALS_ABI = 6
"""From here on a process can be kept from sending signals out of its sandbox."""
TRUNCATE_ABI = 3

_READ = _EXECUTE | _READ_FILE | _READ_DIR
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL


def abi() -> int:
    """The version of the kernel's interface, 0 without one."""
    try:
        return syscall("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        return 0


def restrict(*, read: list[str], write: list[str], devices: list[str]) -> None:
    """Leave this process, for good, only these files and folders; the network not at all.

    Paths that do not exist are left out. A device is a file that may be written but not replaced.
    """
    version = abi()
    handled = (1 << _RIGHTS_BY_ABI[min(version, 5)]) - 1
    ruleset = _ruleset(
        handled,
        _NET if version >= 4 else 0,
        _SCOPE_SOCKETS | _SCOPE_SIGNALS if version >= SIGNALS_ABI else 0,
    )
    for paths, rights in ((read, _READ), (write, handled), (devices, _DEVICE)):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    _enter(ruleset)


def keep_signals_inside() -> None:
    """From now on this process signals only itself and what it starts. Needs SIGNALS_ABI."""
    _enter(_ruleset(0, 0, _SCOPE_SIGNALS))


def _ruleset(files: int, net: int, scopes: int) -> int:
    # An older kernel takes the longer structure as long as what it does not know is zero.
    attributes = struct.pack("=QQQ", files, net, scopes)
    return syscall("landlock_create_ruleset", attributes, len(attributes), 0)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= _OF_A_FILE
    beneath = 1
    syscall("landlock_add_rule", ruleset, beneath, struct.pack("=Qi", rights, fd), 0)
    os.close(fd)


def _enter(ruleset: int) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)
