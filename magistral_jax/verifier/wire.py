"""What travels between the pool and its processes: one line a question, one line an answer.

A question's line starts with its limits in seconds, so that whoever watches over a check need not
read what is asked: `CPU WALL {json}`. All JSON is ASCII: even half a surrogate pair arrives as it
was.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from magistral_jax.config import VerifierConfig
from magistral_jax.types import CodeTests, Problem, Reason, Verdict
from magistral_jax.verifier.reward import TEXT_LIMIT

WALL_SHARE = 1.4
"""Wall time allowed for one second of CPU: a process that sleeps is ended by this."""
COMPILE_S = 10.0
SLACK_S = 30.0
LINE_LIMIT = 1_000_000
"""An answer never comes near it."""


@dataclass(frozen=True)
class Limits:
    """Seconds that one check may take: of CPU, and of wall time less what it waited for a CPU."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Question:
    """One completion to be judged."""

    problem: Problem
    text: str
    tokens: int
    draw: str = ""
    known: Reason | None = None
    compare: Literal["", "answer", "text"] = ""
    """Not a completion, but an answer or a whole text to be compared with the problem's answer."""


def limits_of(problem: Problem, config: VerifierConfig) -> Limits:
    """Programs have limits of their own in the sandbox; here is what all of them add up to.

    Under load each of them may take four times its CPU time (see `sandbox`).
    """
    cpu, wall = config.timeout_s, WALL_SHARE * config.timeout_s
    if problem.tests is None:
        return Limits(cpu, wall)
    programs = config.code_tests * problem.tests.time_limit_s + COMPILE_S
    return Limits(cpu + SLACK_S, wall + 4 * programs + SLACK_S)


def question_line(question: Question, limits: Limits) -> bytes:
    """The line that asks; the text is cut where the judge would not read on anyway."""
    item: dict[str, Any] = {
        "problem": {k: v for k, v in asdict(question.problem).items() if k != "media"},
        # One character over the limit is enough for the judge to see that it is over.
        "text": question.text[: TEXT_LIMIT + 1],
        "tokens": question.tokens,
        "draw": question.draw,
        "known": question.known,
        "compare": question.compare,
    }
    return b"%.3f %.3f %s\n" % (limits.cpu_s, limits.wall_s, json.dumps(item).encode("ascii"))


def limits_in(line: bytes) -> Limits:
    """The limits at the head of a question's line."""
    cpu, wall, _ = line.split(b" ", 2)
    return Limits(float(cpu), float(wall))


def question_in(line: bytes) -> Question:
    """What a line asks. Raises ValueError, TypeError or KeyError if it asks nothing."""
    item = json.loads(line.split(b" ", 2)[2])
    problem = dict(item["problem"])
    tests = problem.pop("tests", None)
    if tests is not None:
        tests["stdio"] = tuple((stdin, stdout) for stdin, stdout in tests["stdio"])
        tests["asserts"] = tuple(tests["asserts"])
        problem["tests"] = CodeTests(**tests)
    return Question(**(item | {"problem": Problem(**problem)}))


def verdict_line(verdict: Verdict) -> bytes:
    return json.dumps(asdict(verdict)).encode("ascii") + b"\n"


def verdict_in(line: bytes) -> Verdict:
    """The verdict of a line. Raises ValueError or TypeError if it holds none."""
    return Verdict(**json.loads(line))
