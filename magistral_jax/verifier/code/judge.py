"""Whether a program passes a problem's tests (2.2). All verdicts are made outside its sandbox."""

import random
from dataclasses import dataclass, replace
from typing import Any

from magistral_jax.types import CodeTests, Reason
from magistral_jax.verifier.code.calls import Suite, asserts_suite, code_suite, run_suite
from magistral_jax.verifier.code.stdio import Result, prepare, run_test
from magistral_jax.verifier.grade import shown


@dataclass(frozen=True)
class Judged:
    """How a program did. `reason` is "pass" only if it passed all the tests that were drawn."""

    passed: int
    total: int
    """Tests drawn."""
    reason: Reason
    """Of the first test that it failed."""
    detail: str = ""


def judge_code(
    tests: CodeTests,
    code: str,
    language: str,
    sandbox: Any,
    *,
    seed: str,
    most: int = 20,
    fraction: bool = False,
) -> Judged:
    """The judgement on a program under `most` tests, drawn by `seed` and run in their order.

    It ends at the first failure; with `fraction`, all drawn tests are run. "error" means that the
    tests or the sandbox failed, not the program. `language` is as `first_block` gives it.
    """
    if tests.stdio:
        return _judge_stdio(
            tests, code, language, sandbox, _drawn(tests.stdio, seed, most), fraction
        )
    if not (tests.asserts or tests.test_code):
        return Judged(0, 0, "error", "the problem has no tests")
    try:
        suite = _suite(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as failure:
        return Judged(0, 0, "error", f"the tests cannot be read: {shown(str(failure), 80)}")
    suite = replace(suite, steps=_drawn(suite.steps, seed, most))
    total = len(suite.steps)
    if language != "python":
        return Judged(0, total, "compile", f"the tests call Python, not {shown(language)}")
    results = run_suite(suite, code, sandbox, cpu_s=tests.time_limit_s, keeps_on=fraction)
    return _sum(results, total)


def _judge_stdio(
    tests: CodeTests,
    code: str,
    language: str,
    sandbox: Any,
    drawn: tuple[tuple[str, str], ...],
    fraction: bool,
) -> Judged:
    # A row with the checker "json" is a whole program, though it names its function (mbpp_stdin).
    entry_point = "" if tests.checker == "json" else tests.entry_point
    checker = "json" if entry_point and tests.checker == "exact" else tests.checker
    job = prepare(code, language, entry_point, sandbox, tests.time_limit_s)
    if isinstance(job, Result):
        return Judged(0, len(drawn), job.reason, job.detail)
    results: list[Result] = []
    for stdin, expected in drawn:
        results.append(run_test(job, stdin, expected, checker, sandbox))
        if results[-1].reason == "error" or (results[-1].reason != "pass" and not fraction):
            break
    return _sum(results, len(drawn))


def _suite(tests: CodeTests) -> Suite:
    if tests.asserts:
        return asserts_suite(tests.asserts, tests.setup)
    return code_suite(tests.test_code, tests.entry_point, tests.prompt, tests.setup)


def _drawn[T](tests: tuple[T, ...], seed: str, most: int) -> tuple[T, ...]:
    """At most so many tests, the same ones for the same seed, in their order."""
    if len(tests) <= most:
        return tests
    # A seed of text is hashed with SHA-512, so the draw is the same in every process.
    chosen = random.Random(seed).sample(range(len(tests)), most)
    return tuple(tests[i] for i in sorted(chosen))


def _sum(results: list[Result], total: int) -> Judged:
    failures = [result for result in results if result.reason != "pass"]
    # An error is never a score: whether the program is right is not known.
    first = next((f for f in failures if f.reason == "error"), failures[0] if failures else None)
    if first is None:
        return Judged(len(results), total, "pass")
    return Judged(len(results) - len(failures), total, first.reason, first.detail)
