"""`bench decode`: what it times is what was asked for, and its ratios are those of its lines."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from magistral_jax.__main__ import main
from magistral_jax.tools import bench_decode
from magistral_jax.tools.bench_decode import Asked, Measured, compare, requests_of, run_of
from magistral_jax.tools.peers import common
from magistral_jax.tools.peers.common import Requests, measure_peer
from magistral_jax.types import UserError

from .tiny import OPTIONS, tiny_config

ASKED = Asked(
    model="random",
    concurrency=(2,),
    prompt_tokens=5,
    new_tokens=6,
    dtypes=("f32",),
    lengths="equal",
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
    monkeypatch.setattr(bench_decode, "use_threads", lambda count: None)
    return tmp_path


def test_the_table_has_a_line_for_each_dtype_and_concurrency(here, capsys):
    command = "bench decode --model random --concurrency 1,3 --prompt-tokens 5 --new-tokens 6"
    arguments = [*command.split(), "--dtype", "bf16,f32", "--repeats", "2", "--json", "a.json"]
    assert main([*arguments, *OPTIONS]) == 0
    rows = json.loads((here / "a.json").read_text())["rows"]
    found = [(row["who"], row["dtype"], row["at once"]) for row in rows]
    assert found == [("ours", d, n) for d in ("bf16", "f32") for n in (1, 3)]
    for row in rows:
        assert 0 < row["min"] <= row["tokens/s"] <= row["max"]
        assert row["ms/step"] > 0 and 0 < row["host %"] < 100 and row["of ceiling %"] > 0
        assert row["occupancy %"] == 100
    assert "prompts of 5 tokens, 6 new tokens" in capsys.readouterr().out


def test_skewed_lengths_have_the_mean_asked_for_and_a_long_tail():
    asked = replace(ASKED, lengths="skewed")
    lengths = requests_of(asked, run_with(asked), 500).lengths
    assert len(lengths) == 4000 and lengths.min() >= 1 and lengths.max() == 512
    assert 58 < lengths.mean() < 67 and np.median(lengths) < 45


def test_slots_are_refilled_while_requests_wait(here):
    asked = replace(ASKED, lengths="skewed", concurrency=(4,))
    run = run_with(asked)
    requests = requests_of(asked, run, 4)
    requests = replace(requests, lengths=np.minimum(requests.lengths, 40))
    snapshot = run.published(run.initial_params(), 0)
    found = bench_decode.measure_ours(run, snapshot, requests, asked)
    assert found.occupancy is not None and 0.8 < found.occupancy < 1


def test_ratios_are_to_the_best_line_of_the_other_side():
    lines = [
        Measured(who="ours", dtype="bf16", at_once=8, rates=[300.0, 299.0, 301.0]),
        Measured(who="ours", dtype="f32", at_once=8, rates=[200.0]),
        Measured(who="ours", dtype="f32", at_once=1, rates=[50.0]),
        Measured(who="transformers", dtype="bf16", at_once=8, rates=[100.0]),
        Measured(who="transformers", dtype="f32", at_once=8, rates=[80.0]),
    ]
    compare(lines)
    assert [line.ratio for line in lines] == [3.0, 2.0, None, 3.0, 3.75]


def test_a_peer_is_given_the_requests_and_its_rates_are_read(tmp_path, monkeypatch):
    (tmp_path / "peer.py").write_text(
        "import json, sys, numpy as np\n"
        "with np.load(sys.argv[2]) as found:\n"
        "    print('a word from a library')\n"
        "    print(json.dumps([float(found['lengths'].sum()), float(found['prompts'].size)]))\n"
    )
    monkeypatch.setitem(common.PEERS, "peer", str(tmp_path / "peer.py"))
    requests = Requests(
        prompts=np.ones((3, 5), np.int32), lengths=np.array([4, 5, 6], np.int32), at_once=2
    )
    options = {"dtype": "f32", "threads": 1, "repeats": 1, "python": sys.executable}
    assert measure_peer("peer", tmp_path, requests, **options) == [15.0, 15.0]
    (tmp_path / "peer.py").write_text("raise ImportError('there is no such engine')")
    with pytest.raises(UserError, match=r"--peer peer .*no such engine.*--peer-python"):
        measure_peer("peer", tmp_path, requests, **options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "fp8"], "--dtype is 'fp8'; it must be among bf16, f32"),
        (["--peer", "vllm"], "--peer is 'vllm'; it must be among transformers, llama.cpp"),
        (["--new-tokens", "0"], "--new-tokens is 0; it must be at least 1"),
        (["--threads", "4000"], "--threads is 4000, and this process may use"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(arguments, said, capsys):
    assert main(["bench", "decode", "--model", "random", *arguments]) == 2
    assert said in capsys.readouterr().err
