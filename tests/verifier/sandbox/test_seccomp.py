"""The filters, run here by an interpreter of the kernel's little language, for both machines."""

import errno
import struct

import pytest

from magistral_jax.verifier.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NAMES = [
    "read",
    "clone",
    "socket",
    "socketpair",
    "kill",
    "prlimit64",
    "setpriority",
    "fchmodat",
    "unshare",
    "truncate",
    "fcntl",
    "mmap",
]
_NUMBERS = {
    "x86_64": (0, 56, 41, 53, 62, 302, 141, 268, 272, 76, 72, 9),
    "aarch64": (63, 220, 198, 199, 129, 261, 140, 53, 97, 45, 25, 222),
}
CALLS = {name: dict(zip(_NAMES, numbers, strict=True)) for name, numbers in _NUMBERS.items()}


def answer(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would return for a call."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    lines = list(struct.iter_unpack("=HBBI", program))
    value = at = 0
    while True:
        code, if_true, if_false, constant = lines[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, constant)
            case 0x06:
                return constant
            case 0x15:
                at += if_true if value == constant else if_false
            case 0x25:
                at += if_true if value > constant else if_false
            case 0x45:
                at += if_true if value & constant else if_false
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.fixture(params=ARCH)
def machine(request, monkeypatch) -> str:
    monkeypatch.setattr(seccomp, "MACHINE", request.param)
    return request.param


def refused(error: int) -> int:
    return 0x00050000 | error


def filters(**changed) -> bytes:
    options = {"shares_uid": False, "on_disk": False, "truncates": True, "pid": 0}
    return seccomp.sandbox_filter(**{**options, **changed})


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("read", (0, 0, 10), ALLOW),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x10000011,), refused(errno.EPERM)),
        ("clone", (0x20000011,), refused(errno.EPERM)),
        ("socket", (1, 1, 0), refused(errno.EPERM)),
        ("socketpair", (1, 1, 0), ALLOW),
        ("socketpair", (2, 1, 0), refused(errno.EPERM)),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (77, 7), refused(errno.EPERM)),
        ("setpriority", (0, 0, 5), ALLOW),
        ("setpriority", (2, 0, 5), refused(errno.EPERM)),
        ("setpriority", (0, 77, 5), refused(errno.EPERM)),
        ("unshare", (0,), refused(errno.EPERM)),
        ("kill", (77, 9), ALLOW),
        ("fchmodat", (0,), ALLOW),
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 3, 0x01), ALLOW),
        ("mmap", (0, 4096, 3, 0x21), refused(errno.EPERM)),
        ("mmap", (0, 4096, 3, 0x23), refused(errno.EPERM)),
    ],
)
def test_what_every_program_runs_under(machine, call, arguments, expected):
    number = CALLS[machine][call]
    assert answer(filters(), ARCH[machine], number, *arguments) == expected


def test_a_program_with_its_callers_uid_is_refused_more(machine):
    calls, arch = CALLS[machine], ARCH[machine]
    program = filters(shares_uid=True, truncates=False, pid=55)
    assert answer(program, arch, calls["fchmodat"]) == refused(0)
    assert answer(program, arch, calls["truncate"]) == refused(errno.EPERM)
    assert answer(program, arch, calls["kill"], 55, 9) == ALLOW
    assert answer(program, arch, calls["kill"], 56, 9) == refused(errno.EPERM)
    assert answer(program, arch, calls["kill"], 2**64 - 1, 9) == refused(errno.EPERM)
    for set_owner in (8, 15):
        assert answer(program, arch, calls["fcntl"], 0, set_owner, 77) == refused(errno.EPERM)
    assert answer(program, arch, calls["fcntl"], 0, 4, 0o4000) == ALLOW


def test_other_architectures_and_unknown_calls_do_not_exist(machine):
    other = next(arch for name, arch in ARCH.items() if name != machine)
    assert answer(filters(), other, 0) == KILL
    assert answer(filters(), ARCH[machine], 463) == refused(errno.ENOSYS)
    assert answer(filters(), ARCH[machine], 0x40000000) == refused(errno.ENOSYS)
    assert answer(filters(), ARCH[machine], 435) == refused(errno.ENOSYS)


def test_a_filter_fits_the_kernel(machine):
    longest = filters(shares_uid=True, on_disk=True, truncates=False, pid=1)
    assert len(longest) // 8 <= 4096
