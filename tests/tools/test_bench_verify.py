"""The table of verdicts says what was timed; its pairs are what they are said to be."""

import json

import pytest

from magistral_jax.__main__ import main
from magistral_jax.tools import bench_verify
from magistral_jax.verifier.math.equal import same_answer


@pytest.mark.parametrize("pairs", [bench_verify.numbers(), bench_verify.formulas()])
def test_the_pairs_are_what_they_are_said_to_be(pairs):
    assert [same_answer(gold, answer) for gold, answer, _ in pairs] == [same for *_, same in pairs]
    assert 0.3 < sum(same for *_, same in pairs) / len(pairs) < 0.7
    assert len({answer for _, answer, _ in pairs}) > 0.9 * len(pairs)


def test_every_part_is_measured(tmp_path, monkeypatch, capsys):
    pytest.importorskip("math_verify")
    for name, value in (("RUNS", 1), ("NUMBERS", 40), ("FORMULAS", 24), ("PROGRAMS", 2)):
        monkeypatch.setattr(bench_verify, name, value)
    assert main(["bench", "verify", "--workers", "1", "--json", str(tmp_path / "v.json")]) == 0
    rows = {r["what"]: r for r in json.loads((tmp_path / "v.json").read_text())["rows"]}
    out = capsys.readouterr().out
    assert all(what in out for what in rows)
    assert {"boxed numbers", "mixed LaTeX", "Python tests"} <= set(rows)
    for name in ("boxed numbers", "mixed LaTeX"):
        bare, ratio = rows[f"{name}, bare math-verify"], rows[f"{name}, ratio"]
        assert ratio["median"] == pytest.approx(rows[name]["median"] / bare["median"], rel=0.01)
    if "C++ compile, without" in rows:
        with_header = rows["C++ compile, with precompiled header"]["median"]
        assert rows["C++ compile, ratio of medians"]["median"] == pytest.approx(
            with_header / rows["C++ compile, without"]["median"]
        )


def test_verdicts_that_are_wrong_are_not_timed(monkeypatch):
    from magistral_jax.config import VerifierConfig

    with pytest.raises(RuntimeError, match="1 verdicts are wrong, the first on"):
        bench_verify.math_rate(VerifierConfig(), [("1", "1", True), ("1", "2", True)])
