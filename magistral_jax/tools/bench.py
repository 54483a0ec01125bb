"""How fast this machine runs this config: what it could do, and what each part of the run does.

Every number is the median of several timed calls, given with the fastest and the slowest. A call
that compiles is never timed.

Axes: B slots.
"""

import os
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float

from magistral_jax.arrays import Batch
from magistral_jax.build import SAMPLING, Run
from magistral_jax.config import DType, RunConfig
from magistral_jax.console import Console, table
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.programs import DecodeState
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.params import Params
from magistral_jax.types import (
    Completion,
    Group,
    Problem,
    Prompt,
    Snapshot,
    UserError,
    Verdict,
    VersionSpan,
)

COLUMNS = ("what", "median", "min", "max", "unit", "runs")
# Time for the runs of one number, unless the fewest that make a median need more.
BUDGET_S = 1.0
FEWEST_RUNS, MOST_RUNS = 3, 50
DTYPES: dict[str, DType] = {"bf16": "bfloat16", "f32": "float32"}
CPU_MATMUL, ACCELERATOR_MATMUL = 1024, 8192


class Row(NamedTuple):
    """One line of the table."""

    what: str
    median: float
    min: float
    max: float
    unit: str
    runs: int


def bench(config: RunConfig, *, json_path: Path | None) -> int:
    """Measure this machine with this config; print the table."""
    run = Run(config)
    with Console(0) as console:
        console.phase("measuring matrix products")
        rows = matmul_rows(run)
        console.phase("loading the policy")
        params = run.initial_params()
        snapshot = run.published(params, 0)
        console.phase("measuring prefill and decode")
        rows += generator_rows(run, snapshot)
        console.phase("measuring the push")
        seconds = timed(lambda: run.published(params, 0))
        rows.append(row("push", seconds, "s", lambda s: s))
        console.phase("measuring the train step")
        rows += train_rows(run, params)
    devices = len({*run.trainer_mesh.devices.flat, *run.generator_mesh.devices.flat})
    kind = run.generator_mesh.devices.flat[0].device_kind
    title = (
        f"{config.name} on {devices} x {kind}: {config.model.dtype}, "
        f"{config.generator.in_flight} slots of {config.sequence_tokens} tokens"
    )
    table(title, COLUMNS, rows, json_path)
    return 0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks of a bench that has peers."""

    known_peers: ClassVar[Collection[str]] = ()
    model: str
    dtypes: tuple[str, ...]
    threads: int
    peers: tuple[str, ...]
    peer_python: str
    repeats: int

    @property
    def counts(self) -> dict[str, int]:
        """What must be at least 1, by option."""
        return {"--repeats": self.repeats, "--threads": self.threads}

    def __post_init__(self) -> None:
        for name, given, known in (
            ("--dtype", self.dtypes, DTYPES),
            ("--peer", self.peers, self.known_peers),
        ):
            unknown = [word for word in given if word not in known]
            if unknown:
                raise UserError(f"{name} is {unknown[0]!r}; it must be among {', '.join(known)}.")
        for name, count in self.counts.items():
            if count < 1:
                raise UserError(f"{name} is {count}; it must be at least 1.")


def use_threads(count: int) -> None:
    """Keep this process, and those it starts, to so many processors. Before jax has a backend."""
    if not hasattr(os, "sched_setaffinity"):
        return
    there = sorted(os.sched_getaffinity(0))
    if count > len(there):
        raise UserError(f"--threads is {count}, and this process may use {len(there)} processors.")
    os.sched_setaffinity(0, set(there[:count]))


def timed(call: Callable[[], Any]) -> list[float]:
    """Seconds of each of several calls, waiting for what each returns; the first is not counted."""
    jax.block_until_ready(call())
    seconds: list[float] = []
    while is_short(seconds, most=MOST_RUNS):
        began = perf_counter()
        jax.block_until_ready(call())
        seconds.append(perf_counter() - began)
    return seconds


def is_short(seconds: list[float], *, most: int) -> bool:
    """Whether a median wants more runs, and there is time for them."""
    return len(seconds) < FEWEST_RUNS or (sum(seconds) < BUDGET_S and len(seconds) < most)


def row(what: str, seconds: list[float], unit: str, value: Callable[[float], float]) -> Row:
    """The times as a line of the table, each turned into `unit`."""
    values = [value(s) for s in seconds]
    return Row(what, statistics.median(values), min(values), max(values), unit, len(values))


def matmul_rows(run: Run) -> list[Row]:
    """The ceiling: a square product on one device, in float32 and in the config's dtype."""
    device = run.generator_mesh.devices.flat[0]
    size = CPU_MATMUL if device.platform == "cpu" else ACCELERATOR_MATMUL
    multiply = jax.jit(jnp.matmul)
    rows = []
    for dtype in dict.fromkeys(["float32", run.config.model.dtype]):
        ones = np.ones((size, size), np.float32)
        square = jax.device_put(ones, SingleDeviceSharding(device)).astype(dtype)
        seconds = timed(partial(multiply, square, square))
        rows.append(
            row(f"matmul {size}, {dtype}", seconds, "TFLOP/s", lambda s: 2e-12 * size**3 / s)
        )
    return rows


