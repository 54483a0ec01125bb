"""Pools of real processes, and what the kernel says of them."""

import fcntl
import os
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

from magistral_jax.config import VerifierConfig
from magistral_jax.types import Problem
from magistral_jax.verifier import worker
from magistral_jax.verifier.reward import RewardRule
from magistral_jax.verifier.worker import VerifierPool

PROBLEM = Problem(id="sum", domain="math", question="What is 2+2?", answer="4")
RULE = RewardRule(soft_tokens=80, max_tokens=100)
RIGHT = r"<think>hm</think>\boxed{4}"
LONG_S = 60.0  # for a machine under load; no test waits this long when all is well


def pool_of(workers: int, timeout_s: float = LONG_S, **options) -> VerifierPool:
    return VerifierPool(RULE, VerifierConfig(workers=workers, timeout_s=timeout_s), **options)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LONG_S} s for {what}"
        time.sleep(0.02)


def state(pid: int) -> str:
    """The kernel's letter for what a process does: T is stopped, Z is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def is_alive(pid: int) -> bool:
    return state(pid) != "Z"


def freeze(pid: int) -> None:
    """Make a process hang, and return only when it does: a signal takes its time."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state(pid) == "T", "the process to stop")


def unread_bytes(pid: int) -> int:
    """What lies in the pipe to a process and has not been read by it."""
    with open(f"/proc/{pid}/fd/0", "rb", buffering=0) as pipe:
        return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]


def child_of(server: int) -> int:
    """The process that judges for a server."""
    children = Path(f"/proc/{server}/task/{server}/children")
    until(lambda: children.read_text() != "", "the server to fork")
    return int(children.read_text().split()[0])


def run_instead(monkeypatch, program: str) -> None:
    monkeypatch.setattr(worker, "_COMMAND", (sys.executable, "-c", program))


SERVE = "from magistral_jax.verifier import server\nserver.main()"
