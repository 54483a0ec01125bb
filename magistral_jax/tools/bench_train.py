"""How fast the trainer learns on this machine, beside its matrix products and beside a peer.

A step is one weight update, of gradients of rows that are full: each is one sequence, with the
policy objective on every token and AdamW. Model FLOPs are PaLM's (appendix B): 6 for each weight
that multiplies a token, and 12 x width of attention x length for each layer; what is recomputed
does not count. They are held against the rate of the products with weights alone, forward and
backward, in the same dtype and at the same number of rows, measured in the same run.

Axes: B rows, T tokens in a row.
"""

import os
import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from magistral_jax.arrays import Microbatch, Minibatch
from magistral_jax.build import Run
from magistral_jax.config import DType, RunConfig
from magistral_jax.console import Console, table
from magistral_jax.model.params import Architecture
from magistral_jax.model.sharding import row_spec
from magistral_jax.model.transformer import product
from magistral_jax.tools import bench
from magistral_jax.tools.bench import DTYPES, timed, use_threads
from magistral_jax.tools.export import write_model
from magistral_jax.tools.peers.common import TRAIN_PEERS, Rows, measure_train_peer
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.types import UserError

COLUMNS = (
    "who", "dtype", "rows", "tokens/s", "min", "max", "s/step", "GFLOP/s", "of products' rate %",
    "products %", "padding %", "peak GiB", "ours/peer",
)  # fmt: skip


BLOCKS_BEYOND = 512
"""`trainer.long_row` here: what is fastest, where nothing is sampled."""


@dataclass(frozen=True, kw_only=True)
class Asked(bench.Asked):
    """What the command line asks for."""

    known_peers = TRAIN_PEERS
    rows: tuple[tuple[int, int], ...]
    """(tokens in a row, rows) of each step."""
    microbatch_tokens: int
    remat: bool


@dataclass(kw_only=True)
class Measured:
    """One line of the table."""

    who: str
    dtype: str
    shape: tuple[int, int]
    seconds: list[float]
    """Of each step."""
    flops: float
    """Of the model, a step."""
    products_s: float
    """What its products with weights take alone."""
    weight_flops: float
    padding: float = 0.0
    peak: float | None = None
    """Bytes."""
    ratio: float | None = None

    def cells(self) -> list[Any]:
        T, B = self.shape
        step = statistics.median(self.seconds)
        rate = self.weight_flops / self.products_s
        return [
            self.who, self.dtype, f"{T}x{B}", T * B / step, T * B / max(self.seconds),
            T * B / min(self.seconds), step, 1e-9 * self.flops / step,
            100 * self.flops / step / rate, 100 * self.products_s / step, 100 * self.padding,
            "" if self.peak is None else self.peak / 2**30,
            "" if self.ratio is None else self.ratio,
        ]  # fmt: skip


def bench_train(config: RunConfig, asked: Asked, *, json_path: Path | None) -> int:
    """Measure, in one run, our trainer and the peers asked for; print the table."""
    use_threads(asked.threads)
    found: list[Measured] = []
    with Console(0) as console, tempfile.TemporaryDirectory() as scratch:
        for dtype in asked.dtypes:
            run = run_of(config, asked, DTYPES[dtype])
            if asked.peers and not any(Path(scratch).iterdir()):
                console.phase("writing the policy for the peers")
                write_model(Path(scratch), run, run.initial_params(), "float32")
            for shape in asked.rows:
                T, B = shape
                console.phase(f"training on {B} rows of {T} tokens, {dtype}")
                found.append(measure_ours(run, shape, asked, dtype))
        for peer in asked.peers:
            for dtype in asked.dtypes:
                for shape in asked.rows:
                    console.phase(f"{peer}, {shape[1]} rows of {shape[0]} tokens, {dtype}")
                    seconds, peak = measure_train_peer(
                        peer,
                        Path(scratch),
                        rows_of(run, shape, asked),
                        dtype=dtype,
                        threads=asked.threads,
                        repeats=asked.repeats,
                        python=asked.peer_python,
                    )
                    like = next(m for m in found if (m.dtype, m.shape) == (dtype, shape))
                    like.ratio = statistics.median(seconds) / statistics.median(like.seconds)
                    found.append(replace(like, who=peer, seconds=seconds, peak=peak, ratio=None))
    kind = jax.devices()[0].device_kind
    title = (
        f"training {asked.model} on {kind}, {asked.threads} threads: microbatches of at most "
        f"{asked.microbatch_tokens} tokens, {'' if asked.remat else 'no '}remat, "
        f"attention of rows beyond {BLOCKS_BEYOND} in blocks, {asked.repeats} repeats"
    )
    table(title, COLUMNS, [m.cells() for m in found], json_path)
    return 0


