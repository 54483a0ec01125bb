"""Network families: a Hugging Face config.json becomes an `Architecture`, and back.

All of them are one decoder with switches (`params.Architecture`). To add a family:

1. one entry in `FAMILIES`, with a small function that reads from config.json what sets the family
   apart, and one that writes it;
2. if its tensors have names of their own, a row for each in `names.table`;
3. its random small network in tests/golden/make_families.py, which compares logits with
   transformers.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magistral_jax.model.params import Architecture
from magistral_jax.model.rope import NEEDED, OPTIONAL, Scaling
from magistral_jax.types import UserError

CONFIG = "config.json"
_MISSING = object()


class Said:
    """What a config.json says, asked for by name and type; a fault is a `UserError`."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self._path = values, path

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def count(self, key: str, default: Any = _MISSING) -> int:
        return self._number(key, default, (int,))

    def number(self, key: str, default: Any = _MISSING) -> float:
        return float(self._number(key, default, (int, float)))

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(f"{key} is {value!r}; it must be true or false")
        return value

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuse a value that would change the network; unsaid, null and `allowed` do not."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.refusal(f"{key} is {value!r}, and only {allowed[0]!r} can be computed here")

    def refusal(self, why: str) -> UserError:
        return UserError(
            f"model.source: {self._path} describes a network we cannot run: {why}. "
            "Name another model."
        )

    def _number(self, key: str, default: Any, kinds: tuple[type, ...]) -> Any:
        value = self.values.get(key)
        if value is None and default is not _MISSING:
            return default
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if value is None or not is_number or not 0 < value < math.inf:
            found = "missing" if value is None else repr(value)
            raise self.refusal(f"{key} is {found}; it must be a number above 0")
        return value


Part = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    class_name: str
    """The class of transformers and vLLM."""
    read: Callable[[Said, int], Part] = lambda said, layers: {}
    """Its own fields of the `Architecture`, from config.json and the number of layers."""
    write: Callable[[Architecture], Part] = lambda arch: {}
    """Its own fields of config.json."""
    rope_theta: float = 10_000.0
    """Where config.json is silent."""
    tie_embeddings: bool = False
    """Where config.json is silent."""
    head_dim: int = 0
    """Where config.json is silent; 0: the width divided by the heads."""


def _no_bias(said: Said, layers: int) -> Part:
    said.must_be("attention_bias", False)
    said.must_be("mlp_bias", False)
    return {}


def _write_no_bias(arch: Architecture) -> Part:
    return {"attention_bias": False}


def _mistral(said: Said, layers: int) -> Part:
    if said.values.get("sliding_window", _MISSING) is None:
        return {}
    return {"window": said.count("sliding_window", 4096), "window_layers": tuple(range(layers))}


def _write_mistral(arch: Architecture) -> Part:
    return {"sliding_window": arch.window or None}


def _windows(said: Said, layers: int, default: Callable[[int], bool]) -> Part:
    """Layers with a sliding window, as Qwen and SmolLM name them."""
    if not said.flag("use_sliding_window") or said.get("sliding_window") is None:
        return {}
    kinds = said.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if default(i) else "full_attention" for i in range(layers)]
    is_known = isinstance(kinds, list) and set(kinds) <= {"sliding_attention", "full_attention"}
    if not is_known or len(kinds) != layers:
        raise said.refusal("layer_types must name each layer sliding_attention or full_attention")
    near = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    return {"window": said.count("sliding_window"), "window_layers": near} if near else {}


def _write_windows(arch: Architecture) -> Part:
    if not arch.window:
        return {"use_sliding_window": False, "sliding_window": None}
    near = set(arch.window_layers)
    kinds = ["sliding_attention" if i in near else "full_attention" for i in range(arch.layers)]
    first = min(near)
    return {
        "use_sliding_window": True,
        "sliding_window": arch.window,
        "max_window_layers": first,
        "layer_types": kinds,
    }


def _qwen(said: Said, layers: int) -> Part:
    first = said.get("max_window_layers", 28)
    return _windows(said, layers, lambda i: i >= first)


def _qwen2(said: Said, layers: int) -> Part:
    return {"qkv_bias": True, **_qwen(said, layers)}


def _qwen3(said: Said, layers: int) -> Part:
    return {"qk_norm": True, **_no_bias(said, layers), **_qwen(said, layers)}


def _write_qwen3(arch: Architecture) -> Part:
    return {**_write_no_bias(arch), **_write_windows(arch)}


