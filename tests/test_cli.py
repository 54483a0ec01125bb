"""The command line: what a user reads, what is left on disk, and how a run ends and goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.__main__ import main
from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, Meta
from magistral_jax.settings import load

REPO = Path(__file__).resolve().parents[1]
TINY = """
name = "tiny"
model.shape = {layers = 1, width = 32, heads = 2, kv_heads = 1, head_dim = 16, ffn = 32}
data = {digits = 1, max_prompt_tokens = 8}
generator = {group_size = 2, in_flight = 4, max_tokens = 6}
batch = {completions = 4, row_tokens = 16, rows = 4}
trainer = {steps = 3, learning_rate = 1e-3}
eval = {problems = 2, samples = 1}
metrics = {probe_every = 0, tensorboard = false}
checkpoint = {every = 1}
stall_s = 600.0
"""

# The command line as it is, but for the judge: an untrained network never keeps the format, so
# no group would have anything to learn from.
DRIVER = """
import resource, sys
from concurrent.futures import Future
import magistral_jax
from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints
from magistral_jax.types import Verdict

def judge(self, prompt, completion):
    is_right = completion.index == 0
    parts = {"format": 0.1, "correct": 0.9 * is_right, "length": 0.0, "language": 0.0}
    verdict = Future()
    verdict.set_result(
        Verdict(reward=sum(parts.values()), parts=parts, reason="pass" if is_right else "wrong")
    )
    return verdict

Run.judge = judge
full_at, *arguments = sys.argv[1:]
save = Checkpoints.save

def save_on_a_full_disk(self, meta, items):
    if meta.step == int(full_at):
        self.settle()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    save(self, meta, items)

Checkpoints.save = save_on_a_full_disk
from magistral_jax.__main__ import main
sys.exit(main(arguments))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in, but for tiny.toml."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything_in(folder):
    """All files but the locks of run folders that are there: who asked last stays written there."""
    return {
        p: p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if not p.name.startswith("lock.")
    }


@pytest.fixture
def refused(here, capsys):
    """Runs a command line that must be refused; gives its message."""

    def run(*arguments):
        before = everything_in(here)
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("magistral-jax: ")
        assert err.count("magistral-jax: ") == 1
        assert "Traceback" not in err
        assert everything_in(here) == before, "something was written"
        return err

    return run


def train(*arguments):
    return ["train", "tiny.toml", *arguments]


def row(number, problem="1+1=?"):
    values = {"id": str(number), "problem": problem, "answer": "2"}
    return json.dumps({**values, "domain": "math", "language": "en", "source": "test"}) + "\n"


def save_a_checkpoint(folder, step=3, **overrides):
    """What a run with the tiny config would leave, but for the weights, which nobody reads."""
    run = Run(load("tiny.toml", [(k.replace("__", "."), v) for k, v in overrides.items()]))
    meta = Meta(step=step, identity=run.identity(), notes={})
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    checkpoints.save(meta, {"state": {"w": jnp.ones(2)}})
    checkpoints.settle()


def test_help_names_every_command_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in ("train", "sample", "eval", "bench"):
        assert re.search(rf"^ +{command} +\w", shown, re.MULTILINE), command
    for code in ("1 failed", "2 your mistake", "70 stalled", "75 told to stop", "130 interrupted"):
        assert code in " ".join(shown.split())


