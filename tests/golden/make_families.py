"""Writes families/: small random networks of every family, and the logits transformers computes.

    python make_families.py families

Needs torch and transformers, and imports nothing of ours. Each folder is what `save_pretrained`
writes (config.json, model.safetensors in float32); logits.npz holds, under each folder's name,
`<name>_logits` [rows, tokens, vocabulary] of the `tokens` [rows, tokens].

    python make_families.py --verify FOLDER families/logits.npz NAME

loads FOLDER with transformers and prints the largest difference from the logits of NAME.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    logging,
)

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    # Large enough that positions, masks and norms show in the logits.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

FAMILIES = {
    "llama": LlamaConfig(**SMALL, rope_parameters=PLAIN),
    "llama3": LlamaConfig(**SMALL, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama_linear": LlamaConfig(**SMALL, rope_parameters=LINEAR),
    "mistral_window": MistralConfig(**SMALL, rope_parameters=PLAIN, sliding_window=5),
    # Mistral Small 24B: heads x head size is not the width.
    "mistral_small": MistralConfig(**SMALL, rope_parameters=PLAIN, sliding_window=None, head_dim=6),
    "qwen2": Qwen2Config(**SMALL, rope_parameters=PLAIN),
    "qwen2_windows": Qwen2Config(**SMALL, **WINDOWS, rope_parameters=PLAIN),
    "qwen3": Qwen3Config(**SMALL, rope_parameters=PLAIN, head_dim=8, tie_word_embeddings=True),
    "qwen3_yarn": Qwen3Config(**SMALL, rope_parameters=YARN, head_dim=8),
    "smollm3": SmolLM3Config(
        **{**SMALL, "num_hidden_layers": 4}, rope_parameters=PLAIN, no_rope_layer_interval=2
    ),
    "ministral": MinistralConfig(
        **SMALL,
        rope_parameters=PLAIN,
        head_dim=4,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
ROWS, TOKENS = 2, 40


@torch.no_grad()
def logits_of(model, tokens: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(tokens), use_cache=False).logits.numpy()


def make(folder: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, SMALL["vocab_size"], (ROWS, TOKENS))
    found = {"tokens": tokens.astype(np.int32)}
    for seed, (name, config) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for key, weight in model.named_parameters():
            # Gains of one and biases of zero would hide that they are used.
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, mean=0.0 if key.endswith("bias") else 1.0, std=0.3)
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        found[f"{name}_logits"] = logits_of(model, tokens)
        print(f"{name}: logits from {found[f'{name}_logits'].min():.2f}")
    np.savez_compressed(folder / "logits.npz", **found)


def verify(folder: str, golden: str, name: str) -> None:
    found = np.load(golden)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    difference = np.abs(
        logits_of(model, found["tokens"].astype(np.int64)) - found[f"{name}_logits"]
    )
    print(f"{name}: {type(model).__name__}, largest difference {difference.max():.3g}")
    assert difference.max() < 1e-4


if __name__ == "__main__":
    logging.set_verbosity_error()
    if sys.argv[1] == "--verify":
        verify(*sys.argv[2:])
    else:
        make(Path(sys.argv[1]))
