"""Runs programs that read standard input and print, one process a test, and compares outside.

The expected outputs never enter the program's sandbox. A checker program, which does read them,
runs in a sandbox of its own after the program has ended.
"""

from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from magistral_jax.types import Reason
from magistral_jax.verifier.code.compare import BUILT_IN, compare, is_readable
from magistral_jax.verifier.code.header import FLAGS, include_flags
from magistral_jax.verifier.grade import shown
from magistral_jax.verifier.sandbox.job import COMPILED_STACK, Job, Limits, Ran

COMPILE_LIMITS = Limits(
    cpu_s=10.0, memory_bytes=1_500_000_000, stdout_bytes=1_000_000, file_bytes=64_000_000
)
_CHECKER_LIMITS = Limits(cpu_s=10.0, memory_bytes=600_000_000, file_bytes=64_000_000)
_STDOUT_BYTES = 1_000_000
_UNREADABLE = 70  # call.py's exit for arguments that are no JSON


@dataclass(frozen=True)
class Result:
    """How a program did on one test, or why it did not get there."""

    reason: Reason
    detail: str = ""


def prepare(code: str, language: str, entry_point: str, sandbox: Any, cpu_s: float) -> Job | Result:
    """What to run on every input, or why there is nothing to run.

    With an `entry_point` the program is a function that call.py calls with the input.
    """
    limits = Limits(cpu_s=cpu_s)
    source = code.encode("utf-8", "replace")
    if language == "python" and entry_point:
        loader = files(__package__ or "").joinpath("call.py").read_bytes()
        return Job(
            argv=(sandbox.python, "-B", "call.py", entry_point),
            files={"call.py": loader, "solution.py": source},
            limits=limits,
        )
    if language == "python":
        return Job(argv=(sandbox.python, "-B", "main.py"), files={"main.py": source}, limits=limits)
    if language != "cpp":
        return Result("compile", f"programs in {shown(language)} are not judged")
    if entry_point:
        return Result("compile", "the tests call a Python function")
    if sandbox.cxx is None:
        return Result("error", "there is no C++ compiler here")
    return _compile(source, sandbox, replace(limits, stack_bytes=COMPILED_STACK))


def run_test(job: Job, stdin: str, expected: str, checker: str, sandbox: Any) -> Result:
    """One test. An expected output that cannot be read, or a checker that fails, is an error."""
    if not is_readable(expected, checker):
        return Result("error", f"the expected output {shown(expected)} is not {checker}")
    data = stdin.encode("utf-8", "replace")
    wanted = expected.encode("utf-8", "replace")
    limits = replace(job.limits, stdout_bytes=2 * len(wanted) + _STDOUT_BYTES)
    ran: Ran = sandbox.run(replace(job, stdin=data, limits=limits))
    if (failure := failure_of(ran)) is not None:
        is_refused = ran.ended == "exit" and ran.code == _UNREADABLE and "call.py" in job.files
        # The program can exit so as well, so that what it says is looked into.
        if is_refused and not all(is_readable(line, "json") for line in _lines(stdin)):
            return Result("error", f"the arguments {shown(stdin)} are not JSON, one a line")
        return failure
    if checker not in BUILT_IN:
        return _checked(checker, data, wanted, ran.stdout, sandbox)
    output = ran.stdout.decode("utf-8", "replace")
    compared = compare(output, expected, checker)
    if compared == "unknown":
        return Result("error", "another output than the expected one may be right, too")
    if compared == "different":
        return Result("wrong", f"printed {shown(output)}, not {shown(expected)}")
    return Result("pass")


def _lines(stdin: str) -> list[str]:
    return [line for line in stdin.split("\n") if line.strip()]


def failure_of(ran: Ran) -> Result | None:
    """Why a run does not count, whatever it printed; None if it ended well."""
    said = ran.stderr.decode("utf-8", "replace").rstrip().rpartition("\n")[2]
    match ran.ended:
        case "lost":
            return Result("error", f"the sandbox was lost: {shown(said, 120)}")
        case "timeout":
            return Result("timeout", f"ended after {ran.cpu_s:.1f} s of CPU, {ran.wall_s:.1f} s")
        case "memory":
            return Result("memory")
        case "output":
            return Result("output", "printed too much")
        case "signal":
            return Result("wrong", f"ended by signal {ran.code}")
    if ran.code != 0:
        reason: Reason = "memory" if said.startswith("MemoryError") else "wrong"
        return Result(reason, f"exit code {ran.code}: {shown(said, 80)}")
    return None


def _compile(source: bytes, sandbox: Any, limits: Limits) -> Job | Result:
    ran: Ran = sandbox.run(
        Job(
            argv=(sandbox.cxx, *FLAGS, *include_flags(sandbox), "-o", "a.out", "main.cpp"),
            files={"main.cpp": source},
            limits=COMPILE_LIMITS,
            keep=("a.out",),
        )
    )
    if ran.ended == "lost":
        return failure_of(ran) or Result("error")
    if ran.ended != "exit" or ran.code != 0 or "a.out" not in ran.files:
        said = ran.stderr.decode("utf-8", "replace")
        first = next((line for line in said.splitlines() if "error" in line), ran.ended)
        return Result("compile", shown(first, 120))
    return Job(argv=("./a.out",), files={"a.out": ran.files["a.out"]}, limits=limits)


def _checked(checker: str, stdin: bytes, expected: bytes, output: bytes, sandbox: Any) -> Result:
    """The word of a checker program: exit code 0 is right, every other end is wrong.

    It is believed only if it takes the expected output for right.
    """
    if _accepts(checker, stdin, expected, output, sandbox):
        return Result("pass")
    if _accepts(checker, stdin, expected, expected, sandbox):
        return Result("wrong", "the checker says no")
    return Result("error", "the checker refuses the expected output, too")


def _accepts(checker: str, stdin: bytes, expected: bytes, output: bytes, sandbox: Any) -> bool:
    names = ("input.txt", "expected.txt", "output.txt")
    ran: Ran = sandbox.run(
        Job(
            argv=(sandbox.python, "-B", "checker.py", *names),
            files={
                "checker.py": checker.encode("utf-8", "replace"),
                **dict(zip(names, (stdin, expected, output), strict=True)),
            },
            limits=_CHECKER_LIMITS,
        )
    )
    return ran.ended == "exit" and ran.code == 0
