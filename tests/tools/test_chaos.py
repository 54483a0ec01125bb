"""Kills strike where they are meant to, runs go on, and what does not hold is said.

A real run is killed by the test marked `full`, and by CI. Here the run is a stand-in that says and
writes what a run does, with faults that a run should not have.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path
from time import sleep

import pytest

from magistral_jax.__main__ import main
from magistral_jax.config import RunConfig
from magistral_jax.console import Console
from magistral_jax.tools import chaos as module
from magistral_jax.tools.audit import Audit
from magistral_jax.tools.chaos import KINDS, Campaign, Flip, Pace, planned, was_found
from magistral_jax.tools.victim import Victim, numbers, sealed

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

REPO = Path(__file__).resolve().parents[2]
CONFIG = """
name = "tiny"
data = {digits = 1, max_prompt_tokens = 8}
generator = {group_size = 2, in_flight = 4}
batch = {completions = 4}
trainer = {steps = 24}
checkpoint = {every = 4}
"""

STAND_IN = """
import hashlib, json, subprocess, sys, time
from pathlib import Path
from magistral_jax.pulse import Pulse

fault, folder = sys.argv[1], Path(sys.argv[5])
inside = folder / "checkpoints"
is_resumed = sys.argv[6:] == ["--resume"]
assert is_resumed == (folder / "config.toml").exists()
if fault == "fails" and is_resumed:
    sys.exit(3)
inside.mkdir(parents=True, exist_ok=True)
(folder / "config.toml").touch()

def digest(place):
    return hashlib.sha256((place / "data").read_bytes() + (place / "meta.json").read_bytes())

def is_whole(place):
    return (place / "seal").read_bytes() == digest(place).digest() or fault == "believes"

step = 0
for place in sorted(inside.glob("*"), key=lambda place: -int(place.name)):
    if (place / "seal").exists() and is_whole(place):
        text = (place / "meta.json").read_text("latin-1")
        step = min(int("0" + "".join(filter(str.isdigit, text))), 23)  # whatever was flipped in it
        print(f"resuming from step {step}", file=sys.stderr)
        break
    if fault != "is silent":
        print(f"checkpoint: {place} is damaged: so it is; there is another", file=sys.stderr)

pulse = Pulse(folder)
pulse.write(step=step, tokens=step)
name = "" if fault == "has no verifiers" else "magistral_jax.verifier.server"
worker = [sys.executable, "-c", "import sys; sys.stdin.read()", name]
workers = [subprocess.Popen(worker, stdin=subprocess.PIPE) for _ in range(2)]
for step in range(step + 1, 25):
    time.sleep(0.01)
    pulse.write(tokens=step, pushing=1)
    time.sleep(0.01)
    pulse.write(step=step, pushing=0)
    if step % 4 == 0:
        place = inside / str(max([int(p.name) for p in inside.iterdir()], default=-1) + 1)
        place.mkdir()
        (place / "meta.json").write_text(json.dumps({"step": step}))
        (place / "data").write_bytes(bytes(1000))
        time.sleep(0.03)
        (place / "draft").write_bytes(digest(place).digest())
        (place / "draft").rename(place / "seal")
rows = [json.dumps({"step": s, "time/step": 0.02}) + "\\n" for s in range(1, 25)]
(folder / "metrics.jsonl").write_text("".join(rows))
(folder / "summary.json").write_text(json.dumps({"ledger_s": {"lost": 6.0}}))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(CONFIG)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    clean = Audit(handed_out=8, mean_lengths={g: float(g) for g in range(8)})
    monkeypatch.setattr(module, "audit", lambda config, folder: clean)
    return tmp_path


@pytest.fixture
def at_kill(monkeypatch):
    """What each process was at when it was killed."""
    seen = []
    kill = Victim.kill

    def noting_kill(victim):
        moment = (victim.is_saving, victim.is_pushing)
        is_killed = kill(victim)
        if is_killed and (not seen or seen[-1][0] is not victim):
            seen.append((victim, moment))
        return is_killed

    monkeypatch.setattr(Victim, "kill", noting_kill)
    return seen


def play(monkeypatch, *, fault="none", kills=8, seed=0):
    command = (sys.executable, "stand_in.py", fault, "train")
    monkeypatch.setattr(module, "_TRAIN", command)
    arguments = ["chaos", "tiny.toml", "--run-dir", "out", "--json", "out.json"]
    return main([*arguments, "--kills", str(kills), "--chaos-seed", str(seed)])


def test_every_planned_kill_strikes_where_it_is_meant_to(here, monkeypatch, at_kill, capsys):
    assert play(monkeypatch) == 0
    out, err = capsys.readouterr()
    rows = {row["what"]: row for row in json.loads((here / "out.json").read_text())["rows"]}
    assert [row["under kills"] for row in list(rows.values())[:4]] == [2, 2, 2, 2]
    notes = [line for line in err.splitlines() if line.startswith("kill ")]
    assert [note.split()[1] for note in notes] == [f"{n}/8:" for n in range(1, 9)]

    whole = [note for note in notes if "verifier" not in note]
    assert len(whole) == len(at_kill) == 6
    for note, (_, (is_saving, is_pushing)) in zip(whole, at_kill, strict=True):
        if "in a checkpoint" in note:
            assert is_saving
        if "in a push" in note:
            assert is_pushing

    assert rows["bits flipped in a checkpoint"]["under kills"] == 2
    assert rows["damaged weights accepted"]["under kills"] == 0
    runs = sorted(path.name for path in (here / "out").glob("killed-*"))
    assert rows["runs"]["under kills"] == len(runs)
    assert rows["device-seconds lost per kill of the whole process"]["under kills"] == len(runs)
    assert 0.02 < rows["seconds from such a kill to the next token, mean"]["under kills"] < 10
    for name in ("peace", *runs):
        assert (here / "out" / name / "summary.json").exists(), "each is played to its end"
    assert "in 1 runs" in out or len(runs) > 1


