"""A run that is stopped and resumed, against one that is not: through `run.train`, in one process.

Sessions share compiled programs and nothing else: weights, optimizer, stream and ledger come from
the run folder.
"""

import gzip
import json
import os
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from typing import ClassVar

import jax
import numpy as np
import pytest

from magistral_jax import run as run_module
from magistral_jax.build import Run
from magistral_jax.checkpoint import CannotSave, Checkpoints, shapes_of
from magistral_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    MeshConfig,
    MetricsConfig,
    ModelConfig,
    RunConfig,
    ShapeConfig,
    TrainerConfig,
)
from magistral_jax.metrics import RunRecord, untimed
from magistral_jax.run import train
from magistral_jax.session import FINISHED, Session
from magistral_jax.tally import PARTS
from magistral_jax.tools.audit import audit
from magistral_jax.types import RunFailed, UserError, Verdict
from magistral_jax.watch import STOPPED

STEPS = 6
CONFIG = RunConfig(
    mode="sync",
    stall_s=120.0,
    model=ModelConfig(
        shape=ShapeConfig(layers=2, width=32, heads=2, kv_heads=1, head_dim=16, ffn=64)
    ),
    data=DataConfig(digits=2, max_prompt_tokens=12, heldout_percent=20.0),
    generator=GeneratorConfig(group_size=2, in_flight=12, max_tokens=12),
    batch=BatchConfig(completions=6, max_lag=2, row_tokens=32, rows=2),
    trainer=TrainerConfig(steps=STEPS, learning_rate=3e-3, remat=False),
    eval=EvalConfig(problems=0),
    metrics=MetricsConfig(probe_every=0, tensorboard=False),
    # Between the stops: a resume goes on from where the run stopped, not from a round number.
    checkpoint=CheckpointConfig(every=4, kv="save"),
)
ASYNC = replace(CONFIG, mode="async", checkpoint=CheckpointConfig(every=4))
# As many pages as four of twelve sequences in flight can need.
PAGED = replace(ASYNC, generator=replace(ASYNC.generator, pages=24, page_tokens=4))
CLOCK = replace(CONFIG, mode="async", deterministic=True, deterministic_steps=4)


class SharedRun(Run):
    """A run that takes compiled programs from the first of its kind, and tells its batches."""

    shared: ClassVar[dict] = {}
    batches: ClassVar[list] = []
    at_step = staticmethod(lambda step: None)
    at_batch = staticmethod(lambda version: None)

    def __init__(self, config):
        super().__init__(config, devices=jax.devices()[:1])
        if not self.shared:
            trainer = super().trainer(super().initial_params())
            self.shared.update(
                engine=self.main_engine,
                push=self.push,
                trainer=trainer,
                state=jax.tree.map(np.array, trainer.state),
                places=jax.tree.map(lambda x: x.sharding, trainer.state),
                shapes=shapes_of(trainer.state),
            )
        engine = self.shared["engine"]
        if config.generator.pages:
            engine = self.shared.setdefault("paged", self.main_engine)
        vars(self).update(main_engine=engine, push=self.shared["push"])

    def initial_params(self):
        return self.shared["state"].params

    def trainer(self, params):
        trainer = self.shared["trainer"]
        if params is self.shared["state"].params:
            trainer.state = jax.device_put(self.shared["state"], self.shared["places"])
        else:
            assert isinstance(params["embed"], jax.ShapeDtypeStruct), "a resume initialises nothing"
            trainer.state = self.shared["shapes"]
        return trainer

    def judge(self, prompt, completion):
        """A reward that a random network earns now and then; none in every fifth group."""
        is_right = prompt.group % 5 != 0 and int(completion.tokens.sum()) % 2 == 0
        parts = {**dict.fromkeys(PARTS, 0.0), "correct": float(is_right)}
        verdict = Future()
        reason = "pass" if is_right else "wrong"
        verdict.set_result(Verdict(reward=float(is_right), parts=parts, reason=reason))
        return verdict

    def assemble(self, groups, version):
        self.at_batch(version)
        return super().assemble(groups, version)

    def rooms(self, trainer, snapshot, frontier, *, on_step, **options):
        def and_then(step, values, groups, frontier):
            on_step(step, values, groups, frontier)
            self.at_step(step)

        rooms = super().rooms(trainer, snapshot, frontier, on_step=and_then, **options)

        def train(batch):
            values = rooms.train(batch)
            self.batches.append((batch.version + 1, [group.group for group in batch.groups]))
            return values

        return replace(rooms, train=train)


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    monkeypatch.setattr(run_module, "Run", SharedRun)
    monkeypatch.setattr(SharedRun, "batches", [])
    return SharedRun


