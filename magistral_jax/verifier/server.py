"""The process behind one place of the pool: it forks the child that judges, and watches over it.

    pool (the trainer's process) -> server (this; loads the parsers once) -> child (judges)

The child reads hostile text. One that exceeds its limits is killed and forked again in a few
milliseconds, parsers and all, and the answer that did it is wrong: were it an error, hanging the
check would pay. It is an error only if a known-good answer fails as well. No timer runs inside the
child: alarms fail in threads, and Python never sees one that a C library sits on.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

from magistral_jax.config import VerifierConfig
from magistral_jax.types import Problem, Reason, UserError, Verdict
from magistral_jax.verifier.lazy import NotLoaded
from magistral_jax.verifier.reward import (
    CANARY_CODE,
    CANARY_TESTS,
    Judge,
    RewardRule,
    loaded,
    without_reward,
)
from magistral_jax.verifier.sandbox.pipes import exchange, is_line
from magistral_jax.verifier.stacks import tell_when_asked
from magistral_jax.verifier.wire import (
    LINE_LIMIT,
    Limits,
    Question,
    limits_in,
    limits_of,
    question_in,
    question_line,
    verdict_in,
    verdict_line,
)

MEMORY_BYTES = 2 * 1024**3
READY = b"ready\n"
RECYCLE = 2000
"""Checks after which a child is replaced, so that what its libraries keep does not pile up."""
_NEEDS = b"needs "
_MOST_WALL = 4
_LOOK_S = 0.5
_TRIES = 3
_FDS = 256  # more than a server ever has open
_OUT_OF_MEMORY = 9  # the child's exit code
_PR_SET_PDEATHSIG = 1


class Died(Exception):
    """The child ended in the middle of a check; `code` is as in os.waitstatus_to_exitcode."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Server:
    """One child after another, and what they all inherit."""

    def __init__(self, rule: RewardRule, config: VerifierConfig, *, keep: int = -1) -> None:
        """`keep` is a descriptor that the children keep: where they say at what they are."""
        self._rule, self._config, self._keep = rule, config, keep
        self._pid = 0
        self._to = self._back = -1
        self._asked = 0

    def judge(self, line: bytes) -> Verdict:
        """The verdict on what a line asks, whatever the child does with it."""
        began = time.monotonic()
        try:
            verdict = self._judge(line)
        except (ImportError, UserError) as lack:  # something that a check needs is not installed
            verdict = without_reward("error", str(lack))
        return replace(verdict, seconds=time.monotonic() - began)

    def close(self) -> None:
        """Kill the child."""
        if self._pid:
            self._end()

    def _judge(self, line: bytes) -> Verdict:
        limits, code = limits_in(line), 0
        for _ in range(_TRIES):
            try:
                return verdict_in(self._ask(line, limits))
            except TimeoutError as late:
                return self._blame(line, "timeout", str(late))
            except Died as end:
                code = end.code
                if code == _OUT_OF_MEMORY:
                    return self._blame(line, "memory", "the check ran out of memory")
        if code == -signal.SIGKILL:  # not by us, and no answer can do this
            return without_reward("error", f"the check was killed {_TRIES} times from outside")
        return self._blame(line, "memory", f"the check died {_TRIES} times, last by {code}")

    def _blame(self, line: bytes, reason: Reason, detail: str) -> Verdict:
        """Wrong, if the check works on an answer that is right; what is not in doubt is kept."""
        try:
            question = question_in(line)
            canary = _canary(question.problem)
            limits = limits_of(canary.problem, self._config)
            if not verdict_in(self._ask(question_line(canary, limits), limits)).reason == "pass":
                raise ValueError
        except (TimeoutError, Died, ValueError, TypeError):
            return without_reward("error", f"{detail}, and so did a known-good answer")
        try:
            again = question_line(replace(question, known=reason), limits)
            return replace(verdict_in(self._ask(again, limits)), detail=detail)
        except (TimeoutError, Died):
            return without_reward(reason, detail)

    def _ask(self, line: bytes, limits: Limits) -> bytes:
        """The child's answer. Raises TimeoutError or Died, and then the child is gone."""
        if self._asked >= RECYCLE:
            self.close()
        while True:
            if not self._pid:
                self._fork()
            self._asked += 1
            try:
                left = _Clock(self._pid, limits).left
                answer = exchange(
                    self._to, self._back, line, is_whole=is_line, left=left, most=LINE_LIMIT
                )
            except BaseException as fault:
                code = self._end()
                if isinstance(fault, EOFError):
                    raise Died(code) from fault
                raise
            if not answer.startswith(_NEEDS):
                return answer
            # Loaded here, so that every later child is born with it, and on nobody's clock.
            self.close()
            loaded(answer.removeprefix(_NEEDS).strip().decode(), self._config)

    def _end(self) -> int:
        """Make sure the child is gone, and say how it went: < 0 is a signal."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._back)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _fork(self) -> None:
        child_in, self._to = os.pipe()
        self._back, child_out = os.pipe()
        self._asked = 0
        server = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _die_with(server)
                # Nothing else of the server's is left open: not its questions, not its answers.
                os.dup2(child_in, 0)
                for descriptor in set(range(3, _FDS)) - {child_out, self._keep}:
                    with suppress(OSError):
                        os.close(descriptor)
                _serve(Judge(self._rule, self._config, load=_inherited), 0, child_out)
            finally:
                os._exit(1)
        os.close(child_in)
        os.close(child_out)
        os.set_blocking(self._to, False)
        os.set_blocking(self._back, False)


class _Clock:
    """How long a process may go on: by its CPU time, and by wall time less its waits for a CPU.

    A loaded machine thus takes nothing away, and a check that sleeps still ends. Where the kernel
    does not tell, wall time counts alone.
    """

    def __init__(self, pid: int, limits: Limits) -> None:
        self._path = f"/proc/{pid}/schedstat"
        self._limits = limits
        self._pool = os.getppid()
        self._cpu, self._waited = self._usage()
        self._start = time.monotonic()

    def left(self) -> float:
        """Seconds for which nothing need be looked at. Raises TimeoutError when all is used.

        Raises SystemExit once the pool is dead, which an unread pipe does not tell.
        """
        if os.getppid() != self._pool:
            sys.exit()
        wall = time.monotonic() - self._start
        cpu, waited = self._usage()
        cpu_left = self._limits.cpu_s - (cpu - self._cpu)
        wall_left = self._limits.wall_s - (wall - (waited - self._waited))
        if cpu_left <= 0:
            raise TimeoutError(f"stopped after {self._limits.cpu_s:.1f} s of CPU time")
        if wall_left <= 0 or wall > _MOST_WALL * self._limits.wall_s:
            raise TimeoutError(f"stopped after {wall:.1f} s")
        return max(0.01, min(cpu_left, wall_left, _LOOK_S))

    def _usage(self) -> tuple[float, float]:
        try:
            with open(self._path, "rb") as file:
                cpu, waited, _ = file.read().split()
            return int(cpu) / 1e9, int(waited) / 1e9
        except (OSError, ValueError):
            return 0.0, 0.0


def _serve(judge: Judge, requests: int, answers: int) -> NoReturn:
    """The child: it answers line by line until nobody asks any more."""
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            try:
                answer = _answer(judge, line)
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)
            os.write(answers, answer)
    os._exit(0)


def _answer(judge: Judge, line: bytes) -> bytes:
    try:
        q = question_in(line)
        if q.compare:
            return verdict_line(judge.compare(q.problem.answer, q.text, q.compare, known=q.known))
        return verdict_line(judge(q.problem, q.text, q.tokens, draw=q.draw, known=q.known))
    except NotLoaded as need:
        return _NEEDS + str(need).encode() + b"\n"
    except MemoryError:
        raise
    except Exception as failure:
        detail = f"{type(failure).__name__}: {failure}"[:200]
        return verdict_line(without_reward("error", detail))


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, whatever ends it, so that no check outlives its pool."""
    with suppress(OSError, AttributeError):  # Linux only; elsewhere the end of the pipe tells
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _inherited(name: str) -> Any:
    if name not in sys.modules:
        raise NotLoaded(name)
    return sys.modules[name]


