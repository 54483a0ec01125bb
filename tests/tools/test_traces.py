"""Traces: harvested from a run, made by a teacher, and learned from."""

import gzip
import json

import pytest

from magistral_jax.__main__ import main
from magistral_jax.data.conversations import tokenizer_mark
from magistral_jax.tokenizer.bytes import ByteTokenizer
from tests.tools.test_measure import serving
from tests.tools.tiny import OPTIONS

TOKENIZER = ByteTokenizer()
STOP = TOKENIZER.stop_ids[0]


def completion(name, step, text, outcome="right", finish="stop"):
    a, b = name.split("-")[1:]
    return {
        "prompt_id": name,
        "group": step,
        "index": 0,
        "step": step,
        "outcome": outcome,
        "finish": finish,
        "prompt_tokens": TOKENIZER.chat([{"role": "user", "content": f"{a}+{b}=?"}]),
        "tokens": [*TOKENIZER.encode(text), STOP],
    }


ROWS = [
    completion("sum-1-2", 1, "early"),
    completion("sum-1-2", 4, r"<think>1+2</think>\boxed{3}"),
    completion("sum-5-4", 4, "no", outcome="wrong"),
    completion("sum-5-4", 3, "no", outcome="wrong"),
    completion("sum-5-4", 5, r"<think>5+4</think>\boxed{9}"),
    completion("sum-7-7", 5, "x", finish="length"),
]


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("[data]\ndigits = 1\n")
    with gzip.open(folder / "completions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_right_answers_of_a_run_are_harvested_with_their_tokens(run_dir, tmp_path, capsys):
    out = tmp_path / "traces.jsonl"
    assert main(["traces", "harvest", str(run_dir), "--out", str(out)]) == 0
    found = lines(out)
    # One in three of the second problem's answers is right: it counts twice.
    assert [row["id"] for row in found] == ["sum-1-2", "sum-5-4", "sum-5-4"]
    assert found[0]["problem"] == "1+2=?" and found[0]["answer"] == "3"
    assert found[0]["response"] == r"<think>1+2</think>\boxed{3}"
    assert found[0]["tokens"] == ROWS[1]["tokens"] and found[0]["tokenizer"] == tokenizer_mark(
        TOKENIZER
    )
    assert found[1]["pass_rate"] == pytest.approx(1 / 3) and found[1]["step"] == 5
    assert "harvest of" in capsys.readouterr().out
    assert main(["traces", "harvest", str(run_dir), "--out", str(out)]) == 2
    assert "not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["traces"], "traces harvest RUN, or traces generate PROMPTS"),
        (["traces", "no", "x"], "traces harvest RUN, or traces generate PROMPTS"),
        (["traces", "harvest", "nowhere", "--out", "x"], "nowhere holds no run"),
    ],
)
def test_mistakes_are_told(arguments, told, capsys):
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_run_without_completions_and_shares_that_are_none(run_dir, tmp_path, capsys):
    out = str(tmp_path / "t.jsonl")
    assert main(["traces", "harvest", str(run_dir), "--out", out, "--skip", "2"]) == 2
    assert "--skip 2.0" in capsys.readouterr().err
    (run_dir / "completions.jsonl.gz").unlink()
    assert main(["traces", "harvest", str(run_dir), "--out", out]) == 2
    assert "holds no completions" in capsys.readouterr().err


PROBLEMS = [
    {"id": f"m{i}", "problem": f"{i}+1?", "answer": str(i + 1), "domain": "math"} for i in range(3)
]


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return path


def test_a_teacher_elsewhere_answers_and_rates_problems(problems, tmp_path):
    out, rates = tmp_path / "out.jsonl", tmp_path / "rates.jsonl"
    with serving() as (server, url):
        command = ["traces", "generate", str(problems), "--out", str(out), "--n", "3",
                   "--endpoint", url, "--rates", str(rates), "--at-once", "1"]  # fmt: skip
        assert main([*command, "--keep-correct"]) == 0
        asked = len(server.asked)
        assert main([*command, "--keep-correct"]) == 0  # nothing is left to ask
        assert len(server.asked) == asked == 9
        # Killed between two writes: the rows of a problem are there, its mark is not.
        done = tmp_path / "out.jsonl.done"
        done.write_text("m1\nm2\n")
        with out.open("a") as file:
            file.write('{"id": "m2", "torn')
        assert main([*command, "--keep-correct"]) == 0
        assert len(server.asked) == 12
    found = sorted(lines(out), key=lambda row: row["id"])
    assert [row["id"] for row in found] == ["m0", "m0", "m1"]
    assert all(row["correct"] for row in found)
    assert [row["format"] for row in found] == [True, False, False]
    assert {row["id"]: row["pass_rate"] for row in lines(rates)} == {
        "m0": pytest.approx(2 / 3), "m1": pytest.approx(1 / 3), "m2": 0.0
    }  # fmt: skip