def interrupt(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def samples_of(folder):
    with gzip.open(folder / "completions.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def saved(folder):
    """The last checkpoint: what it says of itself, and its weights and optimizer as numpy."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    meta = checkpoints.latest()
    state = checkpoints.restore(meta, "state", SharedRun.shared["shapes"])
    return meta, jax.tree.map(np.array, state)


def queue_of(meta):
    """(the first position not yet dispatched, those in flight or waiting to be trained on)."""
    queue = meta.frontier["queue"]
    return queue["next"], [entry["prompt"][0] for entry in queue["entries"]]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Runs that nothing interrupts."""
    folders = {}
    for name, config in (("sync", CONFIG), ("clock", CLOCK)):
        folders[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module, "Run", SharedRun)
            assert train(config, folders[name], resume=False) == FINISHED
        # A test that resumes a finished run replaces the summary by that of its session.
        shutil.copy(folders[name] / "summary.json", folders[name] / "first_summary.json")
    return folders


@pytest.fixture
def whole(whole_runs):
    """The sync one."""
    return whole_runs["sync"]


def dropped_group_of(folder, *, step):
    """The last group of a step whose rewards were all equal."""
    rewards = {}
    for sample in samples_of(folder):
        if sample["step"] == step:
            rewards.setdefault(sample["group"], set()).add(sample["reward"])
    return max(group for group, values in rewards.items() if len(values) == 1)


def stop_after(step, shared, monkeypatch, number=signal.SIGTERM):
    at = staticmethod(lambda now: interrupt(number) if now == step else None)
    monkeypatch.setattr(shared, "at_step", at)


def go_on(shared, monkeypatch):
    for name in ("at_step", "at_batch"):
        monkeypatch.setattr(shared, name, staticmethod(lambda now: None))


def assert_same_run(folder, whole):
    rows, expected = rows_of(folder), rows_of(whole)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, its_twin in zip(rows, expected, strict=True):
        assert untimed(row) == untimed(its_twin)
    assert samples_of(folder) == samples_of(whole)
    (meta, state), (its_meta, its_state) = saved(folder), saved(whole)
    assert (meta.step, queue_of(meta)) == (its_meta.step, queue_of(its_meta))
    jax.tree.map(np.testing.assert_array_equal, state, its_state)


@pytest.mark.parametrize(
    "loop, config", [("sync", CONFIG), ("clock", CLOCK)], ids=["sync", "clock"]
)
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_stopped_and_resumed_is_the_run_nobody_stopped(
    step, loop, config, whole_runs, shared, monkeypatch, tmp_path
):
    stop_after(step, shared, monkeypatch)
    assert train(config, tmp_path, resume=False) == STOPPED
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, step + 1))
    assert saved(tmp_path)[0].step == step
    go_on(shared, monkeypatch)
    assert train(config, tmp_path, resume=True) == FINISHED
    assert_same_run(tmp_path, whole_runs[loop])


# Updates of three optimizer steps, each of several microbatches.
STEPWISE = replace(CONFIG.batch, minibatch=2, row_tokens=24, rows=1)
AMID = {
    "sync": replace(CONFIG, batch=STEPWISE),
    "clock": replace(CLOCK, batch=STEPWISE),
}


