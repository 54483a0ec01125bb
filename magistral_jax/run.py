"""One run from its config to its summary: warm-up, measure, reinforce, measure again."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from magistral_jax.build import Run, restored
from magistral_jax.checkpoint import Checkpoints, Meta, check_identity
from magistral_jax.config import RunConfig
from magistral_jax.console import Console
from magistral_jax.evaluate import Evaluation, evaluate
from magistral_jax.loops import Rooms, run_async, run_sync
from magistral_jax.metrics import GLOSSARY, RunRecord
from magistral_jax.settings import dump
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.types import Cursor, Group, Snapshot, UserError
from magistral_jax.verifier.sandbox.choose import UNSAFE

FINISHED, STOPPED, INTERRUPTED = 0, 75, 130
LONGEST_CHECKED = 100
NOTHING_COUNTED = dict.fromkeys(
    ("progress/completions", "progress/dispatched", "progress/dropped_groups"), 0.0
)


def train(config: RunConfig, folder: Path, *, resume: bool) -> int:
    """Run to the end, or to a stop signal; returns the exit code."""
    began = monotonic()
    if config.stage:
        raise UserError(
            f"stage: {len(config.stage)} stages are asked for, and stages are not acted on yet. "
            "Remove the [[stage]] tables to train with the numbers above them throughout."
        )
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
    saved = checkpoints.latest() if resume else None
    if resume and saved is None:
        raise UserError(
            f"--resume: {checkpoints.folder} holds no checkpoint that is whole. Leave --resume out."
        )
    run = Run(config)
    if saved is not None:
        check_identity(saved.identity, run.identity(), folder)
    try:
        run.check_weights()
        check_data(run)
        with (
            RunRecord(folder, config.metrics.tensorboard, saved.step if saved else None) as record,
            Console(config.trainer.steps) as console,
        ):
            (folder / "config.toml").write_text(dump(config), encoding="utf-8")
            if run.sandbox:
                console.phase(run.sandbox)
            return Session(config, run, record, console, checkpoints, began).play(saved)
    finally:
        run.close()


def check_data(run: Run) -> None:
    """Find the user's mistakes in data and evaluation before anything is written or compiled."""
    run.stream(Cursor(next=0)).next()
    _ = run.sandbox
    if run.config.data.path:  # generated sums are all of one length
        # The longest texts make the longest prompts, nearly always; all would take minutes.
        by_length = sorted(run.problems, key=lambda problem: len(problem.question.encode()))
        for problem in by_length[-LONGEST_CHECKED:]:
            run.render(problem)
    if run.config.eval.problems:
        run.heldout(run.config.eval.problems)


