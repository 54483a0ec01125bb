"""A GGUF file becomes our parameter tree: one name table, every name and shape checked.

llama.cpp stores a linear layer as [out, in], and the rows of q and k in the order of interleaved
rotary pairs; we keep [in, ..., out] axes and rotate halves. Everything is dequantised to float32.

Axes: L layers, V vocabulary, D width, N query heads, K key/value heads, H head size,
F feed-forward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from magistral_jax.model.gguf_file import Header, StoredTensor, read_header, read_tensor
from magistral_jax.model.params import Architecture, Params
from magistral_jax.types import UserError

Place = tuple[str, ...]
"""Where an array sits in the tree: ("layers", "wq")."""

_SHOWN = 8
_ROPE_THETA = 10_000.0


def read_architecture(path: Path) -> Architecture:
    """The network's shape, from the file's metadata; a `UserError` if it is not one of ours."""
    header = read_header(path)
    name = header.metadata.get("general.architecture")
    if name != "llama":
        raise UserError(
            f"model.source: {path} holds a network of architecture {name!r}; only 'llama' can be "
            "loaded. Name another file."
        )
    number = partial(_number, path, header)
    heads, width = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", width // heads)
    layers = number("block_count")
    _check_supported(path, header, layers=layers, heads=heads, head_dim=head_dim)
    return Architecture(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=number("feed_forward_length"),
        vocab=number("vocab_size", len(header.metadata.get("tokenizer.ggml.tokens", ()))),
        rope_theta=float(number("rope.freq_base", _ROPE_THETA, of=float)),
        norm_eps=float(number("attention.layer_norm_rms_epsilon", of=float)),
        # Without a head of its own the network ends in its embedding; the file does not say.
        tie_embeddings="output.weight" not in header.tensors,
    )


def read_params(
    path: Path,
    architecture: Architecture,
    put: Callable[[Place, np.ndarray], Any] = lambda place, array: array,
) -> Params:
    """The parameter tree in float32, each finished array passed through `put`.

    Only one array is on its way at a time, so with a `put` that moves arrays to devices the host
    never holds more than the largest.
    """
    header = read_header(path)
    table = _table(architecture)
    _check_tensors(path, header, table, architecture.layers)
    tree: Params = {}
    for place, entry in table.items():
        stored = [header.tensors[name] for name in entry.names(architecture.layers)]
        node = tree
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node[place[-1]] = put(place, _read(path, entry, stored))
    return tree


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """How the file holds one array of ours."""

    name: str
    shape: tuple[int, ...]
    """Of one tensor in the file."""
    turn: Callable[[np.ndarray], np.ndarray] = lambda w: w
    """From the file's axes and order to ours."""

    @property
    def is_per_layer(self) -> bool:
        return "{layer}" in self.name

    def names(self, layers: int) -> list[str]:
        if not self.is_per_layer:
            return [self.name]
        return [self.name.format(layer=layer) for layer in range(layers)]


def _table(a: Architecture) -> dict[Place, _Entry]:
    """Every array of ours, and the tensors of the file it is made of."""
    D, F, N, K, H = a.width, a.ffn, a.heads, a.kv_heads, a.head_dim

    def block(name: str, shape: tuple[int, ...], turn: Callable = lambda w: w) -> _Entry:
        return _Entry(name=f"blk.{{layer}}.{name}.weight", shape=shape, turn=turn)

    table = {
        ("embed",): _Entry(name="token_embd.weight", shape=(a.vocab, D)),
        ("layers", "attn_norm"): block("attn_norm", (D,)),
        ("layers", "wq"): block("attn_q", (N * H, D), lambda w: _split_heads(_halves(w, N), N)),
        ("layers", "wk"): block("attn_k", (K * H, D), lambda w: _split_heads(_halves(w, K), K)),
        ("layers", "wv"): block("attn_v", (K * H, D), lambda w: _split_heads(w, K)),
        ("layers", "wo"): block("attn_output", (D, N * H), lambda w: w.T.reshape(N, H, D)),
        ("layers", "mlp_norm"): block("ffn_norm", (D,)),
        ("layers", "w_gate"): block("ffn_gate", (F, D), np.transpose),
        ("layers", "w_up"): block("ffn_up", (F, D), np.transpose),
        ("layers", "w_down"): block("ffn_down", (D, F), np.transpose),
        ("final_norm",): _Entry(name="output_norm.weight", shape=(D,)),
    }
    if not a.tie_embeddings:
        table["head",] = _Entry(name="output.weight", shape=(a.vocab, D), turn=np.transpose)
    return table


