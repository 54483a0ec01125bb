"""Programs on standard input, calls by JSON, checkers, and C++."""

import time

import pytest

from magistral_jax.types import CodeTests
from magistral_jax.verifier.code import header
from magistral_jax.verifier.code.judge import judge_code

ADD = CodeTests(stdio=(("1 2\n", "3\n"), ("4 5\n", "9\n"), ("7 8\n", "15\n")))
SUM = "print(sum(map(int, input().split())))"
CPP = "#include <bits/stdc++.h>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"


def judge(tests, code, sandbox, language="python", seed="x", **options):
    return judge_code(tests, code, language, sandbox, seed=seed, **options)


@pytest.mark.parametrize(
    ("code", "reason", "passed"),
    [
        (SUM, "pass", 3),
        ("a, b = map(int, input().split())\nprint(a + b, end=' \\n\\n')", "pass", 3),
        ("print(3)", "wrong", 1),
        ("print(' 3')", "wrong", 0),
        ("print(3); 1 / 0", "wrong", 0),
        ("print(3); raise SystemExit(1)", "wrong", 0),
        ("print(3", "wrong", 0),
        ("", "wrong", 0),
        ("while True: pass", "timeout", 0),
        ("import time; time.sleep(60)", "timeout", 0),
        ("x = bytearray(1_000_000_000)", "memory", 0),
        ("while True: print('x' * 1000)", "output", 0),
        ("import os; os.kill(os.getpid(), 11)", "wrong", 0),
    ],
)
def test_a_python_program(sandbox, code, reason, passed):
    tests = CodeTests(stdio=ADD.stdio, time_limit_s=1.0)
    start = time.monotonic()
    judged = judge(tests, code, sandbox)
    assert (judged.reason, judged.passed, judged.total) == (reason, passed, 3), judged
    assert judged.reason != "timeout" or time.monotonic() - start < 4


def test_a_fraction_runs_on_after_a_failure(sandbox):
    code = "a, b = map(int, input().split())\nprint(a + b if a != 4 else 0)"
    assert judge(ADD, code, sandbox).passed == 1
    judged = judge(ADD, code, sandbox, fraction=True)
    assert (judged.passed, judged.total, judged.reason) == (2, 3, "wrong")


def test_tests_are_drawn_by_the_seed_in_their_order(sandbox):
    stdio = tuple((f"{i}\n", f"{i}\n") for i in range(50))
    tests = CodeTests(stdio=stdio)
    code = "n = int(input())\nprint(n if n < 25 else -1)"
    seen = {seed: judge(tests, code, sandbox, seed=seed, most=5, fraction=True) for seed in "abcd"}
    again = {seed: judge(tests, code, sandbox, seed=seed, most=5, fraction=True) for seed in "abcd"}
    assert seen == again
    assert all(judged.total == 5 for judged in seen.values())
    assert len({judged.passed for judged in seen.values()}) > 1
    assert judge(tests, "print(input())", sandbox).total == 20


def test_what_cannot_be_judged_is_an_error(sandbox):
    assert judge(CodeTests(), SUM, sandbox).reason == "error"
    broken = CodeTests(stdio=(("1\n", "[1"),), checker="json")
    assert judge(broken, "print([1])", sandbox).reason == "error"
    no_arguments = CodeTests(stdio=(("[1\n", "1"),), entry_point="f")
    assert judge(no_arguments, "def f(x): return 1", sandbox).reason == "error"
    assert judge(CodeTests(asserts=("assert f(1) ==",)), "f = abs", sandbox).reason == "error"


def test_other_languages_do_not_compile(sandbox):
    assert judge(ADD, "puts 3", sandbox, "ruby").reason == "compile"
    assert judge(CodeTests(asserts=("assert f()",)), CPP, sandbox, "cpp").reason == "compile"
    assert judge(CodeTests(stdio=(("1", "1"),), entry_point="f"), CPP, sandbox, "cpp").reason == (
        "compile"
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CPP, "pass"),
        ("#include <iostream>\n" + CPP, "pass"),
        ("int main() { return 0; }", "wrong"),
        ("int main() {", "compile"),
        ('#include "/etc/passwd"\nint main() {}', "compile"),
        ("#include <cstdlib>\nint main() { abort(); }", "wrong"),
        ("int main() { for (;;); }", "timeout"),
        ("template<int n> struct A { A<n-1> a; A<n-2> b; };\nA<9999> a; int main() {}", "compile"),
        ("#include <concepts>\ntemplate<std::integral T> T f(T x) { return x; }\n" + CPP, "pass"),
    ],
)
def test_a_cpp_program(sandbox, cxx, code, reason):
    tests = CodeTests(stdio=ADD.stdio, time_limit_s=1.0)
    assert judge(tests, code, sandbox, "cpp").reason == reason


