"""`magistral-jax traces`: what supervised training learns from, out of a run or from a teacher."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from magistral_jax.build import Run
from magistral_jax.config import RunConfig
from magistral_jax.console import Console, table
from magistral_jax.data.conversations import tokenizer_mark
from magistral_jax.data.prompts import conversation
from magistral_jax.data.sources import Sums, problems_of
from magistral_jax.metrics import COMPLETIONS
from magistral_jax.recipes.benchmarks import content_of
from magistral_jax.recipes.harvest import harvest, pass_rates
from magistral_jax.rows import row_of_tests
from magistral_jax.tools.answering import Asked, Said, Who, answering
from magistral_jax.types import Problem, Prompt, UserError, Verdict
from magistral_jax.verifier.api import NO_LENGTH_RULE, format_ok
from magistral_jax.verifier.worker import VerifierPool


def harvest_run(
    config: RunConfig,
    run_dir: Path,
    out: Path,
    *,
    skip: float,
    cap: int,
    low_rate: float,
    upsample: int,
    json_path: Path | None,
) -> int:
    """Write the right answers of a run to learn from; what became of all is printed."""
    if not 0 <= skip <= 1 or not 0 <= low_rate <= 1 or cap < 1 or upsample < 1:
        raise UserError(
            f"--skip {skip}, --low-rate {low_rate}, --cap {cap}, --upsample {upsample}: the first "
            "two are shares between 0 and 1, the others at least 1."
        )
    path = run_dir / COMPLETIONS
    if not path.is_file():
        raise UserError(f"{run_dir} holds no completions: there is no {path}.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = harvest(rows, skip=skip, cap=cap, low_rate=low_rate, upsample=upsample)
    rates, run = pass_rates(rows), Run(config)
    try:
        problem_named, mark = _by_name(config), tokenizer_mark(run.tokenizer)
        with _fresh(out).open("w", encoding="utf-8") as file:
            for row in found.kept:
                problem = problem_named(row["prompt_id"])
                text = run.said(row["prompt_tokens"], row["tokens"][:-1])
                line = {
                    **_of_problem(problem, text),
                    "prompt_tokens": row["prompt_tokens"],
                    "tokens": row["tokens"],
                    "tokenizer": mark,
                    "pass_rate": rates[row["prompt_id"]],
                    "step": row["step"],
                }
                file.write(json.dumps(line) + "\n")
    finally:
        run.close()
    counts = {"problems": len({row["prompt_id"] for row in found.kept}), **found.counts}
    table(f"harvest of {run_dir}: {out}", list(counts), [list(counts.values())], json_path)
    return 0 if found.kept else 1


def _by_name(config: RunConfig) -> Callable[[str], Problem]:
    problems = problems_of(config)
    if isinstance(problems, Sums):
        return problems.named
    named = {problems[i].id: problems[i] for i in range(len(problems))}
    return named.__getitem__


def _fresh(out: Path) -> Path:
    if out.exists():
        raise UserError(f"--out {out} is there already, and is not overwritten. Name another.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}.")
    return out


def _of_problem(problem: Problem, response: str) -> dict[str, Any]:
    return {
        "id": problem.id,
        "problem": problem.question,
        "answer": problem.answer,
        "domain": problem.domain,
        "language": problem.language,
        "source": problem.source,
        "response": response,
    }


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `traces generate` is asked for."""

    out: Path
    count: int
    """Answers to each problem."""
    keep_correct: bool
    who: Who
    rates: Path | None = None
    """Also write the problems with their pass rates there, as data.path reads them."""


