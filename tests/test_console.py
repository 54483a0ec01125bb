"""A terminal gets a status that is redrawn; anything else gets lines without control codes."""

import io
import json
import os
import re
import select
import threading
import time
import tty
from contextlib import suppress

import numpy as np
import pytest

from magistral_jax.console import Console, table

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
VALUES = {
    "reward/mean": 0.4,
    "reward/accuracy": 0.25,
    "length/mean": 31.5,
    "policy/lag_max": 2,
    "generator/tokens_per_s": 1234.4,
    "time/step": np.float32(0.5),
    "loss": 1.0,
}
LINE = "reward 0.400  accuracy 25.0%  length 31.5  lag 2  1234 tokens/s  0.50 s"


class Screen:
    """A terminal of 120 columns that remembers everything written to it."""

    def __init__(self):
        self.inner, outer = os.openpty()
        tty.setraw(outer)
        self.stream = os.fdopen(outer, "w", encoding="utf-8")
        self.seen = ""

    def read(self, until, deadline_s=10.0):
        """Everything so far, as soon as `until` is in it."""
        stop = time.monotonic() + deadline_s
        while until not in self.seen:
            assert time.monotonic() < stop, f"{until!r} did not come: {self.seen!r}"
            if select.select([self.inner], [], [], 0.1)[0]:
                self.seen += os.read(self.inner, 1 << 16).decode("utf-8", "replace")
        return self.seen

    def hang_up(self):
        os.close(self.inner)
        self.inner = -1

    def close(self):
        with suppress(OSError):
            self.stream.close()
        if self.inner >= 0:
            self.hang_up()


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    screen = Screen()
    yield screen
    screen.close()


def test_a_terminal_shows_the_status_and_a_line_per_step(screen):
    with Console(12, screen.stream) as console:
        console.phase("warm-up 120/400 loss 0.31")
        screen.read("warm-up 120/400 loss 0.31")
        console.step(1, VALUES)
        console.step(2, {**VALUES, "reward/mean": 0.6})
        screen.read("▁█")
        text = CODES.sub("", screen.seen)
        assert f"step  1/12  {LINE}" in text
        assert "0.50 s  ▁█" in text, "the phase gave way to the step"
        assert re.search(r"step 2/12 .*about 0:00:05 left", text)
    # Shown again when the run is over: the cursor.
    screen.read("\x1b[?25h")


def test_a_terminal_shows_who_waits_for_what_and_how_long(screen):
    with Console(12, screen.stream) as console:
        console.step(1, VALUES)
        console.waiting("trainer", "batch")
        screen.read("trainer waits for batch 1.")
        console.waiting("trainer", None)
        assert not console._waits


def test_the_status_is_redrawn_about_twice_a_second_whatever_is_called(screen):
    with Console(100_000, screen.stream) as console:
        screen.read("step 0/100000")
        began = time.monotonic()
        while time.monotonic() < began + 1.0:
            console.phase("warm-up")
            console.waiting("trainer", "batch")
            time.sleep(0.002)
        console.step(1, {})
        screen.read("step      1/100000")
    # Each redraw shows the bar's line once; the printed line redraws once more.
    assert 2 <= screen.seen.count("step 0/100000") <= 5


