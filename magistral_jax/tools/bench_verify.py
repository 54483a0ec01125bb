"""How many verdicts a second the verifiers of this machine give, beside bare math-verify."""

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

from magistral_jax.config import RunConfig, VerifierConfig
from magistral_jax.console import Console, table
from magistral_jax.tools.bench import COLUMNS, Row, row
from magistral_jax.types import CodeTests, Problem, Verdict
from magistral_jax.verifier.api import NO_LENGTH_RULE
from magistral_jax.verifier.code.stdio import Result, prepare
from magistral_jax.verifier.lazy import Loader
from magistral_jax.verifier.math.equal import same_answer
from magistral_jax.verifier.math.symbolic import ALGEBRA
from magistral_jax.verifier.sandbox.choose import Runner, describe_sandbox, open_sandbox
from magistral_jax.verifier.sandbox.client import Sandbox
from magistral_jax.verifier.worker import VerifierPool

RUNS = 3
NUMBERS, FORMULAS, PROGRAMS = 2000, 400, 12
TESTS = 20
# Right, then wrong by one edit; {n} varies, so that no two checks are of the same text.
_FORMULAS = (
    (r"\frac{{{n}}}{{7}}", r"{n}/7", r"{n}/8"),
    (r"{n}\sqrt{{2}}", r"\sqrt{{2 \cdot {n}^2}}", r"\sqrt{{3 \cdot {n}^2}}"),
    (r"x^2+{n}x+1", r"1 + {n}x + x^2", r"1 + {n}x - x^2"),
    (r"(x-{n})(x+{n})", r"x^2-{n}^2", r"x^2+{n}^2"),
    (r"[0,{n})", r"\left[0, {n}\right)", r"\left[0, {n}\right]"),
    (r"\{{1,{n}\}}", r"\{{{n},1\}}", r"\{{{n},2\}}"),
    (r"\begin{{pmatrix}}1&{n}\\0&1\end{{pmatrix}}",
     r"\begin{{bmatrix}}1&{n}\\0&1\end{{bmatrix}}",
     r"\begin{{bmatrix}}1&{n}\\1&1\end{{bmatrix}}"),
    (r"\frac{{\pi}}{{{n}}}", r"\pi/{n}", r"\pi/{n}+1"),
    (r"{n}+2i", r"2i+{n}", r"2i-{n}"),
    (r"\ln({n})", r"\log_e {n}", r"\log_{{10}} {n}"),
    (r"x > {n}", r"{n} < x", r"{n} \le x"),
    (r"{n}\%", r"\frac{{{n}}}{{100}}", r"{n}"),
)  # fmt: skip
_ADD = "for _ in range(int(input())):\n    print(sum(map(int, input().split())))"
_CPP = """#include <bits/stdc++.h>
int main() {
    int n;
    std::cin >> n;
    std::vector<int> values(n);
    for (int& value : values) std::cin >> value;
    std::sort(values.begin(), values.end());
    std::cout << values[n / 2] << '\\n';
}
"""


def bench_verify(config: RunConfig, *, json_path: Path | None) -> int:
    """Measure verdicts on numbers, on LaTeX and on programs; print the table."""
    verifier = config.verifier
    workers = verifier.workers
    rows: list[Row] = []
    with Console(0) as console:
        for name, pairs in (("boxed numbers", numbers()), ("mixed LaTeX", formulas())):
            console.phase(f"judging {name}")
            ours = math_rate(verifier, pairs)
            rows.append(rate(name, ours, len(pairs), "verdicts/s"))
            if find_spec("math_verify") is None:
                console.phase("math-verify is not installed: pip install magistral-jax[bench]")
                continue
            console.phase(f"judging {name} with bare math-verify")
            bare = bare_rate(workers, pairs)
            rows += [
                rate(f"{name}, bare math-verify", bare, len(pairs), "verdicts/s"),
                rate(f"{name}, ratio", [statistics.median(bare) / s for s in ours], 1, "x", True),
            ]
        console.phase("judging mixed LaTeX with and without algebra")
        rows.append(row("mixed LaTeX, CPU with SymPy / without", algebra_ratios(), "x", float))
        console.phase("running Python programs")
        seconds = program_seconds(verifier)
        rows.append(rate("Python tests", seconds, PROGRAMS * TESTS, "runs/s"))
        console.phase("compiling C++")
        rows += compile_rows(verifier)
    title = f"{workers} verifier processes; {describe_sandbox(verifier)}"
    table(title, COLUMNS, rows, json_path)
    return 0


def rate(what: str, seconds: Sequence[float], items: int, unit: str, is_ratio: bool = False) -> Row:
    """Items a second, from the seconds of whole rounds; or ratios as they are."""
    return row(what, list(seconds), unit, lambda s: s if is_ratio else items / s)


Pair = tuple[str, str, bool]


def numbers() -> list[Pair]:
    """(reference, answer, whether they are the same): plain numbers in some spellings."""
    spelt = ("{n}", "{n}.0", "{n:,}", "+{n}", "{n}")
    return [
        (str(n), spelt[n % len(spelt)].format(n=n + (n % 3 == 0)), n % 3 != 0)
        for n in range(10_000, 10_000 + NUMBERS)
    ]


