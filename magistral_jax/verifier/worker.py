"""A pool of processes that judge completions; every completion gets one verdict in bounded time.

Each place of the pool is a server (see `server`), which watches over the child that judges. Here
only the servers are watched over: one that dies is replaced, and its question asked again; one that
says nothing long after every limit has passed is asked where it hangs (see `stacks`), and costs one
completion, whose outcome is "error". Every replacement is counted and told.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
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
from magistral_jax.verifier.sandbox.pipes import exchange, is_line, until
from magistral_jax.verifier.server import READY
from magistral_jax.verifier.stacks import Stacks
from magistral_jax.verifier.wire import LINE_LIMIT, Question, limits_of, question_line, verdict_in

_COMMAND = (sys.executable, "-P", "-m", "magistral_jax.verifier.server")
_START_S = 60.0
_STARTS = 3
_MOST_KILLS = 100
_ENDING_S = 0.5
"""Between a process's last word and what it leaves to be waited for."""
_TRIES = 3
_PATIENCE = 10
"""A server settles a check within a few times its limit: what is asked, then a known-good answer,
then the format again, each up to four times longer under load."""
_LOADING_S = 60.0
_TELLING_S = 1.0
"""For a process that hangs, to say where."""
_RESERVE_S = 2 * _TELLING_S
"""Of a completion's time, for that and for a new process."""
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
        """`tell` hears of each process that had to be replaced, from any thread: one line, then,
        of one that hangs, its stacks. `most_s` is the longest that a completion waits for processes
        that say nothing; whoever gives it up later gets its verdict first."""
        if config.own:
            load_own(config.own)  # a mistake is told now, and not with every completion
        path = config.language_model
        if path and not Path(path).is_file():
            raise UserError(f"verifier.language_model is {path!r}; there is no such file.")
        self._config = config
        self._broken = ""
        self._most_s = most_s
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

    @property
    def replaced(self) -> int:
        """How many processes have been replaced so far. Any thread may ask."""
        return sum(child.replaced for child in self._children)

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
        patience_s = _PATIENCE * limits.wall_s + _LOADING_S
        left_s = max(self._most_s - _RESERVE_S, self._most_s / 2)
        at = f"while it judged problem {question.problem.id!r}"
        child = self._idle.get_nowait()  # never empty: there are as many threads as children
        try:
            tries = 0
            while tries < _TRIES and left_s > 0:
                tries += 1
                child.make_ready()
                asked, most_s = time.monotonic(), min(patience_s, left_s)
                try:
                    return verdict_in(child.ask(line, most_s))
                except TimeoutError:
                    silence = f"said nothing for {most_s:.4g} s"
                    child.replace(f"{silence} {at}", child.where())
                    return without_reward("error", f"its process {silence}")
                except EOFError:
                    child.replace(f"died {at}{_cause(child.code())}")
                    left_s -= time.monotonic() - asked
                except (ValueError, TypeError):
                    child.replace(f"answered nonsense {at}")
                    return without_reward("error", "its process answered nonsense")
            return without_reward("error", f"its process died {tries} times")
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
        self._stacks = Stacks()
        self.replaced = 0
        self._is_stopped = False
        self._is_ready = False
        # Never holds a process already waited for, so that its pid is safe to signal.
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None else None

    def code(self) -> int | None:
        """How it ended, < 0 is a signal; None if it goes on. It is not waited for."""
        process, end = self._process, time.monotonic() + _ENDING_S
        while process is not None and time.monotonic() < end:
            how = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if how is not None:
                return how.si_status if how.si_code == os.CLD_EXITED else -how.si_status
            time.sleep(_ENDING_S / 50)
        return None

    def where(self) -> str:
        """Where it hangs. It can only be killed afterwards."""
        process = self._process
        return self._stacks.ask(process.pid, _TELLING_S) if process is not None else ""

    def make_ready(self) -> None:
        """Wait until the process takes a question, starting it again where that helps."""
        if self._is_ready and self._has_spoken():
            code = self.code()
            said = "spoke unasked" if code is None else f"died between two questions{_cause(code)}"
            self.replace(said)
        failures = kills = 0
        while not self._is_ready and failures < _STARTS and kills < _MOST_KILLS:
            with suppress(TimeoutError, EOFError):
                self._is_ready = self.ask(b"", _START_S) == READY
            if not self._is_ready:
                code = self.code()
                # Killed from outside, as by a tired machine: that tells nothing about starting.
                kills += code == -signal.SIGKILL
                failures += code != -signal.SIGKILL
                self.replace(f"failed to start{_cause(code)}")
        if not self._is_ready:
            raise _CannotStart(
                f"A verifier process failed to start {_STARTS} times in a row, with {_START_S} s "
                f"each time; what it wrote to stderr says why. By hand: {' '.join(_COMMAND)} '{{}}'"
            )

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """The line that the process answers; TimeoutError or EOFError without one, and
        CancelledError once there is no process any more."""
        process = self._process
        if process is None:
            raise CancelledError
        assert process.stdin is not None and process.stdout is not None
        return exchange(
            process.stdin.fileno(),
            process.stdout.fileno(),
            line,
            is_whole=is_line,
            left=until(time.monotonic() + timeout_s),
            most=LINE_LIMIT,
        )

    def replace(self, why: str, where: str = "") -> None:
        """End the process, start another and tell, unless stopped."""
        message = f"verifier process {self.pid} {why}, and is replaced"
        self.end()
        if self._start():
            self.replaced += 1
            self._tell(f"{message}; {where}" if where else message)

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
        self._stacks.close()

    def _start(self) -> bool:
        with self._lock:
            if not self._is_stopped:
                self._process = _start(self._command, self._stacks.fileno())
            return not self._is_stopped

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


def _cause(code: int | None) -> str:
    if code is None:
        return ""
    return f" (by signal {-code})" if code < 0 else f" (exit code {code})"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