def _canary(problem: Problem) -> Question:
    """A question like this one whose answer is known to be right."""
    if problem.domain == "code":
        known = Problem(id="canary", domain="code", question="", answer="", tests=CANARY_TESTS)
        return Question(known, f"<think></think>\n```python\n{CANARY_CODE['python']}\n```\n", 0)
    known = Problem(id="canary", domain="math", question="", answer=r"\sqrt{8}")
    return Question(known, r"2\sqrt{2}", 0, compare="answer")  # not by a grader of the user's


def main() -> None:
    """Judge what stdin says under the settings that the first argument holds.

    The second, if there is one, is a descriptor to which SIGUSR1 writes where this process is.
    """
    settings = json.loads(sys.argv[1])
    keep = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    if keep >= 0:
        tell_when_asked(keep)
    rule, config = RewardRule(**settings["rule"]), VerifierConfig(**settings["config"])
    server = Server(rule, config, keep=keep)
    _limit_itself()
    # The protocol keeps the real stdout; whatever prints goes where errors go.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(READY)
    for line in sys.stdin.buffer:
        try:
            verdict = server.judge(line)
        except ValueError as failure:  # a line without limits
            verdict = without_reward("error", f"a question that cannot be read: {failure}"[:200])
        try:
            answers.write(verdict_line(verdict))
        except BrokenPipeError:  # nobody waits for it any more
            break
    server.close()


def _limit_itself() -> None:
    for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        # The soft limit only: programs in the sandbox inherit these, and have limits of their own.
        resource.setrlimit(limit, (most, hard))
    # Ctrl-C is the parent's to handle: it ends its children by closing their input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
