"""The table of what kills cost: every claim has a rule, and what breaks it is said in a line."""

from dataclasses import replace

import pytest

from magistral_jax.tools.audit import Audit
from magistral_jax.tools.toll import COLUMNS, Row, Toll, difference, rows_of

LENGTHS = {g: float(g) for g in range(8)}
CLEAN = Audit(handed_out=8, mean_lengths=LENGTHS)


def summary(accuracy=0.6, low=0.5, high=0.7, lost=3.0):
    return {
        "accuracy_after": accuracy,
        "accuracy_after_ci95": [low, high],
        "ledger_s": {"lost": lost},
    }


@pytest.fixture
def toll():
    return Toll(
        kills=["process", "verifier", "push", "process", "checkpoint"],
        audits=[CLEAN, CLEAN, CLEAN],
        summaries=[summary(lost=99.0), summary(), summary(lost=5.0)],
        resumed_s=[2.0, 3.0, 7.0],
        flips_due=2,
        flips_found=[True, True],
    )


def shown(toll):
    return {row.what: row for row in rows_of(toll)}


def faults(toll):
    return [row.fault for row in rows_of(toll) if row.fault]


def test_a_sound_run_breaks_no_rule(toll):
    assert faults(toll) == []
    rows = shown(toll)
    assert [rows[what].killed for what in list(rows)[:4]] == [2, 1, 1, 1]
    assert (rows["runs"].peace, rows["runs"].killed) == (1, 2)
    assert (rows["prompts handed out"].peace, rows["prompts handed out"].killed) == (8, 16)
    assert rows["prompts recorded"].quarters == (4, 4, 4, 4, 0)
    assert rows["device-seconds lost per kill of the whole process"].killed == 2.0
    ends = {what: row.killed for what, row in rows.items() if "next token" in what}
    assert list(ends.values()) == [4.0, 3.0, 7.0]
    assert all(len(row.cells) == len(COLUMNS) for row in rows.values())


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ({"skipped": (7, 99)}, "prompts skipped"),
        ({"twice": (7, 99)}, "prompts counted twice"),
        ({"strangers": (7, 99)}, "prompts never handed out"),
        ({"bad_steps": (3, 4)}, "updates without one row and one batch"),
        ({"miscounted": 2}, "completions miscounted"),
    ],
)
def test_what_an_audit_finds_is_a_fault_with_its_length(toll, fault, what):
    spoilt = replace(CLEAN, **fault)
    under_kills = replace(toll, audits=[CLEAN, CLEAN, spoilt])
    assert faults(under_kills) == [f"{what}, under kills: 2, and it must be 0"]
    has_lengths = what.startswith("prompts")
    assert shown(under_kills)[what].quarters == ((0, 0, 0, 1, 1) if has_lengths else ())
    in_peace = replace(toll, audits=[spoilt, CLEAN, CLEAN])
    assert faults(in_peace) == [f"{what}, in peace: 2, and it must be 0"]


def test_a_damaged_checkpoint_that_was_believed_is_a_fault(toll):
    believed = replace(toll, flips_found=[True, False, True])
    assert faults(believed) == ["damaged weights accepted, under kills: 1, and it must be 0"]


def test_nothing_is_shown_by_flips_that_were_not_made(toll):
    few = replace(toll, flips_found=[True])
    assert faults(few) == ["bits flipped in a checkpoint, under kills: 1, and it must be >= 2"]


def test_only_a_loss_beyond_chance_is_a_fault(toll):
    def with_accuracy(accuracy):
        killed = summary(accuracy, accuracy - 0.1, accuracy + 0.1)
        return replace(toll, summaries=[summary(lost=0.0), killed, killed])

    # Half of the interval is 0.1 * sqrt(1 + 1/2) = 0.122, the second run halving its variance.
    assert faults(with_accuracy(0.48)) == []
    (fault,) = faults(with_accuracy(0.47))
    assert fault.startswith("high end of the difference's 95% interval, under kills: -0.00752")
    assert faults(with_accuracy(0.9)) == []


def test_an_interval_cut_off_at_one_is_as_wide_as_its_other_side():
    found, (low, high) = difference([summary(0.9, 0.6, 1.0)], [summary(0.5, 0.1, 0.9)])
    assert (found, low, high) == pytest.approx((-0.4, -0.9, 0.1))


def test_runs_that_differ_among_themselves_widen_the_interval():
    peace = summary(0.60, 0.59, 0.61)
    killed = [summary(a, a - 0.01, a + 0.01) for a in (0.5, 0.6, 0.7)]
    found, (low, high) = difference([peace], killed)
    # Student's t for two degrees of freedom is 4.303; the runs' standard deviation is 0.1.
    assert found == pytest.approx(0.0)
    assert (low, high) == pytest.approx((-0.4968, 0.4968), abs=1e-3)
    assert difference(killed, [peace])[1] == pytest.approx((low, high))
    alike = [summary(0.6, 0.59, 0.61)] * 3
    assert difference([peace], alike)[1] == pytest.approx((-0.01155, 0.01155), abs=1e-4)
    # Four degrees of freedom, 2.776, and the spread of both: 0.1 sqrt(2/3).
    assert difference(killed, killed)[1] == pytest.approx((-0.2267, 0.2267), abs=1e-3)


def test_without_evaluations_no_accuracy_is_compared(toll):
    bare = replace(toll, summaries=[{"ledger_s": {"lost": 0.0}}] * 3)
    assert not any("accuracy" in row.what for row in rows_of(bare))
    assert faults(bare) == []


def test_only_verifiers_killed_costs_no_seconds(toll):
    rows = shown(replace(toll, kills=["verifier"], resumed_s=[], flips_due=0, flips_found=[]))
    assert not any("seconds" in what for what in rows)


@pytest.mark.parametrize(
    ("ends", "rule", "good", "bad"),
    [
        ({"is_zero": True}, "0", 0, 1),
        ({"is_zero": True}, "0", 0, -1),
        ({"at_least": 2}, ">= 2", 2, 1),
    ],
)
def test_a_rule_is_shown_and_kept(ends, rule, good, bad):
    assert Row(what="x", killed=good, **ends).rule == rule
    assert Row(what="x", killed=good, **ends).fault == ""
    assert (
        Row(what="x", killed=bad, **ends).fault == f"x, under kills: {bad}, and it must be {rule}"
    )
    assert Row(what="x", **ends).fault == ""
