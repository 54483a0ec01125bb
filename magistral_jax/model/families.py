"""Network families: a Hugging Face config.json becomes an `Architecture`, and back.

All of them are one decoder with switches (`params.Architecture`). To add a family:

1. one entry in `FAMILIES`, with a small function that reads from config.json what sets the family
   apart, and one that writes it;
2. if its tensors have names of their own, a row for each in `names.table`;
3. its random small network in tests/golden/make_families.py, which compares logits with
   transformers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magistral_jax.model.config_file import Said, an_object, parsed
from magistral_jax.model.params import Architecture
from magistral_jax.model.rope import NEEDED, OPTIONAL, Scaling
from magistral_jax.types import UserError

CONFIG = "config.json"
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
    kv_heads: int = 0
    """Where config.json is silent, and not null; 0: as many as heads."""
    head_dim: int = 0
    """Where config.json is silent; 0: the width divided by the heads."""


_NEAR, _FULL = "sliding_attention", "full_attention"


def _no_bias(said: Said, layers: int) -> Part:
    said.must_be("attention_bias", False)
    said.must_be("mlp_bias", False)
    return {}


def _write_no_bias(arch: Architecture) -> Part:
    return {"attention_bias": False}


def _llama(said: Said, layers: int) -> Part:
    # transformers sees all of the text with these, though its cache may not.
    said.must_be("sliding_window", None)
    said.must_be("layer_types", [_FULL] * layers)
    return _no_bias(said, layers)


def _mistral(said: Said, layers: int) -> Part:
    """As transformers does, a Mistral whose layers differ is taken for a Ministral."""
    found = _windows(said, layers, lambda i: True, size=_size(said, 4096))
    is_mixed = 0 < len(found.get("window_layers", ())) < layers
    return {"family": "ministral" if is_mixed else "mistral", **found}


def _write_mistral(arch: Architecture) -> Part:
    return {"sliding_window": arch.window or None}


def _write_ministral(arch: Architecture) -> Part:
    return {**_write_mistral(arch), "layer_types": _kinds(arch)}


def _windows(said: Said, layers: int, default: Callable[[int], bool], size: int | None) -> Part:
    """Layers with a sliding window of `size` (None: none can have one): those that layer_types
    names, else those of `default`."""
    kinds = said.get("layer_types")
    if kinds is None:
        kinds = [_NEAR if default(i) and size is not None else _FULL for i in range(layers)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or not all(kind in (_NEAR, _FULL) for kind in kinds)
    ):
        raise said.refusal("layer_types must name each layer sliding_attention or full_attention")
    near = tuple(i for i, kind in enumerate(kinds) if kind == _NEAR)
    if near and size is None:
        what = {k: said.values[k] for k in _WINDOW_FIELDS if k in said.values}
        raise said.refusal(f"layer_types names {_NEAR}, and no window is in use: it says {what}")
    if not near:
        return {}
    return {"window": size, "window_layers": near}


_WINDOW_FIELDS = ("use_sliding_window", "sliding_window")


def _size(said: Said, silent: int | None) -> int | None:
    """The window's size, or None for none; `silent` where nothing is said."""
    if said.values.get("sliding_window", silent) is None:
        return None
    return said.count("sliding_window", silent)


def _used(said: Said, silent: int | None) -> int | None:
    return _size(said, silent) if said.flag("use_sliding_window") else None


def _kinds(arch: Architecture) -> list[str]:
    return [_NEAR if i in arch.window_layers else _FULL for i in range(arch.layers)]


def _write_windows(arch: Architecture) -> Part:
    if not arch.window:
        return {"use_sliding_window": False, "sliding_window": None}
    return {
        "use_sliding_window": True,
        "sliding_window": arch.window,
        "max_window_layers": min(arch.window_layers),
        "layer_types": _kinds(arch),
    }


