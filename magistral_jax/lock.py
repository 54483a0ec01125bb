"""One process at a time writes to a run folder, whichever host it is on.

The lock is a file `lock.N` in the folder; the one with the highest number counts. It names its
owner, and is made as a whole in one step that fails where the file is there already, so that of
several processes that want number N one gets it. Whoever takes over from N makes N + 1: a process
that has looked at N and was slow finds N + 1 taken. A file that is let go stays, marked as such,
until the next owner has made its own: numbers never fall, so that nothing is confused.

Whether an owner lives is known for a process of this host, by its number and the time it began.
Of a process elsewhere (a shared disk, another container) only this is asked: does its file change
while we look? Its owner touches it all the time. No clock of one host is compared with another's.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from uuid import uuid4

from magistral_jax.types import UserError

BEAT_S = 1.0
"""How often an owner touches its file."""
SILENCE_S = 15.0
"""An owner elsewhere whose file has not changed for so long, by our own clock, is gone."""
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told apart from all others that ever were, as far as its host can."""

    host: str
    pid: int
    started: str
    """When the process began, in ticks since the host did; "" where the system does not say."""
    realm: str
    """Within which its number means something: the host's boot and its space of processes."""
    is_gone: bool = False
    """It has let go of the folder by itself."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a run folder, which is made if it is not there.

    Raises `UserError` if another one is in it, with its host and number.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = _acquired(folder)
    except OSError as fault:
        raise UserError(
            f"--run-dir {folder} cannot be made or written to: {fault.strerror}. "
            "Pass another --run-dir."
        ) from fault
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(own, over), name="folder lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        with suppress(OSError):
            _write(own, replace(_ourselves(), is_gone=True))


def _acquired(folder: Path) -> Path:
    """Our own lock file, the newest one of the folder."""
    number = max(_numbers(folder), default=-1)
    while True:
        if number >= 0:
            _refuse_if_alive(folder, _name(folder, number))
        own = _name(folder, number + 1)
        if _made(own):
            newest = max(_numbers(folder))
            if newest == number + 1:
                break
            # We were slow: the numbers that we saw are of the past.
            own.unlink(missing_ok=True)
            number = newest
        else:
            # A listing may be old on a shared disk; that this file is there is certain.
            number = max(number + 1, *_numbers(folder))
    for old in _numbers(folder):
        if old <= number:
            _name(folder, old).unlink(missing_ok=True)
    return own


def _refuse_if_alive(folder: Path, path: Path) -> None:
    owner = _read(path)
    if _is_alive(path, owner):
        who = f"process {owner.pid} on host {owner.host}" if owner else "another process"
        raise UserError(
            f"{folder} is in use by {who}. Stop that one or wait for its end, "
            "or pass another --run-dir."
        )


def _is_alive(path: Path, owner: Owner | None) -> bool:
    us = _ourselves()
    if owner is not None and owner.is_gone:
        return False
    if owner is not None and (owner.host, owner.realm) == (us.host, us.realm):
        return _started(owner.pid) == owner.started
    before, deadline = _mark(path), monotonic() + SILENCE_S
    while (now := _mark(path)) == before and now is not None:
        if monotonic() >= deadline:
            return False
        sleep(_LOOK_S)
    # It moved: a sign of life, unless it was the last one.
    after = _read(path)
    return after is not None and not after.is_gone


def _mark(path: Path) -> object:
    try:
        # Opened, or a shared disk may answer from what it remembers.
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            return found.st_mtime_ns, found.st_ino, file.read()
    except OSError:
        return None


def _made(path: Path) -> bool:
    """Make our lock file with all its content at once; False if there is one already."""
    draft = path.with_name(f"lock-{uuid4().hex}")
    try:
        draft.write_text(_told(_ourselves()), encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            # A server whose first answer was lost says so, too.
            return draft.stat().st_nlink == 2
        except OSError:  # a disk without links
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(_told(_ourselves()))
            except FileExistsError:
                return False
        return True
    finally:
        draft.unlink(missing_ok=True)


def _beat(own: Path, over: threading.Event) -> None:
    """Show that we live, until it is over; a process that was taken for gone must end."""
    while not over.wait(BEAT_S):
        with suppress(OSError):  # a disk that is away for a moment
            if max(_numbers(own.parent), default=-1) > int(own.suffix[1:]):
                _end(own)
            try:
                os.utime(own)
            except OSError:  # a disk without times
                _write(own, _ourselves())


def _end(own: Path) -> None:
    """Nothing may be written any more, so that nobody is told but the user."""
    with suppress(OSError, ValueError):
        sys.stderr.write(
            f"magistral-jax: {own.parent} was taken over by another process while this one did "
            f"not move for {SILENCE_S:g} s (on the disk of the folder). It ends here.\n"
        )
        sys.stderr.flush()
    os._exit(1)


def _ourselves() -> Owner:
    pid = os.getpid()
    return Owner(host=socket.gethostname(), pid=pid, started=_started(pid) or "", realm=_realm())


def _realm() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this host began; "" where the system does not tell, None if it is gone."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        # Its name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZXx" else started  # dead, though nobody has asked how it ended


def _told(owner: Owner) -> str:
    return json.dumps(asdict(owner))


def _write(path: Path, owner: Owner) -> None:
    """Replace a lock file: a reader sees the old one or the new one."""
    draft = path.with_name(f"lock-{uuid4().hex}")
    try:
        draft.write_text(_told(owner), encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path) -> Owner | None:
    """None where it is gone, or says nothing that can be read."""
    try:
        return Owner(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _numbers(folder: Path) -> list[int]:
    names = (path.name for path in folder.glob("lock.*"))
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def _name(folder: Path, number: int) -> Path:
    return folder / f"lock.{number}"
