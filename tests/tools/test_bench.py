"""The table says what was timed, in the unit it says."""

import json

import jax
import numpy as np
import pytest

from magistral_jax.__main__ import main
from magistral_jax.build import Run
from magistral_jax.model.params import abstract, map_specs, unstack
from magistral_jax.settings import load
from magistral_jax.tools import bench

TINY = """
name = "tiny"
model.shape = {layers = 2, width = 16, heads = 4, kv_heads = 2, head_dim = 8, ffn = 16}
model.dtype = "bfloat16"
data = {digits = 1, max_prompt_tokens = 8}
generator = {group_size = 2, in_flight = 3, max_tokens = 5}
batch = {completions = 8, minibatch = 4, row_tokens = 16, rows = 2}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(bench, "BUDGET_S", 0.0)
    monkeypatch.setattr(bench, "CPU_MATMUL", 64)


@pytest.mark.full
def test_every_part_is_measured_and_the_numbers_agree_with_each_other(here, short, capsys):
    assert main(["bench", "tiny.toml", "--json", "speeds.json"]) == 0
    out, err = capsys.readouterr()
    rows = {r["what"]: r for r in json.loads((here / "speeds.json").read_text())["rows"]}
    assert list(rows) == [
        "matmul 64, float32",
        "matmul 64, bfloat16",
        "prefill",
        "decode step",
        "decode",
        "decode, host",
        "decode, weight products alone",
        "decode step / weight products",
        "push",
        "train step",
        "train",
    ]
    for what, r in rows.items():
        assert what in out
        assert 0 < r["min"] <= r["median"] <= r["max"], what
        assert r["runs"] >= 3
    step_ms = rows["decode step"]["median"]
    # Three slots give three tokens a step.
    assert rows["decode"]["median"] == pytest.approx(3 / (step_ms / 1e3))
    assert rows["decode, host"]["median"] / 1e3 <= step_ms
    products_ms = rows["decode, weight products alone"]["median"]
    ratio = rows["decode step / weight products"]["median"]
    assert ratio == pytest.approx(step_ms / products_ms)
    # Eight sequences of 8 + 5 tokens; the last one of each is only predicted.
    assert rows["train"]["median"] == pytest.approx(8 * 12 / rows["train step"]["median"])
    assert "measuring" in err


def test_the_call_that_compiles_is_not_timed(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(bench, "perf_counter", lambda: float(next(now)))
    calls = []
    seconds = bench.timed(lambda: calls.append(None))
    assert seconds == [1] * 3
    assert len(calls) == 4


def test_a_row_is_the_median_with_the_extremes_in_its_own_unit():
    found = bench.row("x", [0.1, 0.4, 0.2], "steps/s", lambda s: 1 / s)
    assert found == ("x", 5.0, 2.5, 10.0, "steps/s", 3)


def test_the_batch_is_full_and_has_the_config_s_shape(here):
    config = load("tiny.toml")
    batch = bench.full_batch(Run(config))
    assert len(batch.groups) == 4
    assert len(batch.minibatches) == 2
    for minibatch in batch.minibatches:
        trained = sum((m.shares > 0).sum() for m in minibatch.microbatches)
        assert trained == 4 * 5
        assert any(np.any(m.advantages != 0) for m in minibatch.microbatches)


def test_products_apply_every_weight(here):
    """A weight that is not read could not cost anything."""
    run, rng = Run(load("tiny.toml")), np.random.default_rng(0)
    tree = map_specs(lambda spec: rng.normal(size=spec.shape).astype("f4"), abstract(run.arch))
    params = unstack(tree, run.arch.layers)
    x = np.full((3, 16), 0.1, np.float32)
    before = bench.products(params, x, tied=True)
    assert before.shape == (3, run.arch.vocab)
    leaves, treedef = jax.tree.flatten(params)
    for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        changed = jax.tree.unflatten(
            treedef, [2 * w if i == j else w for j, w in enumerate(leaves)]
        )
        is_read = not np.array_equal(bench.products(changed, x, tied=True), before)
        assert is_read == ("norm" not in path[-1].key), jax.tree_util.keystr(path)