def _qwen(said: Said, layers: int) -> Part:
    first = said.whole("max_window_layers", 28)
    return _windows(said, layers, lambda i: i >= first, _used(said, 4096))


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
    if (
        not isinstance(rotated, list)
        or len(rotated) < layers
        or not all(bit in (0, 1) for bit in rotated)
    ):
        raise said.refusal(f"no_rope_layers must hold a 0 or 1 for each of {layers} layers")
    nope = tuple(i for i in range(layers) if not rotated[i])
    return {
        "nope_layers": nope,
        **_no_bias(said, layers),
        **_windows(said, layers, lambda i: i in nope, _used(said, None)),
    }


def _write_smollm3(arch: Architecture) -> Part:
    rotated = [int(i not in arch.nope_layers) for i in range(arch.layers)]
    return {"no_rope_layers": rotated, **_write_no_bias(arch), **_write_windows(arch)}


FAMILIES: dict[str, Family] = {
    "llama": Family(  # Llama 1-3, SmolLM2
        class_name="LlamaForCausalLM", read=_llama, write=_write_no_bias
    ),
    "mistral": Family(
        class_name="MistralForCausalLM", read=_mistral, write=_write_mistral, kv_heads=8
    ),
    "ministral": Family(  # a Mistral with a window on some layers
        class_name="MinistralForCausalLM", read=_mistral, write=_write_ministral, kv_heads=8
    ),
    "qwen2": Family(class_name="Qwen2ForCausalLM", read=_qwen2, write=_write_windows, kv_heads=32),
    "qwen3": Family(
        class_name="Qwen3ForCausalLM", read=_qwen3, write=_write_qwen3, kv_heads=32, head_dim=128
    ),
    "smollm3": Family(
        class_name="SmolLM3ForCausalLM",
        read=_smollm3,
        write=_write_smollm3,
        rope_theta=2_000_000.0,
        tie_embeddings=True,
        kv_heads=4,
    ),
}
"""By config.json's model_type."""

MULTIMODAL = {"mistral3": "text_config"}
"""Wrappers whose language model is one of ours: where their config.json keeps its part."""