def _smollm3(said: Said, layers: int) -> Part:
    interval = said.count("no_rope_layer_interval", 4)
    rotated = said.get("no_rope_layers")  # 1 where a layer is rotated, whatever its name says
    if rotated is None:
        rotated = [int((i + 1) % interval != 0) for i in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers or not set(rotated) <= {0, 1}:
        raise said.refusal(f"no_rope_layers must hold a 0 or 1 for each of {layers} layers")
    nope = tuple(i for i in range(layers) if not rotated[i])
    return {
        "nope_layers": nope,
        **_no_bias(said, layers),
        **_windows(said, layers, lambda i: i in nope),
    }


def _write_smollm3(arch: Architecture) -> Part:
    rotated = [int(i not in arch.nope_layers) for i in range(arch.layers)]
    return {"no_rope_layers": rotated, **_write_no_bias(arch), **_write_windows(arch)}


FAMILIES: dict[str, Family] = {
    "llama": Family(  # Llama 1-3, SmolLM2
        class_name="LlamaForCausalLM", read=_no_bias, write=_write_no_bias
    ),
    "mistral": Family(class_name="MistralForCausalLM", read=_mistral, write=_write_mistral),
    "qwen2": Family(class_name="Qwen2ForCausalLM", read=_qwen2, write=_write_windows),
    "qwen3": Family(class_name="Qwen3ForCausalLM", read=_qwen3, write=_write_qwen3, head_dim=128),
    "smollm3": Family(
        class_name="SmolLM3ForCausalLM",
        read=_smollm3,
        write=_write_smollm3,
        rope_theta=2_000_000.0,
        tie_embeddings=True,
    ),
}
"""By config.json's model_type."""

MULTIMODAL = {"mistral3": "text_config"}
"""Wrappers whose language model is one of ours: where their config.json keeps its part."""


def read_config(path: Path) -> Architecture:
    """The network that a config.json describes; a `UserError` if it is not one of ours."""
    values = _parsed(path)
    wrapper = values.get("model_type")
    if wrapper in MULTIMODAL:
        inner = values.get(MULTIMODAL[wrapper])
        tied = values.get("tie_word_embeddings", False)
        values = {"model_type": "mistral", "tie_word_embeddings": tied, **_object(inner, path)}
    said = Said(values, path)
    name = said.get("model_type")
    if name not in FAMILIES:
        known = ", ".join(sorted({*FAMILIES, *MULTIMODAL}))
        raise UserError(
            f"model.source: {path} is of family {name!r}, which is not known here. "
            f"Families: {known}. docs/ARCHITECTURE.md says how one is added."
        )
    family = FAMILIES[name]
    said.must_be("hidden_act", "silu")
    said.must_be("partial_rotary_factor", 1.0)
    if said.get("quantization_config") is not None:
        raise said.refusal("its weights are quantised (quantization_config); take the bf16 ones")
    layers, width, heads = (
        said.count(key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    kv_heads = said.count("num_key_value_heads", heads)
    head_dim = said.count("head_dim", family.head_dim or width // heads)
    if heads % kv_heads or head_dim % 2:
        raise said.refusal(
            f"{heads} heads cannot share {kv_heads} key/value heads evenly"
            if heads % kv_heads
            else f"its head size is {head_dim}, and rotary embeddings need an even one"
        )
    theta, scaling = _rope(said, family)
    return Architecture(
        family=name,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=said.count("intermediate_size"),
        vocab=said.count("vocab_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=said.number("rms_norm_eps", 1e-6),
        tie_embeddings=said.flag("tie_word_embeddings", family.tie_embeddings),
        max_positions=said.count("max_position_embeddings", 0),
        **family.read(said, layers),
    )


def config_of(arch: Architecture) -> dict[str, Any]:
    """A config.json from which transformers and vLLM build this network."""
    family = FAMILIES[arch.family]
    scaling = {"rope_scaling": dict(arch.rope_scaling)} if arch.rope_scaling else {}
    return {
        "architectures": [family.class_name],
        "model_type": arch.family,
        "vocab_size": arch.vocab,
        "hidden_size": arch.width,
        "intermediate_size": arch.ffn,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": arch.max_positions or 4096,
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        **scaling,
        "pad_token_id": None,  # SmolLM3's default lies outside a small vocabulary
        "tie_word_embeddings": arch.tie_embeddings,
        **family.write(arch),
    }


def _rope(said: Said, family: Family) -> tuple[float, Scaling]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_scaling` (before)."""
    found = said.get("rope_parameters", said.get("rope_scaling", {}))
    if not isinstance(found, dict) or any(isinstance(v, dict) for v in found.values()):
        raise said.refusal(
            f"its rope parameters are {found!r}; one set for all layers is supported"
        )
    rope = {key: value for key, value in found.items() if value is not None}
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise said.refusal("it rotates only a part of each head")
    theta = rope.pop("rope_theta", said.number("rope_theta", family.rope_theta))
    old_name = rope.pop("type", "default")
    kind = rope.pop("rope_type", old_name)
    if kind in ("default", "none"):
        return float(theta), ()
    if kind not in NEEDED:
        raise said.refusal(f"rope_type {kind!r} is not known; known are {', '.join(NEEDED)}")
    if "original_max_position_embeddings" in NEEDED[kind] and said.get("max_position_embeddings"):
        rope.setdefault("original_max_position_embeddings", said.count("max_position_embeddings"))
    missing, unknown = NEEDED[kind] - rope.keys(), rope.keys() - NEEDED[kind] - OPTIONAL[kind]
    if missing or unknown:
        what = f"lacks {sorted(missing)}" if missing else f"says {sorted(unknown)}"
        raise said.refusal(f"its {kind} rope scaling {what}, of which nothing is known here")
    bad = {k: v for k, v in rope.items() if not isinstance(v, (bool, int, float))}
    if bad or rope["factor"] <= 0:
        raise said.refusal(f"its rope scaling holds {bad or rope['factor']}, not numbers above 0")
    return float(theta), tuple(sorted({"rope_type": kind, **rope}.items()))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return _object(json.loads(path.read_text("utf-8")), path)
    except FileNotFoundError:
        raise UserError(f"model.source: there is no {path}.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"model.source: {path} is not JSON that can be read: {error}.") from None


def _object(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"model.source: {path} holds no object where a network's config should be.")
    return value
