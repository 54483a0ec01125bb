"""One process's share of a run: from set-up or resume through its stages to the end or a stop."""

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, Meta
from magistral_jax.config import RunConfig
from magistral_jax.console import Console, table
from magistral_jax.evaluate import Evaluation, compared
from magistral_jax.frontier import packed, unpacked
from magistral_jax.ledger import TRAINER, Activity, ledger_rows
from magistral_jax.loops.asynchronous import run_async
from magistral_jax.loops.clockwork import Clockwork
from magistral_jax.loops.moves import Generation
from magistral_jax.loops.sync import run_sync
from magistral_jax.measuring import evaluation_of, in_words
from magistral_jax.metrics import GLOSSARY, RunRecord
from magistral_jax.pulse import begin_pulse
from magistral_jax.recipes.stages import NEXT_STAGE, Stages
from magistral_jax.resume import Restored, restored
from magistral_jax.tally import rates
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.types import (
    Frontier,
    GivenUp,
    Group,
    InFlight,
    RunFailed,
    Snapshot,
    Stalled,
    Stopped,
    UserError,
)
from magistral_jax.verifier.sandbox.choose import UNSAFE
from magistral_jax.watch import STOPPED, Stop, Watch, dump_stacks

FINISHED = 0
NOTHING_COUNTED: dict[str, float] = dict.fromkeys(
    ("progress/completions", "progress/dispatched", "progress/dropped_groups"), 0.0
)


