"""Save and restore a run: sealed, checked array by array, written while the run goes on.

A checkpoint is a folder named by the number of the save: the arrays that live on devices (orbax),
those of the host, a description, and last a seal with a digest of every file. A folder without a
seal is no checkpoint; nothing is ever overwritten, and older ones go only once a newer one is
sealed. So whatever happens while saving, the checkpoint before stays usable. What a disk does to it
later is found by the seal; what was read and is not what was meant to be written, by a checksum of
each array. Either way the one before is used.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from magistral_jax.config import RunConfig
from magistral_jax.fingerprint import fingerprints, lanes, named, shapes
from magistral_jax.types import Stalled, UserError

# Orbax logs there what it raises, too, each of its threads with a traceback of its own.
logging.getLogger("absl").disabled = True

# Left to make its folders later, orbax's writers wait 20 minutes for them in a process that ends
# before, and keep it from ending.
_ASYNC = ocp.options.AsyncOptions(create_directories_asynchronously=False)

_ARRAYS, _META, _SEAL = "arrays", "meta.json", "seal"


class CannotSave(RuntimeError):
    """A checkpoint could not be written; the message says what is still there."""


class Damaged(RuntimeError):
    """What was read is not what was saved."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says of itself, readable before anything is restored."""

    step: int
    """Weight updates made: also the version of these weights."""
    identity: dict[str, Any]
    """What must be equal in the run that resumes: architecture, seed, data."""
    notes: dict[str, Any]
    """What the end of the run still needs from its beginning: the evaluation before RL."""
    frontier: dict[str, Any] = field(default_factory=dict)
    """Where the run stood beside its weights (`frontier.py`)."""
    number: int = field(default=-1, compare=False)
    """Which save of its folder it is."""


