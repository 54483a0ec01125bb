"""A run through its stages, stopped and killed amid a transition; through `run.train`."""

import json
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace

import jax
import numpy as np
import pytest

from magistral_jax import run as run_module
from magistral_jax.build import Run
from magistral_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    MetricsConfig,
    ModelConfig,
    RunConfig,
    ShapeConfig,
    StageConfig,
    TrainerConfig,
)
from magistral_jax.metrics import untimed
from magistral_jax.recipes.stages import NEXT_STAGE
from magistral_jax.run import train
from magistral_jax.session import FINISHED
from magistral_jax.tally import PARTS
from magistral_jax.types import Verdict
from magistral_jax.watch import STOPPED
from tests.test_resume import interrupt, rows_of, samples_of

STEPS = 12
MAX_LAG = 2
CONFIG = RunConfig(
    stall_s=120.0,
    model=ModelConfig(
        shape=ShapeConfig(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn=16)
    ),
    data=DataConfig(digits=2, max_prompt_tokens=12, heldout_percent=20.0),
    generator=GeneratorConfig(group_size=2, in_flight=12, max_tokens=6),
    batch=BatchConfig(completions=8, max_lag=MAX_LAG, row_tokens=32, rows=2),
    trainer=TrainerConfig(steps=STEPS, learning_rate=3e-3, remat=False),
    eval=EvalConfig(problems=0),
    metrics=MetricsConfig(probe_every=0, tensorboard=False),
    checkpoint=CheckpointConfig(every=2),
    stage=(
        StageConfig(),
        StageConfig(from_step=2, max_tokens=12, soft_tokens=8),
        StageConfig(from_step=6, completions=4, in_flight=6),
    ),
)
CLOCK = replace(
    CONFIG,
    deterministic=True,
    deterministic_steps=3,
    checkpoint=CheckpointConfig(every=2, kv="save"),
)
KEPT = CheckpointConfig(every=2, kv="save")
SYNC = replace(CONFIG, mode="sync", checkpoint=KEPT)
LOOPS = {"async": CONFIG, "sync": SYNC, "clock": CLOCK}


class Staged(Run):
    """Rewards that a random network earns now and then, and a stop after a step."""

    stop_after = 0

    def __init__(self, config, *, devices=None):
        super().__init__(config, devices=jax.devices()[:1])

    def judge(self, prompt, completion):
        is_right = prompt.group % 5 != 0 and int(completion.tokens.sum()) % 2 == 0
        verdict = Future()
        verdict.set_result(
            Verdict(
                reward=float(is_right),
                parts={**dict.fromkeys(PARTS, 0.0), "correct": float(is_right)},
                reason="pass" if is_right else "wrong",
            )
        )
        return verdict

    def rooms(self, *arguments, on_step, **options):
        def and_then(step, *rest):
            on_step(step, *rest)
            if step == self.stop_after:
                interrupt()

        return super().rooms(*arguments, on_step=and_then, **options)


@pytest.fixture(autouse=True)
def staged(monkeypatch):
    monkeypatch.setattr(run_module, "Run", Staged)
    return Staged


def stages_of(folder):
    return [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]


def check_record(folder):
    """Nothing skipped or twice, the bound on staleness held, and each stage's numbers its own."""
    rows, samples = rows_of(folder), samples_of(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["stage"] for row in rows] == sorted(row["stage"] for row in rows)
    assert max(row["policy/lag_max"] for row in rows) <= MAX_LAG
    names = [(sample["group"], sample["index"]) for sample in samples]
    assert len(set(names)) == len(names)
    first, second = stages_of(folder)
    assert (first["stage"], second["stage"]) == (1, 2)
    assert first["step"] >= 2 and second["step"] >= 6
    assert (first["reason"], second["reason"]) == ("step 2", "step 6")
    for sample in samples:
        longest = 6 if sample["step"] <= first["step"] else 12
        assert len(sample["tokens"]) <= longest
        # Everything sampled in a stage is trained in it, under weights of it.
        begun = max((s["step"] for s in (first, second) if s["step"] < sample["step"]), default=0)
        assert sample["spans"][0][1] >= begun
    assert max(len(sample["tokens"]) for sample in samples) > 6
    kept = Counter()
    rewards = {}
    for sample in samples:
        rewards.setdefault((sample["step"], sample["group"]), []).append(sample["reward"])
    for (_, group), of_group in rewards.items():
        kept[group] += np.ptp(of_group) > 0
    # Dispatched and not yet judged at the end are missing; before it, no group is.
    groups = sorted({sample["group"] for sample in samples})
    assert max(kept.values()) == 1 and groups[0] == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folders = {}
    for name, config in LOOPS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module, "Run", Staged)
            assert train(config, folders[name], resume=False) == FINISHED
    return folders


