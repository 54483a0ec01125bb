"""`bench train`: the step it times is the trainer's, and its figures are those of its lines."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from magistral_jax.__main__ import main
from magistral_jax.model.params import abstract
from magistral_jax.tools import bench_train
from magistral_jax.tools.bench_train import (
    Asked,
    Measured,
    minibatch_of,
    rows_of,
    run_of,
    shapes,
    weights_of,
)
from magistral_jax.tools.peers import common
from magistral_jax.tools.peers.common import measure_train_peer
from magistral_jax.types import UserError

from .tiny import OPTIONS, tiny_config

ASKED = Asked(
    model="random",
    rows=((8, 5),),
    microbatch_tokens=16,
    dtypes=("f32",),
    remat=False,
    threads=1,
    peers=(),
    peer_python="",
    repeats=2,
)


def run_with(asked):
    return run_of(tiny_config(), asked, "float32")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A process that has been kept to one processor stays so.
    monkeypatch.setattr(bench_train, "use_threads", lambda count: None)
    return tmp_path


def test_the_table_has_a_line_for_each_dtype_and_shape(here, capsys):
    command = "bench train --model random --rows 8x4,16x2 --dtype bf16,f32 --repeats 2"
    arguments = [*command.split(), "--json", "a.json", *OPTIONS]
    assert main(arguments) == 0
    rows = json.loads((here / "a.json").read_text())["rows"]
    found = [(row["who"], row["dtype"], row["rows"]) for row in rows]
    assert found == [("ours", d, s) for d in ("bf16", "f32") for s in ("8x4", "16x2")]
    for row in rows:
        T, B = map(int, row["rows"].split("x"))
        assert row["tokens/s"] == pytest.approx(T * B / row["s/step"])
        assert row["min"] <= row["tokens/s"] <= row["max"]
        assert row["padding %"] == 0 and row["ours/peer"] == "" and row["products %"] > 0
    assert "of products' rate" in capsys.readouterr().out


def test_rows_are_cut_into_microbatches_and_weigh_alike():
    run = run_with(ASKED)
    rows = rows_of(run, (8, 5), ASKED)
    assert rows.microbatch_rows == 2
    minibatch = minibatch_of(rows)
    assert [len(m.inputs) for m in minibatch.microbatches] == [2, 2, 1]
    assert sum(m.shares.sum() for m in minibatch.microbatches) == pytest.approx(1.0)
    inputs = np.concatenate([m.inputs for m in minibatch.microbatches])
    targets = np.concatenate([m.targets for m in minibatch.microbatches])
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])


def test_weights_are_those_of_the_network():
    arch = run_with(ASKED).arch
    count = 0
    for name, spec in abstract(arch)["layers"].items():
        count += 0 if "norm" in name else int(np.prod(spec.shape))
    assert weights_of(arch) == count + arch.width * arch.vocab


def test_flops_are_held_against_the_rate_of_the_products():
    line = Measured(
        who="ours",
        dtype="f32",
        shape=(100, 2),
        seconds=[2.0, 4.0, 8.0],
        flops=6e9,
        products_s=1.0,
        weight_flops=4e9,
    )
    cells = dict(zip(bench_train.COLUMNS, line.cells(), strict=True))
    assert (cells["tokens/s"], cells["min"], cells["max"]) == (50.0, 25.0, 100.0)
    assert cells["GFLOP/s"] == pytest.approx(1.5)
    assert cells["of products' rate %"] == pytest.approx(100 * 1.5 / 4)
    assert cells["products %"] == pytest.approx(25.0)


def test_shapes_are_read_from_words():
    assert shapes("256x16,1024x8") == ((256, 16), (1024, 8))
    for text in ("256", "256x", "0x4", "2x3x4", "ax2", ""):
        with pytest.raises(UserError, match=f"--rows is '{text}'"):
            shapes(text)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"dtypes": ("fp8",)}, "--dtype is 'fp8'; it must be among bf16, f32"),
        ({"peers": ("tf",)}, "--peer is 'tf'; it must be among torch"),
        ({"repeats": 0}, "--repeats is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, told):
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        replace(ASKED, **change)


PEER = """
import json, sys
import numpy as np
found = np.load(sys.argv[2])
assert found["tokens"].shape == (5, 9) and int(found["microbatch_rows"]) == 2
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
assert options == {"--dtype": "f32", "--threads": "1", "--repeats": "2"}, options
print(json.dumps([[1.0, 3.0, 2.0], 1e9]))
"""


def test_a_peer_is_given_the_same_rows(tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    monkeypatch.setitem(common.TRAIN_PEERS, "torch", str(script))
    rows = rows_of(run_with(ASKED), (8, 5), ASKED)
    found = measure_train_peer(
        "torch", tmp_path, rows, dtype="f32", threads=1, repeats=2, python=sys.executable
    )
    assert found == ([1.0, 3.0, 2.0], 1e9)


def test_a_peer_that_is_not_installed_is_named(here, capsys):
    command = "bench train --model random --rows 8x2 --dtype f32 --repeats 1 --peer torch"
    assert main([*command.split(), "--peer-python", "/bin/false", *OPTIONS]) != 0
    assert "--peer torch cannot be measured" in capsys.readouterr().err