def generator_rows(run: Run, snapshot: Snapshot) -> list[Row]:
    """Prefill of the longest prompt, decode with every slot busy, and what the host adds."""
    engine, prompt = tireless_engine(run), longest_prompt(run)
    slots, length = engine.max_concurrent_decodes, len(prompt.tokens)
    padded = engine.pad(prompt.tokens)
    fill = partial(engine.prefill, params=snapshot.params, padded_tokens=padded, true_length=length)
    rows = [row("prefill", timed(lambda: fill()[0]), "tokens/s", lambda s: length / s)]
    steps, hosts = decode_seconds(run, snapshot, engine, prompt)
    rows.append(row("decode step", steps, "ms", lambda s: 1e3 * s))
    rows.append(row("decode", steps, "tokens/s", lambda s: slots / s))
    rows.append(row("decode, host", hosts, "us/step", lambda s: 1e6 * s))
    if run.config.mesh.generator_tp == 1:
        alone = products_seconds(run, snapshot.params, slots)
        rows.append(row("decode, weight products alone", alone, "ms", lambda s: 1e3 * s))
        lower = statistics.median(alone)
        rows.append(row("decode step / weight products", steps, "x", lambda s: s / lower))
    return rows


class WatchedEngine(Engine):
    """An engine that notes how long the host waited for the newest step's result."""

    waited_s = 0.0

    def generate_many(self, *arguments: Any, **named: Any) -> tuple[DecodeState, Array]:
        state, results = super().generate_many(*arguments, **named)
        began = perf_counter()
        jax.block_until_ready((state, results))
        self.waited_s = perf_counter() - began
        return state, results


def tireless_engine(run: Run) -> WatchedEngine:
    """The run's engine, but that no token ends a sequence: every slot stays busy."""
    return WatchedEngine(
        run.arch,
        run.generator_mesh,
        slots=max(2, run.config.generator.in_flight),
        tokens=run.config.sequence_tokens,
        stop_ids=(-1,),
        dtype=run.dtype,
    )


def decode_seconds(
    run: Run, snapshot: Snapshot, engine: WatchedEngine, prompt: Prompt
) -> tuple[list[float], list[float]]:
    """Per decode step with every slot busy: all of its time, and the part not spent waiting."""
    generator, slots = run.config.generator, engine.max_concurrent_decodes
    scheduler = Scheduler(
        engine,
        snapshot,
        key=run.key(SAMPLING),
        sampler=Sampler(temperature=generator.temperature),
        group_size=generator.group_size,
        # One step at a time; a sequence's first fills its slot, which is not decoding.
        max_tokens=max(2, generator.max_tokens),
    )
    steps: list[float] = []
    hosts: list[float] = []
    while is_short(steps, most=4 * MOST_RUNS):
        if scheduler.num_active < slots:
            scheduler.submit(prompt, count=slots)
            scheduler.step()
        began = perf_counter()
        scheduler.step()
        steps.append(perf_counter() - began)
        hosts.append(steps[-1] - engine.waited_s)
    return steps, hosts