class Checkpoints:
    """The checkpoints of one run folder. `tell` says which of them are damaged."""

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int,
        tell: Callable[[str], object] | None = None,
        stall_s: float = 600.0,
    ) -> None:
        """`stall_s` is how long anybody waits for a checkpoint being written."""
        self.folder = Path(folder).absolute()
        self._keep, self._stall_s = keep, stall_s
        self._tell = tell or (lambda text: sys.stderr.write(f"checkpoint: {text}\n"))
        self._given_up: set[int] = set()
        self._writer: Thread | None = None
        self._failure: CannotSave | None = None
        self._since, self._step = 0.0, 0

    def latest(self) -> Meta | None:
        """The newest whole checkpoint's description, or None if there is none."""
        numbers = [n for n in self._numbers() if n not in self._given_up]
        for number in reversed(numbers):
            if not (fault := self._fault(number)):
                return self._described(number)
            self._give_up(number, fault)
        return None

    def pass_over(self, meta: Meta, why: str) -> None:
        """This one is not what was saved: `latest` offers the one before from now on."""
        self._give_up(meta.number, why)

    @property
    def saving(self) -> tuple[int, float, int] | None:
        """What is being written: (step, for how many seconds, by which thread); None if nothing."""
        writer = self._writer
        if writer is None or not writer.is_alive():
            return None
        return self._step, monotonic() - self._since, writer.ident or 0

    @property
    def is_saving(self) -> bool:
        return self.saving is not None

    def save(self, meta: Meta, items: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; once this returns, the arrays may be donated or changed.

        An item is a tree of arrays on devices, or a dict of numpy's by name. Waits for the save
        before, and raises its `CannotSave` if it failed.
        """
        self.settle()
        number = max(self._numbers(), default=-1) + 1
        host = {
            name: {key: array.copy() for key, array in item.items()}
            for name, item in items.items()
            if _is_host(item)
        }
        device = {name: item for name, item in items.items() if name not in host}
        text = {
            **asdict(meta),
            "number": number,
            "shapes": {name: shapes(item) for name, item in device.items()},
            "host": sorted(host),
        }
        sums = {name: lanes(item) for name, item in device.items()}
        folder = self.folder / str(number)
        try:
            with only_one_failure():
                folder.mkdir(parents=True)
                with ocp.Context(async_options=_ASYNC):
                    copied = ocp.save_checkpointables_async(str(folder / _ARRAYS), device)
        except Exception as failure:  # orbax and its storage raise many kinds
            raise self._cannot_save(meta.step, folder, failure) from failure

        def write() -> None:
            try:
                with only_one_failure():
                    copied.result()
                    for name, arrays in host.items():
                        np.savez(folder / f"{name}.npz", **arrays)
                    text["fingerprints"] = {name: named(item) for name, item in sums.items()}
                    (folder / _META).write_text(json.dumps(text), encoding="utf-8")
                    _seal(folder)
            except Exception as failure:
                self._failure = self._cannot_save(meta.step, folder, failure)
                self._failure.__cause__ = failure
            else:
                self._delete_old(number)

        self._step, self._since = meta.step, monotonic()
        # A daemon: what hangs in it must not keep a process from ending.
        self._writer = Thread(target=write, name="checkpoint writer", daemon=True)
        self._writer.start()

    def settle(self) -> None:
        """Wait until the last save is whole; raises `CannotSave` if it failed, or `Stalled`."""
        if self._writer is not None:
            self._writer.join(self._stall_s)
            if self._writer.is_alive():
                raise Stalled(
                    f"trainer waited {self._stall_s:g} s for the checkpoint writer, which writes "
                    f"step {self._step} to {self.folder}"
                )
            self._writer = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def has(self, meta: Meta, name: str) -> bool:
        """Whether a checkpoint holds an item of this name."""
        text = self._text(meta.number)
        return name in text["fingerprints"] or name in text["host"]

    def restore(self, meta: Meta, name: str, like: Any) -> Any:
        """An item of arrays, placed as `like` (arrays or their shapes with shardings) is.

        Raises `Damaged` if one of them is not what was saved, ValueError if shapes differ.
        """
        saved, wanted = self._text(meta.number)["shapes"][name], shapes(like)
        differ = [p for p in sorted(saved.keys() | wanted) if saved.get(p) != wanted.get(p)]
        if differ:
            was, now = saved.get(differ[0], "not there"), wanted.get(differ[0], "not there")
            raise ValueError(f"{name}/{differ[0]} was {was} and is now {now}")
        places = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        found = ocp.load_checkpointables(self._arrays(meta), {name: places})[name]
        self._check(meta, name, fingerprints(found))
        return found

    def restore_params(self, meta: Meta, like: Any) -> Any:
        """The weights of the item "state" alone; the optimizer's state is not even read."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            wanted = {"state": {"params": like}}
            found = ocp.load_checkpointables(self._arrays(meta), wanted)["state"]["params"]
        self._check(meta, "state", {f"params/{k}": v for k, v in fingerprints(found).items()})
        return found

    def restore_host(self, meta: Meta, name: str) -> dict[str, np.ndarray]:
        """An item of numpy's arrays by name."""
        with np.load(self.folder / str(meta.number) / f"{name}.npz") as file:
            return dict(file)

    def _check(self, meta: Meta, name: str, found: dict[str, str]) -> None:
        saved = self._text(meta.number)["fingerprints"][name]
        changed = sorted(path for path, value in found.items() if saved.get(path) != value)
        if changed:
            raise Damaged(
                f"{name}/{changed[0]} and {len(changed) - 1} more arrays differ from what was saved"
            )

    def _arrays(self, meta: Meta) -> str:
        return str(self.folder / str(meta.number) / _ARRAYS)

    def _text(self, number: int) -> dict[str, Any]:
        return json.loads((self.folder / str(number) / _META).read_text(encoding="utf-8"))

    def _described(self, number: int) -> Meta:
        text = self._text(number)
        return Meta(**{name: text[name] for name in Meta.__dataclass_fields__})

    def _give_up(self, number: int, fault: str) -> None:
        self._given_up.add(number)
        before = [n for n in self._sealed() if n < number]
        instead = f"looking at {before[-1]}" if before else "there is none before it"
        self._tell(f"{self.folder / str(number)} {fault}; {instead}")

    def _delete_old(self, newest: int) -> None:
        """All but the newest `keep` whole ones; leftovers of saves that were killed go too."""
        for number in set(self._numbers()) - set(self._sealed()[-self._keep :]) - {newest}:
            folder = self.folder / str(number)
            try:
                # Without its seal it is no checkpoint any more, however far the deletion comes.
                (folder / _SEAL).unlink(missing_ok=True)
                shutil.rmtree(folder)
            except OSError as failure:  # the newest is whole all the same
                self._tell(f"{folder} could not be deleted ({failure}); the next save tries again")

    def _cannot_save(self, step: int, folder: Path, failure: Exception) -> CannotSave:
        # Writers that orbax leaves behind unstarted would each add a line, some at exit.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        shutil.rmtree(folder, ignore_errors=True)
        earlier = self._sealed()
        there = "there is none before it"
        if earlier:
            there = f"that of step {self._described(earlier[-1]).step} is usable"
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        return CannotSave(
            f"the checkpoint of step {step} could not be saved to {self.folder} ({reason}); "
            f"{there}. Free some space, then go on with --resume."
        )

    def _fault(self, number: int) -> str:
        """What is wrong with a checkpoint; empty if it is as it was when it was sealed."""
        folder = self.folder / str(number)
        try:
            head, _, text = (folder / _SEAL).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return "was not finished when its process ended"
        if head.decode("ascii", "replace") != _digest(text):
            return "is damaged: its seal is"
        sealed, found = json.loads(text), _digests(folder)
        changed = sorted(n for n in sealed.keys() | found if sealed.get(n) != found.get(n))
        return f"is damaged: {', '.join(changed[:3])} changed since" if changed else ""

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def _sealed(self) -> list[int]:
        """Those that may be whole: sealed, and not found to be damaged."""
        found = [n for n in self._numbers() if n not in self._given_up]
        return [n for n in found if (self.folder / str(n) / _SEAL).is_file()]


def _is_host(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(x, np.ndarray) for x in item.values())


def _seal(folder: Path) -> None:
    """Write the digests of a folder's files into it; only a whole seal ever has that name."""
    text = json.dumps(_digests(folder), sort_keys=True)
    draft = folder / f"{_SEAL}.new"
    with draft.open("w", encoding="ascii") as file:
        file.write(f"{_digest(text.encode())}\n{text}")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / _SEAL)


