"""Each fault, planted in the accounts of a run that is sound otherwise, is found and named."""

import gzip
import json
from copy import deepcopy
from types import SimpleNamespace

import pytest

from magistral_jax.checkpoint import Meta
from magistral_jax.settings import load
from magistral_jax.tools import audit as module
from magistral_jax.tools.audit import audit, audited, by_quarter, diverse, handed_out
from magistral_jax.types import RunFailed

G, P, STEPS = 2, 2, 2
HELD_OUT, UNIFORM = 3, 1
# Positions 0..9: 3 is held out, 1 is uniform, batches are (0, 2) and (4, 5); 6 is judged and waits,
# of 7 one completion is finished, 8 has drafts, 9 one draft and one that waits.


def rows_of(group, rewards=(0.0, 1.0), length=10):
    return [
        {"group": group, "index": i, "reward": r, "outcome": "wrong", "length": length + group}
        for i, r in enumerate(rewards)
    ]


def entry(group, *indices, is_whole=False):
    completions = [{"index": i} for i in indices]
    return {"prompt": [group, f"p{group}", 3], "is_whole": is_whole, "completions": completions}


def draft(group, index):
    return {"prompt": [group, f"p{group}", 3], "index": index}


@pytest.fixture
def run():
    """The accounts of a sound run; tests spoil them."""
    rows = [row for g in (0, 2, 4, 5, 6) for row in rows_of(g)] + rows_of(UNIFORM, (1.0, 1.0))
    ends = [(0, 2), (4, 5)]
    return SimpleNamespace(
        rows=rows,
        metrics=[
            {"step": step, "batch/first_group": float(a), "batch/last_group": float(b)}
            | {"progress/completions": 4.0 + 8.0 * (step - 1)}
            for step, (a, b) in enumerate(ends, 1)
        ],
        frontier={
            "queue": {
                "next": 10,
                "entries": [entry(6, 0, 1, is_whole=True), entry(7, 1), entry(8), entry(9)],
                "judged": [],
                "strikes": {},
            },
            "in_flight": {
                "drafts": [draft(7, 0), draft(8, 0), draft(8, 1), draft(9, 0)],
                "waiting": [{"prompt": [9, "p9", 3], "next_index": 1, "count": 2}],
            },
        },
        given={g: f"p{g}" for g in range(10) if g != HELD_OUT},
    )


def audited_(run):
    return audited(
        run.rows, run.metrics, run.frontier, run.given,
        group_size=G, groups_per_batch=P, steps=STEPS,
    )  # fmt: skip


def faults(run):
    found = audited_(run)
    names = ("skipped", "twice", "strangers", "bad_steps", "miscounted")
    return {name: value for name in names if (value := getattr(found, name))}


def test_a_sound_run_has_no_fault(run):
    assert faults(run) == {}
    assert audited_(run).handed_out == 9


def test_a_prompt_that_is_nowhere_was_skipped(run):
    run.given[10] = "p10"
    assert faults(run) == {"skipped": (10,)}


@pytest.mark.parametrize(
    ("part", "place", "group"), [("drafts", 0, 7), ("drafts", 2, 8), ("waiting", 0, 9)]
)
def test_one_lost_completion_is_a_skipped_prompt(run, part, place, group):
    del run.frontier["in_flight"][part][place]
    assert faults(run) == {"skipped": (group,)}


def test_a_finished_completion_lost_from_its_open_group_is_found(run):
    run.frontier["queue"]["entries"][1]["completions"] = []
    assert faults(run) == {"skipped": (7,)}


def test_a_row_written_twice_is_found(run):
    run.rows.append(deepcopy(run.rows[-1]))
    assert faults(run) == {"twice": (UNIFORM,), "miscounted": 1}


def test_a_row_lost_from_the_record_is_found(run):
    run.rows.pop()
    assert faults(run) == {"skipped": (UNIFORM,), "miscounted": 1}


def test_a_prompt_both_recorded_and_on_its_way_is_found(run):
    run.frontier["in_flight"]["drafts"].append(draft(2, 0))
    assert faults(run) == {"twice": (2,)}


def test_a_completion_too_many_is_found(run):
    run.frontier["in_flight"]["drafts"].append(draft(8, G))
    assert faults(run) == {"twice": (8,)}


def test_what_no_stream_handed_out_is_found(run):
    run.frontier["in_flight"]["drafts"] += [draft(HELD_OUT, 0), draft(11, 0)]
    assert faults(run) == {"strangers": (HELD_OUT, 11)}


def test_a_group_trained_twice_is_found(run):
    run.metrics[1]["batch/first_group"] = 2.0
    assert faults(run) == {"twice": (2,), "bad_steps": (2,)}


def test_a_trained_group_that_waits_to_be_trained_again_is_found(run):
    run.frontier["queue"]["entries"].insert(0, entry(5, 0, 1, is_whole=True))
    assert faults(run) == {"twice": (5,)}


