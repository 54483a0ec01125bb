"""`magistral-jax eval CONFIG --on NAME=PATH`: benchmarks, on our engine or any OpenAI endpoint.

Every answer is written to `answers.jsonl` of the folder as soon as its problem is done, and figures
are made from that file alone: the same command again goes on where it was stopped.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from magistral_jax.build import Run
from magistral_jax.config import RunConfig
from magistral_jax.console import Console, table
from magistral_jax.data.files import rows_from
from magistral_jax.recipes.benchmarks import (
    BENCHMARKS,
    Benchmark,
    Item,
    answer_in,
    figures,
    item_of,
    judged,
)
from magistral_jax.tools.answering import Answerer, Asked, Said, Who, answering
from magistral_jax.tools.export import write_model
from magistral_jax.tools.peers.common import greedy_answers
from magistral_jax.types import Prompt, UserError
from magistral_jax.verifier.api import NO_LENGTH_RULE
from magistral_jax.verifier.worker import VerifierPool

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for."""

    on: tuple[str, ...]
    out: Path
    who: Who
    limit: int = 0
    """Problems of each benchmark, the first ones; 0: all."""
    samples: int = 0
    """Answers to each problem; 0: as the benchmark has it."""
    top_p: float = 0.0
    """0: as the benchmark has it."""
    peer_python: str = ""
    """An interpreter that has transformers: let it answer the same prompts, greedily."""


def measure_on(config: RunConfig, wanted: Wanted, *, json_path: Path | None) -> int:
    """Answer, judge, store, and print the tables."""
    named = [_named(text) for text in wanted.on]
    wanted.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with (
        answering(config, wanted.who) as (who, version, answerer_of, run, console),
        VerifierPool(NO_LENGTH_RULE, config.verifier) as pool,
    ):
        store = Store(wanted.out, {"who": who, "version": version, **_protocol(config, wanted)})
        for name, path in named:
            benchmark = BENCHMARKS[name]
            items = _items(config, name, path, benchmark, console)[: wanted.limit or None]
            answerer = answerer_of(wanted.top_p or benchmark.top_p)
            count = wanted.samples or benchmark.samples
            _answer(config, name, items, count, answerer, run, console, store, pool)
            answers = store.rows(name, [item.id for item in items])
            rows += _tables(name, answers)
            if wanted.peer_python:
                if run is None or config.eval.temperature != 0 or count != 1:
                    raise UserError(
                        "--peer-python compares greedy answers of our own engine: set "
                        "--eval.temperature 0 and --samples 1, and leave --endpoint out."
                    )
                console.phase(f"{name}: transformers answers {len(items)} prompts")
                peer = _peer_rows(run, wanted, items, answers, pool)
                rows.append({"benchmark": f"{name} (transformers)", **figures(peer)})
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    table(f"{who}, temperature {config.eval.temperature:g}", columns, cells, json_path)
    return 0


def _answer(
    config: RunConfig,
    name: str,
    items: Sequence[Item],
    samples: int,
    answerer: Answerer,
    run: Run | None,
    console: Console,
    store: "Store",
    pool: VerifierPool,
) -> None:
    """Ask what is not in the store yet."""
    missing = [item for item in items if not store.has(name, item.id)]
    asked = []
    for group, item in enumerate(missing):
        tokens = [] if run is None else run.tokenizer.chat(item.messages)
        if len(tokens) > config.data.max_prompt_tokens:
            raise UserError(
                f"{name}: problem {item.id!r} makes a prompt of {len(tokens)} tokens; "
                f"data.max_prompt_tokens is {config.data.max_prompt_tokens}. Raise it."
            )
        prompt = Prompt(group=group, problem=item.problem, tokens=np.array(tokens, np.int32))
        asked.append(Asked(prompt=prompt, messages=item.messages))
    for number, (one, answers) in enumerate(answerer.answers(asked, samples), 1):
        item = missing[one.prompt.group]
        verdicts = [judged(item, said.text, pool) for said in answers]
        rows = [
            _row(name, item, sample, said, verdict.result(timeout=config.stall_s))
            for sample, (said, verdict) in enumerate(zip(answers, verdicts, strict=True))
        ]
        store.add(name, item.id, rows)
        console.phase(f"{name}: {number + len(items) - len(missing)}/{len(items)} problems")


def _row(name: str, item: Item, sample: int, said: Said, verdict: Any) -> dict[str, Any]:
    record = {}
    if said.completion is not None:
        record = {
            "prompt_tokens": said.completion.prompt.tolist(),
            "tokens": said.completion.tokens.tolist(),
        }
    return {
        "benchmark": name,
        "id": item.id,
        "sample": sample,
        "language": item.language,
        "source": item.source,
        "outcome": verdict.outcome,
        "detail": verdict.detail,
        **({"share": verdict.reward} if item.kind == "instructions" else {}),
        "answer": answer_in(item, said.text),
        "length": said.length,
        "finish": said.finish,
        "text": said.text,
        **record,
    }


