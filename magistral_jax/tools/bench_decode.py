"""How fast the generator samples on this machine, beside its ceiling and beside peers.

Every request is sampled to its full length: no token ends one. Prefill is counted. The ceiling is
the time of the model's products with its weights alone, for as many rows as there are slots; on an
accelerator, the time to read the weights and the cache once at the bandwidth measured here.

Axes: B slots.
"""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from magistral_jax.build import SAMPLING, Run
from magistral_jax.config import DType, RunConfig
from magistral_jax.console import Console, table
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.params import Params
from magistral_jax.model.sources import resolve
from magistral_jax.tools import bench
from magistral_jax.tools.bench import (
    DTYPES,
    WatchedEngine,
    products_seconds,
    timed,
    use_threads,
)
from magistral_jax.tools.export import write_model
from magistral_jax.tools.peers.common import PEERS, Requests, measure_peer
from magistral_jax.types import Problem, Prompt, Snapshot

COLUMNS = (
    "who", "dtype", "at once", "tokens/s", "min", "max", "ms/step", "host %", "of ceiling %",
    "occupancy %", "ours/peer",
)  # fmt: skip
SKEWED_MEAN, SKEWED_MAX, SKEWED_PER_SLOT = 64, 512, 8
# Median of the lognormal lengths is exp(-1/2) of their mean: a long tail, as reasoning has.
SKEWED_SIGMA = 1.0


@dataclass(frozen=True, kw_only=True)
class Asked(bench.Asked):
    """What the command line asks for."""

    known_peers = PEERS
    concurrency: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    lengths: Literal["equal", "skewed"]

    @property
    def counts(self) -> dict[str, int]:
        own = {"--prompt-tokens": self.prompt_tokens, "--new-tokens": self.new_tokens}
        return {**own, **super().counts}


@dataclass(kw_only=True)
class Measured:
    """One line of the table, and what it is made of."""

    who: str
    dtype: str
    at_once: int
    rates: list[float]
    """Completed tokens per second of each repeat."""
    step_ms: float | None = None
    host: float | None = None
    ceiling: float | None = None
    occupancy: float | None = None
    ratio: float | None = None

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def cells(self) -> list[Any]:
        def percent(share: float | None) -> Any:
            return "" if share is None else 100 * share

        return [
            self.who, self.dtype, self.at_once, self.rate, min(self.rates), max(self.rates),
            "" if self.step_ms is None else self.step_ms, percent(self.host),
            percent(self.ceiling), percent(self.occupancy),
            "" if self.ratio is None else self.ratio,
        ]  # fmt: skip


def bench_decode(config: RunConfig, asked: Asked, *, json_path: Path | None) -> int:
    """Measure, in one run, our generator and the peers asked for; print the table."""
    use_threads(asked.threads)
    found: list[Measured] = []
    with Console(0) as console, tempfile.TemporaryDirectory() as scratch:
        for dtype in asked.dtypes:
            run = run_of(config, asked, DTYPES[dtype])
            console.phase(f"loading the policy, {dtype}")
            params = run.initial_params()
            snapshot = run.published(params, 0)
            for at_once in asked.concurrency:
                console.phase(f"decoding {at_once} at once, {dtype}")
                found.append(measure_ours(run, snapshot, requests_of(asked, run, at_once), asked))
            if set(asked.peers) - {"llama.cpp"}:
                # Peers read the same weights, from a folder, in a process of their own.
                (Path(scratch) / dtype).mkdir()
                write_model(Path(scratch) / dtype, run, params, DTYPES[dtype])
            del params, snapshot
        for peer in asked.peers:
            for dtype in asked.dtypes:
                for at_once in asked.concurrency:
                    console.phase(f"{peer}, {at_once} at once, {dtype}")
                    rates = measure_peer(
                        peer,
                        # llama.cpp reads no such folder, but the file that we have read.
                        resolve(asked.model) if peer == "llama.cpp" else Path(scratch) / dtype,
                        requests_of(asked, run, at_once),
                        dtype=dtype,
                        threads=asked.threads,
                        repeats=asked.repeats,
                        python=asked.peer_python,
                    )
                    found.append(Measured(who=peer, dtype=dtype, at_once=at_once, rates=rates))
    compare(found)
    lengths = (
        f"{asked.new_tokens} new tokens"
        if asked.lengths == "equal"
        else f"lognormal lengths, mean {SKEWED_MEAN}, at most {SKEWED_MAX}"
    )
    kind = jax.devices()[0].device_kind
    title = (
        f"decode of {asked.model} on {kind}, {asked.threads} threads: prompts of "
        f"{asked.prompt_tokens} tokens, {lengths}, {asked.repeats} repeats"
    )
    table(title, COLUMNS, [m.cells() for m in found], json_path)
    return 0


def run_of(config: RunConfig, asked: Asked, dtype: DType) -> Run:
    """The config with what the command line asks for instead."""
    return Run(
        replace(
            config,
            model=replace(config.model, source=asked.model, dtype=dtype),
            data=replace(config.data, max_prompt_tokens=asked.prompt_tokens),
            generator=replace(
                config.generator,
                group_size=1,
                max_tokens=SKEWED_MAX if asked.lengths == "skewed" else asked.new_tokens,
            ),
        )
    )