def test_our_own_teacher_s_traces_are_learned_from(problems, tmp_path, capsys):
    """generate -> sft -> train --model.start, on the smallest of networks."""
    out = tmp_path / "out.jsonl"
    small = [*OPTIONS, "--generator.max_tokens", "8", "--generator.in_flight", "4"]
    command = ["traces", "generate", str(problems), "--out", str(out), "--n", "4"]
    assert main([*command, *small, "--eval.temperature", "1.5"]) == 0
    found = lines(out)
    assert len(found) == 12 and not any(row["correct"] for row in found)
    # An answer that was cut has no stop token of its own: its text is used, not its tokens.
    assert all(("tokens" in row) == (row["finish"] == "stop") for row in found)
    config = tmp_path / "tiny.toml"
    config.write_text('name = "tiny"\n[metrics]\ntensorboard = false\nprobe_every = 0\n')
    sft = ["sft", str(config), *small, "--sft.path", str(out), "--sft.epochs", "2",
           "--sft.completions", "5", "--eval.problems", "3", "--eval.samples", "1",
           "--data.digits", "1", "--data.heldout_percent", "30"]  # fmt: skip
    folder = str(tmp_path / "sft")
    assert main([*sft, "--run-dir", folder]) == 0
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert summary["steps"] == 5 and summary["traces"] == 12
    assert [one["step"] for one in summary["evaluations"]] == [0, 2, 5]
    rows = lines(tmp_path / "sft" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [("eval/accuracy" in row) for row in rows] == [False, True, False, False, True]
    assert rows[-1]["loss"] < rows[0]["loss"]
    capsys.readouterr()
    train = ["train", str(config), *small, "--model.start", folder, "--run-dir",
             str(tmp_path / "rl"), "--trainer.steps", "0", "--eval.problems", "3",
             "--data.digits", "1", "--data.heldout_percent", "30"]  # fmt: skip
    assert main(train) == 0
    assert main([*train, "--model.shape.width", "32", "--run-dir", str(tmp_path / "x")]) == 2
    assert "width" in capsys.readouterr().err
    assert main([*train, "--model.start", "nowhere", "--run-dir", str(tmp_path / "y")]) == 2
    assert "model.start: nowhere/checkpoints holds no checkpoint" in capsys.readouterr().err


def test_sft_stopped_and_resumed_is_the_run_nobody_stopped(problems, tmp_path, monkeypatch):
    import signal

    import numpy as np

    from magistral_jax.checkpoint import Checkpoints
    from magistral_jax.tools import sft as module
    from tests.test_resume import interrupt

    traces = tmp_path / "traces.jsonl"
    rows = [{"id": f"t{i}", "problem": f"{i}?", "response": "abc"[: i % 3 + 1]} for i in range(20)]
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    config = tmp_path / "tiny.toml"
    config.write_text('name = "tiny"\n[metrics]\ntensorboard = false\nprobe_every = 0\n')
    command = ["sft", str(config), *OPTIONS, "--sft.path", str(traces), "--sft.epochs", "2",
               "--sft.completions", "4", "--eval.problems", "0"]  # fmt: skip
    assert main([*command, "--run-dir", str(tmp_path / "whole")]) == 0
    assert "not JSON" in (tmp_path / "whole" / "bad_rows.txt").read_text()
    learn = module.Teaching._learn

    def learn_and_stop(self, trainer, step):
        if step == 3:
            interrupt(signal.SIGTERM)
        return learn(self, trainer, step)

    monkeypatch.setattr(module.Teaching, "_learn", learn_and_stop)
    assert main([*command, "--run-dir", str(tmp_path / "stopped")]) == 75
    monkeypatch.setattr(module.Teaching, "_learn", learn)
    assert main([*command, "--run-dir", str(tmp_path / "stopped"), "--resume"]) == 0
    losses = [
        [row["loss"] for row in lines(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 10
    metas = [Checkpoints(tmp_path / n / "checkpoints", keep=1) for n in ("whole", "stopped")]
    prints = [
        json.loads((c.folder / str(c.latest().number) / "meta.json").read_text())["fingerprints"]
        for c in metas
    ]
    assert prints[0] == prints[1]
    assert np.isfinite(losses[0]).all()
