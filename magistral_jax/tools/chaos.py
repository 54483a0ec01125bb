"""Kill a run again and again, and count what it lost: `magistral-jax chaos`.

The config is run once in peace and then under SIGKILL, until every planned kill has struck: a run
that ends before that is begun anew in another folder, and every run is played to its end. Whether a
process is in the middle of a checkpoint or a push is made sure of by stopping it (SIGSTOP) and
looking: only then is it killed there.
"""

import json
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Literal, get_args

from magistral_jax.config import RunConfig
from magistral_jax.console import Console, table
from magistral_jax.metrics import METRICS, SUMMARY
from magistral_jax.settings import dump
from magistral_jax.tools.audit import audit
from magistral_jax.tools.toll import COLUMNS, Toll, rows_of
from magistral_jax.tools.victim import Victim, flip_a_bit, sealed
from magistral_jax.types import RunFailed, UserError

Kind = Literal["process", "checkpoint", "push", "verifier"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TRAIN = (sys.executable, "-m", "magistral_jax", "train")
_FRUITLESS = 3
"""Whole runs in a row during which the kill that is due finds no occasion."""
_SEARCH_S = 0.05
"""Between two searches of /proc for a verifier process."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast the run in peace was: what random moments are drawn from."""

    start_s: float
    """From its start to its first token."""
    step_s: float
    """An update, the median."""
    save_s: float
    """The shortest time between the beginning of a checkpoint and its seal."""


@dataclass(kw_only=True)
class Flip:
    """A bit changed in the newest checkpoint while no process was there."""

    folder: Path
    number: int
    step_before: int
    """Of the checkpoint before: where the run has to go on."""
    found: bool | None = None
    """Whether that is what it did; None until it has resumed."""


@dataclass(kw_only=True)
class Campaign:
    """Runs of one config under kills."""

    config: RunConfig
    folder: Path
    chance: random.Random
    pace: Pace
    plan: list[Kind]
    flips_left: int
    console: Console
    struck: list[Kind] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    """From a kill of the whole process to the next token that was sampled."""
    flips: list[Flip] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    start_s: dict[bool, float]
    """From the start of a process to its first token, without and with a checkpoint."""
    lives: int = 0

    def play(self) -> None:
        """Until every planned kill has struck, all flips are made, and the last run is over."""
        fruitless = 0
        while self.plan:
            left = len(self.plan)
            self.runs.append(self.folder / f"killed-{len(self.runs) + 1}")
            self._play_one(self.runs[-1])
            fruitless = fruitless + 1 if len(self.plan) == left else 0
            if fruitless == _FRUITLESS:
                raise RunFailed(
                    f"{fruitless} runs in a row ended before a kill in a {self.plan[0]} could "
                    "strike. Choose a config that runs longer."
                )
        while self.flips_left and self._flip(self.runs[-1]):
            # The kills left no occasion. A run that is over goes on from the checkpoint before.
            self._play_one(self.runs[-1])

    def _play_one(self, folder: Path) -> None:
        killed_at: float | None = None
        while True:
            victim = self._start(folder)
            try:
                is_killed = self._torment(victim)
            finally:
                victim.kill()
            self._learn_from(victim, killed_at)
            if not is_killed:
                break
            killed_at = monotonic()
            if self.flips_left and self._flip_is_due():
                self._flip(folder)
        expect_success(victim)

    def _torment(self, victim: Victim) -> bool:
        """One process's life; whether it was killed as a whole."""
        while self.plan:
            kind = self.plan[0]
            if not self._strike(victim, kind):
                return False
            self.struck.append(self.plan.pop(0))
            of = "a verifier process" if kind == "verifier" else "the process"
            where = f" in a {kind}" if kind in ("checkpoint", "push") else ""
            reading = victim.look()
            at = f"at step {reading.step}" if reading else "at its start"
            total = len(self.struck) + len(self.plan)
            run = victim.folder.name
            self.console.note(f"kill {len(self.struck)}/{total}: {of} of {run}{where}, {at}")
            if kind != "verifier":
                return True
        victim.wait(lambda: False)
        return False

    def _strike(self, victim: Victim, kind: Kind) -> bool:
        """Wait for a random moment of this kind and kill; False if the process ends before."""
        if not self._wait_for_a_moment(victim, kind):
            return False
        if kind == "process":
            return victim.kill()
        if kind == "verifier":
            return victim.wait(lambda: victim.kill_worker(self.chance), every_s=_SEARCH_S)

        def is_now() -> bool:
            return victim.is_saving if kind == "checkpoint" else victim.is_pushing

        while victim.wait(is_now):
            if kind == "checkpoint":
                sleep(self.chance.uniform(0, self.pace.save_s))
            if victim.freeze() and is_now():
                return victim.kill()
            victim.thaw()
            victim.wait(lambda: not is_now())
        return False

    def _wait_for_a_moment(self, victim: Victim, kind: Kind) -> bool:
        """A random one, early enough that what is to be hit is still to come.

        The kills are spread over the updates, but a process lives two checkpoints long if nothing
        but the number of kills speaks against it: else no run under kills would ever end.
        """
        total, every = self.config.trainer.steps, self.config.checkpoint.every
        if kind == "process" and victim.decoding_since is None:
            # Any second of its life is as likely as any other, those of its start included.
            start_s = self.start_s[victim.is_resumed]
            after_s = self.chance.uniform(0, start_s + 2 * every * self.pace.step_s)
            if after_s < start_s:
                return victim.wait(lambda: monotonic() >= victim.started + after_s)

        def step() -> int:
            reading = victim.look()
            return -1 if reading is None else reading.step

        if not victim.wait(lambda: step() >= 0):
            return False
        now = step()
        window = 2 * (total - now) // (len(self.plan) + 1)
        if kind != "verifier":
            window = max(window, 2 * every)
        latest = max(now, total - (every if kind == "checkpoint" else 1))
        target = min(now + self.chance.randrange(window + 1), latest)
        if not victim.wait(lambda: step() >= target):
            return False
        at = monotonic() + self.chance.uniform(0, self.pace.step_s)
        return victim.wait(lambda: monotonic() >= at)

    def _start(self, folder: Path) -> Victim:
        self.lives += 1
        return start(self.folder, folder, f"{folder.name}-{self.lives:03}")

    def _learn_from(self, victim: Victim, killed_at: float | None) -> None:
        """What a life that is over tells: how long the resume took, whether a flip was found."""
        if victim.decoding_since is not None:
            self.start_s[victim.is_resumed] = victim.decoding_since - victim.started
            if killed_at is not None:
                self.resumed_s.append(victim.decoding_since - killed_at)
        for flip in self.flips:
            if flip.folder == victim.folder and flip.found is None:
                flip.found = was_found(flip, victim.log.read_text("utf-8", "replace"))

    def _flip_is_due(self) -> bool:
        """Spread over the kills that are left, but rather early: not each gives occasion."""
        later = sum(kind != "verifier" for kind in self.plan)
        return self.chance.random() * (later + 1) < 2 * self.flips_left

    def _flip(self, folder: Path) -> bool:
        """Flip a bit in the newest checkpoint, if there is a whole one before it, and the flip
        before has come to an end."""
        tainted = {flip.number for flip in self.flips if flip.folder == folder}
        whole = [number for number in sealed(folder) if number not in tainted]
        if any(flip.found is None for flip in self.flips) or len(whole) < 2:
            return False
        if whole[-1] != max(sealed(folder)):
            return False
        self.flips_left -= 1
        inside = folder / "checkpoints"
        before = json.loads((inside / str(whole[-2]) / "meta.json").read_text("utf-8"))["step"]
        path = flip_a_bit(inside / str(whole[-1]), self.chance)
        self.flips.append(Flip(folder=folder, number=whole[-1], step_before=before))
        where = path.relative_to(self.folder)
        self.console.note(f"a bit of {where} flipped; the checkpoint before is of step {before}")
        return True


def chaos(
    config: RunConfig, *, run_dir: Path, kills: int, seed: int, json_path: Path | None
) -> int:
    """Run the config in peace and under kills, compare, print the table; 0 if all holds."""
    refuse(config, run_dir, kills)
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "config.toml").write_text(dump(config), encoding="utf-8")
    chance = random.Random(seed)
    plan = planned(kills, chance)
    flips_due = min(max(2, kills // 10), sum(kind != "verifier" for kind in plan))
    with Console(kills) as console:
        console.note("a run in peace")
        peace = run_dir / "peace"
        pace = play_in_peace(run_dir, peace)
        # Runs differ by their timing alone: with few kills nobody waits to see by how much.
        more = [run_dir / f"peace-{n}" for n in range(2, 1 + min(3, kills // 10))]
        for folder in more:
            play_in_peace(run_dir, folder)
        campaign = Campaign(
            config=config,
            folder=run_dir,
            chance=chance,
            pace=pace,
            start_s={False: pace.start_s, True: pace.start_s},
            plan=plan,
            flips_left=flips_due,
            console=console,
        )
        campaign.play()
    folders = (peace, *campaign.runs)
    toll = Toll(
        kills=campaign.struck,
        audits=[audit(config, folder) for folder in folders],
        summaries=[json.loads((folder / SUMMARY).read_text("utf-8")) for folder in folders],
        more_peace=[json.loads((folder / SUMMARY).read_text("utf-8")) for folder in more],
        resumed_s=campaign.resumed_s,
        flips_due=flips_due,
        flips_found=[flip.found is True for flip in campaign.flips],
    )
    rows = rows_of(toll)
    title = f"{kills} kills (seed {seed}) in {len(campaign.runs)} runs of {config.name}"
    table(title, COLUMNS, [row.cells for row in rows], json_path)
    faults = [row.fault for row in rows if row.fault]
    for fault in faults:
        sys.stderr.write(f"magistral-jax: chaos: {fault}\n")
    return 1 if faults else 0


def refuse(config: RunConfig, run_dir: Path, kills: int) -> None:
    """Raises `UserError` for what cannot be shown here."""
    if not Path("/proc/self/stat").exists():
        raise UserError("chaos finds processes through /proc, so it needs Linux.")
    if kills < 1:
        raise UserError(f"--kills is {kills}; it must be at least 1.")
    if config.checkpoint.keep < 2:
        raise UserError(
            "checkpoint.keep is 1; chaos damages the newest checkpoint, and needs the one before. "
            "Pass --checkpoint.keep 2."
        )
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"{run_dir} is there already. Pass another --run-dir, or remove it.")


def planned(kills: int, chance: random.Random) -> list[Kind]:
    """Every kind as often as the others, in random order."""
    kinds: list[Kind] = [KINDS[i % len(KINDS)] for i in range(kills)]
    chance.shuffle(kinds)
    return kinds


def start(root: Path, folder: Path, name: str) -> Victim:
    """A process that begins the run of a folder, or goes on with it. All share what is compiled."""
    command = [*_TRAIN, str(root / "config.toml"), "--run-dir", str(folder)]
    if (folder / "config.toml").is_file():
        command.append("--resume")
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str((root / "compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return Victim(command, folder, root / "logs" / f"{name}.log", compiled | os.environ)


def play_in_peace(root: Path, folder: Path) -> Pace:
    victim = start(root, folder, folder.name)
    saves_s: list[float] = []
    try:
        while victim.wait(lambda: victim.is_saving):
            began = monotonic()
            victim.wait(lambda: not victim.is_saving)
            saves_s.append(monotonic() - began)
    finally:
        victim.kill()
    expect_success(victim)
    assert victim.decoding_since is not None and saves_s, "a run samples and saves"
    lines = (folder / METRICS).read_text("utf-8").splitlines()
    steps_s = [json.loads(line)["time/step"] for line in lines]
    return Pace(
        start_s=victim.decoding_since - victim.started,
        step_s=median(steps_s),
        save_s=min(saves_s),
    )


def expect_success(victim: Victim) -> None:
    if victim.code != 0:
        raise RunFailed(
            f"{victim.folder} ended by itself with exit code {victim.code}; its output is in "
            f"{victim.log}"
        )


def was_found(flip: Flip, log: str) -> bool | None:
    """Whether the process that wrote this log refused the damaged checkpoint and went on from the
    one before; None if it did not come so far as to choose one."""
    if "resuming from step " not in log:
        return None
    is_told = f"{os.sep}{flip.number} is damaged: " in log
    return is_told and f"resuming from step {flip.step_before}\n" in log
