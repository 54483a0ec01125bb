"""Save and restore a run: sealed, checked array by array, written while the run goes on.

A checkpoint is a folder named by the number of the save: the arrays that live on devices (orbax),
those of the host, a description, and last a seal. A folder without a seal is no checkpoint; nothing
is ever overwritten, and older ones go only once a newer one is sealed. So whatever happens while
saving, the checkpoint before stays usable.

Everything is digested once when it is saved and once when it is read. An array has a checksum,
computed where it lies before it is written and again after it is read: what holds nothing but
arrays need not be read for the seal, neither when it is written nor when it is checked. The seal
has the size of such files and a digest of every other. Whatever is found to be damaged, the one
before is used.
"""

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from magistral_jax.config import RunConfig
from magistral_jax.damage import Damaged, only_one_failure, what_is_damage
from magistral_jax.fingerprint import by_path, fingerprints, lanes, named, shapes
from magistral_jax.seal import ARRAYS, SEAL, digest, fault
from magistral_jax.seal import seal as _seal
from magistral_jax.types import Stalled, UserError

# Left to make its folders later, orbax's writers wait 20 minutes for them in a process that ends
# before, and keep it from ending.
_ASYNC = ocp.options.AsyncOptions(create_directories_asynchronously=False)

_META, _FILE = "meta.json", "npz"
PIECE_BYTES = 1 << 30
"""Arrays are read in pieces of about this size, or one by one where they are larger."""
_LOOK_S = 0.2

T = TypeVar("T")


