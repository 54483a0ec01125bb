"""The network that a GGUF file's metadata describes, as an `Architecture`.

Keys begin with the file's general.architecture: llama (Llama, Mistral, SmolLM2), qwen2, qwen3,
smollm3. What is said twice is read as llama.cpp reads it, or refused: docs/MODELS.md lists the
pairs.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from magistral_jax.model.gguf_file import Header, read_tensor
from magistral_jax.model.params import Architecture
from magistral_jax.model.rope import Scaling, frequencies_of
from magistral_jax.types import UserError

FAMILIES = ("llama", "qwen2", "qwen3", "smollm3")
PAIRED = ("llama", "smollm3")
"""Families whose q and k llama.cpp keeps in rotary pairs."""
ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's frequency scaling, as a tensor; llama.cpp has it in its llama family alone."""

_ROPE_THETA = 10_000.0
_NOPE_EVERY = 4  # llama.cpp knows it of smollm3; the file does not say
_SHOWN = 8


_WANTED = {
    "rope.scaling.type": ("none", "linear", "yarn"),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    # llama.cpp leaves these unread in our families, and these are the numbers it uses.
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    **{f"{what}_scale": (0.0, 1.0) for what in ("logit", "residual", "embedding")},
}
"""Keys that may change the network, and the values with which they do not."""
_READ = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
}


def read_network(path: Path, header: Header) -> Architecture:
    """The network's shape; a `UserError` if it is not one of ours."""
    name = header.metadata.get("general.architecture")
    if name not in FAMILIES:
        raise UserError(
            f"model.source: {path} holds a network of architecture {name!r}; only "
            f"{', '.join(map(repr, FAMILIES))} can be loaded. Name another file."
        )
    number = partial(_number, path, header, name)
    heads, width = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", width // heads)
    layers = number("block_count")
    _check_supported(path, header, name, layers=layers, heads=heads, head_dim=head_dim)
    theta = float(number("rope.freq_base", _ROPE_THETA, of=float))
    tokens = header.metadata.get("tokenizer.ggml.tokens", ())
    return Architecture(
        # llama.cpp calls Mistral "llama", too.
        family=name,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=number("feed_forward_length"),
        # vocab_size is read where there is no list of tokens.
        vocab=len(tokens) or number("vocab_size"),
        rope_theta=theta,
        rope_scaling=_scaling(path, header, name, head_dim, theta),
        norm_eps=float(number("attention.layer_norm_rms_epsilon", of=float)),
        # Without a head of its own the network ends in its embedding; the file does not say.
        tie_embeddings="output.weight" not in header.tensors,
        max_positions=max(number("context_length", -1), 0),
        qkv_bias=name == "qwen2",
        qk_norm=name == "qwen3",
        nope_layers=tuple(
            i for i in range(layers) if name == "smollm3" and (i + 1) % _NOPE_EVERY == 0
        ),
    )


def _number(
    path: Path,
    header: Header,
    name: str,
    key: str,
    default: int | float = 0,
    *,
    of: type = int,
) -> Any:
    """The positive number under `key`. Default 0: it must be there; -1: it need not."""
    key = f"{name}.{key}"
    value = header.metadata.get(key, default)
    if value == -1 and key not in header.metadata:
        return -1
    if not isinstance(value, of) or isinstance(value, bool) or not 0 < value < math.inf:
        found = repr(value) if key in header.metadata else "missing"
        raise UserError(
            f"model.source: metadata {key} of {path} is {found}; it must be one positive "
            f"{of.__name__}. Name another file."
        )
    return value


def _check_supported(
    path: Path, header: Header, name: str, *, layers: int, heads: int, head_dim: int
) -> None:
    """Refuses what a file may ask for and our network does not do."""
    said = {
        k.removeprefix(f"{name}."): v
        for k, v in header.metadata.items()
        if k.startswith(f"{name}.")
    }
    kv_heads = said.get("attention.head_count_kv", heads)
    wanted = _WANTED | {"attention.value_length": (head_dim,), "rope.dimension_count": (head_dim,)}
    broken = [
        f"{name}.{key} is {value!r}; only {' or '.join(map(repr, wanted[key]))} is supported."
        for key, value in said.items()
        if key in wanted and value not in wanted[key]
    ]
    broken += [
        f"{name}.{key} is {value!r}, of which nothing is known here."
        for key, value in said.items()
        if key.startswith(("rope.", "attention.")) and key not in {*wanted, *_READ}
    ]
    window, context = said.get("attention.sliding_window", 0), said.get("context_length", 0)
    # llama.cpp computes these families without a window, whatever the file says.
    if window and not (isinstance(window, int) and window >= context > 0):
        broken.append(
            f"{name}.attention.sliding_window is {window!r}, which llama.cpp leaves unread in "
            f"{name}; only 0 or the context_length is supported."
        )
    if ROPE_FACTORS in header.tensors and (name != "llama" or _kind(header, name) != "none"):
        broken.append(
            f"it holds {ROPE_FACTORS}, and its architecture is {name!r} with rope scaling "
            f"{_kind(header, name)!r}; only 'llama' with 'none' is supported."
        )
    # A damaged count must not become a table of four billion names.
    if layers > len(header.tensors):
        broken.append(f"its {layers} layers cannot be made of {len(header.tensors)} tensors.")
    if head_dim % 2:
        broken.append(f"its head size is {head_dim}; rotary embeddings need an even one.")
    if isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads:
        broken.append(f"its {kv_heads} key/value heads do not divide its {heads} heads.")
    if broken:
        raise UserError(listed(f"model.source: {path} holds a network we cannot run:", broken))


def _scaling(path: Path, header: Header, name: str, head_dim: int, theta: float) -> Scaling:
    """The rope scaling, by its numbers or, for Llama 3, recognised from its tensor of factors."""
    if ROPE_FACTORS in header.tensors:
        return _llama3(path, read_tensor(header.tensors[ROPE_FACTORS]), head_dim, theta)
    kind = _kind(header, name)
    if kind == "none":
        return ()
    factor = _number(path, header, name, "rope.scaling.factor", of=float)
    rope = {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        context = header.metadata.get(f"{name}.context_length", 0)
        key = "rope.scaling.original_context_length"
        rope["original_max_position_embeddings"] = _number(path, header, name, key, context)
    return tuple(sorted(rope.items()))


def _kind(header: Header, name: str) -> str:
    """The scaling's type: linear where there is a factor and nothing is said."""
    has_factor = header.metadata.get(f"{name}.rope.scaling.factor", 1.0) != 1.0
    return header.metadata.get(f"{name}.rope.scaling.type", "linear" if has_factor else "none")


def _llama3(path: Path, factors: np.ndarray, head_dim: int, theta: float) -> Scaling:
    """The one scaling that gives these factors, with Llama 3's own numbers but for its factor."""
    rope = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaling = tuple(sorted(rope.items()))
    plain, _ = frequencies_of(head_dim, theta)
    scaled, _ = frequencies_of(head_dim, theta, scaling)
    if factors.shape != plain.shape or not np.allclose(plain / scaled, factors, rtol=1e-3):
        raise UserError(
            f"model.source: {path} rescales its rotary frequencies ({ROPE_FACTORS}) otherwise than "
            "Llama 3 does, which is all that is known here. Name another file."
        )
    return scaling


def listed(intro: str, lines: list[str]) -> str:
    """The intro and its first lines, one below the other."""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n  - ".join([intro, *lines[:_SHOWN], *more])
