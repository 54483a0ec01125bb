"""A run's record grows by whole rows, explains its names, and is cut back to a checkpoint."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from magistral_jax.ledger import BINS, FATES
from magistral_jax.metrics import COMPLETIONS, FAILURES, GLOSSARY, METRICS, RunRecord, untimed
from magistral_jax.types import (
    Completion,
    Group,
    Problem,
    Prompt,
    Reason,
    UserError,
    Verdict,
    VersionSpan,
)

REQUIRED = """
reward/mean reward/format reward/correct reward/length reward/language
batch/uniform_groups batch/errored batch/padding
policy/lag_max policy/clipped_high policy/clipped_low policy/entropy policy/ess
policy/log_ratio policy/grad_norm policy/spans_mean policy/spans_two_or_more
mismatch/logprob_abs_max mismatch/logprob_abs_mean push/seconds push/pause_steps
time/step time/train time/wait_batch time/wait_admission time/verify time/assemble time/checkpoint
loss length/mean length/max length/truncated
generator/tokens_per_s generator/occupancy generator/decode_steps train/tokens_per_s
progress/completions progress/dispatched progress/dropped_groups
batch/first_group batch/last_group
length/in_turn_q1 length/in_turn_q2 length/in_turn_q3 length/in_turn_q4
"""

ONE_SPAN = (VersionSpan(start=0, version=3),)


def completion(group, index, logprobs, spans=ONE_SPAN, refills=()):
    return Completion(
        group=group,
        index=index,
        prompt=np.array([5, 6], np.int32),
        tokens=np.arange(len(logprobs), dtype=np.int32),
        logprobs=np.array(logprobs, np.float32),
        sampled=np.ones(len(logprobs), bool),
        spans=spans,
        finish="stop",
        refills=refills,
    )


def judged(group, *completions, reason: Reason = "pass", parts=None):
    problem = Problem(id=f"sum-{group}", domain="math", question="1+1", answer="2")
    parts = {"format": 0.1, "correct": 0.9, "length": -0.05} if parts is None else parts
    verdict = Verdict(reward=0.95, parts=parts, reason=reason, detail="2 is 2\ud800\x1b")
    return Group(
        prompt=Prompt(group=group, problem=problem, tokens=np.array([5, 6], np.int32)),
        completions=completions,
        verdicts=(verdict,) * len(completions),
    )


def metrics_rows(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def completion_rows(folder):
    with gzip.open(folder / COMPLETIONS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def recorded(folder, steps):
    """A run of two completions a step, some of them long enough to fill several read chunks."""
    rng = np.random.default_rng(0)
    with RunRecord(folder, False, None) as record:
        for step in range(steps):
            size = 30_000 if step == 1 else 3
            noise = -rng.exponential(size=size).astype(np.float32)
            group = judged(step, completion(step, 0, noise), completion(step, 1, [-1.0]))
            record.step(step, {"loss": step / 3})
            record.completions(step, [group])


def test_the_glossary_holds_every_name_of_the_product_and_explains_it():
    assert set(REQUIRED.split()) <= set(GLOSSARY)
    assert {f"verifier/{reason}" for reason in get_args(Reason)} <= set(GLOSSARY)
    assert {f"failures/{kind}" for kind in FAILURES} <= set(GLOSSARY)
    assert {f"ledger/{bin}" for bin in BINS} | {f"tokens/{fate}" for fate in FATES} <= set(GLOSSARY)
    assert all(len(text) > 20 and text.endswith(".") for text in GLOSSARY.values())


def test_a_name_the_glossary_does_not_explain_is_not_recorded(tmp_path):
    record = RunRecord(tmp_path, False, None)
    with pytest.raises(LookupError, match="reward/maen"):
        record.step(0, {"loss": 1.0, "reward/maen": 1.0})
    assert not (tmp_path / METRICS).exists()


def test_a_row_is_on_disk_when_step_returns_and_wall_time_only_grows(tmp_path):
    record = RunRecord(tmp_path, False, None)
    for step in range(3):
        record.step(step, {"loss": np.float32(0.5), "progress/completions": 8 * step})
        assert [row["step"] for row in metrics_rows(tmp_path)] == list(range(step + 1))
    rows = metrics_rows(tmp_path)
    assert rows[2] == rows[2] | {"loss": 0.5, "progress/completions": 16.0}
    walls = [row["wall_s"] for row in rows]
    assert walls == sorted(walls)
    assert walls[0] >= 0


def test_a_number_that_is_not_finite_is_null(tmp_path):
    RunRecord(tmp_path, False, None).step(0, {"loss": math.nan, "policy/ess": math.inf})
    [row] = metrics_rows(tmp_path)
    assert (row["loss"], row["policy/ess"]) == (None, None)


def test_steps_must_rise(tmp_path):
    record = RunRecord(tmp_path, False, None)
    record.step(4, {})
    with pytest.raises(AssertionError):
        record.step(4, {})


def test_a_completion_row_holds_the_whole_token_record(tmp_path):
    spans = (VersionSpan(start=0, version=3), VersionSpan(start=2, version=4))
    logprobs = np.array([-0.1, -1e-7, -3.4028e38, -1 / 3], np.float32)
    group = judged(7, completion(7, 1, logprobs, spans, refills=(1, 3)))
    RunRecord(tmp_path, False, None).completions(5, [group])
    [row] = completion_rows(tmp_path)
    assert np.array_equal(np.array(row.pop("logprobs"), np.float32), logprobs)
    assert row == {
        "prompt_id": "sum-7",
        "group": 7,
        "index": 1,
        "step": 5,
        "prompt_tokens": [5, 6],
        "tokens": [0, 1, 2, 3],
        "spans": [[0, 3], [2, 4]],
        "refills": [1, 3],
        "finish": "stop",
        "reward": 0.95,
        "parts": {"format": 0.1, "correct": 0.9, "length": -0.05, "language": 0.0},
        "outcome": "right",
        "reason": "pass",
        "detail": "2 is 2\ud800\x1b",
    }


def test_errored_completions_are_recorded_too(tmp_path):
    group = judged(0, completion(0, 0, [-1.0]), reason="error", parts={})
    RunRecord(tmp_path, False, None).completions(0, [group])
    [row] = completion_rows(tmp_path)
    assert row["outcome"] == "error"


def test_each_step_is_one_gzip_member_that_reads_alone(tmp_path):
    record = RunRecord(tmp_path, False, None)
    path = tmp_path / COMPLETIONS
    groups = [judged(g, completion(g, 0, [-1.0]), completion(g, 1, [-2.0])) for g in range(2)]
    record.completions(0, groups)
    first = path.read_bytes()
    record.completions(1, [])
    assert path.read_bytes() == first
    record.completions(2, groups)
    second = path.read_bytes()[len(first) :]
    for member, step in ((first, 0), (second, 2)):
        rows = [json.loads(line) for line in gzip.decompress(member).splitlines()]
        assert [(r["step"], r["group"], r["index"]) for r in rows] == [
            (step, 0, 0),
            (step, 0, 1),
            (step, 1, 0),
            (step, 1, 1),
        ]


def test_resuming_cuts_what_came_after_the_checkpoint_and_goes_on(tmp_path):
    recorded(tmp_path, steps=5)
    wall_s = metrics_rows(tmp_path)[2]["wall_s"]
    record = RunRecord(tmp_path, False, resume_step=2)
    assert [row["step"] for row in metrics_rows(tmp_path)] == [0, 1, 2]
    assert [row["step"] for row in completion_rows(tmp_path)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(AssertionError):
        record.step(2, {})
    record.step(3, {"loss": 9.0})
    record.completions(3, [judged(9, completion(9, 0, [-1.0]))])
    assert metrics_rows(tmp_path)[-1]["wall_s"] >= wall_s
    assert completion_rows(tmp_path)[-1]["group"] == 9


def test_a_record_can_go_back_while_it_is_open(tmp_path):
    """A checkpoint turned out to be damaged, and the one before is taken instead."""
    recorded(tmp_path, steps=5)
    record = RunRecord(tmp_path, False, resume_step=3)
    record.go_back(1)
    for rows in (metrics_rows(tmp_path), completion_rows(tmp_path)):
        assert {row["step"] for row in rows} == {0, 1}
    with pytest.raises(AssertionError):
        record.step(1, {})
    record.step(2, {"loss": 7.0})
    record.completions(2, [judged(9, completion(9, 0, [-1.0]))])
    assert [row["step"] for row in metrics_rows(tmp_path)] == [0, 1, 2]
    assert completion_rows(tmp_path)[-1]["group"] == 9


def test_what_the_clock_decides_can_be_left_out():
    same = {
        "step": 3,
        "loss": 0.5,
        "tokens/trained": 7.0,
        "verifier/wrong": 2.0,
        "generator/decode_steps": 4.0,
        "generator/occupancy": 0.5,
        "length/in_turn_q1": 1.0,
    }
    timed = ["wall_s", "generator/tokens_per_s", "train/tokens_per_s", "tokens/lost"]
    timed += ["time/step", "ledger/idle", "failures/push", "push/seconds"]
    assert untimed({**dict.fromkeys(timed, 1.0), **same}) == same
    assert set(timed) - {"wall_s"} <= set(GLOSSARY)


def test_the_clock_goes_on_where_the_kept_rows_end(tmp_path):
    rows = [{"step": 0, "wall_s": 100.0}, {"step": 1, "wall_s": 900.0}]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    RunRecord(tmp_path, False, resume_step=0).step(1, {})
    assert 100.0 <= metrics_rows(tmp_path)[-1]["wall_s"] < 900.0


def test_a_write_torn_anywhere_loses_that_row_and_no_other(tmp_path):
    recorded(tmp_path, steps=1)
    whole = {name: (tmp_path / name).read_bytes() for name in (METRICS, COMPLETIONS)}
    record = RunRecord(tmp_path, False, resume_step=0)
    record.step(1, {"loss": 0.25})
    record.completions(1, [judged(1, completion(1, 0, [-1.0]))])
    for name, before in whole.items():
        path = tmp_path / name
        after = path.read_bytes()
        for size in range(len(before), len(after)):
            path.write_bytes(after[:size])
            RunRecord(tmp_path, False, resume_step=5)
            assert path.read_bytes() == before, (name, size)
        path.write_bytes(after)
        RunRecord(tmp_path, False, resume_step=5)
        assert path.read_bytes() == after


def test_damage_before_the_end_is_told_and_nothing_is_cut(tmp_path):
    recorded(tmp_path, steps=4)
    metrics, completions = tmp_path / METRICS, tmp_path / COMPLETIONS
    good = metrics.read_bytes()
    metrics.write_bytes(good.replace(b'"step": 1', b'"stop": 1'))
    with pytest.raises(UserError, match=rf"{METRICS} line 2 "):
        RunRecord(tmp_path, False, resume_step=3)
    metrics.write_bytes(good)
    damaged = b"\0" * 50 + completions.read_bytes()
    completions.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{COMPLETIONS} is damaged"):
        RunRecord(tmp_path, False, resume_step=1)
    assert completions.read_bytes() == damaged


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    recorded(tmp_path, steps=1)
    with pytest.raises(UserError, match=r"metrics\.jsonl.*--resume.*--run-dir"):
        RunRecord(tmp_path, False, None)


@pytest.mark.parametrize("trace", ["summary.json", "checkpoints/0"])
def test_any_trace_of_a_run_is_enough_to_refuse(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).touch()
    with pytest.raises(UserError, match=trace.partition("/")[0]):
        RunRecord(tmp_path, False, None)


def test_a_folder_without_a_trace_of_a_run_is_taken(tmp_path):
    (tmp_path / "config.toml").touch()
    (tmp_path / "checkpoints").mkdir()
    RunRecord(tmp_path, False, None).step(0, {})
    RunRecord(tmp_path / "a" / "b", False, None).step(0, {})
    RunRecord(tmp_path / "c", False, resume_step=3).step(4, {})


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--run-dir .*file"):
        RunRecord(tmp_path / "file", False, None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file(tmp_path):
    record = RunRecord(tmp_path, False, None)
    for name in (METRICS, COMPLETIONS, "summary.partial"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space.*{METRICS}"):
        record.step(0, {"loss": 1.0})
    with pytest.raises(OSError, match=rf"No space.*{COMPLETIONS}"):
        record.completions(0, [judged(0, completion(0, 0, [-1.0]))])
    with pytest.raises(OSError, match=r"No space.*summary\.json"):
        record.summary({"accuracy": 1.0})


def test_the_summary_is_replaced_as_a_whole(tmp_path):
    record = RunRecord(tmp_path, False, None)
    record.summary({"steps": 1})
    with pytest.raises(TypeError):
        record.summary({"steps": 2, "bad": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 1}
    record.summary({"after": {"accuracy": np.float32(0.5)}, "all": (np.int32(1), math.nan, "x")})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"after": {"accuracy": 0.5}, "all": [1, None, "x"]}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_tensorboard_holds_the_same_numbers_and_forgets_what_was_cut(tmp_path):
    from tensorboardX.proto import event_pb2

    def events():
        found = []
        for path in sorted((tmp_path / "tensorboard").iterdir()):
            data = path.read_bytes()
            while data:
                size = int.from_bytes(data[:8], "little")
                found.append(event_pb2.__dict__["Event"].FromString(data[12 : 12 + size]))
                data = data[16 + size :]
        return found

    with RunRecord(tmp_path, True, None) as record:
        record.step(0, {"loss": 0.25, "policy/ess": math.nan})
        record.step(1, {"loss": 0.5})
    scalars = [(e.step, v.tag, v.simple_value) for e in events() for v in e.summary.value]
    assert scalars == [(0, "loss", 0.25), (1, "loss", 0.5)]
    with RunRecord(tmp_path, True, resume_step=0) as record:
        record.step(1, {"loss": 0.75})
    assert [e.step for e in events() if e.session_log.status == e.session_log.START] == [1]


def test_without_tensorboard_there_is_no_such_folder(tmp_path):
    with RunRecord(tmp_path, False, None) as record:
        record.step(0, {"loss": 0.25})
    assert not (tmp_path / "tensorboard").exists()


def test_settings_metrics_and_console_do_not_load_jax():
    """--help, table printing and a refused config must answer at once."""
    probe = (
        "import sys, magistral_jax.settings, magistral_jax.metrics, magistral_jax.console; "
        "sys.exit('jax' in sys.modules or 'tensorboardX' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", probe], cwd=root).returncode == 0