def _peer_rows(
    run: Run,
    wanted: Wanted,
    items: Sequence[Item],
    answers: Sequence[dict[str, Any]],
    pool: VerifierPool,
) -> list[dict[str, Any]]:
    """What transformers says to the same prompt tokens, judged as ours is."""
    with tempfile.TemporaryDirectory() as folder:
        params = (
            run.saved_params(wanted.who.run_dir, "--run-dir")[0]
            if wanted.who.run_dir
            else run.initial_params()
        )
        write_model(Path(folder), run, params, "float32")
        found = greedy_answers(
            Path(folder),
            [row["prompt_tokens"] for row in answers],
            new_tokens=run.config.generator.max_tokens,
            stops=run.tokenizer.stop_ids,
            python=wanted.peer_python,
        )
    texts = [
        run.said(row["prompt_tokens"], tokens) for row, tokens in zip(answers, found, strict=True)
    ]
    verdicts = [judged(item, text, pool) for item, text in zip(items, texts, strict=True)]
    return [
        {
            **row,
            "outcome": verdict.result(timeout=run.config.stall_s).outcome,
            "answer": answer_in(item, text),
            "length": len(tokens),
            "finish": "length" if len(tokens) == run.config.generator.max_tokens else "stop",
        }
        for row, item, text, tokens, verdict in zip(
            answers, items, texts, found, verdicts, strict=True
        )
    ]


class Store:
    """The answers in a folder: a line for each problem, with all of its answers."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._path = folder / "answers.jsonl"
        described = folder / "about.json"
        if described.exists():
            before = json.loads(described.read_text("utf-8"))
            differ = [name for name in about if before.get(name) != about[name]]
            if differ:
                raise UserError(
                    f"--out {folder} holds answers with {differ[0]} {before.get(differ[0])!r}, and "
                    f"now it is {about[differ[0]]!r}. Name another --out."
                )
        described.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        self._answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._read()

    def has(self, name: str, problem: str) -> bool:
        return (name, problem) in self._answers

    def add(self, name: str, problem: str, answers: list[dict[str, Any]]) -> None:
        line = json.dumps({"benchmark": name, "id": problem, "answers": answers})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._answers[name, problem] = answers

    def rows(self, name: str, problems: Sequence[str]) -> list[dict[str, Any]]:
        """All answers to these problems of a benchmark."""
        return [row for problem in problems for row in self._answers[name, problem]]

    def _read(self) -> None:
        """What is there; a line that a kill has torn is cut off, and its problem asked again."""
        if not self._path.exists():
            return
        whole = 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            row = json.loads(line)
            self._answers[row["benchmark"], row["id"]] = row["answers"]
            whole += len(line)
        with self._path.open("r+b") as file:
            file.truncate(whole)


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path or name not in BENCHMARKS:
        raise UserError(
            f"--on is {text!r}; it must be NAME=PATH, with a name of {', '.join(BENCHMARKS)}."
        )
    return name, path


def _protocol(config: RunConfig, wanted: Wanted) -> dict[str, Any]:
    """What answers in one folder must have in common."""
    return {
        "temperature": config.eval.temperature,
        "top_p": wanted.top_p,
        "samples": wanted.samples,
        "max_tokens": config.generator.max_tokens,
        "system_prompt": config.data.system_prompt,
        "worked_examples": config.data.worked_examples,
        "seed": config.seed,
    }


def _items(
    config: RunConfig, name: str, path: str, benchmark: Benchmark, console: Console
) -> list[Item]:
    items: list[Item] = []
    names: set[str] = set()
    bad = 0
    for place, row in rows_from(path, field=f"--on {name}", columns=config.data.columns):
        try:
            if isinstance(row, UserError):
                raise row
            item = item_of(
                place,
                row,
                benchmark.kind,
                system_prompt=config.data.system_prompt,
                worked_examples=config.data.worked_examples,
            )
            if item.id in names:
                raise UserError(f"{place}: id {item.id!r} is taken; ids must differ.")
            names.add(item.id)
            items.append(item)
        except UserError as fault:
            bad += 1
            if bad <= _SHOWN:
                console.note(f"left out: {fault}")
    if bad:
        console.note(f"{name}: {bad} rows of {path} are left out")
    if not items:
        raise UserError(f"--on {name}={path}: it holds no problem of this benchmark.")
    return items


def _tables(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A benchmark's figures, and those of each language and each source where there are several."""
    yield {"benchmark": name, **figures(rows)}
    for key in ("language", "source"):
        values = sorted({row[key] for row in rows})
        if len(values) > 1:
            for value in values:
                mine = [row for row in rows if row[key] == value]
                yield {"benchmark": f"{name} ({value})", **figures(mine)}
