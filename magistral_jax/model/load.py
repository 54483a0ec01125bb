"""Weights in: a GGUF file or a Hugging Face folder becomes our parameter tree, on its devices.

Every tensor's name and shape is checked before any is read. Then one piece at a time (a layer's
tensor, some rows of a vocabulary) is read, cast to float32, turned to our axes, and written into
its array on the devices, each of which is given only its shard. So the host holds one piece beside
what the devices hold.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from magistral_jax.model import gguf_file, safetensors_file
from magistral_jax.model.families import CONFIG, read_config
from magistral_jax.model.gguf_network import PAIRED, ROPE_FACTORS, listed, read_network
from magistral_jax.model.names import Entry, halves, table
from magistral_jax.model.params import Architecture, Params
from magistral_jax.types import UserError

PIECE_BYTES = 64 * 2**20
"""Most of a vocabulary that is on its way at a time, in float32."""


ADAPTER = "adapter_config.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_architecture(path: Path) -> Architecture:
    """The network's shape, from a .gguf file's metadata or a folder's config.json.

    A head of its own in the folder's weights has the last word on whether the embedding is tied.
    """
    if not path.is_dir():
        return read_network(path, gguf_file.read_header(path))
    if (path / ADAPTER).exists():
        raise UserError(
            f"model.source: {path} holds {ADAPTER} beside {CONFIG}: a network, and an adapter that "
            "is meant for one. Merge the adapter into its network, or take the file away."
        )
    arch = read_config(path / CONFIG)
    if arch.tie_embeddings and _has_own_head(open_weights(path), arch):
        return replace(arch, tie_embeddings=False)
    return arch


def _has_own_head(stored: "Stored", arch: Architecture) -> bool:
    """Whether a head is stored whose values are not those of the embedding."""
    shapes = [stored.shapes.get(name) for name in (_EMBEDDING, _HEAD)]
    if shapes[1] is None:
        return False
    if shapes[0] != shapes[1]:
        return True
    step = max(1, PIECE_BYTES // (4 * arch.width))
    parts = (slice(i, i + step) for i in range(0, shapes[1][0], step))
    return not all(
        np.array_equal(stored.read(_EMBEDDING, rows), stored.read(_HEAD, rows)) for rows in parts
    )


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The tensors of a checked file or folder, under the names of our table."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str, slice], np.ndarray]
    """Rows of a tensor's first axis, in float32."""
    ignored: frozenset[str] = frozenset()
    """Tensors that are there and change nothing."""
    is_gguf: bool
    is_paired: bool = False
    """Whether rows of q and k lie in rotary pairs."""


def open_weights(path: Path) -> Stored:
    """What is stored there; anything less than whole is a `UserError`."""
    if not path.is_dir():
        header = gguf_file.read_header(path)
        return Stored(
            shapes={name: tensor.shape for name, tensor in header.tensors.items()},
            read=lambda name, rows: gguf_file.read_tensor(header.tensors[name], rows),
            ignored=frozenset({ROPE_FACTORS}),
            is_gguf=True,
            is_paired=header.metadata.get("general.architecture") in PAIRED,
        )
    found: dict[str, safetensors_file.StoredTensor] = {}
    for name, tensor in safetensors_file.read_folder(path).items():
        plain = _plain_name(name)
        if plain in found:
            raise UserError(
                f"model.source: {path} holds {plain} under two names, {found[plain].name} and "
                f"{name}. Keep one of them."
            )
        found[plain] = tensor
    return Stored(
        shapes={name: tensor.shape for name, tensor in found.items()},
        read=lambda name, rows: safetensors_file.read_tensor(found[name], rows),
        # Buffers that old versions of transformers saved, and what an image goes through.
        ignored=frozenset(
            name
            for name in found
            if name.endswith(".rotary_emb.inv_freq")
            or name.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector."))
        ),
        is_gguf=False,
    )


def read_params(
    path: Path,
    arch: Architecture,
    onto: Params | None = None,
    *,
    on_piece: Callable[[], None] = lambda: None,
) -> Params:
    """The float32 parameter tree, each array where `onto` (shardings) puts it; or on the host.

    `on_piece` is called after each piece that is read.
    """
    stored, entries = checked_weights(path, arch), table(arch)
    honest = stored.read

    def read(name: str, rows: slice) -> np.ndarray:
        found = honest(name, rows)
        on_piece()
        return found

    stored = replace(stored, read=read)
    tree: Params = {}
    for place, entry in entries.items():
        node, put_at = tree, onto
        for key in place[:-1]:
            node = node.setdefault(key, {})
            put_at = None if put_at is None else put_at[key]
        sharding = None if put_at is None else put_at[place[-1]]
        node[place[-1]] = _array(stored, entry, arch, sharding)
    return tree


