"""Save and restore a run at a step boundary: weights, optimizer, and the prompt stream's cursor.

Orbax writes to a temporary folder and renames it when it is whole, so whatever happens while
saving, the checkpoint before it stays usable. What a disk does to it later, orbax does not see: it
restores flipped bits as numbers. So each checkpoint is sealed with a digest of every file of it,
and one that differs from its seal is passed over for the one before.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from magistral_jax.types import Cursor, UserError

# Orbax logs there what it raises, too, each of its threads with a traceback of its own.
logging.getLogger("absl").disabled = True


class CannotSave(RuntimeError):
    """A checkpoint could not be written; the message says what is still there."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says of itself, readable before anything is restored."""

    step: int
    """Weight updates made: also the version of these weights."""
    cursor: Cursor
    identity: dict[str, Any]
    """What must be equal in the run that resumes: architecture, seed, data."""
    notes: dict[str, Any]
    """What the end of the run still needs from its beginning: the evaluation before RL."""


class Checkpoints:
    """The checkpoints of one run folder. `tell` says which of them are damaged."""

    def __init__(
        self, folder: str | Path, *, keep: int, tell: Callable[[str], object] | None = None
    ) -> None:
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._tell = tell or (lambda text: sys.stderr.write(f"checkpoint: {text}\n"))

    def latest(self) -> Meta | None:
        """The newest whole checkpoint's description, or None if there is none."""
        for step in reversed(self._steps()):
            if not (fault := self._fault(step)):
                return self._described(step)
            before = [other for other in self._steps() if other < step]
            instead = f"looking at step {before[-1]}" if before else "there is none before it"
            self._tell(f"{self.folder / str(step)} is damaged: {fault}; {instead}")
        return None

    def _described(self, step: int) -> Meta:
        with self._open() as checkpointer:
            meta = checkpointer.load_checkpointables(step, {"meta": None})["meta"]
        pending = tuple(meta["cursor"]["pending"])
        return Meta(
            step=meta["step"],
            cursor=Cursor(next=meta["cursor"]["next"], pending=pending),
            identity=meta["identity"],
            notes=meta["notes"],
        )

    def save(self, meta: Meta, state: Any) -> None:
        """Write a checkpoint and delete the ones beyond `keep`; returns when it is whole."""
        # A run that goes on from an earlier step has given up the later ones: they are damaged.
        for step in self._steps():
            if step > meta.step:
                shutil.rmtree(self.folder / str(step))
        described = asdict(meta)
        described["cursor"]["pending"] = list(meta.cursor.pending)
        try:
            with only_one_failure(), self._open() as checkpointer:
                checkpointer.save_checkpointables(
                    meta.step, {"state": state, "meta": described}, overwrite=True
                )
            self._seal(meta.step)
        except Exception as failure:  # orbax and its storage raise many kinds
            # Writers that orbax leaves behind unstarted would each add a line, some at exit.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            earlier = self._steps()
            there = (
                f"that of step {earlier[-1]} is usable" if earlier else "there is none before it"
            )
            reason = (str(failure) or type(failure).__name__).splitlines()[0]
            raise CannotSave(
                f"the checkpoint of step {meta.step} could not be saved to {self.folder} "
                f"({reason}); {there}. Free some space, then go on with --resume."
            ) from failure

    def restore(self, meta: Meta, like: Any) -> Any:
        """The saved state, placed as `like` (arrays or their shapes with shardings) is."""
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        with self._open() as checkpointer:
            return checkpointer.load_checkpointables(meta.step, {"state": shapes})["state"]

    def restore_params(self, meta: Meta, like: Any) -> Any:
        """The saved weights alone, placed as `like`; the optimizer's state is not even read."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context, self._open() as checkpointer:
            wanted = {"state": {"params": like}}
            return checkpointer.load_checkpointables(meta.step, wanted)["state"]["params"]

    def _seal(self, step: int) -> None:
        """Write the digests of a checkpoint's files beside it; drop seals that seal nothing."""
        for seal in self.folder.glob("*.seal"):
            if not (self.folder / seal.stem).is_dir():
                seal.unlink()
        text = json.dumps(_digests(self.folder / str(step)), sort_keys=True)
        draft = self.folder / f"{step}.seal.new"
        with draft.open("w", encoding="ascii") as file:
            file.write(f"{_digest(text.encode())}\n{text}")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.folder / f"{step}.seal")

    def _fault(self, step: int) -> str:
        """What is wrong with a checkpoint; empty if it is as it was when it was sealed."""
        try:
            head, _, text = (self.folder / f"{step}.seal").read_bytes().partition(b"\n")
        except FileNotFoundError:
            return "it has no seal, so saving it was interrupted"
        if head.decode("ascii", "replace") != _digest(text):
            return "its seal is"
        sealed, found = json.loads(text), _digests(self.folder / str(step))
        changed = sorted(n for n in sealed.keys() | found if sealed.get(n) != found.get(n))
        return f"{', '.join(changed[:3])} changed since it was saved" if changed else ""

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def _open(self) -> Any:
        newest: Any = ocp.training.preservation_policies.LatestN(self._keep)
        return ocp.training.Checkpointer(str(self.folder), preservation_policy=newest)


def _digests(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, by its path in there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
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
