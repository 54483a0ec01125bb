"""Assertions about a program's functions: the program in one sandbox, the test code in another.

The values that the tests expect never enter the program's process, so it cannot read them, and the
verdict is made where the program's code never runs (serve.py, tester.py). The tester's report is
believed, as nothing but plain data reaches it.
"""

import json
import secrets
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from magistral_jax.types import Reason
from magistral_jax.verifier.code.names import is_start_of, names_used, with_call
from magistral_jax.verifier.code.stdio import Result, failure_of
from magistral_jax.verifier.grade import shown
from magistral_jax.verifier.sandbox.job import Job, Limits, Ran

# A test that took most of a run which ran out of time has had its time; a later one in a run that
# others used up has not, and gets a run of its own.
_MOST = 0.75
_SLACK_S = 2.0
_TESTER_MEMORY = 600_000_000


@dataclass(frozen=True)
class Suite:
    """Test code in the parts that the tester runs, one after the other in one namespace."""

    steps: tuple[str, ...]
    """Each one test."""
    names: list[str]
    """What the tests take from the program."""
    before: str = ""
    """Run before those names are there: the prompt, whose helpers are the tests' own."""
    setup: str = ""
    """Run after, before the first step."""
    prompt: str = ""
    """What the program goes on from."""


def asserts_suite(asserts: tuple[str, ...], setup: str) -> Suite:
    """Assertions such as MBPP's. Raises SyntaxError."""
    names, modules = names_used("\n".join([setup, *asserts]))
    imports = "".join(f"import {name}\n" for name in modules)
    return Suite(steps=asserts, names=names, setup=imports + setup)


def code_suite(test_code: str, entry_point: str, prompt: str, setup: str) -> Suite:
    """Test code such as HumanEval's, which is one test. Raises SyntaxError.

    A prompt in prose has nothing to go on from, and no helpers.
    """
    prompt = prompt if is_start_of(entry_point, prompt) else ""
    return Suite(
        steps=(with_call(test_code, entry_point),),
        names=[entry_point],
        before=prompt,
        setup=setup,
        prompt=prompt,
    )


def run_suite(
    suite: Suite, code: str, sandbox: Any, *, cpu_s: float, keeps_on: bool
) -> list[Result]:
    """How each step went, up to the first that failed; with `keeps_on`, all of them."""
    results: list[Result] = []
    while len(results) < len(suite.steps):
        start = len(results)
        results += _run_from(suite, start, code, sandbox, cpu_s, keeps_on)
        if results[-1].reason == "error" or (results[-1].reason != "pass" and not keeps_on):
            break
    return results


@dataclass
class _Report:
    """What the tester said."""

    done: dict[int, Result] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)
    ended: float = 0.0
    end: str = ""
    """The key of the last word: "calls", "gone", "broken", "failed"; empty if there was none."""
    detail: str = ""
    calls: int = 0


def _run_from(
    suite: Suite, start: int, code: str, sandbox: Any, cpu_s: float, keeps_on: bool
) -> list[Result]:
    """Results of at least one step from `start` on."""
    word = secrets.token_hex(16)
    tests = {
        "word": word,
        "before": suite.before,
        "names": suite.names,
        "setup": suite.setup,
        "steps": suite.steps[start:],
        "stops": not keeps_on,
    }
    here = files(__package__ or "")
    plain = here.joinpath("plain.py").read_bytes()
    server = Job(
        argv=(sandbox.python, "-B", "serve.py"),
        files={
            "plain.py": plain,
            "serve.py": here.joinpath("serve.py").read_bytes(),
            "program.py": code.encode("utf-8", "replace"),
            "prompt.py": suite.prompt.encode("utf-8", "replace"),
        },
        limits=Limits(cpu_s=cpu_s),
    )
    tester = Job(
        argv=(sandbox.python, "-B", "tester.py"),
        files={
            "plain.py": plain,
            "tester.py": here.joinpath("tester.py").read_bytes(),
            "tests.json": json.dumps(tests).encode("ascii"),
        },
        # It waits while the program works, so its time must outlast the program's.
        limits=Limits(cpu_s=2 * cpu_s + _SLACK_S, memory_bytes=_TESTER_MEMORY),
    )
    program_ran, tester_ran = sandbox.run_linked(server, tester)
    report = _read(tester_ran.stdout.decode("utf-8", "replace"), word)
    return _results(report, program_ran, tester_ran, len(suite.steps) - start)


def _read(output: str, word: str) -> _Report:
    report = _Report()
    for line in output.split("\n"):
        if not line.startswith(word + " "):
            continue
        said = json.loads(line.removeprefix(word))
        number = said.get("step")
        report.ended = max(report.ended, said.get("at", 0.0))
        if number is None:
            report.end = next(k for k in ("calls", "gone", "broken", "failed") if k in said)
            report.detail = str(said[report.end])
            report.calls = said.get("calls", 0)
        elif "passed" in said:
            report.done[number] = Result("pass")
        elif "failed" in said:
            reason: Reason = "memory" if said["failed"].startswith("MemoryError") else "wrong"
            report.done[number] = Result(reason, shown(said["failed"], 120))
        else:
            report.began[number] = said["at"]
    return report


def _results(report: _Report, program: Ran, tester: Ran, count: int) -> list[Result]:
    done = [report.done[number] for number in sorted(report.done)]
    if "lost" in (program.ended, tester.ended):
        return [*done, failure_of(program) or failure_of(tester) or Result("error")]
    if report.end == "broken":
        return [*done, Result("error", f"the tests cannot be run: {shown(report.detail, 120)}")]
    if report.end == "calls":
        if report.calls == 0 and any(result.reason == "pass" for result in done):
            return [Result("error", "the tests never call the program")]
        return done
    # The tester was cut off: by the program's end, by its own, or before the first test.
    ended = failure_of(program) if program.ended != "exit" else failure_of(tester)
    if ended is None or ended.reason == "wrong":
        why = report.detail or (ended.detail if ended else "the tests did not end")
        ended = Result("wrong", shown(why, 120))
    number = len(done)
    if not report.began:
        return [ended] * count
    its_share = (report.ended - report.began.get(number, 0.0)) / max(report.ended, 1e-9)
    if ended.reason == "timeout" and number > 0 and its_share < _MOST:
        return done  # it gets a run of its own
    return [*done, ended]
