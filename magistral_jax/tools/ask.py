"""Ask a policy: read its answers to a question or to held-out problems, or measure its accuracy.

Results go to stdout, progress to stderr. Nothing is written but the file that was asked for.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from magistral_jax.build import EVALUATION, Run
from magistral_jax.config import RunConfig
from magistral_jax.console import Console, table
from magistral_jax.evaluate import evaluate
from magistral_jax.generator.sampling import Sampler
from magistral_jax.model.params import Params
from magistral_jax.types import Completion, Problem, Prompt, Snapshot, UserError, Verdict


def sample(
    config: RunConfig,
    *,
    run_dir: Path | None,
    question: str | None,
    count: int,
    json_path: Path | None,
) -> int:
    """Print `count` answers to the question, or one to each of `count` held-out problems."""
    if count < 1:
        raise UserError(f"--count is {count}; it must be at least 1.")
    with policy(config, run_dir) as (run, snapshot, console):
        prompts = chosen(run, count) if question is None else [asked(run, question)]
        each = 1 if question is None else count
        scheduler = run.scheduler(
            snapshot,
            # Few answers need few slots; what is drawn does not depend on their number.
            engine=run.engine(max(2, min(count, config.generator.in_flight))),
            stream=EVALUATION,
            sampler=Sampler(temperature=config.eval.temperature),
        )
        total = len(prompts) * each
        answers = scheduler.generate(
            prompts, count=each, on_step=lambda done: console.phase(f"answering: {done}/{total}")
        )
        rows = [
            described(run, prompt, completion)
            for prompt, completions in zip(prompts, answers, strict=True)
            for completion in completions
        ]
    sys.stdout.write("\n".join(as_text(row) for row in rows))
    if json_path is not None:
        text = json.dumps({"title": f"answers of {config.name}", "rows": rows}, indent=2)
        json_path.write_text(text + "\n", encoding="utf-8")
    return 0


def measure(
    config: RunConfig,
    *,
    run_dir: Path | None,
    top_k: int,
    top_p: float,
    json_path: Path | None,
) -> int:
    """Print pass@1 over the held-out problems, with its interval and what goes with it."""
    e = config.eval
    if e.problems == 0:
        raise UserError("eval.problems is 0; there is nothing to measure. Set at least 1.")
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p is {top_p}; it must be above 0 and at most 1, which is off.")
    with policy(config, run_dir) as (run, snapshot, console):
        if not 0 <= top_k <= run.arch.vocab:
            raise UserError(
                f"--top-k is {top_k}; it must lie between 0, which is off, and the "
                f"vocabulary's {run.arch.vocab}."
            )
        sampler = Sampler(temperature=e.temperature, top_k=top_k, top_p=top_p)
        total = e.problems * e.samples
        found, _ = evaluate(
            run.evaluation(snapshot, sampler),
            run.judge,
            run.heldout(e.problems),
            samples=e.samples,
            timeout_s=config.stall_s,
            on_step=lambda done: console.phase(f"measuring: {done}/{total}"),
        )
    low, high = found.accuracy_ci95
    row = {
        "pass@1": found.accuracy,
        "95% low": low,
        "95% high": high,
        "format": found.format,
        "length": found.length,
        "truncated": found.truncated,
        "problems": found.problems,
        "samples": found.samples,
        "errored": found.errored,
    }
    data = config.data.path or f"sums of {config.data.digits} digits"
    title = f"{config.name}, {data}, temperature {e.temperature:g}"
    title += f", top-k {top_k}" * (top_k > 0) + f", top-p {top_p:g}" * (top_p < 1)
    table(title, list(row), [list(row.values())], json_path)
    return 0


@contextmanager
def policy(config: RunConfig, run_dir: Path | None) -> Iterator[tuple[Run, Snapshot, Console]]:
    """The rooms, the weights to ask, and where to say how far it is."""
    with policy_params(config, run_dir) as (run, params, version, console):
        yield run, run.published(params, version), console


@contextmanager
def policy_params(
    config: RunConfig, run_dir: Path | None
) -> Iterator[tuple[Run, Params, int, Console]]:
    """The same with float32 weights in the trainer's layout, and their version."""
    run = Run(config)
    try:
        with Console(0) as console:
            run.on_failure = partial(told_alarm, console)
            yield run, *weights(run, run_dir, console.phase), console
    finally:
        run.close()


def told_alarm(console: Console, kind: str, message: str) -> None:
    """What a run without metrics says of the failures that it counts: its alarms."""
    if kind == "alarm":
        console.note(message)


def weights(run: Run, run_dir: Path | None, said: Callable[[str], None]) -> tuple[Params, int]:
    """Those of the run's newest checkpoint with their version, or the config's initial ones."""
    if run_dir is None:
        source = run.config.model.source
        untrained = "untrained weights: model.source is random and there is no --run-dir"
        said(untrained if source == "random" else f"the weights of {source}")
        return run.initial_params(), 0
    params, saved = run.saved_params(run_dir, "--run-dir")
    said(f"the weights of {run_dir}, step {saved.step}")
    wanted = run.identity()
    trained_on = ("data.path", "data.digits")
    is_same_data = all(saved.identity.get(name) == wanted[name] for name in trained_on)
    if is_same_data and wanted["data.heldout_percent"] > saved.identity["data.heldout_percent"]:
        said(
            f"data.heldout_percent was {saved.identity['data.heldout_percent']:g} in that run: "
            "some of these problems were trained on"
        )
    return params, saved.step


def chosen(run: Run, count: int) -> list[Prompt]:
    """The first `count` of the problems that `eval` measures on."""
    try:
        return run.heldout(count)
    except UserError as too_few:
        raise UserError(str(too_few).replace("eval.problems", "--count")) from None


def asked(run: Run, question: str) -> Prompt:
    """The user's own question as a prompt; nobody knows its answer."""
    problem = Problem(id="--question", domain="math", question=question, answer="")
    return Prompt(group=0, problem=problem, tokens=run.render(problem))


def described(run: Run, prompt: Prompt, completion: Completion) -> dict[str, Any]:
    """One answer as a row of the JSON file."""
    verdict = None
    if prompt.problem.answer:
        verdict = run.judge(prompt, completion).result(timeout=run.config.stall_s)
    return {
        "id": prompt.problem.id,
        "prompt": run.tokenizer.decode(prompt.tokens.tolist()),
        "completion": run.text(completion),
        "finish": completion.finish,
        "tokens": len(completion.tokens),
        "logprob": float(completion.logprobs.sum()),
        "verdict": said_of(verdict),
        "reward": None if verdict is None else verdict.reward,
    }


def said_of(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged: no reference answer"
    return f"{verdict.outcome}: {verdict.detail}" if verdict.detail else verdict.outcome


def as_text(row: dict[str, Any]) -> str:
    reward = "" if row["reward"] is None else f", reward {row['reward']:.3f}"
    return (
        f"--- {printable(row['id'])}\n{printable(row['prompt'])}\n"
        f"--- completion ({row['tokens']} tokens, {row['finish']})\n"
        f"{printable(row['completion'])}\n"
        f"--- {printable(row['verdict'])}{reward}, log-prob {row['logprob']:.3f}\n"
    )


def printable(text: str) -> str:
    """The text with its lines kept and everything that could drive a terminal as an escape."""
    shown: Sequence[str] = [
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    ]
    encoding = sys.stdout.encoding or "utf-8"
    return "".join(shown).encode(encoding, "backslashreplace").decode(encoding)
