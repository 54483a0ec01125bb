"""`magistral-jax sft`: the supervised cold start, with its evaluations and its best weights."""

from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax

from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, Meta, check_identity
from magistral_jax.config import RunConfig
from magistral_jax.console import Console
from magistral_jax.data.conversations import conversations
from magistral_jax.data.files import rows_from
from magistral_jax.ledger import TRAINER
from magistral_jax.lock import locked
from magistral_jax.measuring import evaluation_of, in_words
from magistral_jax.metrics import RunRecord
from magistral_jax.recipes.sft import Lesson, minibatch_of, rate_of, schedule
from magistral_jax.run import keep_compiled, tell_bad_rows
from magistral_jax.settings import dump
from magistral_jax.tools.ask import told_alarm
from magistral_jax.trainer.loss import likelihood_loss
from magistral_jax.trainer.optimizer import make_optimizer
from magistral_jax.trainer.trainer import Trainer, TrainState, trainer_of
from magistral_jax.types import Completion, UserError
from magistral_jax.watch import STOPPED, Stop, Watch


def sft(config: RunConfig, folder: Path, *, resume: bool) -> int:
    """Learn from the config's conversations, to the end or a stop signal; returns the exit code.

    The run folder gets its weights in `checkpoints` (to go on from) and those that an evaluation
    liked best in `best` (for `train --model.start` and `export`).
    """
    if not config.sft.path:
        raise UserError("sft.path is empty; it names the conversations to learn from.")
    if resume and not any((folder / name).exists() for name in ("config.toml", "checkpoints")):
        raise UserError(f"--resume: {folder} holds no checkpoint. Leave --resume out.")
    with ExitStack() as ours:
        if resume:
            ours.enter_context(locked(folder))
        checkpoints = Checkpoints(folder / "checkpoints", keep=1, stall_s=config.stall_s)
        saved = checkpoints.latest() if resume else None
        if resume and saved is None:
            raise UserError(f"--resume: {folder} holds no checkpoint. Leave --resume out.")
        run = ours.enter_context(closing(Run(config)))
        if saved is not None:
            check_identity(saved.identity, run.identity(), folder)
        else:
            run.check_weights()
        if config.eval.problems:
            run.heldout(config.eval.problems)
        traces, general, lessons = lessons_of(run)
        if not resume:
            ours.enter_context(locked(folder))
        with (
            RunRecord(folder, config.metrics.tensorboard, saved.step if saved else None) as record,
            Console(len(lessons)) as console,
        ):
            (folder / "config.toml").write_text(dump(config), encoding="utf-8")
            keep_compiled(folder / "compiled")
            tell_bad_rows(run.bad_rows, folder, console)
            run.on_failure = partial(told_alarm, console)
            teaching = Teaching(
                config, run, record, console, checkpoints, folder, traces, general, lessons
            )
            return teaching.play(saved)


def lessons_of(run: Run) -> tuple[list[Completion], list[Completion], list[list[Lesson]]]:
    """The traces, the general conversations, and what each step is shown of them."""
    s = run.config.sft

    def read(path: str, name: str) -> list[Completion]:
        return conversations(
            rows_from(path, field=name),
            run.tokenizer,
            run.render,
            longest=run.config.batch.row_tokens,
            tell=run.tell_row,
        )

    traces = read(s.path, "sft.path")
    general = read(s.general_path, "sft.general_path") if s.general_path else []
    lengths = ([int(c.sampled.sum()) for c in group] for group in (traces, general))
    lessons = schedule(
        *lengths,
        share=s.general_share,
        epochs=s.epochs,
        per_step=s.completions,
        seed=run.config.seed,
    )
    return traces, general, lessons


