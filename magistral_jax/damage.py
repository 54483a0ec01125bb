"""What orbax raises where it fails, told apart: damage, and a machine that cannot; told once."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

# Orbax logs there what it raises, too, each of its threads with a traceback of its own.
logging.getLogger("absl").disabled = True


class Damaged(RuntimeError):
    """What was read is not what was saved."""


@contextmanager
def what_is_damage(name: str) -> Iterator[None]:
    """Raise `Damaged` for what orbax cannot read, but not for a machine that cannot read it now:
    too little memory, or a disk that does not answer."""
    try:
        yield
    except Exception as failure:
        cause: BaseException = failure
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        is_missing = isinstance(cause, FileNotFoundError)
        if isinstance(cause, OSError | MemoryError | jax.errors.JaxRuntimeError) and not is_missing:
            raise cause from None
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise Damaged(f"{name} cannot be read ({reason[:200]})") from failure


@contextmanager
def only_one_failure() -> Iterator[None]:
    """Of orbax's work that fails, what is raised here, and not what its threads say after it.

    They may say it when this is long over, so after a failure they stay silenced: what comes out
    of a thread's closed event loop, and asyncio's own log of those that failed with it.
    """
    told = sys.unraisablehook
    asyncio_log = logging.getLogger("asyncio")
    was_disabled, asyncio_log.disabled = asyncio_log.disabled, True

    def not_an_echo(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            told(unraisable)

    sys.unraisablehook = not_an_echo
    try:
        yield
    except BaseException:
        # What orbax leaves behind unstarted would each add a line, some at exit.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise
    sys.unraisablehook = told
    asyncio_log.disabled = was_disabled
