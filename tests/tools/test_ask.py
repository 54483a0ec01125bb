"""What `sample` and `eval` show is what the policy that was asked for did."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from magistral_jax.__main__ import main
from magistral_jax.build import Run
from magistral_jax.checkpoint import Checkpoints, Meta
from magistral_jax.evaluate import Evaluation
from magistral_jax.model.params import abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, place, shardings
from magistral_jax.settings import load
from magistral_jax.tools import ask
from magistral_jax.types import UserError

TINY = """
name = "tiny"
model.shape = {layers = 1, width = 16, heads = 2, kv_heads = 1, head_dim = 8, ffn = 16}
data = {digits = 2, max_prompt_tokens = 10}
generator = {group_size = 2, in_flight = 4, max_tokens = 6}
batch = {completions = 4, row_tokens = 16, rows = 4}
eval = {problems = 3, samples = 2}
"""


def drawn(run, seed=0):
    """Weights drawn on the host, where nothing has to be compiled for it."""
    rng = np.random.default_rng(seed)
    host = map_specs(lambda spec: rng.normal(size=spec.shape).astype("f4"), abstract(run.arch))
    return place(host, shardings(run.arch, run.trainer_mesh, TRAINER_RULES))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a config; networks from scratch are `drawn` with seed 0."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "initial_params", drawn)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every test makes rooms of its own, and all of them run the same few programs."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def run_of(*overrides):
    return Run(load("tiny.toml", overrides))


def save_run(folder, run, *, step=7):
    """A run folder whose weights are not those the config starts from."""
    params = drawn(run, seed=1)
    meta = Meta(step=step, identity=run.identity(), notes={})
    state = {"params": params, "optimizer": {"mu": jnp.ones(3)}}
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(meta, {"state": state})
    checkpoints.settle()
    return params


def test_weights_are_those_of_the_run_s_newest_checkpoint(here):
    run, said = run_of(), []
    saved = save_run(here / "run", run)
    params, version = ask.weights(run, here / "run", said.append)
    assert version == 7
    assert said == [f"the weights of {here / 'run'}, step 7"]
    for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
        assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim)


def test_without_a_run_they_are_the_config_s_own_and_called_untrained(here):
    run, said = run_of(), []
    params, version = ask.weights(run, None, said.append)
    assert version == 0
    (told,) = said
    assert "untrained" in told
    initial = run.initial_params()
    np.testing.assert_array_equal(np.asarray(params["embed"]), np.asarray(initial["embed"]))


def test_another_network_is_refused_and_other_problems_are_not(here):
    save_run(here / "run", run_of())
    with pytest.raises(UserError, match="model width was 16 and is now 32"):
        ask.weights(run_of(("model.shape.width", "32")), here / "run", print)
    _, version = ask.weights(run_of(("data.digits", "3"), ("seed", "3")), here / "run", print)
    assert version == 7


@pytest.mark.parametrize(
    "overrides, is_told",
    [
        ([("data.heldout_percent", "20")], True),
        ([("data.heldout_percent", "4")], False),
        ([("data.heldout_percent", "20"), ("data.digits", "3")], False),
    ],
    ids=["more held out than then", "less", "other problems"],
)
def test_problems_the_run_was_trained_on_are_told(overrides, is_told, here):
    save_run(here / "run", run_of())
    said = []
    ask.weights(run_of(*overrides), here / "run", said.append)
    assert any("trained on" in told for told in said) == is_told


def test_held_out_problems_are_answered_and_judged_as_shown(here, capsys):
    assert main(["sample", "tiny.toml", "--count", "3", "--json", "answers.json"]) == 0
    out, err = capsys.readouterr()
    assert "untrained weights" in err
    rows = json.loads((here / "answers.json").read_text())["rows"]
    heldout = [prompt.problem for prompt in run_of().heldout(3)]
    assert [row["id"] for row in rows] == [problem.id for problem in heldout]
    for row, problem in zip(rows, heldout, strict=True):
        assert problem.question in row["prompt"]
        assert row["verdict"].startswith("wrong: ")  # an untrained network does not think
        assert row["reward"] == 0.0
        assert 0 < row["tokens"] <= 6
        assert row["logprob"] < 0
        assert ask.as_text(row) in out
    assert out.count("--- completion") == 3


def test_more_problems_than_are_held_out_are_refused_by_the_name_of_the_option(here, capsys):
    assert main(["sample", "tiny.toml", "--count", "9", "--data.digits", "1"]) == 2
    assert "--count is 9, but data.heldout_percent" in capsys.readouterr().err


def test_a_question_of_one_s_own_is_answered_and_not_judged(here, capsys):
    question = ["--question", "2+3=?", "--count", "3", "--json", "answers.json"]
    assert main(["sample", "tiny.toml", *question]) == 0
    rows = json.loads((here / "answers.json").read_text())["rows"]
    assert len(rows) == 3
    for row in rows:
        assert "2+3=?" in row["prompt"]
        assert row["reward"] is None
        assert "no reference answer" in row["verdict"]
    assert len({row["completion"] for row in rows}) > 1, "three draws, not one drawn thrice"


def test_terminal_codes_of_a_completion_are_shown_and_not_sent(capsys):
    assert ask.printable("a\x1b[2Jb\nc\td\r") == "a\\x1b[2Jb\nc\\td\\r"


def test_eval_prints_and_writes_what_it_measured(here, capsys):
    options = ["--top-k", "5", "--top-p", "0.9", "--json", "found.json"]
    assert main(["eval", "tiny.toml", *options]) == 0
    out, err = capsys.readouterr()
    found = json.loads((here / "found.json").read_text())
    assert out.splitlines()[0] == found["title"]
    assert "top-k 5, top-p 0.9" in found["title"]
    (row,) = found["rows"]
    assert (row["problems"], row["samples"], row["errored"]) == (3, 2, 0)
    assert (row["pass@1"], row["format"]) == (0.0, 0.0)
    assert 0 < row["length"] <= 6
    assert "untrained weights" in err
    assert "untrained" not in out


def test_eval_samples_as_told(here, monkeypatch, capsys):
    asked = {}

    def scripted(scheduler, judge, prompts, *, samples, timeout_s, on_step):
        asked.update(sampler=scheduler.sampler, ids=[p.problem.id for p in prompts])
        asked.update(samples=samples, version=scheduler.version)
        found = Evaluation(
            accuracy=0.25,
            accuracy_ci95=(0.125, 0.5),
            format=0.75,
            length=3.5,
            truncated=0.0625,
            problems=len(prompts),
            samples=samples,
            errored=1,
        )
        return found, []

    monkeypatch.setattr(ask, "evaluate", scripted)
    save_run(here / "run", run_of())
    sampling = ["--top-k", "3", "--top-p", "0.5", "--eval.temperature", "0.3"]
    assert main(["eval", "tiny.toml", "--run-dir", "run", "--json", "f.json", *sampling]) == 0
    sampler = asked["sampler"]
    assert (sampler.temperature, sampler.top_k, sampler.top_p) == (0.3, 3, 0.5)
    assert asked["ids"] == [prompt.problem.id for prompt in run_of().heldout(3)]
    assert (asked["samples"], asked["version"]) == (2, 7)
    (row,) = json.loads((here / "f.json").read_text())["rows"]
    assert row == {
        "pass@1": 0.25,
        "95% low": 0.125,
        "95% high": 0.5,
        "format": 0.75,
        "length": 3.5,
        "truncated": 0.0625,
        "problems": 3,
        "samples": 2,
        "errored": 1,
    }