@pytest.fixture(scope="module")
def stepwise_runs(tmp_path_factory):
    folders = {}
    for name, config in AMID.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module, "Run", SharedRun)
            assert train(config, folders[name], resume=False) == FINISHED
    return folders


def stop_at_microbatch(at, monkeypatch):
    """Returns what counts them. The signal reaches the main thread before the update goes on."""
    calls, honest = [], Session._on_microbatch

    def on_microbatch(self):
        calls.append(self.step)
        if len(calls) == at:
            interrupt()
            while not self.stop:
                time.sleep(0.001)
        honest(self)

    monkeypatch.setattr(Session, "_on_microbatch", on_microbatch)
    return calls


@pytest.mark.parametrize("loop", AMID)
@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_stop_amid_an_update_ends_it_there_and_loses_nothing(
    at, loop, stepwise_runs, shared, monkeypatch, tmp_path
):
    with monkeypatch.context() as patch:
        calls = stop_at_microbatch(at, patch)
        assert train(AMID[loop], tmp_path, resume=False) == STOPPED
    assert len(calls) == at, "another microbatch was begun after the stop"
    meta, _ = saved(tmp_path)
    assert meta.step == calls[-1]
    made = meta.frontier["queue"]["made"]
    assert len(made) == (at - 1) % 3
    assert all(len(g["verdicts"]) == 2 for g in meta.frontier["queue"]["entries"][:3])
    assert train(AMID[loop], tmp_path, resume=True) == FINISHED
    assert_same_run(tmp_path, stepwise_runs[loop])


def test_async_a_stop_amid_an_update_trains_the_same_batch_again(shared, monkeypatch, tmp_path):
    config = replace(AMID["sync"], mode="async", checkpoint=ASYNC.checkpoint)
    for at, resume in ((2, False), (4, True)):
        with monkeypatch.context() as patch:
            stop_at_microbatch(at, patch)
            assert train(config, tmp_path, resume=resume) == STOPPED
        meta, _ = saved(tmp_path)
        next_groups = queue_of(meta)[1][:3]
        shared.batches.clear()
        at_once = staticmethod(lambda now: interrupt() if now == meta.step + 1 else None)  # noqa: B023
        with monkeypatch.context() as patch:
            patch.setattr(shared, "at_step", at_once)
            assert train(config, tmp_path, resume=True) == STOPPED
        assert shared.batches == [(meta.step + 1, next_groups)]
    assert train(config, tmp_path, resume=True) == FINISHED
    found = audit(config, tmp_path)
    assert (found.skipped, found.twice, found.strangers, found.bad_steps) == ((), (), (), ())