@pytest.mark.parametrize(
    "command, options",
    [
        ("train", ("--run-dir", "--resume", "--dry-run")),
        ("sample", ("--run-dir", "--question", "--count", "--json")),
        ("eval", ("--run-dir", "--top-k", "--top-p", "--json")),
        ("bench", ("--json",)),
    ],
)
def test_help_of_a_command_names_its_options(command, options, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "CONFIG.toml" in shown
    for option in options:
        assert option in shown


@pytest.mark.parametrize("arguments", [[], ["trian", "tiny.toml"], ["train"]])
def test_what_is_no_command_ends_with_2_and_the_usage(arguments, here, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: magistral-jax" in capsys.readouterr().err


def test_dry_run_prints_the_config_with_its_overrides_and_writes_nothing(here, capsys):
    before = everything_in(here)
    assert main(train("--dry-run", "--trainer.steps", "7", "--data.system-prompt=magistral")) == 0
    (here / "again.toml").write_text(capsys.readouterr().out)
    config = load(here / "again.toml")
    assert (config.trainer.steps, config.data.system_prompt) == (7, "magistral")
    (here / "again.toml").unlink()
    assert everything_in(here) == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "tinny.toml"], ["tinny.toml does not exist", "tiny.toml"]),
        (train("--data.path", "none.jsonl"), ["data.path", "none.jsonl", "no such file"]),
        (train("--trainer.stpes", "3"), ["trainer.stpes", "did you mean trainer.steps"]),
        (train("--resum"), ["there is no option --resum", "did you mean --resume"]),
        (train("--run-dri", "x"), ["there is no option --run-dri", "did you mean --run-dir"]),
        (train("--model.dtype", "float61"), ["model.dtype", "float61", "bfloat16", "float32"]),
        (train("--trainer.steps"), ["--trainer.steps has no value"]),
        (train("--generator.in_flight", "9"), ["generator.in_flight (9)", "batch.completions"]),
        (train("--data.max_prompt_tokens", "3"), ["prompt of", "data.max_prompt_tokens is 3"]),
        (train("--data.max_prompt_tokens", "99"), ["batch.row_tokens (16)", "max_prompt_tokens"]),
        (train("--eval.problems", "80"), ["eval.problems is 80", "data.heldout_percent"]),
        (train("--resume"), ["--resume", "holds no run"]),
        (train("--resume", "--run-dir", "none"), ["none", "holds no run"]),
        (train("--model.source", "none.gguf"), ["model.source", "none.gguf"]),
        (train("--mesh.trainer_fsdp", "4"), ["5 devices", "has 4"]),
        (["eval", "tiny.toml", "--run-dir", "none"], ["none", "holds no checkpoint"]),
        (["eval", "tiny.toml", "--eval.problems", "0"], ["eval.problems is 0"]),
        (["eval", "tiny.toml", "--top-p", "0"], ["--top-p is 0"]),
        (["eval", "tiny.toml", "--json", "no/where.json"], ["--json", "no folder no"]),
        (["sample", "tiny.toml", "--count", "0"], ["--count is 0"]),
    ],
    ids=lambda value: " ".join(value[2:]) if "tiny.toml" in value else "",
)
def test_a_mistake_is_one_message_and_exit_code_2_with_nothing_written(arguments, words, refused):
    message = refused(*arguments)
    for word in words:
        assert word in message


def test_every_mistake_in_a_config_is_told_at_once(refused):
    message = refused(*train("--trainer.stpes", "3", "--model.dtype", "float61", "--seed", "x"))
    assert len(re.findall(r"^  - ", message, re.MULTILINE)) == 3


@pytest.mark.parametrize(
    "bad, words",
    [
        ("{not json\n", ["not JSON"]),
        (row(3).replace('"answer"', '"anwser"'), ["key 'answer' is missing"]),
        (row(1), ["id '1' is taken by problems.jsonl:1"]),
    ],
    ids=["not JSON", "a key is missing", "an id twice"],
)
def test_a_bad_row_of_the_data_is_told_with_its_line_and_nothing_else_stops(
    bad, words, here, capsys
):
    rows = [row(number) for number in range(1, 40)]
    (here / "problems.jsonl").write_text(rows[0] + rows[1] + bad + "".join(rows[2:]))
    asked = train("--data.path", "problems.jsonl", "--trainer.steps", "0", "--eval.problems", "0")
    assert main([*map(str, asked), "--run-dir", "run"]) == 0
    told = (here / "run" / "bad_rows.txt").read_text()
    for word in ["problems.jsonl:3: ", *words]:
        assert word in told
    err = capsys.readouterr().err
    assert told.strip() in err and "1 rows of the data are left out" in err


def test_prompts_that_are_all_too_long_are_found_before_the_run_starts(here, refused):
    rows = [row(number, "1+" * 20 + "1=?") for number in range(200)]
    (here / "problems.jsonl").write_text("".join(rows))
    message = refused(*train("--data.path", "problems.jsonl"))
    assert "none of the first 100 problems fits: problem" in message
    assert "data.max_prompt_tokens is 8" in message


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all" * 100])
def test_a_gguf_file_that_cannot_be_read_is_told_by_its_name(content, here, refused):
    (here / "broken.gguf").write_bytes(content)
    assert "broken.gguf" in refused(*train("--model.source", "broken.gguf"))


