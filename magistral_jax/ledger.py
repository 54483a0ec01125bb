"""Where every device-second and every sampled token went: each into exactly one bin.

A party (generator, trainer) always does exactly one thing; what it does is also what the watch
looks at when nothing moves. Decoding is told apart afterwards, by what became of its tokens. A
device that both parties use counts half for each.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from weakref import WeakSet

GENERATOR, TRAINER = "generator", "trainer"

FATES: dict[str, str] = {
    "trained": "tokens that an update was made of",
    "uniform": "tokens of groups dropped since all their rewards were equal",
    "errored": "tokens whose check itself failed",
    "lost": "work of a killed process after its last checkpoint",
    "evaluation": "evaluations, and probes of the sampler-trainer difference",
    "unfinished": "tokens in flight, or in groups that wait to be trained on",
}
"""What can become of a sampled token."""

BINS: dict[str, str] = {
    **FATES,
    "warmup": "the supervised warm-up",
    "padding": "empty slots of decode steps, and padding of the trainer's rows",
    "prefill": "prompts of new sequences",
    "prefill_repeated": "prefill of sequences in flight again, after a resume or new weights",
    "wait_admission": "the generator's wait for leave to dispatch",
    "wait_batch": "the trainer's wait for sequences of its next batch",
    "wait_verifier": "the trainer's wait for verdicts on them, all sampled",
    "push": "weights on their way from trainer to generator",
    "compile": "compilation",
    "checkpoint": "what the loop waited for checkpoints",
    "start": "set-up: reading the model, resuming",
    "idle": "the host's own work between all these",
}
"""Bins of device-seconds. A decode step's seconds go where its tokens go."""

DECODE = "decode"
_ONE_WAIT_S = 0.05
_PIECE = "/jax/core/compile/"
_COMPILATION = (f"{_PIECE}backend_compile_duration", f"{_PIECE}jaxpr_to_mlir")


@dataclass(frozen=True)
class Activity:
    """What somebody is doing, for the watch."""

    owner: str
    what: str
    seconds: float
    is_wait: bool
    thread: int
    """Of whom; 0 where it is not known."""


@dataclass(eq=False)
class Doing:
    """One stretch of work."""

    bin: str
    what: str
    since: float
    thread: int
    own_s: float = 0.0
    """Its wall seconds, those of nested work and of compilation left out."""


@dataclass
class _Party:
    weight: float
    """Devices, those shared with the other party by half."""
    base: str
    mark: float
    """Up to when its time is accounted for."""
    stack: list[Doing] = field(default_factory=list)
    last: tuple[Doing, float] | None = None
    """What ended last, and when."""


