"""The evaluations of the paper (section 5.3) and others: what is asked, how often, and who judges.

    temperature 0.7; top-p 1.0, and 0.95 for programs; AIME 64 times, LiveCodeBench 16 times

Where the paper names no number of samples, ours is here. An answer is judged by its content alone:
no format, length or language. Nothing here trains on anything.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from magistral_jax.data.prompts import conversation
from magistral_jax.evaluate import interval, majority_at, pass_at
from magistral_jax.rows import problem_of, text_in
from magistral_jax.types import Problem, UserError, Verdict
from magistral_jax.verifier.math.extract import final_answer
from magistral_jax.verifier.worker import VerifierPool

Kind = Literal["math", "code", "instructions", "functions"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    kind: Kind
    samples: int
    """Answers to each problem (avg@n)."""
    top_p: float = 1.0
    max_tokens: int = 32_768
    """The paper's limit; a run's own is generator.max_tokens."""


BENCHMARKS: dict[str, Benchmark] = {
    "aime": Benchmark(kind="math", samples=64, max_tokens=40_960),
    "amc": Benchmark(kind="math", samples=16),
    "math500": Benchmark(kind="math", samples=4),
    "gsm8k": Benchmark(kind="math", samples=4),
    "olympiadbench": Benchmark(kind="math", samples=4),
    "mgsm": Benchmark(kind="math", samples=4),
    "gpqa": Benchmark(kind="math", samples=8),  # letters: the answer is A, B, C or D
    "livecodebench": Benchmark(kind="code", samples=16, top_p=0.95, max_tokens=40_960),
    "humaneval": Benchmark(kind="code", samples=4, top_p=0.95),
    "mbpp": Benchmark(kind="code", samples=4, top_p=0.95),
    "ifeval": Benchmark(kind="instructions", samples=1),
    "bfcl": Benchmark(kind="functions", samples=1),
}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One problem of a benchmark."""

    id: str
    kind: Kind
    language: str
    source: str
    messages: Sequence[Mapping[str, str]]
    problem: Problem
    row: Mapping[str, Any]


def item_of(
    place: str,
    row: Mapping[str, Any],
    kind: Kind,
    *,
    system_prompt: Literal["none", "magistral"],
    worked_examples: int,
) -> Item:
    """A row as a benchmark asks it. Raises UserError if it is none."""
    if kind in ("math", "code"):
        problem = problem_of(place, row)
        if problem.domain != kind:
            raise UserError(f"{place}: domain is {problem.domain!r}; this benchmark is of {kind}.")
        messages = conversation(
            problem, system_prompt=system_prompt, worked_examples=worked_examples
        )
    else:
        question = text_in(place, row, "problem")
        problem = Problem(id=text_in(place, row, "id"), domain="math", question=question, answer="")
        messages = [{"role": "user", "content": question}]
        if kind == "functions":
            from magistral_jax.verifier.functions import tools_prompt

            asked = f"{tools_prompt(row['functions'])}\n\n{question}"
            messages = [{"role": "user", "content": asked}]
    return Item(
        id=text_in(place, row, "id"),
        kind=kind,
        language=text_in(place, row, "language", "en"),
        source=text_in(place, row, "source", ""),
        messages=messages,
        problem=problem,
        row=row,
    )


def judged(item: Item, text: str, pool: VerifierPool) -> Future[Verdict]:
    """The verdict on an answer's content; `detail` says what is wrong."""
    if item.kind in ("math", "code"):
        return content_of(item.problem, text, pool)
    verdict: Future[Verdict] = Future()
    verdict.set_result(_judged_here(item, text))
    return verdict


def content_of(problem: Problem, text: str, pool: VerifierPool) -> Future[Verdict]:
    """Whether an answer is right, whatever its format."""
    if problem.domain == "math":
        return pool.compare(problem.answer, text, "text")
    # The gate wants thoughts before the program; what is judged here is the program.
    return pool.submit(problem, f"<think>\n</think>\n{text.rpartition('</think>')[2]}", 0)


def _judged_here(item: Item, text: str) -> Verdict:
    """Checks that are linear in the answer, and run none of it."""
    row = item.row
    if item.kind == "functions":
        from magistral_jax.verifier.functions import calls_in, mistake_in

        fault = mistake_in(calls_in(text), row["functions"], row["answer"])
        return Verdict(
            reward=0.0, parts={}, reason="wrong" if fault else "pass", detail=fault[:120]
        )
    from magistral_jax.verifier.instructions.check import all_followed

    kinds, answer = row["instruction_id_list"], text.rpartition("</think>")[2]
    followed = all_followed(kinds, row["kwargs"], answer, item.problem.question)
    share = sum(followed) / max(1, len(followed))
    missed = [kind for kind, is_followed in zip(kinds, followed, strict=True) if not is_followed]
    reason = "wrong" if missed else "pass"
    return Verdict(reward=share, parts={}, reason=reason, detail=", ".join(missed)[:120])


def answer_in(item: Item, text: str) -> str:
    """What a majority is counted over: the final answer, as it is spelt."""
    return (final_answer(text) or "").strip() if item.kind == "math" else ""


def figures(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one benchmark from its stored answers: each a row with id, sample, outcome
    ("right", "wrong" or "error"), answer, share, length, finish.

    Samples whose check failed are counted and judged neither way.
    """
    by_problem: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_problem[row["id"]].append(row)
    every = [row for mine in by_problem.values() for row in mine]
    valid = [
        [row for row in sorted(mine, key=lambda r: r["sample"]) if row["outcome"] != "error"]
        for mine in by_problem.values()
    ]
    valid = [mine for mine in valid if mine]
    right = [[row["outcome"] == "right" for row in mine] for mine in valid]
    shares = [float(np.mean(mine)) for mine in right]
    low, high = interval(shares)
    n = min((len(mine) for mine in right), default=0)
    found: dict[str, Any] = {
        "accuracy": float(np.mean(shares)) if shares else 0.0,
        "95% low": low,
        "95% high": high,
        "samples": n,
    }
    for k in sorted({k for k in (4, n) if 1 < k <= n}):
        found[f"pass@{k}"] = float(np.mean([pass_at(k, sum(mine), len(mine)) for mine in right]))
        answers = [[row["answer"] for row in mine] for mine in valid]
        if any(answer for mine in answers for answer in mine):
            votes = [majority_at(k, *pair) for pair in zip(answers, right, strict=True)]
            found[f"maj@{k}"] = float(np.mean(votes))
    if any("share" in row for row in every):
        parts = [row["share"] for mine in valid for row in mine if "share" in row]
        found["followed"] = float(np.mean(parts)) if parts else 0.0
    return {
        **found,
        "length": float(np.mean([row["length"] for row in every])) if every else 0.0,
        "truncated": float(np.mean([row["finish"] == "length" for row in every])) if every else 0.0,
        "problems": len(by_problem),
        "errored": sum(row["outcome"] == "error" for row in every),
    }