def test_threads_may_call_at_once(screen):
    def work(owner, console):
        for step in range(50):
            console.waiting(owner, "batch")
            console.phase(f"{owner} {step}")
            console.step(step, VALUES)
            console.waiting(owner, None)

    def redraw(console):
        for _ in range(200):
            console._live.refresh()

    # Not a `with`: where threads block each other, closing would wait for them too.
    console = Console(50, screen.stream)
    workers = [threading.Thread(target=work, args=(f"w{i}", console)) for i in range(4)]
    workers.append(threading.Thread(target=redraw, args=(console,)))
    drain = threading.Thread(target=screen.read, args=("the end",))
    for thread in (drain, *workers):
        thread.daemon = True
        thread.start()
    for thread in workers:
        thread.join(timeout=20)
        assert not thread.is_alive(), "two locks wait for each other"
    console.phase("the end")
    drain.join(timeout=20)
    assert not drain.is_alive()
    console.close()
    assert CODES.sub("", screen.seen).count(LINE) >= 200


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_plain_lines(screen, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    with Console(12, screen.stream) as console:
        console.step(3, VALUES)
    assert screen.read("\n") == f"step  3/12  {LINE}\n"


def test_a_pipe_gets_one_plain_line_per_step_and_no_more():
    stream = io.StringIO()
    with Console(12, stream) as console:
        console.waiting("trainer", "batch")
        for step in (1, 2):
            console.step(step, VALUES)
        console.waiting("trainer", None)
        console.step(3, {})
    assert stream.getvalue() == f"step  1/12  {LINE}\nstep  2/12  {LINE}\nstep  3/12\n"


def test_a_pipe_is_told_of_a_phase_once():
    stream = io.StringIO()
    with Console(12, stream) as console:
        console.phase("compiling")
        for step in range(1, 400):
            console.phase(f"warm-up {step}/400 loss {1 / step:.2f}")
        console.phase("evaluating")
    assert stream.getvalue().splitlines() == ["compiling", "warm-up 1/400 loss 1.00", "evaluating"]


def test_a_long_phase_is_told_again_now_and_then(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("magistral_jax.console.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console(12, stream)
    for second in range(61):
        now[0] = 1000.0 + second
        console.phase(f"warm-up {second}")
    assert stream.getvalue().splitlines() == ["warm-up 0", "warm-up 30", "warm-up 60"]


def test_a_note_is_a_line_of_its_own_and_leaves_the_status_as_it_was(screen):
    stream = io.StringIO()
    with Console(12, stream) as console:
        console.phase("warm-up 1/400")
        console.note("a push failed; tried again")
        console.note("a push failed; tried again")
        console.phase("warm-up 2/400")
    noted = ["a push failed; tried again"] * 2
    assert stream.getvalue().splitlines() == ["warm-up 1/400", *noted]
    with Console(12, screen.stream) as console:
        console.phase("warm-up 1/400")
        console.note("a push [red]failed\x1b[2J")
        screen.read("a push [red]failed\\x1b[2J\n")
        screen.seen = ""
        screen.read("warm-up 1/400")


def test_codes_in_a_text_do_not_reach_the_stream():
    stream = io.StringIO()
    Console(1, stream).phase("load \x1b[2J\x07[red]x")
    table("t\x1b", ["a"], [["\x1b]0;owned\x07"]], stream=stream)
    assert "\x1b" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert stream.getvalue().startswith("load \\x1b[2J\\x07[red]x\n")


def test_a_stream_that_closed_does_not_stop_the_run():
    read, write = os.pipe()
    stream = os.fdopen(write, "w", encoding="utf-8")
    os.close(read)
    with Console(3, stream) as console:
        console.step(1, VALUES)
        console.phase("x")
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_terminal_that_went_away_does_not_stop_the_run(screen):
    with Console(3, screen.stream) as console:
        screen.hang_up()
        console.step(1, VALUES)
        with pytest.raises(OSError):
            screen.stream.flush()


def test_closing_twice_is_closing(screen):
    console = Console(3, screen.stream)
    console.close()
    console.close()
    console.step(1, {})
    screen.read("step 1/3\n")


def test_a_table_is_aligned_and_its_numbers_stand_to_the_right(tmp_path):
    stream = io.StringIO()
    rows = [["sum-1", 0.123456, 7], ["总和", np.float32(1 / 3), None], ["ok", 10.0, np.int64(12)]]
    table("problems", ["id", "pass@1", "n"], rows, tmp_path / "out.json", stream)
    assert stream.getvalue().splitlines() == [
        "problems",
        "id     pass@1   n",
        "-----  ------  --",
        "sum-1  0.1235   7",
        "总和   0.3333   -",
        "ok         10  12",
    ]
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written == {
        "title": "problems",
        "rows": [
            {"id": "sum-1", "pass@1": 0.123456, "n": 7},
            {"id": "总和", "pass@1": float(np.float32(1 / 3)), "n": None},
            {"id": "ok", "pass@1": 10.0, "n": 12},
        ],
    }


def test_a_table_on_a_stream_of_few_letters_escapes_the_others():
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    table("标题", ["id"], [["é"]], stream=stream)
    assert raw.getvalue().decode().splitlines() == ["\\u6807\\u9898", "id", "----", "\\xe9"]


def test_a_table_without_rows_is_its_head():
    stream = io.StringIO()
    table("none", ["id"], [], stream=stream)
    assert stream.getvalue() == "none\nid\n--\n"
