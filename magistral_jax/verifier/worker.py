"""A pool of processes that judge completions; every completion gets one verdict in bounded time.

Each place of the pool is a server (see `server`), which watches over the child that judges. Here
only the servers are watched over: one that dies is replaced, and its question asked again; one that
says nothing long after every limit has passed tells where it hangs, and costs one completion, whose
outcome is "error".
"""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import Literal

from magistral_jax.config import VerifierConfig
from magistral_jax.types import Problem, UserError, Verdict
from magistral_jax.verifier.own import load_own
from magistral_jax.verifier.reward import RewardRule, without_reward
from magistral_jax.verifier.server import READY
from magistral_jax.verifier.wire import Question, limits_of, question_line, verdict_in

_COMMAND = (sys.executable, "-P", "-m", "magistral_jax.verifier.server")
_START_S = 60.0
_STARTS = 3
_MOST_KILLS = 100
_LINE_LIMIT = 1_000_000
_TRIES = 3
_PATIENCE = 10
"""A server settles a check within a few times its limit: what is asked, then a known-good answer,
then the format again, each up to four times longer under load."""
_LOADING_S = 60.0
_TELLING_S = 1.0
"""For a process that hangs, to write down where."""
_INNERMOST = 4
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR")


class VerifierPool:
    """Judges completions in `config.workers` processes, each check within `config.timeout_s`.

    The processes never load jax and see nothing of this one's environment but search paths.
    """

    def __init__(
        self,
        rule: RewardRule,
        config: VerifierConfig,
        *,
        tell: Callable[[str], object] = lambda message: None,
        most_s: float = float("inf"),
    ) -> None:
        """`tell` hears of each process that had to be replaced, from any thread; `most_s` is the
        longest that one may say nothing."""
        if config.own:
            load_own(config.own)  # a mistake is told now, and not with every completion
        path = config.language_model
        if path and not Path(path).is_file():
            raise UserError(f"verifier.language_model is {path!r}; there is no such file.")
        self._config = config
        self._broken = ""
        self._tell, self._most_s = tell, most_s
        settings = json.dumps({"rule": asdict(rule), "config": asdict(config)})
        command = [*_COMMAND, settings]
        self._children = [_Child(command, tell) for _ in range(config.workers)]
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="verifier")

    @property
    def workers(self) -> int:
        return self._config.workers

    @property
    def pids(self) -> list[int]:
        """The processes at work now."""
        return [pid for child in self._children if (pid := child.pid) is not None]

    def submit(self, problem: Problem, text: str, tokens: int, draw: str = "") -> Future[Verdict]:
        """The verdict to come. Raises RuntimeError through the future if no process can start.

        `draw` chooses which tests a program meets; completions of one group pass the same.
        """
        question = Question(problem, text, int(tokens), draw)
        return self._threads.submit(self._judge, question)

    def compare(self, gold: str, pred: str, mode: Literal["answer", "text"]) -> Future[Verdict]:
        """Whether two answers are the same, and nothing else: no format, length or language."""
        problem = Problem(id="", domain="math", question="", answer=gold)
        return self._threads.submit(self._judge, Question(problem, pred, 0, compare=mode))

    def close(self) -> None:
        """End the processes at once. Futures that are not done raise CancelledError."""
        for child in self._children:
            child.stop()
        self._threads.shutdown(wait=True)
        for child in self._children:
            child.close()

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _judge(self, question: Question) -> Verdict:
        if self._broken:
            raise RuntimeError(self._broken)
        limits = limits_of(question.problem, self._config)
        line = question_line(question, limits)
        deadline_s = min(_PATIENCE * limits.wall_s + _LOADING_S, self._most_s)
        at = f"while it judged problem {question.problem.id!r}"
        child = self._idle.get_nowait()  # never empty: there are as many threads as children
        try:
            for _ in range(_TRIES):
                child.make_ready()
                try:
                    return verdict_in(child.ask(line, deadline_s))
                except TimeoutError:
                    silence = f"said nothing for {deadline_s:g} s"
                    self._tell(f"{child.name} {silence} {at}, and is replaced; {child.where()}")
                    child.replace()
                    return without_reward("error", f"its process {silence}")
                except EOFError:
                    self._tell(f"{child.name} died {at}{child.cause()}, and is replaced")
                    child.replace()
                except (ValueError, TypeError):
                    self._tell(f"{child.name} answered nonsense {at}, and is replaced")
                    child.replace()
                    return without_reward("error", "its process answered nonsense")
            return without_reward("error", f"its process died {_TRIES} times")
        except _CannotStart as failure:
            self._broken = str(failure)
            raise
        finally:
            self._idle.put(child)


class _CannotStart(RuntimeError):
    """Verifier processes do not start on this machine."""


