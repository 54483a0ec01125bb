"""One run from its config to its summary: what is checked and made before its session plays."""

from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic

import jax

from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, check_identity
from magistral_jax.config import RunConfig
from magistral_jax.console import Console
from magistral_jax.lock import locked
from magistral_jax.metrics import RunRecord
from magistral_jax.recipes.stages import Stages
from magistral_jax.session import Session
from magistral_jax.settings import dump
from magistral_jax.types import UserError

SHOWN_ROWS = 5


def train(config: RunConfig, folder: Path, *, resume: bool) -> int:
    """Run to the end, or to a stop signal; returns the exit code."""
    began = monotonic()
    if resume and not any((folder / name).exists() for name in ("config.toml", "checkpoints")):
        raise UserError(
            f"--resume: {folder} holds no run. Leave --resume out, or name its --run-dir."
        )
    with ExitStack() as ours:
        if resume:
            ours.enter_context(locked(folder))
        checkpoints = Checkpoints(
            folder / "checkpoints", keep=config.checkpoint.keep, stall_s=config.stall_s
        )
        saved = checkpoints.latest() if resume else None
        stages = Stages(config, saved.notes.get("stages") if saved else None)
        run = ours.enter_context(closing(Run(stages.config)))
        if saved is not None:
            check_identity(saved.identity, run.identity(), folder)
        else:
            run.check_weights()
        check_data(run)
        if not resume:  # a mistake found before leaves no folder behind
            ours.enter_context(locked(folder))
        step = saved.step if saved else 0
        record = RunRecord(folder, config.metrics.tensorboard, step if resume else None)
        with record, Console(config.trainer.steps) as console:
            (folder / "config.toml").write_text(dump(config), encoding="utf-8")
            if run.sandbox:
                console.phase(run.sandbox)
            keep_compiled(folder / "compiled")
            tell_bad_rows(run.bad_rows, folder, console)
            session = Session(config, run, stages, record, console, checkpoints, folder, began)
            try:
                return session.play(saved, resume=resume)
            finally:
                session.run.close()


def tell_bad_rows(faults: Iterable[str], folder: Path, console: Console) -> None:
    """The rows that are left out: the first few here, all in a file of the run folder."""
    faults = list(faults)
    for fault in faults[:SHOWN_ROWS]:
        console.note(f"left out: {fault}")
    if faults:
        path = folder / "bad_rows.txt"
        path.write_text("".join(f"{fault}\n" for fault in faults), encoding="utf-8")
        console.note(f"{len(faults)} rows of the data are left out; all of them: {path}")


def keep_compiled(folder: Path) -> None:
    """Keep what is compiled, so that a resume need not compile it again; unless the user keeps it
    in a place of their own (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def check_data(run: Run) -> None:
    """Find the user's mistakes in data and evaluation before anything is written or compiled. Rows
    that are no problems are left out, and told once the run has a folder."""
    run.stream().next()
    _ = run.sandbox
    if run.config.eval.problems:
        run.heldout(run.config.eval.problems)
