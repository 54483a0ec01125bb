"""A run's newest policy, handed back as a folder that others load."""

import json

import numpy as np
import pytest

from magistral_jax.__main__ import main
from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, Meta
from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.settings import dump, load
from magistral_jax.tokenizer.files import read_tokenizer
from magistral_jax.tools import export as export_module

TINY = """
name = "tiny"
model.shape = {layers = 2, width = 16, heads = 2, kv_heads = 1, head_dim = 8, ffn = 16}
data = {digits = 2, max_prompt_tokens = 10}
generator = {group_size = 2, in_flight = 4, max_tokens = 6}
batch = {completions = 4, row_tokens = 16, rows = 4}
eval = {problems = 3, samples = 2}
"""


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """A run folder with one checkpoint, and the weights in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    config = load("tiny.toml")
    run = Run(config)
    trainer = run.trainer(run.initial_params())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(dump(config))
    meta = Meta(step=3, identity=run.identity(), notes={})
    checkpoints = Checkpoints("run/checkpoints", keep=1)
    checkpoints.save(meta, {"state": trainer.state})
    checkpoints.settle()
    yield run, trainer.params
    run.close()


def test_a_run_is_exported_whole_and_read_back(policy, tmp_path, capsys):
    run, params = policy
    assert main(["export", "run", "--out", "out", "--json", "table.json"]) == 0
    arch = read_architecture(tmp_path / "out")
    # A network from scratch does not say how long its sequences may be; a config.json must.
    assert arch.max_positions == run.config.sequence_tokens
    found = read_params(tmp_path / "out", arch)
    np.testing.assert_array_equal(found["layers"]["wq"], params["layers"]["wq"])
    np.testing.assert_array_equal(found["embed"], params["embed"])
    tokenizer = read_tokenizer(tmp_path / "out")
    messages = [{"role": "user", "content": "1+2=? <think>"}]
    assert tokenizer.chat(messages) == run.tokenizer.chat(messages)
    assert tokenizer.stop_ids == run.tokenizer.stop_ids
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["dtype"] == "float32" and said["eos_token_id"] == list(run.tokenizer.stop_ids)
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["step"] == 3 and row["family"] == "llama"


def test_what_was_exported_can_be_trained_on(policy, tmp_path):
    run, params = policy
    assert main(["export", "run", "--out", "out", "--dtype", "bfloat16"]) == 0
    again = Run(load("tiny.toml", [("model.source", "out"), ("model.dtype", "bfloat16")]))
    rounded = np.asarray(params["layers"]["w_up"]).astype("bfloat16").astype("float32")
    np.testing.assert_array_equal(again.initial_params()["layers"]["w_up"], rounded)
    problem = run.heldout(1)[0].problem
    np.testing.assert_array_equal(again.render(problem), run.render(problem))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["export", "run", "--out", "taken"], "--out taken is there already"),
        (["export", "run", "--out", "run/config.toml"], "is there already"),
        (["export", "run", "--out", "no/where/out"], "there is no folder"),
        (["export", "nowhere", "--out", "out"], "nowhere holds no run: there is no"),
        (["export", "run", "--out", "out", "--model.shape.width", "32"], "belongs to another run"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    arguments, message, policy, tmp_path, capsys
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").touch()
    before = set(tmp_path.rglob("*"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before


def test_an_export_that_fails_leaves_nothing(policy, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_folder", full)
    before = set(tmp_path.rglob("*"))
    assert main(["export", "run", "--out", "out"]) == 1
    assert set(tmp_path.rglob("*")) == before