def test_a_stop_while_sampling_loses_nothing_of_it(whole, shared, monkeypatch, tmp_path):
    # The signal comes once a group of the third batch was dropped: its row is yet to be written.
    judged, at = Counter(), dropped_group_of(whole, step=3)
    judge = shared.judge

    def judge_and_stop(self, prompt, completion):
        judged[prompt.group] += 1
        if prompt.group == at and judged[at] == 2:
            interrupt(signal.SIGINT)
        return judge(self, prompt, completion)

    monkeypatch.setattr(shared, "judge", judge_and_stop)
    assert train(CONFIG, tmp_path, resume=False) == STOPPED
    assert len(rows_of(tmp_path)) == 2
    _, in_flight = queue_of(saved(tmp_path)[0])
    assert in_flight
    monkeypatch.setattr(shared, "judge", judge)
    assert train(CONFIG, tmp_path, resume=True) == FINISHED
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("place", ["before the checkpoint", "before the rows", "amid the rows"])
def test_a_crash_anywhere_around_a_checkpoint_leaves_each_row_once(
    place, whole, shared, monkeypatch, tmp_path
):
    class Crash(Exception):
        pass

    owner, name, at = {
        "before the checkpoint": (Checkpoints, "save", 4),
        "before the rows": (RunRecord, "completions", 4),
        "amid the rows": (RunRecord, "step", 4),
    }[place]
    honest = getattr(owner, name)

    def crash(self, first, *rest):
        if getattr(first, "step", first) == at:
            raise Crash
        return honest(self, first, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        with pytest.raises(Crash):
            train(CONFIG, tmp_path, resume=False)
    assert train(CONFIG, tmp_path, resume=True) == FINISHED
    assert_same_run(tmp_path, whole)


def test_resuming_a_finished_run_does_nothing(whole):
    before = [untimed(row) for row in rows_of(whole)], samples_of(whole)
    assert train(CONFIG, whole, resume=True) == FINISHED
    assert ([untimed(row) for row in rows_of(whole)], samples_of(whole)) == before


def test_a_run_folder_is_not_overwritten_and_not_resumed_as_another(whole, tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        train(CONFIG, whole, resume=False)
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        train(replace(CONFIG, seed=1), whole, resume=True)
    with pytest.raises(UserError, match="holds no run"):
        train(CONFIG, tmp_path, resume=True)


def play_in_sessions(stops, shared, monkeypatch, folder, config=ASYNC):
    """Run to the end, stopped where `stops` say, each an (attribute, when) of `SharedRun`."""
    for session, (attribute, when) in enumerate([*stops, (None, None)]):
        go_on(shared, monkeypatch)
        if attribute:
            at = staticmethod(lambda now, when=when: interrupt() if now == when else None)
            monkeypatch.setattr(shared, attribute, at)
        code = train(config, folder, resume=session > 0)
        assert code == (STOPPED if attribute else FINISHED)


STOPS = {
    "after steps": [("at_step", 1), ("at_step", 3), ("at_step", 4)],
    "amid an update": [("at_batch", 1), ("at_batch", 4)],
}


@pytest.mark.parametrize("config", [ASYNC, PAGED], ids=["slots", "pages"])
@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_async_no_prompt_is_skipped_or_trained_twice_across_stops(
    stops, config, shared, monkeypatch, tmp_path
):
    play_in_sessions(stops, shared, monkeypatch, tmp_path, config)
    rows, samples = rows_of(tmp_path), samples_of(tmp_path)
    assert all(0 <= row.get("generator/cache_used", 0) <= 1 for row in rows)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row["policy/lag_max"] for row in rows) <= ASYNC.batch.max_lag

    assert [step for step, _ in shared.batches] == list(range(1, STEPS + 1))
    trained = [group for _, groups in shared.batches for group in groups]
    assert len(trained) == len(set(trained))
    # Every position below the next is trained, dropped, pending, or a held-out problem.
    meta, _ = saved(tmp_path)
    after, pending = queue_of(meta)
    stream = SharedRun(ASYNC).stream()
    dispatched = set()
    while stream.position < after:
        dispatched.add(stream.next().group)
    rewards = {}
    for sample in samples:
        rewards.setdefault((sample["step"], sample["group"]), []).append(sample["reward"])
    assert all(len(of_group) == 2 for of_group in rewards.values())
    # Judged once, across all sessions.
    assert len({group for _, group in rewards}) == len(rewards)
    assert len(set(pending)) == len(pending)
    pending, untrained = set(pending), dispatched - set(trained)
    dropped = untrained - pending
    assert set(trained) | pending | dropped == dispatched and not set(trained) & pending
    for group in dropped:
        assert any(len(set(r)) == 1 for (_, g), r in rewards.items() if g == group), group
    # What was trained was recorded, and by then diverse.
    for step, groups in shared.batches:
        for group in groups:
            assert any(len(set(r)) > 1 for (s, g), r in rewards.items() if g == group and s <= step)
    total = sum(len(of_group) for of_group in rewards.values())
    assert rows[-1]["progress/completions"] == total


def tokens_in(folder):
    """Tokens by what became of them, from the record and the last checkpoint's arrays."""
    meta, _ = saved(folder)
    queue = meta.frontier["queue"]
    waiting = {e["prompt"][0] for e in queue["entries"] if e["is_whole"]}
    found = dict.fromkeys(("trained", "uniform", "unfinished"), 0)
    rewards = {}
    for sample in samples_of(folder):
        rewards.setdefault(sample["group"], set()).add(sample["reward"])
    for sample in samples_of(folder):
        group = sample["group"]
        is_kept = len(rewards[group]) > 1
        fate = "unfinished" if group in waiting else "trained" if is_kept else "uniform"
        found[fate] += len(sample["tokens"])
    half_done = [
        c["length"] for e in queue["entries"] if not e["is_whole"] for c in e["completions"]
    ]
    drafts = [d["length"] for d in meta.frontier["in_flight"]["drafts"]]
    found["unfinished"] += sum(half_done) + sum(drafts)
    return found, meta.frontier["accounts"]["tokens"]


@pytest.mark.parametrize("stops", [[], *STOPS.values()], ids=["no stop", *STOPS])
def test_every_sampled_token_is_in_one_bin_of_the_ledger(stops, shared, monkeypatch, tmp_path):
    play_in_sessions(stops, shared, monkeypatch, tmp_path)
    found, ledger = tokens_in(tmp_path)
    assert found["trained"] == ledger["trained"] > 0
    assert found["uniform"] == ledger["uniform"] > 0
    # What was sampled between a stop's checkpoint and the process' end is lost; else nothing.
    assert sum(found.values()) == ledger["sampled"] - ledger["lost"]
    row = rows_of(tmp_path)[-1]
    fates = [value for name, value in row.items() if name.startswith("tokens/")]
    assert sum(fates) >= ledger["sampled"]


def test_the_ledger_s_seconds_are_all_there_were(whole_runs):
    for folder in whole_runs.values():
        summary = json.loads((folder / "first_summary.json").read_text())
        total = sum(summary["ledger_s"].values())
        # One device, which both parties share. The summary rounds to a tenth of a second.
        assert total == pytest.approx(summary["wall_s"], rel=0.01, abs=0.1)
        assert min(summary["ledger_s"].values()) >= 0


def test_a_nan_in_one_completion_is_told_and_the_run_goes_on(shared, monkeypatch, tmp_path, capsys):
    honest, planted = shared.assemble, []

    def assemble(self, groups, version):
        batch = honest(self, groups, version)
        if version == 2:
            minibatch = batch.minibatches[0]
            minibatch.microbatches[0].behavior_logprobs[0, 8] = np.nan
            planted.append(minibatch.names[0][0][0])
        return batch

    monkeypatch.setattr(shared, "assemble", assemble)
    assert train(ASYNC, tmp_path, resume=False) == FINISHED
    rows = rows_of(tmp_path)
    assert [row["update/skipped"] for row in rows] == [0, 0, 1, 0, 0, 0]
    assert rows[-1]["failures/update"] == 1
    ((group, index),) = planted
    assert f"completion {group}/{index} (problem" in capsys.readouterr().err
    (row,) = [json.loads(x) for x in (tmp_path / "skipped_updates.jsonl").read_text().splitlines()]
    assert (row["group"], row["index"]) == (group, index)


class FleetRun(SharedRun):
    """On all devices, with parts of its own."""

    def __init__(self, config):
        Run.__init__(self, config)

    initial_params = Run.initial_params
    trainer = Run.trainer


def test_a_run_goes_on_with_another_number_of_engines(shared, monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "Run", FleetRun)
    for session, (engines, stop) in enumerate([(2, 2), (1, 4), (2, None)]):
        go_on(shared, monkeypatch)
        if stop:
            stop_after(stop, shared, monkeypatch)
        config = replace(ASYNC, mesh=MeshConfig(generator_engines=engines))
        code = train(config, tmp_path, resume=session > 0)
        assert code == (STOPPED if stop else FINISHED)
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, STEPS + 1))
    trained = [group for _, groups in shared.batches for group in groups]
    assert len(trained) == len(set(trained)) == STEPS * 3
    samples = Counter((s["group"], s["index"]) for s in samples_of(tmp_path))
    assert set(samples.values()) == {1}