def test_who_was_too_late_for_a_checkpoint_waits_for_the_next(here, monkeypatch, at_kill):
    monkeypatch.setattr(module, "planned", lambda kills, chance: ["checkpoint"])
    delays = iter([0.1])  # a checkpoint takes 0.03 s
    monkeypatch.setattr(module, "sleep", lambda seconds: sleep(next(delays, 0)))
    assert play(monkeypatch) == 0
    assert [moment for _, moment in at_kill] == [(True, False)]
    assert next(delays, None) is None


def test_flips_for_which_the_kills_left_no_occasion_are_made_at_the_end(here, monkeypatch, capsys):
    monkeypatch.setattr(Campaign, "_flip_is_due", lambda self: False)
    assert play(monkeypatch, kills=3) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "flipped" in line]
    assert len(notes) == 2
    rows = json.loads((here / "out.json").read_text())["rows"]
    (accepted,) = [row["under kills"] for row in rows if row["what"] == "damaged weights accepted"]
    assert accepted == 0


@pytest.mark.parametrize("fault", ["believes", "is silent"])
def test_a_run_that_believes_a_damaged_checkpoint_does_not_pass(here, monkeypatch, capsys, fault):
    assert play(monkeypatch, fault=fault, kills=3) == 1
    err = capsys.readouterr().err
    assert "chaos: damaged weights accepted, under kills: 2, and it must be 0\n" in err


def test_a_run_that_fails_by_itself_is_named_with_its_log(here, monkeypatch, capsys):
    assert play(monkeypatch, fault="fails") == 1
    err = capsys.readouterr().err
    assert "out/killed-1 ended by itself with exit code 3; its output is in out/logs/" in err


def test_a_kill_without_occasion_ends_it(here, monkeypatch, capsys):
    monkeypatch.setattr(module, "planned", lambda kills, chance: ["verifier"])
    assert play(monkeypatch, fault="has no verifiers") == 1
    assert "3 runs in a row ended before a kill in a verifier" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kills", "0"], "--kills is 0; it must be at least 1"),
        (["--checkpoint.keep", "1"], "checkpoint.keep is 1; chaos damages the newest"),
        (["--run-dir", "full"], "full is there already. Pass another --run-dir"),
        (["--run-dir", "tiny.toml"], "tiny.toml is there already. Pass another --run-dir"),
    ],
)
def test_what_cannot_be_shown_is_the_users_mistake(here, capsys, arguments, message):
    (here / "full").mkdir()
    (here / "full" / "something").touch()
    assert main(["chaos", "tiny.toml", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kills", [1, 4, 6, 50])
def test_every_kind_is_planned_as_often_as_the_others(kills):
    plan = planned(kills, random.Random(0))
    counts = Counter(plan)
    assert len(plan) == kills
    assert max(counts.values()) - min(counts[kind] for kind in KINDS) <= 1
    assert plan == planned(kills, random.Random(0))
    assert kills < 50 or plan != planned(kills, random.Random(1))


def test_a_flip_is_found_if_the_run_says_so_and_goes_on_from_the_checkpoint_before():
    flip = Flip(folder=Path("run"), number=7, step_before=20)
    said = "checkpoint: /run/checkpoints/7 is damaged: x changed; looking at 6\n"
    assert was_found(flip, "") is None
    assert was_found(flip, said) is None, "killed before it resumed: the next one has to find it"
    assert was_found(flip, said + "resuming from step 20\n") is True
    assert was_found(flip, said + "resuming from step 200\n") is False
    assert was_found(flip, "resuming from step 20\n") is False
    assert was_found(flip, said.replace("/7", "/17") + "resuming from step 20\n") is False


def test_a_bit_is_flipped_only_where_the_run_can_still_go_on(tmp_path):
    run = tmp_path / "killed-1"

    def save(number):
        place = run / "checkpoints" / str(number)
        place.mkdir(parents=True)
        (place / "meta.json").write_text(json.dumps({"step": 10 * number}))
        (place / "seal").write_text("whole")

    campaign = Campaign(
        config=RunConfig(),
        folder=tmp_path,
        chance=random.Random(0),
        pace=Pace(start_s=1.0, step_s=1.0, save_s=1.0),
        plan=[],
        flips_left=5,
        console=Console(1),
        start_s={},
    )
    save(1)
    assert not campaign._flip(run), "no other is there"
    save(2)
    assert campaign._flip(run)
    save(3)
    assert not campaign._flip(run), "nobody has looked at the one before"
    campaign.flips[0].found = True
    assert campaign._flip(run)
    campaign.flips[1].found = True
    (run / "checkpoints" / "2" / "seal").unlink()
    save(0)
    assert not campaign._flip(run), "the newest is damaged already"
    assert campaign.flips_left == 3
    assert [(flip.number, flip.step_before) for flip in campaign.flips] == [(2, 10), (3, 10)]


@pytest.mark.full
def test_a_real_run_loses_nothing(tmp_path, monkeypatch):
    """A minute or two: what CI does, shorter."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--kills", "4", "--trainer.steps", "24", "--eval.problems", "16"]
    config = str(REPO / "configs" / "chaos.toml")
    assert main(["chaos", config, "--run-dir", "out", *arguments]) == 0
    first = tmp_path / "out" / "killed-1"
    assert len(sealed(first)) == 2
    assert numbers(first) == sealed(first), "what a kill left half-written is gone"