@dataclass
class Session:
    """One process's share of a run, from set-up or resume to the summary."""

    config: RunConfig
    run: Run
    record: RunRecord
    console: Console
    checkpoints: Checkpoints
    began: float

    def play(self, saved: Meta | None) -> int:
        trainer, meta = self._from_checkpoint(saved) if saved else self._from_scratch()
        snapshot = self.run.published(trainer.params, meta.step)
        if saved is None:
            before = self._evaluate(snapshot, "before")
            notes = {"before": asdict(before) if before else None, "counts": NOTHING_COUNTED}
            meta = Meta(step=0, cursor=meta.cursor, identity=meta.identity, notes=notes)
            self.checkpoints.save(meta, trainer.state)
        setup_s = monotonic() - self.began
        self.counts = dict(meta.notes["counts"])
        code = self._reinforce(trainer, snapshot, meta)
        if code == FINISHED:
            self._finish(trainer, meta, setup_s)
        return code

    def _from_scratch(self) -> tuple[Trainer, Meta]:
        self.console.phase("loading the policy")
        params = self.run.warmed_up(
            self.run.initial_params(),
            lambda step, loss: self.console.phase(
                f"warm-up {step}/{self.config.warmup.steps} loss {loss:.3f}"
            ),
        )
        cursor, identity = Cursor(next=0), self.run.identity()
        return self.run.trainer(params), Meta(step=0, cursor=cursor, identity=identity, notes={})

    def _from_checkpoint(self, saved: Meta) -> tuple[Trainer, Meta]:
        self.console.phase(f"resuming from step {saved.step}")
        trainer = self.run.trainer(self.run.initial_params())
        restored(trainer, self.checkpoints.restore(saved, trainer.state))
        return trainer, saved

    def _reinforce(self, trainer: Trainer, snapshot: Snapshot, meta: Meta) -> int:
        """The loop itself, with a checkpoint wherever it ends."""
        self.console.phase("compiling")
        rooms = self.run.rooms(
            trainer,
            snapshot,
            meta.cursor,
            on_step=self._on_step,
            waiting=self.console.waiting,
        )
        self.trainer, self.meta = trainer, meta
        self.step, self.cursor, self.saved_step = meta.step, meta.cursor, meta.step
        self.step_began, self.checkpoint_s = monotonic(), 0.0
        loop = run_async if self.config.mode == "async" else run_sync
        with stop_signals(rooms) as received:
            loop(self.config, rooms, start=meta.step)
            # Still in here: whoever sends a second SIGTERM must not lose this checkpoint.
            if self.saved_step != self.step:
                self._save()
        if received and self.step < self.config.trainer.steps:
            self.console.phase(f"stopped after step {self.step}; go on with --resume")
            return INTERRUPTED if received[0] == signal.SIGINT else STOPPED
        return FINISHED

    def _on_step(
        self, step: int, raw: dict[str, float], groups: list[Group], cursor: Cursor
    ) -> None:
        now = monotonic()
        step_s, self.step_began = now - self.step_began, now
        self.step, self.cursor = step, cursor
        self.counts["progress/completions"] += sum(len(g.completions) for g in groups)
        self.counts["progress/dispatched"] += raw.get("dispatched", 0.0)
        self.counts["progress/dropped_groups"] += sum(not g.is_diverse for g in groups)
        derived = derive(raw, slots=self.config.generator.in_flight, step_s=step_s)
        if self.config.verifier.allow_unsafe_code:
            derived["verifier/unsafe_code"] = float(self.run.sandbox.startswith(UNSAFE))
        shown = {name: value for name, value in raw.items() if name in GLOSSARY}
        shown |= derived | self.counts
        # This step began by waiting for the checkpoint of the one before.
        shown["time/checkpoint"], self.checkpoint_s = self.checkpoint_s, 0.0
        self.record.completions(step, groups)
        self.record.step(step, shown)
        self.console.step(step, shown)
        # After the rows: a resume cuts off rows without their checkpoint, but cannot make up
        # the rows of a checkpoint that has none.
        last = step == self.config.trainer.steps
        if last or step % self.config.checkpoint.every == 0:
            self._save()

    def _save(self) -> None:
        began = monotonic()
        notes = {**self.meta.notes, "counts": self.counts}
        self.checkpoints.save(
            Meta(step=self.step, cursor=self.cursor, identity=self.meta.identity, notes=notes),
            self.trainer.state,
        )
        self.saved_step, self.checkpoint_s = self.step, monotonic() - began

    def _evaluate(self, snapshot: Snapshot, when: str) -> Evaluation | None:
        e = self.config.eval
        if e.problems == 0:
            return None
        total = e.problems * e.samples
        found, _ = evaluate(
            self.run.evaluation(snapshot),
            self.run.judge,
            self.run.heldout(e.problems),
            samples=e.samples,
            timeout_s=self.config.stall_s,
            on_step=lambda done: self.console.phase(f"measuring {when} RL: {done}/{total}"),
        )
        low, high = found.accuracy_ci95
        self.console.phase(
            f"{when} RL: accuracy {found.accuracy:.1%} [{low:.1%}, {high:.1%}], "
            f"format {found.format:.1%}, length {found.length:.1f}"
        )
        return found

    def _finish(self, trainer: Trainer, meta: Meta, setup_s: float) -> None:
        after = self._evaluate(self.run.published(trainer.params, self.step), "after")
        before = meta.notes["before"]
        steps_per_update = self.config.groups_per_batch // self.config.groups_per_minibatch
        summary: dict[str, Any] = {
            "optimizer_steps": self.step * steps_per_update,
            "completions": int(self.counts["progress/completions"]),
            "wall_s": round(monotonic() - self.began, 1),
            "setup_s": round(setup_s, 1),
        }
        if self.run.sandbox:
            summary["sandbox"] = self.run.sandbox
        if before is not None and after is not None:
            summary |= {
                "accuracy_before": before["accuracy"],
                "accuracy_after": after.accuracy,
                "accuracy_before_ci95": list(before["accuracy_ci95"]),
                "accuracy_after_ci95": list(after.accuracy_ci95),
                "heldout_problems": after.problems,
                "format_before": before["format"],
                "format_after": after.format,
                "length_before": before["length"],
                "length_after": after.length,
            }
        self.record.summary(summary)


def derive(raw: dict[str, float], *, slots: int, step_s: float) -> dict[str, float]:
    """Rates, from the loops' counters."""
    decode_steps = raw.get("decode_steps", 0.0)
    decode_step_s = raw.get("decode_s", 0.0) / max(decode_steps, 1.0)
    return {
        "time/step": step_s,
        "generator/tokens_per_s": raw.get("tokens", 0.0) / max(step_s, 1e-9),
        "generator/decode_steps": decode_steps,
        "generator/occupancy": raw.get("tokens", 0.0) / max(decode_steps * slots, 1.0),
        "push/pause_steps": raw.get("swap_s", 0.0) / max(decode_step_s, 1e-9),
        "train/tokens_per_s": raw.get("train_tokens", 0.0) / max(raw.get("time/train", 0.0), 1e-9),
    }


@contextmanager
def stop_signals(rooms: Rooms) -> Iterator[list[int]]:
    """Turn the first SIGINT or SIGTERM into a clean stop at the next step boundary.

    Yields the list of signals received. A second SIGINT interrupts at once.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        rooms.backlog.stop()

    previous: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