def run_of(config: RunConfig, asked: Asked, dtype: DType) -> Run:
    """The config with what the command line asks for instead."""
    return Run(
        replace(
            config,
            model=replace(config.model, source=asked.model, dtype=dtype),
            trainer=replace(config.trainer, remat=asked.remat, unroll=True, long_row=BLOCKS_BEYOND),
        )
    )


def rows_of(run: Run, shape: tuple[int, int], asked: Asked) -> Rows:
    """Random tokens [B T + 1], of which the first is never predicted, and what the policy said."""
    T, B = shape
    rng = np.random.default_rng(0)
    first = min(256, run.arch.vocab // 2)
    return Rows(
        tokens=rng.integers(first, run.arch.vocab, (B, T + 1), np.int32),
        logprobs=rng.normal(-np.log(run.arch.vocab), 0.1, (B, T)).astype(np.float32),
        advantages=np.repeat(rng.normal(size=(B, 1)), T, axis=1).astype(np.float32),
        microbatch_rows=max(1, asked.microbatch_tokens // T),
    )


def minibatch_of(rows: Rows) -> Minibatch:
    """The rows as the trainer takes them."""
    B, T = rows.logprobs.shape
    sheet = {
        "inputs": rows.tokens[:, :-1],
        "targets": rows.tokens[:, 1:],
        "positions": np.repeat(np.arange(T, dtype=np.int32)[None], B, axis=0),
        "segments": np.ones((B, T), np.int32),
        "behavior_logprobs": rows.logprobs,
        "advantages": rows.advantages,
        "shares": np.full((B, T), 1 / (B * T), np.float32),
    }
    size = rows.microbatch_rows
    return Minibatch(
        microbatches=tuple(
            Microbatch(**{name: array[at : at + size] for name, array in sheet.items()})
            for at in range(0, B, size)
        ),
        padding=float(np.mean(sheet["segments"] == 0)),
    )


def measure_ours(run: Run, shape: tuple[int, int], asked: Asked, dtype: str) -> Measured:
    """Our step on these rows: `asked.repeats` times, after one that is not counted."""
    rows = rows_of(run, shape, asked)
    minibatch = minibatch_of(rows)
    trainer = run.trainer(run.initial_params())
    seconds: list[float] = []
    forget_peak()
    for repeat in range(asked.repeats + 1):
        began = perf_counter()
        stats = trainer.minibatch_step(minibatch)
        jax.block_until_ready((trainer.state, stats))
        if repeat:
            seconds.append(perf_counter() - began)
    peak = peak_bytes()
    T, B = shape
    size = min(rows.microbatch_rows, B)
    products_s = -(-B // size) * statistics.median(products_seconds(run, trainer, size, T))
    weight_flops = 6.0 * weights_of(run.arch) * B * T
    attention_flops = 12.0 * run.arch.layers * run.arch.heads * run.arch.head_dim * B * T * T
    return Measured(
        who="ours",
        dtype=dtype,
        shape=shape,
        seconds=seconds,
        flops=weight_flops + attention_flops,
        products_s=products_s,
        weight_flops=weight_flops,
        padding=minibatch.padding,
        peak=peak,
    )


def weights_of(arch: Architecture) -> int:
    """Weights that multiply each token: those of the layers and of the head."""
    attention = 2 * arch.width * (arch.heads + arch.kv_heads) * arch.head_dim
    return arch.layers * (attention + 3 * arch.width * arch.ffn) + arch.width * arch.vocab


def products_seconds(run: Run, trainer: Trainer, rows: int, tokens: int) -> list[float]:
    """Times of a microbatch's products with weights, forward and backward, and of nothing else.

    One layer's, by as many layers, and the head's in as many chunks as the trainer computes it.
    """
    arch, dtype = run.arch, run.dtype
    D, N, K, H, F = arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.ffn
    spec = row_spec(run.trainer_mesh)
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    def both(equation: str, x: Array, weight: Array, out: Array) -> Any:
        value, pull = jax.vjp(
            lambda x, w: product(equation, x, w, jax.typeof(out).sharding.spec), x, weight
        )
        return value, pull(out.astype(jnp.float32))

    shapes = {
        "BTD,DNH->BTNH": ((D,), (D, N, H), (N, H)),
        "BTD,DKH->BTKH": ((D,), (D, K, H), (K, H)),
        "BTNH,NHD->BTD": ((N, H), (N, H, D), (D,)),
        "BTD,DF->BTF": ((D,), (D, F), (F,)),
        "BTF,FD->BTD": ((F,), (F, D), (D,)),
    }
    times = {"BTD,DKH->BTKH": 2 * arch.layers, "BTD,DF->BTF": 2 * arch.layers}
    chunk = min(run.config.trainer.head_tokens, rows * tokens)
    total = np.zeros(3)
    with jax.set_mesh(run.trainer_mesh):

        def placed(x: Array, *, is_rows: bool) -> Array:
            if not is_rows:
                return jax.device_put(x, NamedSharding(run.trainer_mesh, jax.P(*[None] * x.ndim)))
            rest = [None] * (x.ndim - 2)
            return jax.device_put(x, NamedSharding(run.trainer_mesh, jax.P(*spec, *rest)))

        def seconds(equation: str, B: int, T: int, x: Any, weight: Any, out: Any) -> np.ndarray:
            arrays = (
                placed(drawn(B, T, *x), is_rows=True),
                placed(drawn(*weight), is_rows=False),
                placed(drawn(B, T, *out), is_rows=True),
            )
            found = timed(partial(jax.jit(partial(both, equation)), *arrays))
            return np.array([min(found), statistics.median(found), max(found)])

        for equation, (x, weight, out) in shapes.items():
            total += times.get(equation, arch.layers) * seconds(
                equation, rows, tokens, x, weight, out
            )
        of_head = seconds("BTD,VD->BTV", rows, chunk // rows, (D,), (arch.vocab, D), (arch.vocab,))
        total += rows * tokens / chunk * of_head
    return total.tolist()


def forget_peak() -> None:
    """Count the process's peak memory from here on, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> float | None:
    """The most memory in use since: of the first device, or of the process on a CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"])
    if os.name != "posix" or not Path("/proc/self/status").exists():
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((1024.0 * float(x.split()[1]) for x in lines if x.startswith("VmHWM")), None)


def shapes(text: str) -> tuple[tuple[int, int], ...]:
    """ "256x16,1024x8": tokens in a row, by rows."""
    found: list[tuple[int, int]] = []
    for word in text.split(","):
        tokens, _, rows = word.partition("x")
        if not (tokens.isdecimal() and rows.isdecimal() and int(tokens) and int(rows)):
            raise UserError(
                f"--rows is {text!r}; it must be tokens in a row x rows, such as 256x16,1024x8."
            )
        found.append((int(tokens), int(rows)))
    return tuple(found)
