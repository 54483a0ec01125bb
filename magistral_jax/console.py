"""What a person sees: a live status on a terminal, one plain line per step anywhere else.

Everything shown is made printable first: a problem's id or a completion may hold codes that would
drive the terminal.
"""

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, SupportsFloat

import rich.console
from rich.cells import cell_len
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_TREND_STEPS = 16
_LONG_WAIT_S = 1.0
_PHASE_EVERY_S = 30.0

# What a step's line shows, in this order: metric, words around it, format.
_SHOWN = (
    ("reward/mean", "reward {}", ".3f"),
    ("reward/accuracy", "accuracy {}", ".1%"),
    ("length/mean", "length {}", ".1f"),
    ("policy/lag_max", "lag {}", ".0f"),
    ("generator/tokens_per_s", "{} tokens/s", ".0f"),
    ("time/step", "{} s", ".2f"),
)


class Console:
    """The run's face on a text stream, stderr unless told. Any thread may call it."""

    def __init__(self, steps: int, stream: Any = None) -> None:
        self._steps = steps
        self.stream = sys.stderr if stream is None else stream
        self._encoding = getattr(self.stream, "encoding", None) or "utf-8"
        # Held only to read or change the fields below, never while printing: the live display
        # calls `_status` under a lock of its own.
        self._lock = Lock()
        self._at = 0
        self._phase = "starting"
        self._phase_kind, self._phase_told = "", 0.0
        self._line = ""
        self._rewards: deque[float] = deque(maxlen=_TREND_STEPS)
        self._step_s: deque[float] = deque(maxlen=_TREND_STEPS)
        self._waits: dict[str, tuple[str, float]] = {}
        self._began = time.monotonic()
        self._live = self._start_live() if _is_terminal(self.stream) else None

    def phase(self, text: str) -> None:
        """Shows what the run does between steps: "compiling", "warm-up 120/400 loss 0.31"."""
        text = _printable(text, self._encoding)
        now, kind = time.monotonic(), re.sub(r"[\d.]+", "", text)
        with self._lock:
            self._phase = text
            is_news = kind != self._phase_kind or now - self._phase_told >= _PHASE_EVERY_S
            if is_news:
                self._phase_kind, self._phase_told = kind, now
        if self._live is None and is_news:
            self._print(text)

    def note(self, text: str) -> None:
        """Prints a line of its own, on a terminal too: something went wrong and was mended."""
        self._print(_printable(text, self._encoding))

    def step(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Prints the step's line; `values` are those of `RunRecord.step`."""
        numbers = {name: float(value) for name, value in values.items()}
        items = [
            words.format(format(numbers[name], form))
            for name, words, form in _SHOWN
            if name in numbers
        ]
        with self._lock:
            self._at, self._phase, self._line = step, "", "  ".join(items)
            if "reward/mean" in numbers:
                self._rewards.append(numbers["reward/mean"])
            if "time/step" in numbers:
                self._step_s.append(numbers["time/step"])
        self._print("  ".join([f"step {step:>{len(str(self._steps))}}/{self._steps}", *items]))

    def waiting(self, owner: str, what: str | None) -> None:
        """Notes that `owner` waits for `what` from now on; None: no longer."""
        with self._lock:
            if what is None:
                self._waits.pop(owner, None)
            else:
                self._waits[owner] = (what, time.monotonic())

    def close(self) -> None:
        """Takes the status away and gives the terminal back; the printed lines stay."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_live(self) -> Live:
        live = Live(
            console=rich.console.Console(file=self.stream, force_terminal=True),
            get_renderable=self._status,
            refresh_per_second=2,
            transient=True,
            # Results on stdout may go elsewhere than this stream; they are not ours to redirect.
            redirect_stdout=False,
            redirect_stderr=self.stream is sys.stderr,
        )
        live.start()
        return live

    def _print(self, line: str) -> None:
        live = self._live
        try:
            if live is not None:
                live.console.print(Text(line), soft_wrap=True)
            else:
                self.stream.write(line + "\n")
                self.stream.flush()
        except (OSError, ValueError):
            # A closed pipe or terminal takes the view away, not the run.
            return

    def _status(self) -> Table:
        """Two lines: how far the run is, and how it goes or what it waits for."""
        now = time.monotonic()
        with self._lock:
            at, phase, line = self._at, self._phase, self._line
            rewards, step_s = list(self._rewards), list(self._step_s)
            waits = [(owner, what, now - since) for owner, (what, since) in self._waits.items()]
        clock = _duration(now - self._began)
        if step_s:
            left = (self._steps - at) * sum(step_s) / len(step_s)
            clock += f", about {_duration(left)} left"
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._steps, 1), completed=at, width=30)
        head.add_row(Text(f"step {at}/{self._steps}"), bar, Text(clock))
        trend = _trend(rewards) if self._encoding.lower().startswith("utf") else ""
        long_waits = [
            f"{owner} waits for {what} {waited:.1f} s"
            for owner, what, waited in waits
            if waited >= _LONG_WAIT_S
        ]
        below = "  ".join(part for part in (phase or line, trend, *long_waits) if part)
        status = Table.grid()
        status.add_row(head)
        status.add_row(Text(_printable(below, self._encoding), overflow="ellipsis", no_wrap=True))
        return status


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    json_path: str | Path | None = None,
    stream: Any = None,
) -> None:
    """Prints an aligned table, numbers to the right, and writes it to `json_path` as JSON.

    `stream` is any text stream, stdout unless told.
    The file holds {"title": ..., "rows": [{column: value, ...}, ...]} with the values unrounded.
    """
    out = sys.stdout if stream is None else stream
    encoding = getattr(out, "encoding", None) or "utf-8"
    cells = [[_printable(_cell(value), encoding) for value in row] for row in [columns, *rows]]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(columns))]
    to_right = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(map(_padded, row, widths, to_right)).rstrip()
        for row in [cells[0], ["-" * width for width in widths], *cells[1:]]
    ]
    out.write("\n".join([_printable(title, encoding), *lines]) + "\n")
    out.flush()
    if json_path is not None:
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        text = json.dumps({"title": title, "rows": records}, indent=2, default=_as_json)
        Path(json_path).write_text(text + "\n", encoding="utf-8")


def _is_terminal(stream: Any) -> bool:
    term = os.environ.get("TERM", "").lower()
    return stream.isatty() and term not in ("", "dumb", "unknown")


def _printable(text: str, encoding: str) -> str:
    """The text without control codes and without what the stream cannot encode, as escapes."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _trend(values: Sequence[float]) -> str:
    """The values as a row of bars, lowest to highest; nothing before there are two."""
    if len(values) < 2:
        return ""
    low, span = min(values), max(values) - min(values)
    top = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / span * top) if span > 0 else 0] for value in values)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    value = value.tolist() if hasattr(value, "tolist") else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, SupportsFloat) and not isinstance(value, bool))


def _padded(cell: str, width: int, to_right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if to_right else cell + space


def _as_json(value: Any) -> Any:
    """numpy's numbers as Python's, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