def requests_of(asked: Asked, run: Run, at_once: int) -> Requests:
    """Prompts of random tokens, no two alike, and how many tokens each is to get."""
    rng = np.random.default_rng(0)
    if asked.lengths == "equal":
        lengths = np.full(at_once, asked.new_tokens)
    else:
        mu = np.log(SKEWED_MEAN) - SKEWED_SIGMA**2 / 2
        drawn = rng.lognormal(mu, SKEWED_SIGMA, SKEWED_PER_SLOT * at_once)
        lengths = np.clip(np.rint(drawn), 1, SKEWED_MAX).astype(int)
    # Ordinary words: a vocabulary begins with its special tokens.
    first = min(256, run.arch.vocab // 2)
    prompts = rng.integers(first, run.arch.vocab, (len(lengths), asked.prompt_tokens), np.int32)
    return Requests(prompts=prompts, lengths=lengths.astype(np.int32), at_once=at_once)


def measure_ours(run: Run, snapshot: Snapshot, requests: Requests, asked: Asked) -> Measured:
    engine = engine_of(run, requests)
    """Our generator on these requests: `asked.repeats` times, after one that is not counted."""
    rates: list[float] = []
    steps: list[float] = []
    hosts: list[float] = []
    filled: list[float] = []
    for number in range(asked.repeats + 1):
        scheduler = scheduler_of(run, engine, snapshot)
        if number == 0:
            scheduler.warm_up(asked.prompt_tokens)
        for group, (tokens, length) in enumerate(
            zip(requests.prompts, requests.lengths, strict=True)
        ):
            problem = Problem(id=str(group), domain="math", question="", answer="")
            prompt = Prompt(group=group, problem=problem, tokens=tokens)
            scheduler.submit(prompt, count=1, limit=int(length))
        began = perf_counter()
        produced = 0
        while scheduler.has_work:
            was_queued, sampled = scheduler.num_unplaced > 0, scheduler.num_sampled
            before = perf_counter()
            finished = scheduler.step()
            took = perf_counter() - before
            produced += sum(len(c.tokens) for c in finished)
            if number == 0:
                continue
            if was_queued:
                sampled = scheduler.num_sampled - sampled
                filled.append(sampled / (scheduler.steps_at_once * requests.at_once))
            else:  # Nothing was prefilled.
                steps.append(took / scheduler.steps_at_once)
                hosts.append((took - engine.waited_s) / scheduler.steps_at_once)
        if number > 0:
            rates.append(produced / (perf_counter() - began))
        assert produced == requests.lengths.sum(), (produced, requests.lengths.sum())
    step = statistics.median(steps)
    return Measured(
        who="ours",
        dtype=run.config.model.dtype.replace("bfloat16", "bf16").replace("float32", "f32"),
        at_once=requests.at_once,
        rates=rates,
        step_ms=1e3 * step,
        host=statistics.median(hosts) / step,
        ceiling=ceiling_seconds(run, snapshot.params, engine) / step,
        occupancy=float(np.mean(filled)) if filled else 1.0,
    )


def engine_of(run: Run, requests: Requests) -> WatchedEngine:
    """The run's engine, but that no token ends a sequence."""
    return WatchedEngine(
        run.arch,
        run.generator_mesh,
        # At least two rows to a product, as `Run.main_engine` has it.
        slots=max(2, requests.at_once),
        tokens=requests.prompts.shape[1] + int(requests.lengths.max()),
        stop_ids=(-1,),
        dtype=run.dtype,
    )


def scheduler_of(run: Run, engine: Engine, snapshot: Snapshot) -> Scheduler:
    sampler = Sampler(temperature=run.config.generator.temperature)
    return run.scheduler(snapshot, engine=engine, stream=SAMPLING, sampler=sampler)


def ceiling_seconds(run: Run, params: Params, engine: Engine) -> float:
    """The least that a decode step can take here."""
    device = run.generator_mesh.devices.flat[0]
    slots = engine.max_concurrent_decodes
    if device.platform == "cpu":
        return statistics.median(products_seconds(run, params, slots))
    moved = sum(array.nbytes for array in jax.tree.leaves((params, engine.init_decode_state())))
    return moved / run.generator_mesh.devices.size / bandwidth(device)


def bandwidth(device: Any) -> float:
    """Bytes a second that one device reads and writes: a gigabyte plus one."""
    x = jax.device_put(np.zeros(2**29, np.uint8), device).view(jnp.bfloat16)
    seconds = statistics.median(timed(partial(jax.jit(lambda x: x + 1), x)))
    return 2 * x.nbytes / seconds


def compare(found: Sequence[Measured]) -> None:
    """Beside each line of ours, its rate over the best peer's at that concurrency, whatever the
    peer's dtype; beside each line of a peer, our best rate over it."""
    for line in found:
        is_ours = line.who == "ours"
        others = [m for m in found if m.at_once == line.at_once and (m.who == "ours") != is_ours]
        if not others:
            continue
        best = max(m.rate for m in others)
        line.ratio = line.rate / best if line.who == "ours" else best / line.rate