def generate(config: RunConfig, wanted: Wanted, *, json_path: Path | None) -> int:
    """Let a teacher answer the problems of data.path, and write what it says as traces.

    Problems whose answers are all there are not asked again: the same command goes on.
    """
    if wanted.count < 1:
        raise UserError(f"--n is {wanted.count}; it must be at least 1.")
    if not config.data.path and not config.mixture:
        raise UserError("no problems: name a file of them.")
    done_path = wanted.out.with_name(wanted.out.name + ".done")
    done = set(done_path.read_text("utf-8").split("\n")) if done_path.exists() else set()
    for path in (wanted.out, wanted.rates):
        if path is not None and path.exists():
            keep_of(path, done)
    counts = {"problems": 0, "answers": 0, "right": 0, "not judged": 0, "written": 0}
    with (
        answering(config, wanted.who) as (_, _, answerer_of, run, console),
        VerifierPool(NO_LENGTH_RULE, config.verifier) as pool,
    ):
        asked = [one for one in _asked(config, run, console) if _name(one) not in done]
        answers_of = answerer_of(1.0).answers(asked, wanted.count)
        for number, (one, answers) in enumerate(answers_of, 1):
            verdicts = [content_of(one.prompt.problem, said.text, pool) for said in answers]
            rows = [
                _trace(one.prompt.problem, said, verdict.result(timeout=config.stall_s), run)
                for said, verdict in zip(answers, verdicts, strict=True)
            ]
            kept = [row for row in rows if row["correct"] or not wanted.keep_correct]
            with wanted.out.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in kept))
            if wanted.rates is not None:
                with wanted.rates.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(_rated(one.prompt.problem, rows)) + "\n")
            with done_path.open("a", encoding="utf-8") as file:
                file.write(_name(one) + "\n")
            counts["problems"] += 1
            counts["answers"] += len(rows)
            counts["right"] += sum(row["correct"] for row in rows)
            counts["not judged"] += sum(row["outcome"] == "error" for row in rows)
            counts["written"] += len(kept)
            console.phase(f"answering: {number}/{len(asked)} problems, {counts['right']} right")
    table(f"traces: {wanted.out}", list(counts), [list(counts.values())], json_path)
    return 0


def keep_of(path: Path, done: set[str]) -> None:
    """Drop the rows of problems that a kill left half written: they are asked again."""
    kept = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n") and _plain(json.loads(line)["id"]) in done:
            kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


def _name(asked: Asked) -> str:
    return _plain(asked.prompt.problem.id)


def _plain(name: str) -> str:
    """An id on one line."""
    return name.replace("\n", " ")


def _asked(config: RunConfig, run: Run | None, console: Console) -> Iterator[Asked]:
    problems = problems_of(config, lambda fault: console.note(f"left out: {fault}"))
    for group in range(len(problems)):
        problem = problems[group]
        messages = conversation(
            problem,
            system_prompt=config.data.system_prompt,
            worked_examples=config.data.worked_examples,
            code_languages=config.verifier.code_languages,
        )
        try:
            tokens = np.zeros(1, np.int32) if run is None else run.render(problem)
        except UserError as fault:
            console.note(f"left out: {fault}")
            continue
        yield Asked(prompt=Prompt(group=group, problem=problem, tokens=tokens), messages=messages)


def _trace(problem: Problem, said: Said, verdict: Verdict, run: Run | None) -> Mapping[str, Any]:
    row = {
        **_of_problem(problem, said.text),
        "correct": verdict.outcome == "right",
        "outcome": verdict.outcome,
        "format": format_ok(said.text, problem.domain),
        "finish": said.finish,
    }
    if said.completion is not None and run is not None and said.finish == "stop":
        row["prompt_tokens"] = said.completion.prompt.tolist()
        row["tokens"] = said.completion.tokens.tolist()
        row["tokenizer"] = tokenizer_mark(run.tokenizer)
    return row


def _rated(problem: Problem, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The problem as a row of data; without a pass rate if no check worked."""
    judged = [row["correct"] for row in rows if row["outcome"] != "error"]
    row = {name: value for name, value in _of_problem(problem, "").items() if name != "response"}
    tests = {} if problem.tests is None else row_of_tests(problem.tests)
    return {**row, **tests, **({"pass_rate": sum(judged) / len(judged)} if judged else {})}