def test_a_group_that_training_passed_over_is_found(run):
    run.frontier["queue"]["entries"].pop(0)
    assert faults(run) == {"skipped": (6,)}
    run.metrics[1] |= {"batch/first_group": 5.0, "batch/last_group": 6.0}
    assert faults(run) == {"skipped": (4,)}


def test_a_batch_that_begins_with_an_uniform_group_is_found(run):
    run.metrics[0]["batch/last_group"] = 3.0
    assert faults(run) == {"bad_steps": (1,)}


def test_rows_of_metrics_come_once_each(run):
    run.metrics.append(deepcopy(run.metrics[1]))
    assert faults(run) == {"twice": (4, 5), "bad_steps": (2,)}
    run.metrics[2:] = []
    run.metrics[1]["step"] = 3
    assert faults(run) == {"bad_steps": (2, 3)}


def test_what_was_set_aside_is_no_fault(run):
    run.given[10] = "broken"
    run.frontier["queue"]["strikes"] = {"broken": 2}
    assert faults(run) == {}
    run.frontier["queue"]["strikes"] = {"broken": 1}
    assert faults(run) == {"skipped": (10,)}


def test_judged_but_not_yet_recorded_is_no_fault(run):
    run.rows = [row for row in run.rows if row["group"] != UNIFORM]
    run.metrics[-1]["progress/completions"] -= G
    run.frontier["queue"]["judged"] = [entry(UNIFORM, 0, 1, is_whole=True)]
    assert faults(run) == {}


def test_errors_make_no_group_diverse():
    rows = rows_of(0, (0.0, 0.0, 1.0))
    assert diverse(rows) == {0}
    rows[2]["outcome"] = "error"
    assert diverse(rows) == set()


def test_quarters_are_of_the_groups_mean_lengths(run):
    lengths = audited_(run).mean_lengths
    assert lengths == {g: 10.0 + g for g in (0, 1, 2, 4, 5, 6)}
    assert by_quarter(lengths, lengths) == (2, 1, 2, 1, 0)
    assert by_quarter([0, 6, 6, 99], lengths) == (1, 0, 0, 2, 1)
    long_first = {g: 100.0 - g for g in range(8)}
    assert by_quarter([0, 1], long_first) == (0, 0, 0, 2, 0)
    assert by_quarter([0, 1, 7], dict.fromkeys(range(8), 5.0)) == (2, 0, 0, 1, 0)
    assert by_quarter([3], {}) == (0, 0, 0, 0, 1)


CONFIG = """
name = "tiny"
data = {digits = 1, max_prompt_tokens = 8, heldout_percent = 50}
generator = {group_size = 2, in_flight = 4}
batch = {completions = 4}
trainer = {steps = 2}
"""


def test_a_folder_is_read_and_compared_with_the_stream(tmp_path, monkeypatch, run):
    (tmp_path / "tiny.toml").write_text(CONFIG)
    config = load(tmp_path / "tiny.toml")
    given = handed_out(config, 40)
    assert 5 < len(given) < 35, "half of the problems are held out"
    assert list(given) == sorted(given)
    # The sound run again, at the positions that this stream gives.
    at = dict(zip(run.given, given, strict=False))
    as_written = [
        {**row, "group": at[row["group"]], "tokens": [1] * row["length"]} for row in run.rows
    ]
    with gzip.open(tmp_path / "completions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in as_written)
    for row in run.metrics:
        row |= {f"batch/{end}_group": at[row[f"batch/{end}_group"]] for end in ("first", "last")}
    lines = [json.dumps(row) + "\n" for row in run.metrics]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    queue, in_flight = run.frontier["queue"], run.frontier["in_flight"]
    for holder in (*queue["entries"], *in_flight["drafts"], *in_flight["waiting"]):
        holder["prompt"] = [at[holder["prompt"][0]], "p", 3]
    queue["next"] = at[9] + 1
    saved = Meta(step=2, identity={}, notes={}, frontier=run.frontier)
    monkeypatch.setattr(module.Checkpoints, "latest", lambda self: saved)
    found = audit(config, tmp_path)
    assert (found.skipped, found.twice, found.strangers, found.bad_steps) == ((), (), (), ())
    assert found.handed_out == 9

    queue["next"] = at[9] + 20
    assert audit(config, tmp_path).skipped == tuple(g for g in given if at[9] < g < at[9] + 20)


@pytest.mark.parametrize("saved", [None, Meta(step=1, identity={}, notes={})])
def test_a_run_that_is_not_over_is_refused(tmp_path, monkeypatch, saved):
    (tmp_path / "tiny.toml").write_text(CONFIG)
    monkeypatch.setattr(module.Checkpoints, "latest", lambda self: saved)
    with pytest.raises(RunFailed, match=r"no checkpoint of step 2: "):
        audit(load(tmp_path / "tiny.toml"), tmp_path)
