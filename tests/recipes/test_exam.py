"""Evaluation beside training: one version, the figures of an evaluation by itself, no waiting."""

from concurrent.futures import Future
from dataclasses import replace

import jax
import numpy as np
import pytest

from magistral_jax import run as run_module
from magistral_jax.evaluate import evaluate
from magistral_jax.run import train
from magistral_jax.session import FINISHED
from magistral_jax.types import Stalled, Verdict
from tests.test_resume import rows_of, samples_of
from tests.test_stages import CONFIG, Staged

EVAL = replace(CONFIG.eval, problems=5, samples=2, every=2, slots=4)
PLAIN = replace(CONFIG, stage=(), eval=EVAL)


@pytest.fixture(scope="module")
def run():
    made = Staged(PLAIN)
    yield made
    made.close()


@pytest.fixture(scope="module")
def snapshots(run):
    params = run.initial_params()
    other = jax.tree.map(lambda x: x * 1.1, params)
    return run.published(params, 4), run.published(other, 5)


def played(exam):
    for _ in range(10_000):
        found = exam.step()
        if not exam.is_running:
            return found
    raise AssertionError("it did not end")


def test_its_figures_are_those_of_an_evaluation_by_itself(run, snapshots):
    exam = run.exam()
    exam.start(snapshots[0])
    found = played(exam)
    prompts = run.heldout(5)
    wanted, answers = evaluate(
        run.evaluation(snapshots[0]), run.judge, prompts, samples=2, timeout_s=60.0
    )
    assert found["eval/version"] == 4.0
    assert found["eval/accuracy"] == wanted.accuracy
    assert (found["eval/low"], found["eval/high"]) == wanted.accuracy_ci95
    assert found["eval/length"] == pytest.approx(wanted.length)
    assert exam.tokens == sum(len(c.tokens) for group, _ in answers for c in group)
    # Other weights answer otherwise: the version matters.
    exam.start(snapshots[1])
    assert played(exam) != found | {"eval/version": 5.0}


def test_the_run_s_own_swap_does_not_reach_it(run, snapshots):
    generator = run.sampling(snapshots[0])
    exam = run.exam()
    exam.start(snapshots[0])
    exam.step()
    generator.swap(snapshots[1])
    assert played(exam)["eval/version"] == 4.0


def test_it_does_not_wait_for_a_verdict_and_says_who_keeps_it(run, snapshots, monkeypatch):
    exam = run.exam()
    late: list[Future] = []

    def never(prompt, completion):
        late.append(Future())
        return late[-1]

    monkeypatch.setattr(exam, "_judge", never)
    monkeypatch.setattr(exam, "_stall_s", 0.2)
    exam.start(snapshots[0])
    with pytest.raises(Stalled, match=r"the evaluation waited 0\.2 s for 10 verdicts"):
        played(exam)
    monkeypatch.setattr(exam, "_waited_s", 0.0)
    assert exam.step() is None and exam.is_running
    for future in late:
        future.set_result(Verdict(reward=1.0, parts={"format": 0.1}, reason="pass"))
    assert exam.step()["eval/accuracy"] == 1.0 and not exam.is_running


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_run_is_measured_every_so_many_updates_and_learns_the_same(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "Run", Staged)
    config = replace(PLAIN, mode=mode, trainer=replace(PLAIN.trainer, steps=8))
    assert train(config, tmp_path / "with", resume=False) == FINISHED
    rows = rows_of(tmp_path / "with")
    versions = [row["eval/version"] for row in rows if "eval/version" in row]
    assert versions and all(version % 2 == 0 for version in versions)
    assert versions == sorted(set(versions))
    assert all(0 <= row["eval/accuracy"] <= 1 for row in rows if "eval/version" in row)
    if mode == "async":
        return
    # In the specification nothing else changes: the same completions, the same losses.
    assert versions == [2.0, 4.0, 6.0, 8.0]
    without = replace(config, eval=replace(EVAL, every=0))
    assert train(without, tmp_path / "without", resume=False) == FINISHED
    assert samples_of(tmp_path / "with") == samples_of(tmp_path / "without")
    np.testing.assert_array_equal(
        [row["loss"] for row in rows], [row["loss"] for row in rows_of(tmp_path / "without")]
    )