@pytest.mark.parametrize("loop", LOOPS)
def test_stages_follow_each_other(whole, loop):
    check_record(whole[loop])
    rows = rows_of(whole[loop])
    sizes = np.diff([0, *(row["progress/completions"] for row in rows)])
    assert max(row["stage"] for row in rows) == 2
    if loop == "sync":  # there, what is judged in a step is trained in it or dropped
        for row, size in zip(rows, sizes, strict=True):
            batch = 4 if row["stage"] == 2 else 8
            assert size - 2 * (row["batch/uniform_groups"] * size / 2) == pytest.approx(batch)


@pytest.mark.parametrize("step", [2, 4, 7])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_stopped_amid_a_transition_is_in_the_right_stage(
    loop, step, whole, staged, monkeypatch, tmp_path
):
    """The drain takes the updates from 2 on; the stage after it begins when it is done."""
    monkeypatch.setattr(staged, "stop_after", step)
    assert train(LOOPS[loop], tmp_path, resume=False) == STOPPED
    monkeypatch.setattr(staged, "stop_after", 0)
    assert train(LOOPS[loop], tmp_path, resume=True) == FINISHED
    check_record(tmp_path)
    if loop != "async":
        expected = rows_of(whole[loop])
        assert [untimed(r) for r in rows_of(tmp_path)] == [untimed(r) for r in expected]
        assert samples_of(tmp_path) == samples_of(whole[loop])
        assert stages_of(tmp_path) == stages_of(whole[loop])


@pytest.mark.parametrize("loop", ["sync", "clock"])
@pytest.mark.parametrize("place", ["advance", "write_down"])
def test_a_crash_amid_a_transition_is_made_good(loop, place, whole, monkeypatch, tmp_path):
    """Before the new stage is saved, and after it."""
    from magistral_jax.recipes.stages import Stages

    original, crashed = getattr(Stages, place), []

    def crash(self, *arguments):
        if self.index == (0 if place == "advance" else 1) and not crashed:
            crashed.append(place)
            raise ZeroDivisionError(place)
        return original(self, *arguments)

    monkeypatch.setattr(Stages, place, crash)
    with pytest.raises(ZeroDivisionError):
        train(LOOPS[loop], tmp_path, resume=False)
    assert train(LOOPS[loop], tmp_path, resume=True) == FINISHED
    check_record(tmp_path)
    assert [untimed(r) for r in rows_of(tmp_path)] == [untimed(r) for r in rows_of(whole[loop])]
    assert stages_of(tmp_path) == stages_of(whole[loop])


def test_a_file_in_the_run_folder_begins_the_next_stage(tmp_path, monkeypatch):
    config = replace(
        CONFIG, stage=(StageConfig(), StageConfig(from_step=100, max_tokens=12)), mode="sync"
    )
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / NEXT_STAGE).touch()
    assert train(config, tmp_path, resume=False) == FINISHED
    (begun,) = stages_of(tmp_path)
    assert begun["step"] == 1 and NEXT_STAGE in begun["reason"]
    assert not (tmp_path / NEXT_STAGE).exists()
    assert [row["stage"] for row in rows_of(tmp_path)] == [0] + [1] * (STEPS - 1)


def test_problems_left_out_are_asked_no_more(tmp_path):
    """The first stage sets aside what rows call hard; the second drops what the first solved."""
    data = tmp_path / "problems.jsonl"
    rows = [
        {"id": f"p{i}", "problem": f"{i}+1=?", "answer": str(i + 1), "domain": "math"}
        | {"language": "en", "source": "test", "pass_rate": 0.0 if i < 10 else 0.5}
        for i in range(40)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(
        CONFIG,
        mode="sync",
        data=replace(CONFIG.data, path=str(data), heldout_percent=0.0, max_prompt_tokens=12),
        stage=(
            StageConfig(min_pass_rate=0.1),
            StageConfig(from_step=4, max_pass_rate=0.49, min_pass_rate=0.0),
        ),
    )
    folder = tmp_path / "run"
    assert train(config, folder, resume=False) == FINISHED
    asked, solved = ({0: set(), 1: set()}, {})
    for sample in samples_of(folder):
        stage = int(sample["step"] > stages_of(folder)[0]["step"])
        asked[stage].add(sample["prompt_id"])
        if stage == 0:
            solved.setdefault(sample["prompt_id"], []).append(sample["outcome"] == "right")
    hard = {f"p{i}" for i in range(10)}
    assert not asked[0] & hard and asked[1] & hard
    rates = {name: np.mean(outcomes) for name, outcomes in solved.items()}
    assert not asked[1] & {name for name, rate in rates.items() if rate > 0.49}
    # Those not asked yet have 0.5 in their rows, which is too easy now.
    assert asked[1] <= hard | {name for name, rate in rates.items() if rate <= 0.49}