@dataclass
class Session:
    """One process's share of a run, from set-up or resume to the summary."""

    config: RunConfig
    """As given; `run.config` is the stage's."""
    run: Run
    stages: Stages
    record: RunRecord
    console: Console
    checkpoints: Checkpoints
    folder: Path
    began: float
    stop: Stop = field(default_factory=Stop)
    counts: dict[str, float] = field(default_factory=dict)
    restored: Restored | None = None
    lock: Lock = field(default_factory=Lock)

    def play(self, saved: Meta | None, *, resume: bool) -> int:
        """From the beginning or a checkpoint to the end, or to a stop."""
        self.run.on_failure, self.run.tell = self._on_failure, self.console.phase
        self.run.folder = self.folder
        self.checkpoints.on_progress = self._on_progress
        self.run.wanted = self.stages.wanted
        self.counts = {**NOTHING_COUNTED, "failures/rows": float(len(self.run.bad_rows))}
        self.pulse = begin_pulse(
            self.folder,
            self.run.ledger,
            saved.frontier["accounts"] if saved else {},
            step=saved.step if saved else 0,
            resume=resume,
        )
        self.has_saved = saved is not None
        watch = Watch(
            self.run.ledger,
            self.stop,
            self.folder,
            stall_s=self.config.stall_s,
            grace_s=self.config.grace_s,
            others=self._writing,
            on_tick=self._beat,
            on_exit=lambda: self.run.close(),
        )
        with self.stop.on_signals(), watch:
            try:
                return self._play(saved)
            except Stopped:
                where = "go on with --resume" if self.has_saved else "nothing is saved yet"
                self.console.phase(f"stopped by {self.stop.reason}; {where}")
                return STOPPED
            except Stalled as stall:
                stacks = dump_stacks(self.folder)
                raise Stalled(f"{stall}\n  {watch.describe()}\n  all stacks: {stacks}") from stall
            except RunFailed as failure:
                self._settle()
                report = self.folder / "failure.txt"
                report.write_text("".join(traceback.format_exception(failure)), encoding="utf-8")
                raise RunFailed(f"{failure} (in full: {report}); go on with --resume") from failure

    def _play(self, saved: Meta | None) -> int:
        trainer, snapshot, meta = self._from_checkpoint(saved) if saved else self._from_scratch()
        trainer.on_progress = self._on_microbatch
        self.trainer, self.meta, self.step = trainer, meta, meta.step
        if saved is None:
            before = self._evaluate(snapshot, "before")
            self.meta = replace(meta, notes={"before": asdict(before) if before else None})
            accounts = {**self.run.ledger.saved(), "lengths": self.run.tally.lengths.saved()}
            self._save(Frontier(accounts=accounts))
        setup_s = monotonic() - self.began
        self.counts |= self.meta.notes.get("counts", {})
        code = self._reinforce(snapshot)
        if code == FINISHED:
            self._finish(setup_s)
        return code

    def _from_scratch(self) -> tuple[Trainer, Snapshot, Meta]:
        self.console.phase("loading the policy")
        params = self.run.initial_params()
        if self.config.warmup.steps:
            self.run.ledger.phase("warmup")
            with self.run.ledger.doing(TRAINER, "warmup", "the warm-up"):
                params = self.run.warmed_up(params, self._on_warmup)
            self.run.ledger.phase("start")
        trainer = self.run.trainer(params)
        meta = Meta(step=0, identity=self.run.identity(), notes={})
        return trainer, self.run.published(trainer.params, 0), meta

    def _on_warmup(self, step: int, loss: float) -> None:
        self.run.ledger.beat(TRAINER)
        self.console.phase(f"warm-up {step}/{self.config.warmup.steps} loss {loss:.3f}")
        self._leave_if_stopped()

    def _leave_if_stopped(self) -> None:
        if self.stop:
            raise Stopped

    def _on_progress(self) -> None:
        """A piece of an update, or of a checkpoint, is done."""
        self.run.ledger.beat(TRAINER)

    def _on_microbatch(self) -> None:
        """The update under way comes forward; a stop ends it here, and it is made again."""
        self._on_progress()
        if self.stop:
            raise GivenUp

    def _from_checkpoint(self, saved: Meta) -> tuple[Trainer, Snapshot, Meta]:
        """The newest checkpoint that is what was saved."""
        trainer = self.run.trainer(self.run.abstract_params())

        def read(meta: Meta) -> Restored:
            self.console.phase(f"resuming from step {meta.step}")
            self._go_to_stage(meta)
            return restored(self.run, self.checkpoints, meta, trainer.state)

        found = self.checkpoints.newest(read, of=saved)
        if found is None:
            raise UserError(
                f"--resume: {self.checkpoints.folder} holds no checkpoint that is whole."
            )
        trainer.state, self.restored = found.state, found
        self.record.go_back(found.meta.step)
        return trainer, found.snapshot, found.meta

    def _go_to_stage(self, found: Meta) -> None:
        """The stage of the checkpoint that is used, which may be an older one than the newest."""
        stages = Stages(self.config, found.notes.get("stages"))
        is_other = stages.index != self.stages.index
        self.stages = stages
        self.run.wanted = stages.wanted
        if is_other:
            self.run = self.run.in_stage(stages.config)
        self.stages.write_down(self.folder)

    def _frontier(self) -> Frontier:
        """Where the loop goes on; with the cache of what is in flight if it was saved and fits."""
        if not self.meta.frontier:
            return Frontier()
        assert self.restored is not None
        arrays, cache = self.restored.arrays, self.restored.cache
        self.restored = None  # the weights would be held by it
        found = unpacked(self.meta.frontier, arrays, self.run.stream().prompt_at)
        self.run.tally.lengths.restore(found.accounts["lengths"])
        return replace(found, in_flight=replace(found.in_flight, cache=cache))

    def _reinforce(self, snapshot: Snapshot) -> int:
        """The loop itself, with a checkpoint wherever it ends."""
        frontier = self._frontier()
        while True:
            begun, found = self.stages.index, self._leg(snapshot, frontier)
            if found is None:
                return FINISHED if self.step >= self.config.trainer.steps else STOPPED
            assert self.stages.index > begun
            frontier, snapshot = found, self.run.published(self.trainer.params, self.step)

    def _leg(self, snapshot: Snapshot, frontier: Frontier) -> Frontier | None:
        """One stage's part of this process; where the next stage begins, or None at the end or a
        stop."""
        self.console.phase("compiling")
        config = self.run.config
        rooms = self.run.rooms(
            self.trainer,
            snapshot,
            frontier,
            wants_frontier=self._wants_frontier,
            on_step=self._on_step,
            waiting=self.console.waiting,
        )
        rooms = replace(rooms, push=partial(self._push, rooms.push))
        self.backlog = rooms.backlog
        if self.stages.leaving:
            rooms.backlog.drain()
        self.run.ledger.phase("idle")
        self.step_began, self.checkpoint_s = monotonic(), 0.0
        if config.deterministic and config.mode == "async":
            clockwork = Clockwork(config, rooms, frontier)
            with self.stop.told_to(clockwork.stop):
                clockwork.run(start=self.step)
            picture = clockwork.picture
        else:
            loop = run_async if config.mode == "async" else run_sync
            with self.stop.told_to(rooms.backlog.stop):
                loop(config, rooms, start=self.step)
            picture = partial(Generation(config, rooms).picture, frontier=True)
        if self.step >= config.trainer.steps:
            self._settle()
            return None
        at_stop = picture(report=False).frontier
        assert at_stop is not None
        if self.stages.leaving and rooms.backlog.is_drained:
            return self._next_stage(at_stop)
        self._save(at_stop, rooms.generator.snapshot)
        self._settle()
        self.console.phase(
            f"stopped by {self.stop.reason} after step {self.step}; go on with --resume"
        )
        return None

    def _next_stage(self, drained: Frontier) -> Frontier:
        """Everything dispatched is trained on: the rooms of the next stage, saved as such."""
        self.stages.advance(self.step)
        self.console.phase(self.stages.told())
        self.run = self.run.in_stage(self.stages.config)
        # The cache of the stage before has another shape, and nothing is in it.
        frontier = replace(drained, in_flight=InFlight())
        self._save(frontier)
        self._settle()
        self.stages.write_down(self.folder)
        (self.folder / NEXT_STAGE).unlink(missing_ok=True)
        return frontier

    def _see_stage(self, step: int, raw: dict[str, float], groups: list[Group]) -> None:
        """Whether this update was the one after which the stage is left."""
        was_leaving = self.stages.leaving
        if self.stages.is_asked_in_vain(self.folder):
            self._on_failure("stage", f"{NEXT_STAGE}: this is the last stage; there is no other")
        reward, length = raw.get("reward/mean", 0.0), raw.get("length/mean", 0.0)
        self.stages.observe(step, reward, length, groups)
        if self.stages.leaving and not was_leaving:
            self.console.phase(f"leaving the stage ({self.stages.leaving}) with what is dispatched")
            self.backlog.drain()

    def _push(self, push: Callable[[int], Snapshot], version: int) -> Snapshot:
        self.pulse.write(pushing=1)
        try:
            return push(version)
        finally:
            self.pulse.write(pushing=0)

    def _wants_frontier(self, step: int) -> bool:
        return step == self.config.trainer.steps or step % self.config.checkpoint.every == 0

    def _on_step(
        self, step: int, raw: dict[str, float], groups: list[Group], frontier: Frontier | None
    ) -> None:
        now = monotonic()
        step_s, self.step_began = now - self.step_began, now
        self.step = step
        ledger = self.run.ledger
        self._count("progress/completions", sum(len(g.completions) for g in groups))
        self._count("progress/dispatched", raw.get("dispatched", 0.0))
        self._count("progress/dropped_groups", sum(not g.is_diverse for g in groups))
        self._see_stage(step, raw, groups)
        derived = rates(raw, slots=self.run.config.generator.in_flight, step_s=step_s)
        derived["stage"] = float(self.stages.index)
        if self.config.verifier.allow_unsafe_code:
            derived["verifier/unsafe_code"] = float(self.run.sandbox.startswith(UNSAFE))
        shown = {name: value for name, value in raw.items() if name in GLOSSARY}
        shown |= derived | self.counts | self.run.tally.lengths.shares()
        shown |= {f"ledger/{bin}": seconds for bin, seconds in ledger.seconds().items()}
        shown |= {f"tokens/{fate}": count for fate, count in ledger.tokens().items()}
        # This step began by waiting for the checkpoint of the one before.
        shown["time/checkpoint"], self.checkpoint_s = self.checkpoint_s, 0.0
        try:
            self.record.completions(step, groups)
            self.record.step(step, shown)
        except OSError:
            self.checkpoints.settle()  # if a full disk has failed it, too, that says more
            raise
        self.console.step(step, shown)
        self.pulse.write(step=step, saving=self.checkpoints.is_saving)
        # After the rows: a resume cuts off rows without their checkpoint, but cannot make up
        # the rows of a checkpoint that has none.
        if frontier is not None:
            self._save(frontier)

    def _count(self, name: str, value: float | int) -> None:
        with self.lock:
            self.counts[name] = self.counts.get(name, 0.0) + value

    def _on_failure(self, kind: str, message: str) -> None:
        """What went wrong and was mended: counted and shown. Any thread may call it."""
        self._count(f"failures/{kind}", 1)
        self.console.note(message)

    def _save(self, frontier: Frontier, snapshot: Snapshot | None = None) -> None:
        began = monotonic()
        text, arrays = packed(frontier)
        with self.lock:  # a failure may be counted from any thread
            notes = {**self.meta.notes, "counts": dict(self.counts), "stages": self.stages.saved()}
        meta = Meta(step=self.step, identity=self.meta.identity, notes=notes, frontier=text)
        items = {"state": self.trainer.state, "host": arrays}
        if frontier.in_flight.cache is not None:
            items["decode"] = frontier.in_flight.cache
        if frontier.queue.made and snapshot is not None:
            # The trainer's weights are none that the generator ever had.
            items["snapshot"] = snapshot.params
        self.pulse.write(saving=1)
        with self.run.ledger.doing(TRAINER, "checkpoint", f"the checkpoint of step {self.step}"):
            self.checkpoints.save(meta, items)
        self.has_saved = True
        self.checkpoint_s = monotonic() - began

    def _settle(self) -> None:
        with self.run.ledger.doing(TRAINER, "checkpoint", "the last checkpoint"):
            self.checkpoints.settle()

    def _evaluate(self, snapshot: Snapshot, when: str) -> Evaluation | None:
        if self.config.eval.problems == 0:
            return None
        self.run.ledger.phase("evaluation")
        found = evaluation_of(
            self.run,
            snapshot,
            name=f"measuring {when} RL",
            tell=self.console.phase,
            on_step=self._leave_if_stopped,
        )
        self.run.ledger.phase("start")
        self.console.phase(f"{when} RL: {in_words(found)}")
        return found

    def _beat(self) -> None:
        self.pulse.write(device_s=self.run.ledger.device_s, saving=self.checkpoints.is_saving)

    def _writing(self) -> list[Activity]:
        """What the checkpoint writer is at, for the watch."""
        saving = self.checkpoints.saving
        if saving is None:
            return []
        step, seconds, thread = saving
        return [Activity("checkpoint writer", f"step {step}", seconds, False, thread)]

    def _finish(self, setup_s: float) -> None:
        after = self._evaluate(self.run.published(self.trainer.params, self.step), "after")
        before = self.meta.notes["before"]
        steps_per_update = self.config.groups_per_batch // self.config.groups_per_minibatch
        seconds, tokens = self.run.ledger.seconds(), self.run.ledger.tokens()
        summary: dict[str, Any] = {
            "optimizer_steps": self.step * steps_per_update,
            "completions": int(self.counts["progress/completions"]),
            "wall_s": round(monotonic() - self.began, 1),
            "setup_s": round(setup_s, 1),
            "ledger_s": {bin: round(value, 2) for bin, value in seconds.items()},
            "ledger_tokens": tokens,
        }
        if self.run.sandbox:
            summary["sandbox"] = self.run.sandbox
        if before is not None and after is not None:
            summary |= compared(before, after)
        self.record.summary(summary)
        columns = ["bin", "device s", "share", "tokens", "what"]
        rows = ledger_rows(seconds, tokens)
        table("where time and tokens went", columns, rows, stream=self.console.stream)