class _Child:
    """One process and its replacements. One thread uses it; any thread may stop it."""

    def __init__(self, command: list[str], tell: Callable[[str], object]) -> None:
        self._command, self._tell = command, tell
        self._lock = Lock()
        self._stacks, path = tempfile.mkstemp()
        os.unlink(path)
        self._is_stopped = False
        self._is_ready = False
        # Never holds a process already waited for, so that its pid is safe to signal.
        self._process: subprocess.Popen[bytes] | None = None
        self.replace()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None else None

    @property
    def name(self) -> str:
        return f"verifier process {self.pid}"

    def cause(self) -> str:
        """How it ended, if it says so: " (by signal 9)"."""
        process = self._process
        if process is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(0.1)
            return f" (by signal {-code})" if code < 0 else f" (exit code {code})"
        return ""

    def where(self) -> str:
        """Where a process that hangs, or the child of it that judges, is; newest call first."""
        os.ftruncate(self._stacks, 0)
        os.lseek(self._stacks, 0, os.SEEK_SET)  # theirs, too: they write to the same open file
        process = self._process
        if process is not None:
            for number in (signal.SIGCONT, signal.SIGUSR1):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        until = time.monotonic() + _TELLING_S
        while time.monotonic() < until:
            time.sleep(_TELLING_S / 10)
            text = os.pread(self._stacks, _LINE_LIMIT, 0).decode("utf-8", "replace")
            calls = re.findall(r'File "([^"]+)", line (\d+) in (.+)', text)
            if calls:
                places = [f"{name} ({Path(f).name}:{line})" for f, line, name in calls]
                return "it hangs in " + " <- ".join(places[:_INNERMOST])
        return "it cannot be asked where it hangs"

    def make_ready(self) -> None:
        """Wait until the process takes a question, starting it again where that helps."""
        if self._is_ready and self._has_spoken():
            self._tell(f"{self.name} died or spoke unasked{self.cause()}, and is replaced")
            self.replace()
        failures = kills = 0
        while not self._is_ready and failures < _STARTS and kills < _MOST_KILLS:
            with suppress(TimeoutError, EOFError):
                self._is_ready = self.ask(b"", _START_S) == READY
            if not self._is_ready:
                # Killed from outside, as by a tired machine: that tells nothing about starting.
                kills += self._was_killed()
                failures += not self._was_killed()
                self.replace()
        if not self._is_ready:
            raise _CannotStart(
                f"A verifier process failed to start {_STARTS} times in a row, with {_START_S} s "
                f"each time; what it wrote to stderr says why. By hand: {' '.join(_COMMAND)} '{{}}'"
            )

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """The line that the process answers; TimeoutError or EOFError without one."""
        process = self._process
        if process is None:
            raise CancelledError
        try:
            return _exchange(process, line, time.monotonic() + timeout_s)
        except EOFError:
            if self._is_stopped:
                raise CancelledError from None
            raise

    def replace(self) -> None:
        """End the process, if there is one, and start another, unless stopped."""
        self.end()
        with self._lock:
            if not self._is_stopped:
                self._process = _start(self._command, self._stacks)

    def stop(self) -> None:
        """Kill the process for good; whoever waits for it wakes and sees its end."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                _kill(self._process)

    def end(self) -> None:
        """Kill the process and give back what it held. Only for the thread that uses it."""
        with self._lock:
            process, self._process = self._process, None
        self._is_ready = False
        if process is None:
            return
        _kill(process)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_START_S)

    def close(self) -> None:
        self.end()
        stacks, self._stacks = self._stacks, -1
        if stacks >= 0:
            os.close(stacks)

    def _was_killed(self) -> bool:
        process = self._process
        if process is None:
            return False
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.1) == -signal.SIGKILL
        return False

    def _has_spoken(self) -> bool:
        """True if the process said something unasked. Its end counts: it closes the pipe."""
        process = self._process
        if process is None:
            return False
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return bool(selector.select(0))


def _start(command: list[str], stacks: int) -> subprocess.Popen[bytes]:
    """A new process in a session of its own: Ctrl-C does not reach it, one kill ends it whole.

    When asked by SIGUSR1 it writes down where it is, to the descriptor `stacks`.
    """
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # The package may be imported from a source checkout that only this process knows of.
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    # A pool of threads per process would eat the address space that its limit leaves.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    # The same arithmetic whether gmpy2 is installed or not.
    environment |= {"SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1"}
    try:
        process = subprocess.Popen(
            [*command, str(stacks)],
            pass_fds=[stacks],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
    except OSError as failure:
        raise _CannotStart(f"A verifier process could not be started: {failure}") from failure
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _exchange(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes:
    """What the process writes up to a line's end, while `line` is being fed to it.

    Reads and writes at once, so neither side waits for the other with its pipe full. Raises
    TimeoutError at the deadline, EOFError if the process has ended or will not stop writing.
    """
    assert process.stdin is not None and process.stdout is not None
    unsent, received = memoryview(line), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if unsent:
            selector.register(process.stdin, selectors.EVENT_WRITE)
        while not received.endswith(b"\n"):
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is process.stdout:
                    chunk = os.read(key.fd, 65536)
                    received += chunk
                    if not chunk or len(received) > _LINE_LIMIT:
                        raise EOFError
                else:
                    try:
                        unsent = unsent[os.write(key.fd, unsent) :]
                    except BrokenPipeError:
                        raise EOFError from None
                    if not unsent:
                        selector.unregister(process.stdin)
    return bytes(received)