def formulas(start: int = 3) -> list[Pair]:
    """The same in LaTeX of a dozen forms, with the numbers from `start` on."""
    found = []
    for number in range(FORMULAS):
        gold, right, wrong = _FORMULAS[number % len(_FORMULAS)]
        is_same = number % 5 < 3
        answer = right if is_same else wrong
        n = start + number // len(_FORMULAS)
        found.append((gold.format(n=n), answer.format(n=n), is_same))
    return found


def math_rate(config: VerifierConfig, pairs: Sequence[Pair]) -> list[float]:
    """Seconds for all pairs as whole completions, several times, by a pool that is warm."""

    def judge_all(pool: VerifierPool) -> list[Verdict]:
        futures = [
            pool.submit(
                Problem(id="", domain="math", question="", answer=gold),
                rf"<think></think>So it is \boxed{{{answer}}}.",
                0,
            )
            for gold, answer, _ in pairs
        ]
        return [future.result() for future in futures]

    with VerifierPool(NO_LENGTH_RULE, config) as pool:
        said = judge_all(pool)
        wrong = [p for p, v in zip(pairs, said, strict=True) if (v.outcome == "right") != p[2]]
        if wrong:
            raise RuntimeError(f"{len(wrong)} verdicts are wrong, the first on {wrong[0]}")
        return timed(lambda: judge_all(pool))


def algebra_ratios() -> list[float]:
    """What confirming by SymPy costs: CPU time of one process with it over that without, a few
    times, each on formulas that SymPy has not seen."""
    import_module(ALGEBRA).warm()
    silent = SimpleNamespace(same=lambda a, b: None)

    def without(name: str) -> Any:
        return silent if name == ALGEBRA else import_module(name)

    def seconds(start: int, load: Loader) -> float:
        began = process_time()
        for gold, answer, is_same in formulas(start):
            if same_answer(gold, answer, load) != is_same:
                raise RuntimeError(f"{answer} beside {gold}: the verdict is wrong")
        return process_time() - began

    starts = [3 + 2 * FORMULAS * (1 + run) for run in range(RUNS)]
    return [seconds(s, import_module) / seconds(s + FORMULAS, without) for s in starts]


def bare_rate(workers: int, pairs: Sequence[Pair]) -> list[float]:
    """The same by math-verify alone, in as many processes of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        chunk = max(1, len(pairs) // (8 * workers))

        def judge_all() -> list[bool]:
            return list(pool.map(bare_math_verify, pairs, chunksize=chunk))

        judge_all()
        return timed(judge_all)


def bare_math_verify(pair: Pair) -> bool:
    """What math-verify says of a completion; runs in a process of its own."""
    from math_verify import parse, verify

    gold, answer, _ = pair
    said = rf"<think></think>So it is \boxed{{{answer}}}."
    return verify(parse(rf"\boxed{{{gold}}}"), parse(said))


def program_seconds(config: VerifierConfig) -> list[float]:
    """Seconds for a dozen right programs of twenty tests each, several times."""
    stdio = tuple((f"2\n{n} 1\n{n} 2\n", f"{n + 1}\n{n + 2}\n") for n in range(TESTS))
    problem = Problem(id="add", domain="code", question="", answer="", tests=CodeTests(stdio=stdio))
    text = f"<think></think>\n```python\n{_ADD}\n```"
    with VerifierPool(NO_LENGTH_RULE, replace(config, code_tests=TESTS)) as pool:

        def judge_all() -> None:
            futures = [pool.submit(problem, text, 0) for _ in range(PROGRAMS)]
            for future in futures:
                if (verdict := future.result()).reason != "pass":
                    raise RuntimeError(f"a right program: {verdict.reason}: {verdict.detail}")

        judge_all()
        return timed(judge_all)


def compile_rows(config: VerifierConfig) -> list[Row]:
    """Seconds to compile a program that includes bits/stdc++.h, both ways; none without g++."""
    rows = []
    for name, opened in (("with precompiled header", open_sandbox), ("without", bare_sandbox)):
        with closing(opened(config)) as sandbox:
            if sandbox.cxx is None:
                return []

            def compile_once(sandbox: Runner = sandbox) -> None:
                program = prepare(_CPP, "cpp", "", sandbox, 4.0)
                if isinstance(program, Result):
                    raise RuntimeError(f"a right program: {program.reason}: {program.detail}")

            compile_once()
            rows.append(row(f"C++ compile, {name}", timed(compile_once), "s", lambda s: s))
    with_header, without = rows
    ratio = with_header.median / without.median
    return [*rows, Row("C++ compile, ratio of medians", ratio, ratio, ratio, "x", 1)]


def bare_sandbox(config: VerifierConfig) -> Runner:
    """The same sandbox without the folder of precompiled headers."""
    return Sandbox("auto" if config.sandbox == "remote" else config.sandbox)


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of each of a few calls."""
    seconds = []
    for _ in range(RUNS):
        began = perf_counter()
        call()
        seconds.append(perf_counter() - began)
    return seconds