def test_the_header_is_precompiled(sandbox, cxx, monkeypatch):
    """By the compiler's CPU time, which a busy machine does not stretch much."""
    compiled: list[float] = []
    run = sandbox.run

    def watched(job):
        ran = run(job)
        if job.argv[0] == sandbox.cxx:
            compiled.append(ran.cpu_s)
        return ran

    def cpu_s() -> float:
        assert judge(ADD, CPP, sandbox, "cpp").reason == "pass"
        return compiled[-1]

    monkeypatch.setattr(sandbox, "run", watched)
    cpu_s()  # makes it
    with_header = min(cpu_s() for _ in range(3))
    monkeypatch.setattr("magistral_jax.verifier.code.stdio.include_flags", lambda _: ())
    assert with_header <= 0.5 * min(cpu_s() for _ in range(2))


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(header.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = header.header_folder()
    folder.chmod(0o777)
    with pytest.raises(OSError, match="only this user can write to"):
        header.header_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(OSError, match="only this user can write to"):
        header.header_folder()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def app(a, b): return [*a, b]", "pass"),
        ("class Solution:\n    def app(self, a, b): return (*a, b)", "pass"),
        ("def app(a, b):\n    print('noise')\n    return [*a, b]", "pass"),
        ("def app(a, b): return (x for x in [*a, b])", "pass"),
        ("def app(a, b): return a", "wrong"),
        ("def app(a, b): print([*a, b])", "wrong"),
        ("def other(a, b): return [*a, b]", "wrong"),
        ("def app(a): return a", "wrong"),
        ("def app(a, b): return {1, 2, 3}.__class__", "wrong"),
        ("def app(a, b): import sys; sys.exit(0)", "wrong"),
        ("import os; os.write(1, b'[1, 2, 3]'); os._exit(1)", "wrong"),
    ],
)
def test_calls_with_json(sandbox, code, reason):
    tests = CodeTests(stdio=(("[1, 2]\n3\n", "[1, 2, 3]"),), entry_point="app")
    assert judge(tests, code, sandbox).reason == reason


def test_the_checker_json_means_a_whole_program(sandbox):
    tests = CodeTests(stdio=(("[2]\n", "4\n"),), checker="json", entry_point="square")
    code = "import json\nn, = json.loads(input())\nprint(json.dumps(n * n))"
    assert judge(tests, code, sandbox).reason == "pass"
    assert judge(tests, "print(5)", sandbox).reason == "wrong"


CHECKER = """\
import sys
wanted, expected, output = (open(name).read().split() for name in sys.argv[1:])
a, b = map(int, output)
sys.exit(0 if a + b == int(wanted[0]) else 1)
"""


def test_a_checker_program_decides(sandbox):
    tests = CodeTests(stdio=(("10\n", "4 6\n"),), checker=CHECKER)
    assert judge(tests, "print(3, 7)", sandbox).reason == "pass"
    assert judge(tests, "print(3, 8)", sandbox).reason == "wrong"
    assert judge(tests, "print('no numbers')", sandbox).reason == "wrong"
    broken = CodeTests(stdio=(("10\n", "4 7\n"),), checker=CHECKER)
    assert judge(broken, "print(3, 8)", sandbox).reason == "error"


def test_without_a_checker_another_output_is_unknown(sandbox):
    tests = CodeTests(stdio=(("10\n", "4 6\n"),), checker="special")
    assert judge(tests, "print(4, 6)", sandbox).reason == "pass"
    assert judge(tests, "print(3, 7)", sandbox).reason == "error"
    assert judge(tests, "1 / 0", sandbox).reason == "wrong"


def test_own_solutions_of_contest_problems(sandbox, data_dir):
    """Two problems of code_contests, solved by hand."""
    import gzip
    import json

    with gzip.open(data_dir / "code_contests_stdin.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = {row["id"]: row for row in map(json.loads, lines)}
    row = rows["codecontests-test-0"]
    stdio = tuple((test["stdin"], test["stdout"]) for test in row["tests"])
    tests = CodeTests(stdio=stdio, checker=row["checker"], time_limit_s=row["time_limit_s"])
    right = (
        "n, m = map(int, input().split())\n"
        "flip = lambda s: [ord(c) if i % 2 == 0 else -ord(c) for i, c in enumerate(s)]\n"
        "books = [(flip(input()), i + 1) for i in range(n)]\n"
        "print(*[i for _, i in sorted(books)])\n"
    )
    assert judge(tests, right, sandbox).reason == "pass"
    assert judge(tests, right.replace("-ord", "ord"), sandbox).reason == "wrong"
