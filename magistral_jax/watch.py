"""Ends a run that stands still or was told to stop, and says who held it up.

A wait with a deadline of its own raises `Stalled` itself. The watch is for the rest: a thread that
hangs inside a library cannot be interrupted, only named. It writes all stacks to the run folder and
ends the process; the run goes on from its last checkpoint with --resume.
"""

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, strftime
from types import FrameType
from typing import Any

from magistral_jax.ledger import Activity, Ledger

STALLED, STOPPED = 70, 75
STACKS, NOTICE = "stacks.txt", "stop"
_INNERMOST = 4
_SLACK_S = 2.0
"""How much longer than a wait's own deadline the watch waits: the wait knows more to say."""


class Stop:
    """A wish to stop: a signal, or a file named "stop" in the run folder. It comes once."""

    def __init__(self) -> None:
        self.reason = ""
        self.since = 0.0
        self._listeners: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return bool(self.reason)

    @contextmanager
    def told_to(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call this at the wish, or now if there is one already; until the end."""
        self._listeners.append(listener)
        try:
            if self.reason:
                listener()
            yield
        finally:
            self._listeners.remove(listener)

    def request(self, reason: str) -> None:
        if not self.reason:
            self.reason, self.since = reason, monotonic()
            for listener in list(self._listeners):
                listener()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C are wishes; a second Ctrl-C interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.reason and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.request(signal.Signals(number).name)

        previous: dict[int, Any] = {
            number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Watch:
    """A thread beside the run. Use as a context manager."""

    def __init__(
        self,
        ledger: Ledger,
        stop: Stop,
        folder: Path,
        *,
        stall_s: float,
        grace_s: float,
        others: Callable[[], list[Activity]] = list,
        on_tick: Callable[[], None] = lambda: None,
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        """`others` are activities beside the ledger's; `on_exit` ends what must not outlive us."""
        self._ledger, self._stop, self._folder = ledger, stop, folder
        self._stall_s, self._grace_s = stall_s, grace_s
        self._others, self._on_tick, self._on_exit = others, on_tick, on_exit
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        (self._folder / NOTICE).unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        stacks = self._folder / STACKS
        if stacks.stat().st_size == 0:
            stacks.unlink()

    def describe(self) -> str:
        """Who is at what, and where in the code the one is that has been at work for longest."""
        activities = [*self._ledger.activities(), *self._others()]
        at_work = [a for a in activities if not a.is_wait]
        lines = [_said(a) for a in activities]
        if at_work:
            worst = max(at_work, key=lambda a: a.seconds)
            lines.append(f"{worst.owner} is in {innermost(worst.thread) or 'no thread'}")
        return "\n  ".join(lines or ["nobody is at work"])

    def _look(self) -> None:
        every_s = min(1.0, self._stall_s / 8, self._grace_s / 8)
        # Should something hold the interpreter itself, this thread stands still with the others:
        # then the C library dumps the stacks and ends the process (with 1, the code is its own).
        with (self._folder / STACKS).open("a", encoding="utf-8") as file:
            while not self._over.wait(every_s):
                faulthandler.dump_traceback_later(
                    self._stall_s + 10 * _SLACK_S, file=file, exit=True
                )
                with suppress(OSError):
                    self._on_tick()
                if (self._folder / NOTICE).exists():
                    (self._folder / NOTICE).unlink(missing_ok=True)
                    self._stop.request("the file " + NOTICE)
                self._judge()
            faulthandler.cancel_dump_traceback_later()

    def _judge(self) -> None:
        activities = [*self._ledger.activities(), *self._others()]
        stuck = [a for a in activities if not a.is_wait and a.seconds > self._stall_s]
        if stuck:
            worst = max(stuck, key=lambda a: a.seconds)
            self._end(f"{_said(worst)} (stall_s is {self._stall_s:g})")
        elif self._ledger.still_s > self._stall_s + 2 * _SLACK_S:
            main = threading.main_thread().ident or 0
            still = f"nothing has moved for {self._ledger.still_s:.3g} s"
            self._end(f"{still}; the main thread is in {innermost(main)}")
        elif self._stop and monotonic() - self._stop.since > self._grace_s:
            self._dump()
            what = "; ".join(_said(a) for a in activities) or "the end of the run"
            self._say(
                f"{self._stop.reason} came {self._grace_s:g} s ago (grace_s), and the run is not "
                f"over yet: {what}. It ends here; go on from the last checkpoint with --resume."
            )
            self._exit(STOPPED)

    def _end(self, headline: str) -> None:
        path = self._dump()
        self._say(
            f"stalled: {headline}\n  {self.describe()}\n  all stacks: {path}. Go on with --resume."
        )
        self._exit(STALLED)

    # Neither a full disk nor a reader of stderr that is gone may keep the process from ending.

    def _dump(self) -> str:
        try:
            return str(dump_stacks(self._folder))
        except OSError as fault:
            return f"not written ({fault.strerror})"

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"magistral-jax: {text}\n")
            sys.stderr.flush()

    def _exit(self, code: int) -> None:
        try:
            self._on_exit()
        finally:
            os._exit(code)


def dump_stacks(folder: Path) -> Path:
    """Append the stack of every thread, by its name, to the folder's stacks.txt."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    path = folder / STACKS
    with path.open("a", encoding="utf-8") as file:
        file.write(f"==== {strftime('%Y-%m-%d %H:%M:%S')}\n")
        for ident, frame in sys._current_frames().items():
            file.write(f"-- {names.get(ident, 'a thread of a library')}\n")
            file.write("".join(traceback.format_stack(frame)))
    return path


def innermost(thread: int) -> str:
    """Where a thread is, newest call first, in one line; empty if there is no such thread."""
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame)[-_INNERMOST:] if frame is not None else []
    places = (f"{c.name} ({Path(c.filename).name}:{c.lineno})" for c in reversed(calls))
    return " <- ".join(places)


def _said(activity: Activity) -> str:
    verb = "waits for" if activity.is_wait else "is at"
    return f"{activity.owner} {verb} {activity.what} for {activity.seconds:.3g} s"