class Ledger:
    """The accounts of one run. Any thread may call anything."""

    def __init__(
        self,
        devices: Mapping[str, float],
    ) -> None:
        """An account for each party with its number of devices."""
        self._lock = threading.Lock()
        now = monotonic()
        self._parties = {name: _Party(count, "start", now) for name, count in devices.items()}
        self._seconds = dict.fromkeys((*BINS, DECODE), 0.0)
        self._tokens = {"sampled": 0.0, **dict.fromkeys(FATES, 0.0)}
        self._listener: Callable[[float], None] = lambda sampled: None
        self._moved = now
        _ledgers.add(self)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; what has been counted here is added to it."""
        with self._lock:
            for bin, seconds in saved["seconds"].items():
                self._seconds[bin] += seconds
            for fate, count in saved["tokens"].items():
                self._tokens[fate] += count

    def listen(self, listener: Callable[[float], None]) -> None:
        """Tell this one the number of sampled tokens whenever it grows."""
        self._listener = listener

    def phase(self, bin: str, owner: str = "") -> None:
        """What all parties, or one, do while they do nothing in particular, from now on."""
        now = monotonic()
        with self._lock:
            for name, party in self._parties.items():
                if owner in ("", name):
                    self._account(party, now)
                    party.base = bin
            self._moved = now

    @contextmanager
    def doing(self, owner: str, bin: str, what: str = "") -> Iterator[Doing]:
        """The owner's time goes into this bin until the end; nested ones take theirs out."""
        doing = Doing(bin, what or bin.replace("_", " "), monotonic(), threading.get_ident())
        with self._lock:
            party = self._parties[owner]
            self._account(party, doing.since)
            party.stack.append(doing)
            if party.last is not None:
                # A wait that looks up for a moment is one wait.
                before, ended = party.last
                is_same = (before.bin, before.what) == (bin, doing.what) and _is_wait(bin)
                if is_same and doing.since - ended < _ONE_WAIT_S:
                    doing.since = before.since
            if not _is_wait(bin):
                self._moved = doing.since
        here = _here.parties
        here.append((self, owner))
        try:
            yield doing
        finally:
            here.pop()
            now = monotonic()
            with self._lock:
                self._account(party, now)
                party.stack.remove(doing)
                party.last = doing, now
                if not _is_wait(bin):
                    self._moved = now

    def beat(self, owner: str = "") -> None:
        """What the owner is doing is long, and it has come further. Without an owner, somebody
        who does nothing that the ledger knows of has."""
        now = monotonic()
        with self._lock:
            self._moved = now
            for doing in self._parties[owner].stack[-1:] if owner else []:
                doing.since = now

    def move(self, owner: str, source: str, target: str, seconds: float) -> None:
        """Seconds of this owner belong into another bin than they were counted in."""
        with self._lock:
            amount = seconds * self._parties[owner].weight
            self._seconds[source] -= amount
            self._seconds[target] += amount

    def sampled(self, count: int) -> None:
        """So many tokens more were drawn."""
        with self._lock:
            self._tokens["sampled"] += count
            self._listener(self._tokens["sampled"])

    def fate(self, fate: str, count: int) -> None:
        """What became of tokens that were drawn."""
        assert fate in FATES, fate
        with self._lock:
            self._tokens[fate] += count

    def lost(self, *, device_s: float, tokens: float) -> None:
        """What a killed process did after its last checkpoint."""
        with self._lock:
            self._seconds["lost"] += device_s
            self._tokens["lost"] += tokens
            self._tokens["sampled"] += tokens

    @property
    def device_s(self) -> float:
        """All device-seconds up to now."""
        now = monotonic()
        with self._lock:
            for party in self._parties.values():
                self._account(party, now)
            return sum(self._seconds.values())

    def saved(self) -> dict[str, Any]:
        """The accounts as they are, for a checkpoint."""
        _ = self.device_s
        with self._lock:
            return {"seconds": dict(self._seconds), "tokens": dict(self._tokens)}

    def seconds(self) -> dict[str, float]:
        """Device-seconds in each bin; their sum is all there were."""
        saved = self.saved()
        seconds, decode = saved["seconds"], saved["seconds"].pop(DECODE)
        fates = self.tokens()
        # Evaluations have a bin of their own while they happen, and what was lost is known.
        shares = {f: n for f, n in fates.items() if f not in ("evaluation", "lost")}
        total = sum(shares.values())
        for fate, count in shares.items():
            seconds[fate] += decode * (count / total if total else float(fate == "unfinished"))
        return seconds

    def tokens(self) -> dict[str, float]:
        """Tokens by what became of them; their sum is all that were sampled."""
        with self._lock:
            tokens = dict(self._tokens)
        sampled = tokens.pop("sampled")
        tokens["unfinished"] = 0.0
        return {**tokens, "unfinished": sampled - sum(tokens.values())}

    def activities(self) -> list[Activity]:
        """What each party has been doing, and for how long."""
        now = monotonic()
        with self._lock:
            return [
                Activity(name, top.what, now - top.since, _is_wait(top.bin), top.thread)
                for name, party in self._parties.items()
                for top in party.stack[-1:]
            ]

    @property
    def still_s(self) -> float:
        """For how long nothing has moved."""
        with self._lock:
            return monotonic() - self._moved

    def compiled(self, owner: str, seconds: float) -> None:
        """So many of the last seconds of what the owner is doing went into compilation."""
        with self._lock:
            party = self._parties[owner]
            doing = party.stack[-1]
            doing.own_s -= seconds
            self._seconds[doing.bin] -= seconds * party.weight
            self._seconds["compile"] += seconds * party.weight

    def _account(self, party: _Party, now: float) -> None:
        seconds, party.mark = now - party.mark, now
        if party.stack:
            party.stack[-1].own_s += seconds
        self._seconds[party.stack[-1].bin if party.stack else party.base] += seconds * party.weight


class _Here(threading.local):
    """The parties whose work this thread is doing, innermost last."""

    def __init__(self) -> None:
        self.parties: list[tuple[Ledger, str]] = []


_here = _Here()
_ledgers: WeakSet[Ledger] = WeakSet()


def _is_wait(bin: str) -> bool:
    return bin.startswith("wait_")


def on_compilation(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """A listener for `jax.monitoring`: jax compiles on the thread that calls, so that the seconds
    are of whatever that thread is doing.

    Each piece that is done is progress: of many programs in a row only one that hangs is a stall.
    """
    if not event.startswith(_PIECE):
        return
    for ledger in list(_ledgers):
        ledger.beat()
    if _here.parties:
        ledger, owner = _here.parties[-1]
        ledger.beat(owner)
        if event.startswith(_COMPILATION):
            ledger.compiled(owner, duration_secs)


def shares_of(meshes: Mapping[str, Any]) -> dict[str, float]:
    """Devices of each party; one that several use is divided between them."""
    users: dict[Any, int] = {}
    for mesh in meshes.values():
        for device in mesh.devices.flat:
            users[device] = users.get(device, 0) + 1
    return {name: sum(1 / users[d] for d in m.devices.flat) for name, m in meshes.items()}


def ledger_rows(seconds: Mapping[str, float], tokens: Mapping[str, float]) -> list[list[Any]]:
    """The accounts as rows of a table: bin, device-seconds, their share, tokens, what it is."""
    total = sum(seconds.values())
    rows = [
        [bin, round(seconds[bin], 2), f"{seconds[bin] / total:.1%}", _count(tokens, bin), what]
        for bin, what in BINS.items()
        if seconds[bin] or tokens.get(bin)
    ]
    return [*rows, ["all", round(total, 2), "100.0%", int(sum(tokens.values())), "all there was"]]


def _count(tokens: Mapping[str, float], bin: str) -> int | None:
    return int(tokens[bin]) if bin in tokens else None