def test_a_checkpoint_of_another_network_or_seed_is_refused(here, refused):
    save_a_checkpoint(here / "run")
    message = refused(
        *train("--run-dir", "run", "--resume", "--model.shape.width", "64", "--seed", "5")
    )
    assert "model width was 32 and is now 64" in message
    assert "seed was 0 and is now 5" in message
    for command in ("eval", "sample"):
        message = refused(command, "tiny.toml", "--run-dir", "run", "--model.shape.width", "64")
        assert "model width was 32 and is now 64" in message


@pytest.mark.parametrize("trace", ["checkpoint", "metrics.jsonl", "summary.json"])
def test_a_folder_that_holds_a_run_is_not_written_over(trace, here, refused):
    if trace == "checkpoint":
        save_a_checkpoint(here / "run")
    else:
        (here / "run").mkdir()
        (here / "run" / trace).write_text("{}\n")
    message = refused(*train("--run-dir", "run"))
    assert "run already holds a run" in message
    assert "--resume" in message


# Whole runs, each in a process of its own.


class Process:
    """One run of the command line; its stderr is read as it comes."""

    def __init__(self, here, compiled, arguments, full_at=-1):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONPATH": str(REPO),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(full_at), *arguments],
            cwd=here,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def code(self, timeout=180):
        """Its exit code, when it has ended."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it did not end; it said {self.lines}") from None
        self._reader.join(10)
        print("".join(self.lines[-40:]))  # pytest shows it where the test fails
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.fixture
def start(here, tmp_path_factory):
    """Starts runs, with what they compile kept for the next; none outlives the test."""
    compiled = tmp_path_factory.getbasetemp() / "compiled"
    started = []

    def run(*arguments, full_at=-1):
        started.append(Process(here, compiled, arguments, full_at))
        return started[-1]

    yield run
    for run in started:
        run.process.kill()


def steps_of(metrics):
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]


def wait_for_step(process, metrics, step):
    deadline = time.monotonic() + 180
    while not (metrics.exists() and metrics.read_text().count("\n") >= step):
        assert process.process.poll() is None, process.lines
        assert time.monotonic() < deadline, process.lines
        time.sleep(0.02)


def test_a_stopped_run_says_so_and_goes_on_where_it_stopped(here, start):
    """SIGTERM, then SIGINT, then the end: every step is in the record exactly once."""
    metrics = here / "run" / "metrics.jsonl"
    command = [*train("--run-dir", "run", "--checkpoint.every", "100000")]
    endless = [*command, "--trainer.steps", "100000"]

    first = start(*endless)
    wait_for_step(first, metrics, 2)
    first.process.send_signal(signal.SIGTERM)
    assert first.code() == 75
    stopped_at = steps_of(metrics)[-1]
    assert first.lines[-1] == f"stopped by SIGTERM after step {stopped_at}; go on with --resume\n"

    second = start(*endless, "--resume")
    wait_for_step(second, metrics, stopped_at + 2)
    second.process.send_signal(signal.SIGINT)
    assert second.code() == 75
    assert f"resuming from step {stopped_at}\n" in second.lines
    last = steps_of(metrics)[-1] + 2

    third = start(*command, "--trainer.steps", str(last), "--resume")
    assert third.code() == 0
    assert steps_of(metrics) == list(range(1, last + 1))
    summary = json.loads((here / "run" / "summary.json").read_text())
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert summary["optimizer_steps"] == last
    assert rows[-1]["progress/completions"] == summary["completions"]
    counted = [row["progress/completions"] for row in rows]
    assert counted == sorted(counted)


def test_a_full_disk_ends_the_run_with_1_and_names_the_checkpoint_to_go_on_from(here, start):
    full = start(*train("--run-dir", "run"), full_at=2)
    assert full.code() == 1
    (message,) = (line for line in full.lines if line.startswith("magistral-jax: "))
    assert "the checkpoint of step 2 could not be saved" in message
    assert "that of step 1 is usable" in message
    assert full.lines[-1] == message
    assert not [line for line in full.lines if "Traceback" in line or "absl" in line]

    checkpoints = Checkpoints(here / "run" / "checkpoints", keep=2)
    found = checkpoints.latest()
    assert found.step == 1
    run = Run(load("tiny.toml"))
    trainer = run.trainer(run.initial_params())
    state = checkpoints.restore(found, "state", trainer.state)
    assert all(np.isfinite(x).all() for x in map(np.asarray, state.params["layers"].values()))

    after = start(*train("--run-dir", "run", "--resume"))
    assert after.code() == 0
    assert "resuming from step 1\n" in after.lines
    assert steps_of(here / "run" / "metrics.jsonl") == [1, 2, 3]