def test_a_generator_that_fails_once_is_counted_shown_and_goes_on(
    shared, monkeypatch, tmp_path, capsys
):
    engine = SharedRun(ASYNC).main_engine
    honest, calls, has_failed = engine.generate_many, 0, False

    def fail_once(params, state, *rest):
        nonlocal calls, has_failed
        calls += 1
        is_begun = bool((np.asarray(state.produced) * np.asarray(state.active)).any())
        if calls >= 20 and is_begun and not has_failed:
            has_failed = True
            raise RuntimeError("the device is gone")
        return honest(params, state, *rest)

    monkeypatch.setattr(engine, "generate_many", fail_once)
    assert train(ASYNC, tmp_path, resume=False) == FINISHED
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["failures/generator"] == 1
    told = capsys.readouterr().err
    assert "the generator failed: RuntimeError: the device is gone; it goes on with" in told
    refilled = [sample for sample in samples_of(tmp_path) if sample["refills"]]
    assert refilled, "nothing was in flight"


def test_a_trainer_that_fails_ends_the_run_which_can_go_on(shared, monkeypatch, tmp_path):
    trainer = shared.shared["trainer"]
    honest, calls = trainer.step, 0

    def fail_once(batch):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("out of memory\nwith a second line")
        return honest(batch)

    monkeypatch.setattr(trainer, "step", fail_once)
    with pytest.raises(RunFailed) as caught:
        train(ASYNC, tmp_path, resume=False)
    message = str(caught.value)
    assert "the trainer failed in update 5: RuntimeError: out of memory" in message
    assert "--resume" in message and "\n" not in message
    assert "with a second line" in (tmp_path / "failure.txt").read_text()
    assert saved(tmp_path)[0].step == 4
    assert train(ASYNC, tmp_path, resume=True) == FINISHED
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, STEPS + 1))


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_resumed(
    shared, monkeypatch, tmp_path, capsys
):
    config = replace(ASYNC, checkpoint=CheckpointConfig(every=2))
    stop_after(4, shared, monkeypatch)
    assert train(config, tmp_path, resume=False) == STOPPED
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    meta = newest / "meta.json"
    meta.write_bytes(meta.read_bytes().replace(b"seconds", b"sekonds"))
    go_on(shared, monkeypatch)
    capsys.readouterr()
    assert train(config, tmp_path, resume=True) == FINISHED
    told = capsys.readouterr().err
    assert f"{newest} is damaged: meta.json changed since" in told
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, STEPS + 1))