@dataclass
class Teaching:
    """One process's share of an SFT run."""

    config: RunConfig
    run: Run
    record: RunRecord
    console: Console
    checkpoints: Checkpoints
    folder: Path
    traces: list[Completion]
    general: list[Completion]
    lessons: list[list[Lesson]]
    stop: Stop = field(default_factory=Stop)

    def play(self, saved: Meta | None) -> int:
        watch = Watch(
            self.run.ledger,
            self.stop,
            self.folder,
            stall_s=self.config.stall_s,
            grace_s=self.config.grace_s,
            on_exit=self.run.close,
        )
        with self.stop.on_signals(), watch:
            return self._play(saved)

    def _play(self, saved: Meta | None) -> int:
        trainer, saved = self._trainer(saved)
        begun = saved.step if saved else 0
        notes: dict[str, Any] = dict(saved.notes) if saved else {"evaluations": []}
        if saved is None:
            notes["evaluations"].append(self._evaluated(trainer, 0, {}))
            self._keep_if_best(trainer, 0, notes)
        epochs = self.config.sft.epochs
        ends = {len(self.lessons) * (epoch + 1) // epochs for epoch in range(epochs)}
        for step in range(begun + 1, len(self.lessons) + 1):
            values = self._learn(trainer, step)
            if step in ends:
                notes["evaluations"].append(self._evaluated(trainer, step, values))
                self._keep_if_best(trainer, step, notes)
            self.record.step(step, values)
            self.console.phase(f"step {step}/{len(self.lessons)}  loss {values['loss']:.4f}")
            if step in ends or self.stop:
                self._save(trainer, step, notes)
            if self.stop and step < len(self.lessons):
                self.checkpoints.settle()
                self.console.phase(
                    f"stopped by {self.stop.reason} after step {step}; go on with --resume"
                )
                return STOPPED
        with self.run.ledger.doing(TRAINER, "checkpoint", "the last checkpoint"):
            self.checkpoints.settle()
        self._finish(notes)
        return 0

    def _trainer(self, saved: Meta | None) -> tuple[Trainer, Meta | None]:
        self.console.phase("loading the policy")
        config, run = self.config, self.run
        optimizer = make_optimizer(config.trainer, rate=rate_of(config, len(self.lessons)))
        params = run.initial_params() if saved is None else run.abstract_params()
        trainer = trainer_of(
            config, run.arch, run.trainer_mesh, params, optimizer, loss=likelihood_loss
        )
        trainer.on_progress = self.checkpoints.on_progress = partial(run.ledger.beat, TRAINER)
        if saved is None:
            return trainer, None

        def read(meta: Meta) -> tuple[Meta, TrainState]:
            self.console.phase(f"resuming from step {meta.step}")
            with run.ledger.doing(TRAINER, "start", f"reading the checkpoint of step {meta.step}"):
                return meta, self.checkpoints.restore(meta, "state", trainer.state)

        found = self.checkpoints.newest(read, of=saved)
        if found is None:
            raise UserError(
                f"--resume: {self.checkpoints.folder} holds no checkpoint that is whole."
            )
        saved, trainer.state = found
        return trainer, saved

    def _learn(self, trainer: Trainer, step: int) -> dict[str, float]:
        lessons = self.lessons[step - 1]
        shown = [
            (self.general if lesson.is_general else self.traces)[lesson.index] for lesson in lessons
        ]
        minibatch = minibatch_of(shown, self.config)
        with self.run.ledger.doing(TRAINER, "trained", f"step {step}"):
            values = trainer.minibatch_step(minibatch).values()
        learned = [int(conversation.sampled.sum()) for conversation in shown]
        of_general = sum(n for n, one in zip(learned, lessons, strict=True) if one.is_general)
        return {
            "loss": values["loss"],
            "policy/grad_norm": values["policy/grad_norm"],
            "policy/entropy": values["policy/entropy"],
            "batch/padding": minibatch.padding,
            "sft/tokens": float(sum(learned)),
            "sft/general_share": of_general / max(1, sum(learned)),
        }

    def _evaluated(self, trainer: Trainer, step: int, values: dict[str, float]) -> dict[str, Any]:
        """The evaluation after a step, which its row of metrics also gets."""
        if self.config.eval.problems == 0:
            return {"step": step, "accuracy": 0.0}
        found = evaluation_of(
            self.run,
            self.run.published(trainer.params, step),
            name=f"measuring after step {step}",
            tell=self.console.phase,
        )
        low, high = found.accuracy_ci95
        values |= {
            "eval/accuracy": found.accuracy,
            "eval/low": low,
            "eval/high": high,
            "eval/length": found.length,
            "eval/truncated": found.truncated,
        }
        self.console.note(f"after step {step}: {in_words(found)}")
        return {"step": step, **asdict(found)}

    def _keep_if_best(self, trainer: Trainer, step: int, notes: dict[str, Any]) -> None:
        """The weights that an evaluation liked best; without evaluations, the newest."""
        score = notes["evaluations"][-1]["accuracy"]
        is_better = score > notes.get("best", {"accuracy": -1.0})["accuracy"]
        if not is_better and self.config.eval.problems:
            return
        notes["best"] = {"step": step, "accuracy": score}
        best = Checkpoints(self.folder / "best", keep=1, stall_s=self.config.stall_s)
        best.on_progress = partial(self.run.ledger.beat, TRAINER)
        meta = Meta(step=step, identity=self.run.identity(), notes=notes["best"])
        with self.run.ledger.doing(TRAINER, "checkpoint", f"the best weights, of step {step}"):
            best.save(meta, {"state": TrainState(trainer.params, (), {})})
            best.settle()

    def _save(self, trainer: Trainer, step: int, notes: dict[str, Any]) -> None:
        meta = Meta(step=step, identity=self.run.identity(), notes=notes)
        with self.run.ledger.doing(TRAINER, "checkpoint", f"the checkpoint of step {step}"):
            self.checkpoints.save(meta, {"state": trainer.state})

    def _finish(self, notes: dict[str, Any]) -> None:
        first, best = notes["evaluations"][0], notes["best"]
        self.record.summary(
            {
                "steps": len(self.lessons),
                "traces": len(self.traces),
                "general": len(self.general),
                "accuracy_before": first["accuracy"],
                "accuracy_best": best["accuracy"],
                "best_step": best["step"],
                "evaluations": notes["evaluations"],
                "device": str(jax.devices()[0].device_kind),
            }
        )
        self.console.phase(
            f"the best weights are those of step {best['step']}; train --model.start {self.folder}"
        )