def checked_weights(path: Path, arch: Architecture) -> Stored:
    """What is stored there, if its tensors are exactly those of the table; no tensor is read."""
    stored = open_weights(path)
    expected = {
        name: entry.shape
        for entry in table(arch).values()
        for name in entry.names(arch.layers, gguf=stored.is_gguf)
    }
    wrong = [
        f"{name}: found {stored.shapes.get(name, 'no such tensor')}, expected {shape}"
        for name, shape in expected.items()
        if stored.shapes.get(name) != shape
    ]
    # A tied network's head is its embedding, written out once more by some.
    extra = stored.shapes.keys() - expected.keys() - stored.ignored
    if arch.tie_embeddings and not stored.is_gguf:
        extra -= {_HEAD}
    for name in sorted(extra):
        wrong.append(f"{name}: found {stored.shapes[name]}, expected no such tensor")
    if wrong:
        where = "its metadata" if stored.is_gguf else CONFIG
        intro = f"model.source: the tensors of {path} are not those that {where} promises:"
        raise UserError(listed(intro, wrong))
    return stored


def _array(stored: Stored, entry: Entry, arch: Architecture, sharding: Any) -> Any:
    names = entry.names(arch.layers, gguf=stored.is_gguf)

    def turned(name: str, rows: slice = slice(None)) -> np.ndarray:
        tensor = stored.read(name, rows)
        if entry.paired_heads and stored.is_paired:
            tensor = halves(tensor, entry.paired_heads)
        return np.ascontiguousarray(entry.turn(tensor))

    shape = entry.turn(np.broadcast_to(np.float32(0), entry.shape)).shape
    if entry.is_per_layer:
        layers = ((i, turned(name)[None]) for i, name in enumerate(names))
        return _assembled((len(names), *shape), 0, layers, sharding)
    (name,), axis, rows = names, entry.rows_axis, entry.shape[0]
    if sharding is not None and len(sharding.spec) > axis and sharding.spec[axis] is not None:
        return jax.make_array_from_callback(shape, sharding, partial(_shard, turned, name, axis))
    step = max(1, PIECE_BYTES * rows // (4 * math.prod(shape)))
    pieces = ((i, turned(name, slice(i, i + step))) for i in range(0, rows, step))
    return _assembled(shape, axis, pieces, sharding)


def _shard(
    turned: Callable[[str, slice], np.ndarray], name: str, axis: int, index: Any
) -> np.ndarray:
    """One device's part of an array that devices split along its rows: only they are read."""
    part = list(index)
    rows, part[axis] = part[axis], slice(None)
    return turned(name, rows)[tuple(part)]


def _assembled(
    shape: tuple[int, ...], axis: int, pieces: Iterator[tuple[int, np.ndarray]], sharding: Any
) -> Any:
    """The array that pieces along `axis` make, on the host or written into it on its devices."""
    if sharding is None:
        host = np.empty(shape, np.float32)
        for start, piece in pieces:
            host[(slice(None),) * axis + (slice(start, start + piece.shape[axis]),)] = piece
        return host
    with jax.set_mesh(sharding.mesh):
        whole = jax.jit(partial(jnp.zeros, shape, jnp.float32), out_shardings=sharding)()
        for start, piece in pieces:
            part = jax.make_array_from_callback(piece.shape, sharding, partial(_at, piece))
            whole = _write(whole, part, np.int32(start), axis)
            # Else pieces would queue up in the host's memory faster than they are written.
            jax.block_until_ready(whole)
        return whole


def _at(piece: np.ndarray, index: Any) -> np.ndarray:
    return piece[index]


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write(
    whole: Float[Array, "..."], part: Float[Array, "..."], start: Int[Array, ""], axis: int
) -> Float[Array, "..."]:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)


def _plain_name(name: str) -> str:
    """A tensor's name without what the multimodal wrappers (`families.MULTIMODAL`) add to it."""
    if name.startswith("language_model."):
        return name.removeprefix("language_model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name