def _halves(w: Float32[np.ndarray, "NH D"], heads: int) -> Float32[np.ndarray, "NH D"]:
    """Rows of each head from rotary pairs, x0 y0 x1 y1, to rotary halves, x0 x1 y0 y1."""
    paired = w.reshape(heads, -1, 2, w.shape[1])
    return paired.swapaxes(1, 2).reshape(w.shape)


def _split_heads(w: Float32[np.ndarray, "NH D"], heads: int) -> Float32[np.ndarray, "D N H"]:
    return w.T.reshape(w.shape[1], heads, -1)


def _read(path: Path, entry: _Entry, stored: list[StoredTensor]) -> Float32[np.ndarray, "..."]:
    """The array of ours that these tensors make: layers along a new first axis."""
    first = np.ascontiguousarray(entry.turn(read_tensor(path, stored[0])))
    if not entry.is_per_layer:
        return first
    array = np.empty((len(stored), *first.shape), np.float32)
    array[0] = first
    for i, tensor in enumerate(stored[1:], start=1):
        array[i] = entry.turn(read_tensor(path, tensor))
    return array


def _number(
    path: Path, header: Header, key: str, default: int | float = 0, *, of: type = int
) -> Any:
    """The positive number in the metadata under `key`; 0 as the default means it must be there."""
    key = f"llama.{key}"
    value = header.metadata.get(key, default)
    if not isinstance(value, of) or isinstance(value, bool) or not 0 < value < math.inf:
        found = repr(value) if key in header.metadata else "missing"
        raise UserError(
            f"model.source: metadata {key} of {path} is {found}; it must be one positive "
            f"{of.__name__}. Name another file."
        )
    return value


def _check_supported(path: Path, header: Header, *, layers: int, heads: int, head_dim: int) -> None:
    """Refuses what a llama file may ask for and our network does not do."""
    said = {k.removeprefix("llama."): v for k, v in header.metadata.items()}
    kv_heads = said.get("attention.head_count_kv", heads)
    wanted = {
        "attention.value_length": (head_dim,),
        "rope.dimension_count": (head_dim,),
        "rope.scaling.type": ("none",),
        "rope.scale_linear": (1.0,),
        "expert_count": (0,),
    }
    broken = [
        f"llama.{key} is {said[key]!r}; only {allowed[0]!r} is supported."
        for key, allowed in wanted.items()
        if key in said and said[key] not in allowed
    ]
    # A damaged count must not become a table of four billion names.
    if layers > len(header.tensors):
        broken.append(f"its {layers} layers cannot be made of {len(header.tensors)} tensors.")
    if head_dim % 2:
        broken.append(f"its head size is {head_dim}; rotary embeddings need an even one.")
    if isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads:
        broken.append(f"its {kv_heads} key/value heads do not divide its {heads} heads.")
    if broken:
        raise UserError(_listed(f"model.source: {path} holds a network we cannot run:", broken))


def _check_tensors(path: Path, header: Header, table: dict[Place, _Entry], layers: int) -> None:
    """Refuses a file whose tensors are not exactly those of the table."""
    expected = {name: entry.shape for entry in table.values() for name in entry.names(layers)}
    found = {name: tensor.shape for name, tensor in header.tensors.items()}
    wrong = [
        f"{name}: found {found.get(name, 'no such tensor')}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name) != shape
    ]
    for name, shape in found.items():
        if name in expected:
            continue
        rope = "; it rescales rotary frequencies, which we do not do" if "rope" in name else ""
        wrong.append(f"{name}: found {shape}, expected no such tensor{rope}")
    if wrong:
        intro = f"model.source: the tensors of {path} are not those its metadata promises:"
        raise UserError(_listed(intro, wrong))


def _listed(intro: str, lines: list[str]) -> str:
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n  - ".join([intro, *lines[:_SHOWN], *more])