class ManyDevices(Run):
    """Compiled for itself: its arrays lie elsewhere."""

    judge = SharedRun.judge


def test_a_run_goes_on_on_a_mesh_of_another_shape(shared, monkeypatch, tmp_path):
    few = replace(ASYNC, trainer=replace(ASYNC.trainer, steps=2))
    assert train(few, tmp_path, resume=False) == FINISHED
    before = saved(tmp_path)[1].params
    many = replace(ASYNC, mesh=MeshConfig(trainer_fsdp=2), trainer=replace(few.trainer, steps=4))
    monkeypatch.setattr(run_module, "Run", ManyDevices)
    assert train(many, tmp_path, resume=True) == FINISHED
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]
    after = saved(tmp_path)[1].params
    moved = jax.tree.map(lambda a, b: bool((a != b).any() and np.isfinite(b).all()), before, after)
    assert all(jax.tree.leaves(moved))


def test_a_checkpoint_that_cannot_be_saved_says_which_one_is_usable(shared, monkeypatch, tmp_path):
    from orbax.checkpoint import v1 as ocp

    honest = ocp.save_checkpointables_async

    def full_disk(path, items):
        if len(saves) == 1:
            raise OSError(28, "No space left on device")
        saves.append(path)
        return honest(path, items)

    saves = []
    monkeypatch.setattr(ocp, "save_checkpointables_async", full_disk)
    with pytest.raises(CannotSave, match=r"step 4 .*No space left.* that of step 0 is usable"):
        train(CONFIG, tmp_path, resume=False)
