"""Networks described twice: two fields, or a field and a tensor, that can contradict each other.

Each case is a small network of families/ with some of what describes it changed. What transformers
or llama.cpp computes of it is in pairs.npz, which make_pairs.py writes; docs/MODELS.md has a line
for each pair. Imports nothing of ours.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

FAMILIES = Path(__file__).parent / "families"
PLACES = (7, 39)
"""Positions whose logits are kept."""
OUT = "left out"
"""A field or a tensor that is taken away."""


@dataclass(frozen=True, kw_only=True)
class Case:
    pair: str
    """As docs/MODELS.md names it."""
    name: str
    base: str
    """A folder of families/; for GGUF, the folder whose tensors are used."""
    says: dict[str, Any] = field(default_factory=dict)
    """Changes to config.json or to the metadata; a dict in a dict changes it."""
    tensors: dict[str, Any] = field(default_factory=dict)
    """Changes: OUT, another tensor's name, an array, or a shape to be drawn; {} is each layer."""
    files: dict[str, Any] = field(default_factory=dict)
    """JSON beside it, by name."""
    arch: str = ""
    """GGUF's general.architecture; empty: a folder of safetensors."""
    parts: tuple[tuple[int, int], ...] = ()
    """GGUF: the first tensor and the end of each part of a split file; none: it is not there."""
    refused: str = ""
    """What our refusal says; empty: we compute what the others compute."""


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
UNSAID = {
    key: value
    for key, value in {**LLAMA3, "rope_theta": 100.0}.items()
    if key != "original_max_position_embeddings"
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
INDEX = "model.safetensors.index.json"
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
NEAR, FULL = "sliding_attention", "full_attention"
MIXED = [NEAR, FULL, NEAR]


def folder(
    pair: str, name: str, base: str, refused: str = "", /, *, tensors=None, files=None, **says: Any
) -> Case:
    return Case(
        pair=pair,
        name=name,
        base=base,
        says=says,
        tensors=tensors or {},
        files=files or {},
        refused=refused,
    )


def _folders() -> list[Case]:
    tie = "`tie_word_embeddings` and `lm_head.weight`"
    both = "`rope_scaling` and `rope_parameters`"
    theta = "`rope_theta` at the top and inside"
    original = (
        "`original_max_position_embeddings` at the top, inside, and `max_position_embeddings`"
    )
    old_type = "`type` and `rope_type`"
    numbers = "`rope_type` and the numbers beside it"
    factor = "YaRN's `factor` and `max_position_embeddings` / `original_max_position_embeddings`"
    qwen = "`use_sliding_window`, `sliding_window`, `max_window_layers` and `layer_types` (Qwen)"
    mistral = "`sliding_window` and `layer_types` (Mistral)"
    smol = "`use_sliding_window`, `sliding_window` and `layer_types` (SmolLM3)"
    llama = "windows in a family that has none (Llama)"
    nope = "`no_rope_layers` and `no_rope_layer_interval` (SmolLM3)"
    heads = "`head_dim` and `hidden_size` / `num_attention_heads`"
    kv = "`num_key_value_heads` and the rows of k and v"
    sizes = "sizes in config.json and the tensors' shapes"
    layers = "`num_hidden_layers` and the layers in the file"
    biases = "`attention_bias`, `mlp_bias` and the tensors"
    norms = "norms of q and k, by the family and in the file"
    dtype = "`dtype` and `torch_dtype`"
    classes = "`architectures` and `model_type`"
    act = "`hidden_act`"
    quant = "`quantization_config` and the tensors"
    other = "`is_causal`, `per_layer_config`, `partial_rotary_factor`"
    wrap = "`text_config` and the top level (Mistral 3)"
    adapter = "adapter_config.json beside the weights"
    said = "generation_config.json and config.json"
    strange = "fields of other families"
    index = "model.safetensors.index.json and the files beside it"
    qk = {"model.layers.{}.self_attn.q_proj.bias": (16,)}
    return [
        folder(tie, "tied, no head", "llama3"),
        folder(tie, "tied, a head of its own", "llama3", tensors={"lm_head.weight": (40, 16)}),
        folder(
            tie,
            "tied, the same head",
            "llama3",
            tensors={"lm_head.weight": "model.embed_tokens.weight"},
        ),
        folder(
            tie,
            "tied by default, a head of its own",
            "smollm3",
            tensors={"lm_head.weight": (40, 16)},
            tie_word_embeddings=OUT,
        ),
        folder(
            tie,
            "tied, only the head is there",
            "llama3",
            "model.embed_tokens.weight: found no such tensor",
            tensors={
                "lm_head.weight": "model.embed_tokens.weight",
                "model.embed_tokens.weight": OUT,
            },
        ),
        folder(
            tie,
            "not tied, no head",
            "llama",
            "lm_head.weight: found no such tensor",
            tensors={"lm_head.weight": OUT},
        ),
        folder(
            tie,
            "not tied, the same head",
            "llama",
            tensors={"lm_head.weight": "model.embed_tokens.weight"},
        ),
        folder(tie, "says nothing, a head", "llama", tie_word_embeddings=OUT),
        folder(
            both,
            "a scaling added by hand",
            "llama",
            rope_scaling={**LINEAR, "rope_theta": 100.0},
        ),
        folder(
            both,
            "a scaling added by hand, theta at the top",
            "llama",
            rope_scaling=YARN,
            rope_theta=100.0,
        ),
        folder(
            both,
            "a scaling added by hand, theta lost",
            "llama",
            "rope_scaling replaces rope_parameters, whose rope_theta 100.0",
            rope_scaling=YARN,
        ),
        folder(
            both,
            "the default written over YaRN",
            "qwen3_yarn",
            rope_scaling={"rope_type": "default", "rope_theta": 100.0},
        ),
        folder(both, "null beside parameters", "qwen3_yarn", rope_scaling=None),
        folder(both, "nothing beside parameters", "qwen3_yarn", rope_scaling={}),
        folder(
            both,
            "empty parameters",
            "llama",
            rope_parameters={},
            rope_scaling=LINEAR,
            rope_theta=50.0,
        ),
        folder(theta, "both", "llama", rope_theta=7.0),
        folder(theta, "only at the top", "llama", rope_parameters=OUT, rope_theta=7.0),
        folder(
            theta,
            "top, beside parameters without one",
            "llama",
            rope_parameters={"rope_type": "default"},
            rope_theta=7.0,
        ),
        folder(theta, "nowhere", "llama", rope_parameters=OUT),
        folder(theta, "nowhere, SmolLM3", "smollm3", rope_parameters=OUT),
        folder(theta, "in both scalings", "llama", rope_scaling=PLAIN | {"rope_theta": 9.0}),
        folder(
            theta,
            "no number",
            "llama",
            "rope_theta is '100'",
            rope_parameters={"rope_type": "default", "rope_theta": "100"},
        ),
        folder(
            original,
            "at the top and inside",
            "llama3",
            original_max_position_embeddings=8,
        ),
        folder(
            original,
            "at the top and inside, YaRN",
            "qwen3_yarn",
            original_max_position_embeddings=4096,
        ),
        folder(
            original,
            "only at the top",
            "llama",
            original_max_position_embeddings=16,
            rope_parameters=UNSAID,
        ),
        folder(
            original,
            "nowhere but in max_position_embeddings",
            "llama",
            rope_parameters=UNSAID,
        ),
        folder(
            original,
            "at the top, beside a scaling that has none",
            "llama_linear",
            original_max_position_embeddings=8,
        ),
        folder(
            old_type,
            "both",
            "llama",
            rope_parameters={**LINEAR, "type": "yarn", "rope_theta": 100.0},
        ),
        folder(
            old_type,
            "the old name alone",
            "llama",
            rope_parameters=OUT,
            rope_theta=100.0,
            rope_scaling={"type": "linear", "factor": 2.0},
        ),
        folder(numbers, "default, and a factor", "llama", rope_parameters={**PLAIN, "factor": 2.0}),
        folder(
            numbers,
            "linear, and YaRN's numbers",
            "llama",
            "says ..beta_fast",
            rope_parameters={**LINEAR, "rope_theta": 100.0, "beta_fast": 4.0},
        ),
        folder(
            numbers,
            "YaRN, its temperature twice",
            "qwen3_yarn",
            rope_parameters={
                **YARN,
                "rope_theta": 100.0,
                "attention_factor": 1.5,
                "mscale": 2.0,
                "mscale_all_dim": 1.0,
            },
        ),
        folder(
            numbers,
            "YaRN, both mscales",
            "qwen3_yarn",
            rope_parameters={**YARN, "rope_theta": 100.0, "mscale": 2.0, "mscale_all_dim": 1.0},
        ),
        folder(
            numbers,
            "Llama 3, a ramp of no width",
            "llama3",
            "high_freq_factor",
            rope_parameters={**LLAMA3, "rope_theta": 100.0, "high_freq_factor": 1.0},
        ),
        folder(
            factor,
            "they differ",
            "qwen3_yarn",
            max_position_embeddings=1024,
            rope_parameters={**YARN, "rope_theta": 100.0, "original_max_position_embeddings": 128},
        ),
        folder(
            factor,
            "factor null",
            "qwen3_yarn",
            "lacks ..factor",
            rope_parameters={**YARN, "rope_theta": 100.0, "factor": None},
        ),
        folder(qwen, "all agree", "qwen2_windows"),
        folder(
            qwen, "not used, yet given", "qwen2_windows", use_sliding_window=False, layer_types=OUT
        ),
        folder(
            qwen,
            "says nothing of its use",
            "qwen2_windows",
            use_sliding_window=OUT,
            layer_types=OUT,
        ),
        folder(
            qwen,
            "not used, yet layers that slide",
            "qwen2_windows",
            "no window is in use: it says ..use_sliding_window.: False",
            use_sliding_window=False,
        ),
        folder(
            qwen,
            "used, of no size, layers that slide",
            "qwen2_windows",
            "layer_types names sliding_attention, and no window is in use",
            sliding_window=None,
        ),
        folder(qwen, "used, of no size", "qwen2_windows", sliding_window=None, layer_types=OUT),
        folder(
            qwen,
            "layers against max_window_layers",
            "qwen2_windows",
            layer_types=MIXED,
            max_window_layers=3,
        ),
        folder(
            qwen, "max_window_layers alone", "qwen2_windows", layer_types=OUT, max_window_layers=2
        ),
        folder(
            qwen,
            "max_window_layers unsaid",
            "qwen2_windows",
            layer_types=OUT,
            max_window_layers=OUT,
        ),
        folder(
            qwen,
            "max_window_layers null",
            "qwen2_windows",
            "max_window_layers is None",
            layer_types=OUT,
            max_window_layers=None,
        ),
        folder(
            qwen,
            "a size, unsaid",
            "qwen2_windows",
            sliding_window=OUT,
        ),
        folder(
            qwen,
            "too few layers",
            "qwen2_windows",
            "layer_types must name each layer",
            layer_types=[NEAR, FULL],
        ),
        folder(
            qwen,
            "windows in Qwen 3",
            "qwen3",
            use_sliding_window=True,
            sliding_window=5,
            layer_types=MIXED,
        ),
        folder(mistral, "a window", "mistral_window"),
        folder(mistral, "mixed layers", "mistral_window", layer_types=MIXED),
        folder(mistral, "all slide", "mistral_window", layer_types=[NEAR] * 3),
        folder(mistral, "none slides", "mistral_window", layer_types=[FULL] * 3),
        folder(mistral, "layer_types null", "mistral_window", layer_types=None),
        folder(
            mistral,
            "layers slide, no window",
            "mistral_window",
            "layer_types names sliding_attention, and no window is in use",
            layer_types=MIXED,
            sliding_window=None,
        ),
        folder(mistral, "a window, unsaid", "mistral_window", sliding_window=OUT),
        folder(mistral, "no window", "mistral_window", sliding_window=None),
        folder(
            mistral,
            "use_sliding_window, which it does not have",
            "mistral_window",
            use_sliding_window=False,
        ),
        folder(
            smol,
            "on unrotated layers",
            "smollm3",
            use_sliding_window=True,
            sliding_window=5,
            layer_types=OUT,
        ),
        folder(
            smol,
            "layers of its own",
            "smollm3",
            use_sliding_window=True,
            sliding_window=5,
            layer_types=[NEAR, FULL, FULL, NEAR],
        ),
        folder(smol, "not used, yet given", "smollm3", sliding_window=5),
        folder(
            smol,
            "not used, yet layers that slide",
            "smollm3",
            "no window is in use: it says ..use_sliding_window.: False",
            sliding_window=5,
            layer_types=[NEAR, FULL, FULL, NEAR],
        ),
        folder(
            llama,
            "a window",
            "llama",
            "sliding_window is 5",
            sliding_window=5,
        ),
        folder(
            llama,
            "layers that slide",
            "llama",
            "layer_types is",
            layer_types=MIXED,
        ),
        folder(nope, "the list against the interval", "smollm3", no_rope_layers=[0, 1, 1, 0]),
        folder(nope, "the interval alone", "smollm3", no_rope_layers=OUT, no_rope_layer_interval=3),
        folder(nope, "neither", "smollm3", no_rope_layers=OUT, no_rope_layer_interval=OUT),
        folder(nope, "a list too long", "smollm3", no_rope_layers=[0, 1, 1, 0, 0]),
        folder(
            nope,
            "a list too short",
            "smollm3",
            "no_rope_layers must hold",
            no_rope_layers=[0, 1, 1],
        ),
        folder(heads, "head_dim unsaid", "llama", head_dim=OUT),
        folder(heads, "head_dim of its own", "mistral_small"),
        folder(heads, "head_dim against the file", "llama", "q_proj.weight: found", head_dim=8),
        folder(heads, "head_dim in a family without one", "qwen2", head_dim=4),
        folder(heads, "head_dim unsaid, Qwen 3", "qwen3", "q_proj.weight: found", head_dim=OUT),
        folder(
            kv,
            "unsaid, and as many as heads",
            "llama",
            num_key_value_heads=OUT,
            tensors={
                "model.layers.{}.self_attn.k_proj.weight": (16, 16),
                "model.layers.{}.self_attn.v_proj.weight": (16, 16),
            },
        ),
        folder(
            kv,
            "unsaid, SmolLM3's four",
            "smollm3",
            num_key_value_heads=OUT,
            num_attention_heads=8,
            head_dim=4,
            tensors={
                "model.layers.{}.self_attn.q_proj.weight": (32, 16),
                "model.layers.{}.self_attn.o_proj.weight": (16, 32),
                "model.layers.{}.self_attn.k_proj.weight": (16, 16),
                "model.layers.{}.self_attn.v_proj.weight": (16, 16),
            },
        ),
        folder(kv, "other than the file's", "llama", "k_proj.weight: found", num_key_value_heads=4),
        folder(sizes, "vocab_size", "llama", "embed_tokens.weight: found", vocab_size=39),
        folder(
            sizes, "intermediate_size", "llama", "gate_proj.weight: found", intermediate_size=16
        ),
        folder(sizes, "hidden_size", "llama", "expected", hidden_size=32),
        folder(layers, "fewer than in the file", "llama", "model.layers.2", num_hidden_layers=2),
        folder(layers, "more than in the file", "llama", "model.layers.3", num_hidden_layers=4),
        folder(
            biases, "said, and not there", "llama", "attention_bias is True", attention_bias=True
        ),
        folder(biases, "there, and not said", "llama", "q_proj.bias: found", tensors=qk),
        folder(biases, "mlp_bias", "llama", "mlp_bias is True", mlp_bias=True),
        folder(biases, "Qwen 2 denies its own", "qwen2", attention_bias=False),
        folder(
            biases,
            "Qwen 2 without them",
            "qwen2",
            "k_proj.bias: found no such tensor",
            tensors={"model.layers.{}.self_attn.k_proj.bias": OUT},
        ),
        folder(biases, "Mistral, which has none", "mistral_small", attention_bias=True),
        folder(
            norms,
            "in a family without",
            "llama",
            "q_norm.weight: found",
            tensors={"model.layers.{}.self_attn.q_norm.weight": (4,)},
        ),
        folder(
            norms,
            "missing in Qwen 3",
            "qwen3",
            "q_norm.weight: found no such tensor",
            tensors={"model.layers.{}.self_attn.q_norm.weight": OUT},
        ),
        folder(dtype, "they differ", "llama", torch_dtype="bfloat16"),
        folder(
            classes,
            "of two families",
            "llama",
            "architectures",
            architectures=["MistralForCausalLM"],
        ),
        folder(classes, "unsaid", "llama", architectures=OUT),
        folder(classes, "the base model's", "llama", architectures=["LlamaModel"]),
        folder(act, "another name of it", "llama", hidden_act="swish"),
        folder(act, "another", "llama", "hidden_act is 'gelu'", hidden_act="gelu"),
        folder(
            quant,
            "said of plain tensors",
            "llama",
            "quantization_config",
            quantization_config={"quant_method": "fp8"},
        ),
        folder(
            quant,
            "at the top of a wrapper",
            "mistral_small",
            "quantization_config",
            model_type="mistral3",
            text_config="itself",
            quantization_config={"quant_method": "fp8"},
        ),
        folder(other, "is_causal", "llama", "is_causal is False", is_causal=False),
        folder(
            other,
            "per_layer_config",
            "llama",
            "per_layer_config",
            per_layer_config={"1": {"num_key_value_heads": 1}},
        ),
        folder(
            other,
            "a part of each head, at the top",
            "llama",
            "partial_rotary_factor is 0.5",
            partial_rotary_factor=0.5,
        ),
        folder(
            other,
            "a part of each head, inside",
            "llama",
            "a part of each head",
            rope_parameters={**PLAIN, "partial_rotary_factor": 0.5},
        ),
        folder(
            other,
            "the whole inside, a part at the top",
            "llama",
            "partial_rotary_factor is 0.5",
            partial_rotary_factor=0.5,
            rope_parameters={**PLAIN, "partial_rotary_factor": 1.0},
        ),
        folder(wrap, "as it is", "mistral_small", model_type="mistral3", text_config="itself"),
        folder(
            wrap,
            "other sizes at the top",
            "mistral_small",
            model_type="mistral3",
            text_config="itself",
            num_hidden_layers=2,
            rope_theta=7.0,
            sliding_window=3,
        ),
        folder(
            wrap,
            "tied at the top only",
            "mistral_small",
            model_type="mistral3",
            text_config="itself",
            tie_word_embeddings=True,
            tensors={"language_model.lm_head.weight": OUT},
        ),
        folder(
            wrap,
            "tied inside only",
            "mistral_small",
            "lm_head.weight: found no such tensor",
            model_type="mistral3",
            text_config={"tie_word_embeddings": True},
            tie_word_embeddings=False,
            tensors={"language_model.lm_head.weight": OUT},
        ),
        folder(
            wrap,
            "tied nowhere said",
            "mistral_small",
            model_type="mistral3",
            text_config={"tie_word_embeddings": OUT},
            tie_word_embeddings=OUT,
            tensors={"language_model.lm_head.weight": OUT},
        ),
        folder(
            wrap,
            "tied nowhere said, a head of its own",
            "mistral_small",
            model_type="mistral3",
            text_config={"tie_word_embeddings": OUT},
            tie_word_embeddings=OUT,
        ),
        folder(
            wrap,
            "no window said",
            "mistral_small",
            model_type="mistral3",
            text_config={"sliding_window": OUT},
        ),
        folder(
            wrap,
            "layers of two kinds inside",
            "mistral_window",
            "layer_types",
            model_type="mistral3",
            text_config={"layer_types": MIXED},
        ),
        folder(
            wrap,
            "another family inside",
            "qwen2",
            model_type="mistral3",
            text_config="itself",
        ),
        folder(
            wrap,
            "the language model twice in the file",
            "mistral_small",
            "under two names",
            model_type="mistral3",
            text_config="itself",
            tensors={"lm_head.weight": (40, 16)},
        ),
        folder(
            adapter,
            "an adapter",
            "llama",
            "adapter_config.json",
            files={"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "a/b"}},
        ),
        folder(
            strange,
            "many of them",
            "llama",
            qk_layernorm=True,
            final_logit_softcapping=1.0,
            embedding_multiplier=3.0,
            attention_multiplier=0.1,
            num_local_experts=4,
            attention_chunk_size=4,
            clip_qkv=0.1,
            rotary_emb_base=7.0,
        ),
        folder(
            index,
            "a tensor that it does not name",
            "llama",
            "the index does not name it",
            files={INDEX: {"weight_map": {"lm_head.weight": "model.safetensors"}}},
        ),
        folder(
            index,
            "an index of other files",
            "llama",
            "it names model-00001-of-00001.safetensors, expected beside it",
            files={INDEX: {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}},
        ),
        folder(
            said,
            "other end tokens",
            "llama",
            files={"generation_config.json": {"eos_token_id": 5, "temperature": 0.1}},
        ),
    ]


FOLDERS = _folders()
THREE = ((0, 4), (4, 14), (14, 30))


def file(
    pair: str, name: str, refused: str = "", /, *, arch="llama", tensors=None, parts=(), says=None
):
    base = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3"}[arch]
    return Case(
        pair=pair,
        name=name,
        base=base,
        arch=arch,
        says=says or {},
        tensors=tensors or {},
        parts=parts,
        refused=refused,
    )


def words(count: int) -> dict[str, Any]:
    """A tokenizer of that many tokens."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(count - 3))],
        "tokenizer.ggml.scores": [0.0] * count,
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (count - 3),
    }


def _files() -> list[Case]:
    plain = "general.architecture and the order of q's and k's rows"
    split = "`split.count`, `split.no`, `split.tensors.count` and the files' names"
    head = "`output.weight` and `token_embd.weight`"
    vocab = "`vocab_size` and `tokenizer.ggml.tokens`"
    scaling = "`rope.scaling.type`, `rope.scaling.factor` and `rope.scale_linear`"
    yarn = "`rope.scaling.type` yarn and `rope.scaling.*`"
    freqs = "`rope_freqs.weight` and `rope.scaling.*`"
    window = "`attention.sliding_window` and general.architecture"
    causal = "`attention.causal`"
    sizes = "sizes in the metadata and the tensors' shapes"
    lengths = "`attention.key_length`, `attention.value_length` and `rope.dimension_count`"
    kv = "`attention.head_count_kv` and the rows of k and v"
    blocks = "`block_count`, `nextn_predict_layers` and the blocks in the file"
    experts = "`expert_count` and `expert_used_count`"
    biases = "biases and norms, by general.architecture and in the file"
    scales = "`logit_scale`, `residual_scale`, `embedding_scale`, `attention.*` of other families"
    stretched = {
        "context_length": 16384,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 4096,
    }
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    factors = np.array([1.0, 8.0], np.float32)
    return [
        *(file(plain, arch, arch=arch) for arch in ("llama", "qwen2", "qwen3", "smollm3")),
        file(split, "three parts", parts=THREE),
        file(split, "three parts, the head in the last", parts=((0, 20), (20, 29), (29, 30))),
        file(
            split,
            "the second is given",
            "is part 2 of 3. Name the first",
            parts=THREE,
            says={"given": 2},
        ),
        file(
            split,
            "the last is not there",
            "net-00003-of-00003.gguf are not beside it",
            parts=((0, 10), (10, 30), (30, 30)),
        ),
        file(
            split,
            "a tensor in two parts",
            "as a part before it does",
            parts=((0, 4), (4, 14), (13, 30)),
        ),
        file(
            split,
            "more tensors promised",
            "parts hold 30 of 31 tensors",
            parts=THREE,
            says={"split.tensors.count": 31},
        ),
        file(
            split,
            "parts in another order",
            "is not part 2 of 3",
            parts=THREE,
            says={"numbers": (0, 2, 1)},
        ),
        file(
            split,
            "another name",
            "its name must end",
            parts=THREE,
            says={"name": "net-{}-{}.gguf"},
        ),
        file(
            split,
            "a split's name, and no split.count",
            "says part 0 of 1",
            parts=((0, 30), (30, 30)),
            says={"split.count": OUT, "split.no": OUT},
        ),
        file(head, "no head", tensors={"output.weight": OUT}),
        file(head, "the same head", tensors={"output.weight": "token_embd.weight"}),
        file(head, "a head of its own", tensors={"output.weight": (40, 16)}),
        file(vocab, "no tokens"),
        file(vocab, "fewer tokens than it says", says={**words(40), "vocab_size": 50}),
        file(vocab, "no size", says={**words(40), "vocab_size": OUT}),
        file(vocab, "more tokens", "token_embd.weight: found", says=words(50)),
        file(vocab, "fewer tokens than rows", "token_embd.weight: found", says=words(30)),
        file(scaling, "a factor of no type", says={"rope.scaling.factor": 2.0}),
        file(scaling, "linear", says=linear),
        file(
            scaling,
            "none, and a factor",
            says={"rope.scaling.type": "none", "rope.scaling.factor": 2.0},
        ),
        file(
            scaling,
            "linear of no factor",
            "rope.scaling.factor of .* is missing",
            says={"rope.scaling.type": "linear"},
        ),
        file(scaling, "the old name", "scale_linear is 2.0", says={"rope.scale_linear": 2.0}),
        file(
            scaling,
            "both names",
            "scale_linear is 2.0",
            says={"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0},
        ),
        file(
            scaling,
            "longrope",
            "is 'longrope'; only 'none' or 'linear' or 'yarn' is supported",
            says={**linear, "rope.scaling.type": "longrope"},
        ),
        file(yarn, "yarn", says=stretched),
        file(
            yarn,
            "of no original context",
            says={**stretched, "rope.scaling.original_context_length": OUT},
        ),
        file(yarn, "Qwen 3", arch="qwen3", says=stretched),
        file(
            yarn,
            "the numbers llama.cpp uses",
            says={
                **stretched,
                "rope.scaling.yarn_beta_fast": 32.0,
                "rope.scaling.yarn_beta_slow": 1.0,
                "rope.scaling.yarn_ext_factor": 1.0,
                "rope.scaling.attn_factor": 1.0,
                "rope.scaling.finetuned": True,
            },
        ),
        *(
            file(
                yarn,
                f"{key} {value}",
                f"rope.scaling.{key} is {value}",
                says={**stretched, f"rope.scaling.{key}": value},
            )
            for key, value in {
                "yarn_beta_fast": 4.0,
                "yarn_beta_slow": 2.0,
                "yarn_ext_factor": 0.5,
                "yarn_attn_factor": 0.5,
                "yarn_log_multiplier": 0.25,
                "attn_factor": 0.5,
                "alpha": 3.0,
            }.items()
        ),
        file(
            yarn,
            "attn_factor of no type",
            "attn_factor is 0.5",
            says={"rope.scaling.attn_factor": 0.5},
        ),
        file(
            freqs,
            "alone, not Llama 3's",
            "otherwise than Llama 3 does",
            tensors={"rope_freqs.weight": np.array([2.0, 3.0], np.float32)},
        ),
        file(
            freqs,
            "alone, Llama 3's",
            tensors={"rope_freqs.weight": factors},
            says={"rope.freq_base": 1e9},
        ),
        file(
            freqs,
            "and linear",
            "rope_freqs.weight, and its architecture is 'llama' with rope scaling 'linear'",
            tensors={"rope_freqs.weight": factors},
            says={**linear, "rope.freq_base": 1e9},
        ),
        file(
            freqs,
            "and a factor of no type",
            "with rope scaling 'linear'",
            tensors={"rope_freqs.weight": factors},
            says={"rope.scaling.factor": 2.0, "rope.freq_base": 1e9},
        ),
        file(
            freqs,
            "in Qwen 2",
            "its architecture is 'qwen2'",
            arch="qwen2",
            tensors={"rope_freqs.weight": factors},
        ),
        *(
            file(
                window,
                arch,
                "sliding_window is 5, which llama.cpp leaves unread",
                arch=arch,
                says={"attention.sliding_window": 5},
            )
            for arch in ("llama", "qwen2", "qwen3", "smollm3")
        ),
        file(window, "as long as the context", says={"attention.sliding_window": 64}),
        file(causal, "true", says={"attention.causal": True}),
        file(causal, "false", "attention.causal is False", says={"attention.causal": False}),
        file(sizes, "vocab_size", "token_embd.weight: found", says={"vocab_size": 39}),
        file(
            sizes, "feed_forward_length", "ffn_gate.weight: found", says={"feed_forward_length": 16}
        ),
        file(sizes, "embedding_length", "expected", says={"embedding_length": 32}),
        file(
            lengths,
            "none said",
            says={
                "attention.key_length": OUT,
                "attention.value_length": OUT,
                "rope.dimension_count": OUT,
            },
        ),
        file(lengths, "of its own", arch="qwen3"),
        file(
            lengths,
            "of its own, unsaid",
            "attn_q.weight: found",
            arch="qwen3",
            says={
                "attention.key_length": OUT,
                "attention.value_length": OUT,
                "rope.dimension_count": OUT,
            },
        ),
        file(lengths, "values of another", "value_length is 8", says={"attention.value_length": 8}),
        file(lengths, "a part rotated", "dimension_count is 2", says={"rope.dimension_count": 2}),
        file(
            lengths,
            "a part rotated, Qwen 2",
            "dimension_count is 2",
            arch="qwen2",
            says={"rope.dimension_count": 2},
        ),
        file(kv, "unsaid", "attn_k.weight: found", says={"attention.head_count_kv": OUT}),
        file(
            kv,
            "unsaid, and as many as heads",
            says={"attention.head_count_kv": OUT},
            tensors={"blk.{}.attn_k.weight": (16, 16), "blk.{}.attn_v.weight": (16, 16)},
        ),
        file(
            kv,
            "one for each layer",
            "head_count_kv of .* must be one positive int",
            says={"attention.head_count_kv": [2, 2, 2]},
        ),
        file(blocks, "fewer", "blk.2", says={"block_count": 2}),
        file(blocks, "more", "blk.3", says={"block_count": 4}),
        file(
            blocks,
            "the last is to predict ahead",
            "nextn_predict_layers is 1",
            says={"nextn_predict_layers": 1},
        ),
        file(
            experts,
            "experts",
            "expert_count is 4",
            says={"expert_count": 4, "expert_used_count": 2},
        ),
        file(
            experts, "used, and none there", "expert_used_count is 2", says={"expert_used_count": 2}
        ),
        file(
            biases, "a bias in Llama", "attn_q.bias: found", tensors={"blk.{}.attn_q.bias": (16,)}
        ),
        file(
            biases,
            "none in Qwen 2",
            "attn_k.bias: found no such tensor",
            arch="qwen2",
            tensors={"blk.{}.attn_k.bias": OUT},
        ),
        file(
            biases,
            "a head's bias in Qwen 2",
            "output.bias: found",
            arch="qwen2",
            tensors={"output.bias": (40,)},
        ),
        file(
            biases,
            "norms in Llama",
            "attn_q_norm.weight: found",
            tensors={"blk.{}.attn_q_norm.weight": (4,)},
        ),
        file(
            biases,
            "longrope's factors",
            "rope_factors_long.weight: found",
            tensors={"rope_factors_long.weight": (2,), "rope_factors_short.weight": (2,)},
        ),
        file(scales, "logit_scale", "logit_scale is 0.5", says={"logit_scale": 0.5}),
        file(scales, "attention.scale", "attention.scale is 0.5", says={"attention.scale": 0.5}),
        file(
            scales,
            "attention.clamp_kqv",
            "attention.clamp_kqv is 0.5",
            says={"attention.clamp_kqv": 0.5},
        ),
    ]


FILES = _files()


def read_base(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    home = FAMILIES / name
    return json.loads((home / "config.json").read_text()), load_file(home / "model.safetensors")


def build(case: Case, home: Path) -> Path:
    """The folder or the (first) GGUF file of this case, written below `home`."""
    return _gguf(case, home) if case.arch else _folder(case, home)


def _folder(case: Case, home: Path) -> Path:
    config, tensors = read_base(case.base)
    says = dict(case.says)
    if "text_config" in says:
        inner = says.pop("text_config")
        inner = config if inner == "itself" else _changed(config, inner)
        config = {"text_config": inner, "vision_config": VISION, "architectures": None}
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(json.dumps(_changed(config, says)))
    if "text_config" in config:
        tensors = {f"language_model.{name}": w for name, w in tensors.items()}
    tensors = _edited(tensors, case.tensors, config.get("num_hidden_layers", 0))
    save_file(tensors, home / "model.safetensors", {"format": "pt"})
    for name, text in case.files.items():
        (home / name).write_text(json.dumps(text))
    return home


VISION = {
    "model_type": "pixtral",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 4,
    "image_size": 8,
    "patch_size": 4,
}
"""What an image goes through, of which no word is read."""


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in (values | changes).items() if not (isinstance(v, str) and v == OUT)}


def _edited(
    tensors: dict[str, np.ndarray], changes: dict[str, Any], layers: int
) -> dict[str, np.ndarray]:
    made = dict(tensors)
    rng = np.random.default_rng(5)
    for pattern, change in changes.items():
        names = [pattern.format(i) for i in range(layers)] if "{}" in pattern else [pattern]
        for name in names:
            if isinstance(change, np.ndarray):
                made[name] = change
            elif change == OUT:
                del made[name]
            elif isinstance(change, str):
                made[name] = tensors[change]
            else:
                made[name] = rng.normal(0, 0.3, change).astype(np.float32)
    return made


def _gguf(case: Case, home: Path) -> Path:
    config, hf = read_base(case.base)
    tensors = _edited(_in_gguf(case.arch, config, hf), case.tensors, config["num_hidden_layers"])
    says = _metadata(config) | case.says
    home.mkdir(parents=True, exist_ok=True)
    path = home / "net.gguf"
    if not case.parts:
        _write(path, case.arch, _changed(says, {}), tensors)
        return path
    names, total = list(tensors), len(case.parts)
    numbers, given = says.pop("numbers", range(total)), says.pop("given", 1)
    name = says.pop("name", "net-{:05d}-of-{:05d}.gguf")
    split = {"split.count": total, "split.tensors.count": len(names)}
    split |= {key: says.pop(key) for key in split if key in says}
    paths = [home / name.format(i + 1, total) for i in range(total)]
    for part, (first, end), number in zip(paths, case.parts, numbers, strict=True):
        described = {**(says if part == paths[0] else {}), "split.no": number, **split}
        if first < end:
            held = {name: tensors[name] for name in names[first:end]}
            _write(part, case.arch, _changed(described, {}), held)
    return paths[given - 1]


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    """What convert_hf_to_gguf.py writes, below the architecture's name."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "tokenizer.ggml.model": "none",
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
        "rope.dimension_count": head_dim,
        "vocab_size": config["vocab_size"],
    }


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _in_gguf(arch: str, config: dict[str, Any], hf: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp names them, q and k of two families in rotary pairs."""
    made = {}
    for name, w in hf.items():
        stem, kind = name.rsplit(".", 1)
        if stem in _NAMES:
            made[f"{_NAMES[stem]}.{kind}"] = w
            continue
        _, _, layer, part = stem.split(".", 3)
        if arch in ("llama", "smollm3") and part in ("self_attn.q_proj", "self_attn.k_proj"):
            which = "num_attention_heads" if "q_proj" in part else "num_key_value_heads"
            halves = w.reshape(config[which], 2, -1, w.shape[1])
            w = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(w.shape)
        made[f"blk.{layer}.{_NAMES[part]}.{kind}"] = w
    return made


def _write(path: Path, arch: str, says: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in says.items():
        if not key.startswith(("split.", "tokenizer.")):
            key = f"{arch}.{key}"
        if key in ("split.no", "split.count"):
            writer.add_uint16(key, value)
        elif key == "split.tensors.count":
            writer.add_int32(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
            add[type(value)](key, value)
    for name, w in tensors.items():
        writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