class CannotSave(RuntimeError):
    """A checkpoint could not be written; the message says what is still there."""


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
        """`stall_s` is how long anybody waits for a checkpoint that does not grow on the disk."""
        self.folder = Path(folder).absolute()
        self._keep, self._stall_s = keep, stall_s
        self._tell = tell or (lambda text: sys.stderr.write(f"checkpoint: {text}\n"))
        self._given_up: set[int] = set()
        self._writer: Thread | None = None
        self._failure: CannotSave | None = None
        self._since, self._step = 0.0, 0
        self._on_disk: tuple[int, int] = (0, 0)
        self.on_progress: Callable[[], None] = lambda: None
        """Called after each piece that was read, and while a save that is waited for grows."""

    def latest(self) -> Meta | None:
        """The newest whole checkpoint's description, or None if there is none."""
        numbers = [n for n in self._numbers() if n not in self._given_up]
        for number in reversed(numbers):
            if not (found := fault(self.folder / str(number))):
                return self._described(number)
            self._give_up(number, found)
        return None

    def pass_over(self, meta: Meta, why: str) -> None:
        """This one is not what was saved: `latest` offers the one before from now on."""
        self._give_up(meta.number, why)

    def newest(self, read: Callable[[Meta], T], *, of: Meta | None = None) -> T | None:
        """What `read` makes of the newest checkpoint, or of `of`; of the one before where that
        raises `Damaged`, and so on. None if there is none that can be read."""
        found = of or self.latest()
        while found is not None:
            try:
                return read(found)
            except Damaged as damage:
                self.pass_over(found, f"is damaged: {damage}")
            found = self.latest()
        return None

    @property
    def saving(self) -> tuple[int, float, int] | None:
        """What is being written: (step, for how many seconds nothing of it has come to the disk,
        by which thread); None if nothing."""
        writer = self._writer
        if writer is None or not writer.is_alive():
            return None
        on_disk = self._look()
        if on_disk != self._on_disk:
            self._on_disk, self._since = on_disk, monotonic()
        return self._step, monotonic() - self._since, writer.ident or 0

    @property
    def is_saving(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

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
        # Flat: then any of the arrays can be read without the others.
        device = {name: dict(by_path(item)) for name, item in items.items() if name not in host}
        text = {
            **asdict(meta),
            "number": number,
            "shapes": {name: shapes(items[name]) for name in device},
        }
        sums = {name: lanes(item) for name, item in device.items()}
        folder = self.folder / str(number)
        try:
            with only_one_failure():
                folder.mkdir(parents=True)
                with ocp.Context(async_options=_ASYNC):
                    copied = ocp.save_checkpointables_async(str(folder / ARRAYS), device)
        except Exception as failure:  # orbax and its storage raise many kinds
            raise self._cannot_save(meta.step, folder, failure) from failure

        def write() -> None:
            try:
                with only_one_failure():
                    copied.result()
                    text["fingerprints"] = {name: named(item) for name, item in sums.items()}
                    for name, arrays in host.items():
                        data = io.BytesIO()
                        np.savez(data, **arrays)
                        text["fingerprints"][name] = {_FILE: digest(data.getvalue())}
                        (folder / f"{name}.npz").write_bytes(data.getbuffer())
                    (folder / _META).write_text(json.dumps(text), encoding="utf-8")
                    _seal(folder)
            except Exception as failure:
                self._failure = self._cannot_save(meta.step, folder, failure)
                self._failure.__cause__ = failure
            else:
                self._delete_old(number)

        self._step, self._since, self._on_disk = meta.step, monotonic(), (0, 0)
        # A daemon: what hangs in it must not keep a process from ending.
        self._writer = Thread(target=write, name="checkpoint writer", daemon=True)
        self._writer.start()

    def settle(self) -> None:
        """Wait until the last save is whole; raises `CannotSave` if it failed, or `Stalled`."""
        while (writer := self._writer) is not None:
            writer.join(_LOOK_S)
            before, saving = self._on_disk, self.saving
            if saving is None:
                self._writer = None
            elif saving[1] > self._stall_s:
                raise Stalled(
                    f"trainer waited {saving[1]:.3g} s for the checkpoint writer, which writes "
                    f"step {self._step} to {self.folder}, and nothing more came to the disk"
                )
            elif self._on_disk != before:
                self.on_progress()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def has(self, meta: Meta, name: str) -> bool:
        """Whether a checkpoint holds an item of this name."""
        return name in self._text(meta.number)["fingerprints"]

    def restore(self, meta: Meta, name: str, like: Any) -> Any:
        """An item of arrays, placed as `like` (arrays or their shapes with shardings) is.

        Raises `Damaged` if one of them is not what was saved, ValueError if shapes differ.
        """
        saved, wanted = self._text(meta.number)["shapes"][name], shapes(like)
        differ = [p for p in sorted(saved.keys() | wanted) if saved.get(p) != wanted.get(p)]
        if differ:
            was, now = saved.get(differ[0], "not there"), wanted.get(differ[0], "not there")
            raise ValueError(f"{name}/{differ[0]} was {was} and is now {now}")
        return self._read(meta, name, like)

    def restore_params(self, meta: Meta, like: Any) -> Any:
        """The weights of the item "state" alone; the optimizer's state is not even read."""
        return self._read(meta, "state", {"params": like})["params"]

    def restore_host(self, meta: Meta, name: str) -> dict[str, np.ndarray]:
        """An item of numpy's arrays by name; raises `Damaged` as `restore` does."""
        data = (self.folder / str(meta.number) / f"{name}.npz").read_bytes()
        self._check(meta, name, {_FILE: digest(data)})
        with np.load(io.BytesIO(data)) as file:
            return dict(file)

    def _read(self, meta: Meta, name: str, like: Any) -> Any:
        """The arrays of a tree that may be a part of what was saved, piece by piece: what differs
        is found before more is read, and who watches sees it go on."""
        places = dict(by_path(shapes_of(like)))
        found: dict[str, Any] = {}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        for piece in _pieces(places):
            with only_one_failure(), what_is_damage(name), context:
                read = ocp.load_checkpointables(self._arrays(meta), {name: piece})[name]
            self._check(meta, name, fingerprints(read))
            found |= read
            self.on_progress()
        return jax.tree.unflatten(jax.tree.structure(like), [found[path] for path in places])

    def _check(self, meta: Meta, name: str, found: dict[str, str]) -> None:
        saved = self._text(meta.number)["fingerprints"][name]
        changed = sorted(path for path, value in found.items() if saved.get(path) != value)
        if changed:
            raise Damaged(
                f"{name}/{changed[0]} and {len(changed) - 1} more arrays differ from what was saved"
            )

    def _look(self) -> tuple[int, int]:
        """(files, bytes) of all checkpoints: what changes while one is written, or old ones go."""
        sizes = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):  # renamed or deleted by now
                    sizes.append(os.stat(os.path.join(folder, name)).st_size)
        return len(sizes), sum(sizes)

    def _arrays(self, meta: Meta) -> str:
        return str(self.folder / str(meta.number) / ARRAYS)

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
                (folder / SEAL).unlink(missing_ok=True)
                shutil.rmtree(folder)
            except OSError as failure:  # the newest is whole all the same
                self._tell(f"{folder} could not be deleted ({failure}); the next save tries again")

    def _cannot_save(self, step: int, folder: Path, failure: Exception) -> CannotSave:
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

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def _sealed(self) -> list[int]:
        """Those that may be whole: sealed, and not found to be damaged."""
        found = [n for n in self._numbers() if n not in self._given_up]
        return [n for n in found if (self.folder / str(n) / SEAL).is_file()]


def shapes_of(tree: Any) -> Any:
    """What arrays, or their shapes, are and where they lie, without what is in them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _is_host(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(x, np.ndarray) for x in item.values())


def _pieces(places: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Arrays in their order, as many at once as make up a piece."""
    piece: dict[str, Any] = {}
    size = 0
    for path, place in places.items():
        bytes_ = math.prod(place.shape) * place.dtype.itemsize
        if piece and size + bytes_ > PIECE_BYTES:
            yield piece
            piece, size = {}, 0
        piece[path], size = place, size + bytes_
    if piece:
        yield piece


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