def products_seconds(run: Run, params: Params, slots: int) -> list[float]:
    """Times of a decode step's products with weights, and of nothing else."""
    x = jax.device_put(
        np.full((slots, run.arch.width), 0.01, np.float32),
        SingleDeviceSharding(run.generator_mesh.devices.flat[0]),
    ).astype(run.dtype)
    weights = jax.tree.map(lambda shard: shard.addressable_data(0), params)
    return timed(partial(jax.jit(partial(products, tied=run.arch.tie_embeddings)), weights, x))


def products(
    params: Params, x: Float[Array | np.ndarray, "B D"], *, tied: bool
) -> Float[Array | np.ndarray, "B V"]:
    """Every weight applied once, in the network's order, without norms, attention or sampling."""
    width, dtype = x.shape[1], x.dtype

    def times(rows: Any, weight: Any) -> Array:
        # In float32, as the network's own: XLA's CPU backend is slower where bf16 is asked for.
        return jnp.matmul(rows.astype(dtype), weight, preferred_element_type=jnp.float32)

    x = jnp.asarray(x, jnp.float32)
    for layer in params["layers"]:
        q, k, v = (times(x, layer[name].reshape(width, -1)) for name in ("wq", "wk", "wv"))
        keys = k.shape[1]
        heads = q.reshape(-1, q.shape[1] // keys, keys) * (k + v)[:, None]
        x = x + times(heads.reshape(q.shape), layer["wo"].reshape(-1, width))
        x = x + times(times(x, layer["w_gate"]) * times(x, layer["w_up"]), layer["w_down"])
    if tied:
        return jnp.einsum(
            "BD,VD->BV", x.astype(dtype), params["embed"], preferred_element_type=jnp.float32
        )
    return times(x, params["head"])


def train_rows(run: Run, params: Params) -> list[Row]:
    """One weight update on a full batch of the longest sequences."""
    batch = full_batch(run)
    tokens = sum(len(c.prompt) + len(c.tokens) - 1 for g in batch.groups for c in g.completions)
    trainer = run.trainer(params)

    def update() -> Params:
        trainer.step(batch)
        return trainer.params

    seconds = timed(update)
    return [
        row("train step", seconds, "s", lambda s: s),
        row("train", seconds, "tokens/s", lambda s: tokens / s),
    ]


def longest_prompt(run: Run) -> Prompt:
    """A prompt of data.max_prompt_tokens tokens; speed does not depend on what it says."""
    tokens = np.ones(run.config.data.max_prompt_tokens, np.int32)
    problem = Problem(id="bench", domain="math", question="", answer="")
    return Prompt(group=0, problem=problem, tokens=tokens)


def full_batch(run: Run) -> Batch:
    """A batch of the config's shape in which every sequence is as long as it can be."""
    config = run.config
    length, size = config.generator.max_tokens, config.generator.group_size
    prompt = longest_prompt(run)

    def group(number: int) -> Group:
        return Group(
            prompt=replace(prompt, group=number),
            completions=tuple(
                Completion(
                    group=number,
                    index=index,
                    prompt=prompt.tokens,
                    tokens=np.ones(length, np.int32),
                    logprobs=np.full(length, -5.0, np.float32),
                    sampled=np.ones(length, bool),
                    spans=(VersionSpan(start=0, version=0),),
                    finish="length",
                )
                for index in range(size)
            ),
            verdicts=tuple(
                Verdict(reward=float(index % 2), parts={}, reason="wrong") for index in range(size)
            ),
        )

    return run.assemble([group(number) for number in range(config.groups_per_batch)], 0)
