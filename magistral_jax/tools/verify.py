"""`magistral-jax verify`: rows in, verdicts out, in order, as they come."""

import io
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from magistral_jax.config import RunConfig
from magistral_jax.rows import row_of
from magistral_jax.types import UserError
from magistral_jax.verifier.api import NO_LENGTH_RULE, judge_many
from magistral_jax.verifier.faults import FormatFaults
from magistral_jax.verifier.reward import rule_of
from magistral_jax.verifier.sandbox.choose import describe_sandbox
from magistral_jax.verifier.worker import VerifierPool


def verify(config: RunConfig, source: Path, *, has_length_rule: bool) -> int:
    """Judge the rows of a JSONL file ("-": stdin); verdicts on stdout, a summary on stderr.

    Without a length rule no completion is too long. Returns 0 when every row was judged, else 1.
    """
    rule = rule_of(config) if has_length_rule else NO_LENGTH_RULE
    began = time.monotonic()
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rewards = 0.0
    with ExitStack() as stack:
        stream = stack.enter_context(_opened(source))
        bar = stack.enter_context(_Bar(source))
        pool = stack.enter_context(VerifierPool(rule, config.verifier))
        faults = FormatFaults(_tell)
        for row in judge_many(_rows(source, stream, config), pool, see=faults.see):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            bar.advance()
            outcomes[row["outcome"]] += 1
            reasons[row["reason"]] += 1
            rewards += row["reward"]
    seconds, rows = time.monotonic() - began, outcomes.total()
    details = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
    _tell(
        f"{rows} rows in {seconds:.1f} s ({rows / seconds:.0f}/s): {outcomes['right']} right, "
        f"{outcomes['wrong']} wrong, {outcomes['error']} not judged; mean reward "
        f"{rewards / max(rows, 1):.3f} ({details or 'no rows'})"
    )
    return 1 if outcomes["error"] else 0


def _rows(source: Path, stream: BinaryIO, config: RunConfig) -> Iterator[Any]:
    """The rows, or in place of one that cannot be read what is wrong with it.

    The first program asks for the sandbox, which says what it is or refuses.
    """
    has_code = False
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = row_of(f"{source}:{number}", line)
        except UserError as fault:
            yield fault
            continue
        if not has_code and row.get("domain") == "code":
            has_code = True
            _tell(describe_sandbox(config.verifier))
        yield row


def _opened(source: Path) -> AbstractContextManager[BinaryIO]:
    if str(source) == "-":
        # A reader of its own, never closed: the thread that reads may be waiting for a line, and
        # closing what it holds would wait for that line, too.
        return nullcontext(open(sys.stdin.fileno(), "rb", closefd=False))
    try:
        return source.open("rb")
    except OSError as fault:
        raise UserError(f"{source} cannot be read: {fault.strerror}.") from fault


class _Bar:
    """A progress bar on a terminal; nothing anywhere else."""

    def __init__(self, source: Path) -> None:
        self._progress: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = ("verify", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task("verify", total=_lines_of(source))

    def advance(self) -> None:
        if self._progress is not None:
            self._progress.advance(self._task)

    def __enter__(self) -> "_Bar":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def _lines_of(source: Path) -> int | None:
    """Lines of a file, or None where they cannot be counted beforehand."""
    with suppress(OSError, io.UnsupportedOperation):
        if source.is_file():
            with source.open("rb") as stream:
                return sum(1 for line in stream if line.strip())
    return None


def _tell(text: str) -> None:
    sys.stderr.write(f"verify: {text}\n")
    sys.stderr.flush()