def _digests(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder but its seal, by its path in there."""
    seals = (folder / _SEAL, folder / f"{_SEAL}.new")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in seals)
    with ThreadPoolExecutor() as threads:  # hashing lets go of the interpreter
        digests = list(threads.map(_file_digest, paths))
    return {p.relative_to(folder).as_posix(): d for p, d in zip(paths, digests, strict=True)}


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextmanager
def only_one_failure() -> Iterator[None]:
    """Of a save that fails, what is raised here, and not what orbax's threads say after it.

    They may say it when this is long over, so after a failure they stay silenced: what comes out
    of a thread's closed event loop, and asyncio's own log of the writers that failed with it.
    """
    told = sys.unraisablehook
    asyncio_log = logging.getLogger("asyncio")
    was_disabled, asyncio_log.disabled = asyncio_log.disabled, True

    def not_an_echo(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            told(unraisable)

    sys.unraisablehook = not_an_echo
    yield
    sys.unraisablehook = told
    asyncio_log.disabled = was_disabled


def check_identity(saved: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Refuse to go on from a checkpoint of another model, seed or data."""
    different = [
        f"{name} was {saved.get(name)!r} and is now {value!r}"
        for name, value in wanted.items()
        if saved.get(name) != value
    ]
    if different:
        raise UserError(
            f"the checkpoint in {folder} belongs to another run: {'; '.join(different)}. "
            "Resume with the config the run began with, or choose another --run-dir."
        )


def identity_of(config: RunConfig, arch: Any) -> dict[str, Any]:
    """What a checkpoint of a run must agree with to be resumed by it."""
    # Through JSON, as a checkpoint gives it back: tuples are lists there.
    network = json.loads(json.dumps(asdict(arch)))
    return {
        **{f"model {name}": value for name, value in network.items()},
        "seed": config.seed,
        "data.path": config.data.path,
        "mixture": [[part.path, part.weight] for part in config.mixture],
        "data.digits": config.data.digits,
        "data.heldout_percent": config.data.heldout_percent,
        "generator.group_size": config.generator.group_size,
    }