def read_config(path: Path) -> Architecture:
    """The network that a config.json describes; a `UserError` if it is not one of ours.

    What it says twice is read as transformers reads it, or refused: docs/MODELS.md lists the pairs.
    """
    said = _unwrapped(Said(parsed(path), path))
    name = said.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(sorted({*FAMILIES, *MULTIMODAL}))
        raise UserError(
            f"model.source: {path} is of family {name!r}, which is not known here. "
            f"Families: {known}. docs/ARCHITECTURE.md says how one is added."
        )
    family = FAMILIES[name]
    _check_class(said, family.class_name.removesuffix("ForCausalLM"))
    _check_supported(said)
    layers, width, heads = (
        said.count(key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    # null means what silence means in Llama alone.
    silent = heads if "num_key_value_heads" in said.values else family.kv_heads or heads
    kv_heads = said.count("num_key_value_heads", silent)
    head_dim = said.count("head_dim", family.head_dim or width // heads)
    if heads % kv_heads or head_dim % 2:
        raise said.refusal(
            f"{heads} heads cannot share {kv_heads} key/value heads evenly"
            if heads % kv_heads
            else f"its head size is {head_dim}, and rotary embeddings need an even one"
        )
    theta, scaling = _rope(said, family)
    return Architecture(
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
        **{"family": name, **family.read(said, layers)},
    )


def _unwrapped(said: Said) -> Said:
    """What is said of the language model: all of it, or a multimodal wrapper's part."""
    wrapper = said.get("model_type")
    if not isinstance(wrapper, str) or wrapper not in MULTIMODAL:
        return said
    _check_class(said, wrapper.capitalize())
    _check_supported(said)
    inner = an_object(said.values.get(MULTIMODAL[wrapper]), said.path)
    values = {"model_type": "mistral", **inner}
    if values["model_type"] == "mistral" and values.get("layer_types") is not None:
        raise said.refusal(
            f"{MULTIMODAL[wrapper]} says layer_types, which transformers heeds in a Mistral of its "
            "own and not inside a wrapper"
        )
    # The wrapper ties its embeddings or not, whatever its part says.
    return Said(
        {**values, "tie_word_embeddings": said.flag("tie_word_embeddings", True)}, said.path
    )


def _check_class(said: Said, prefix: str) -> None:
    """Refuse `architectures` that name another family's class: vLLM would go by it."""
    classes = said.get("architectures", [])
    if not isinstance(classes, list) or not all(
        str(name).lower().startswith(prefix.lower()) for name in classes
    ):
        raise said.refusal(
            f"model_type is {said.get('model_type')!r}, and architectures is {classes!r}, which is "
            f"no {prefix}"
        )


def _check_supported(said: Said) -> None:
    """Refuse what may stand in any family's config.json and is not computed here."""
    said.must_be("hidden_act", "silu", "swish")
    said.must_be("partial_rotary_factor", 1.0)
    said.must_be("is_causal", True)
    said.must_be("per_layer_config", {})
    for key in ("quantization_config", "compression_config"):
        if said.get(key) is not None:
            raise said.refusal(f"its weights are quantised ({key}); take the bf16 ones")


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
    """Theta and scaling; `rope_scaling` (before transformers 5) replaces `rope_parameters`."""
    old, new = (said.get(key, {}) for key in ("rope_scaling", "rope_parameters"))
    for found in (old, new):
        if not isinstance(found, dict) or any(isinstance(v, dict) for v in found.values()):
            raise said.refusal(
                f"its rope parameters are {found!r}; one set for all layers is supported"
            )
    rope = {key: value for key, value in (old or new).items() if value is not None}
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise said.refusal("it rotates only a part of each head")
    theta = Said(rope, said.path).number("rope_theta", said.number("rope_theta", family.rope_theta))
    lost = new.get("rope_theta") or theta
    if old and not {"rope_theta"} & {*old, *said.values} and lost != theta:
        raise said.refusal(
            f"its rope_scaling replaces rope_parameters, whose rope_theta {lost} would become "
            f"{theta}: say rope_theta inside rope_scaling, or take rope_scaling away"
        )
    rope.pop("rope_theta", None)
    old_name = rope.pop("type", "default")
    kind = rope.pop("rope_type", old_name)
    if kind in ("default", "none"):
        return theta, ()
    if not isinstance(kind, str) or kind not in NEEDED:
        raise said.refusal(f"rope_type {kind!r} is not known; known are {', '.join(NEEDED)}")
    original = "original_max_position_embeddings"
    if original in NEEDED[kind]:
        if said.get(original) is not None:  # transformers gives it the word
            rope[original] = said.count(original)
        elif said.get("max_position_embeddings"):
            rope.setdefault(original, said.count("max_position_embeddings"))
    missing, unknown = NEEDED[kind] - rope.keys(), rope.keys() - NEEDED[kind] - OPTIONAL[kind]
    if missing or unknown:
        what = f"lacks {sorted(missing)}" if missing else f"says {sorted(unknown)}"
        raise said.refusal(f"its {kind} rope scaling {what}, of which nothing is known here")
    _check_numbers(said, rope)
    return theta, tuple(sorted({"rope_type": kind, **rope}.items()))


def _check_numbers(said: Said, rope: dict[str, Any]) -> None:
    """Refuse a scaling's numbers of which no frequencies can be made."""
    bad = {
        key: value
        for key, value in rope.items()
        if not isinstance(value, (bool, int, float))
        or not (0 < value < math.inf or (key in _MAY_BE_0 and value == 0))
    }
    if bad:
        raise said.refusal(f"its rope scaling holds {bad}, not numbers above 0")
    low, high = rope.get("low_freq_factor", 0), rope.get("high_freq_factor", 1)
    if low >= high:
        raise said.refusal(
            f"its low_freq_factor {low} is not below its high_freq_factor {high}, as Llama 3's "
            "ramp needs"
        )


_MAY_BE_0 = ("truncate", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
"""Where 0 is transformers' word for the usual number, or for no."""
