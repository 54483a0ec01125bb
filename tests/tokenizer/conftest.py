"""The goldens: small tokenizers as folders, and what transformers makes with them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PRE = {"llama3": "llama-bpe", "qwen3": "qwen2", "smollm2": "smollm", "tekken": "tekken"}
"""Folder, and what llama.cpp calls its way to cut text into words."""


def as_gguf(folder: Path) -> dict[str, Any]:
    """A folder's tokenizer as the metadata of a GGUF file."""
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    added = {t["content"]: t for t in spec["added_tokens"]}
    ids = spec["model"]["vocab"] | {text: t["id"] for text, t in added.items()}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = [(3 if added[t]["special"] else 4) if t in added else 1 for t in tokens]
    template = config.get("chat_template")
    if template is None:
        template = (folder / "chat_template.jinja").read_text("utf-8")
    elif isinstance(template, list):
        (template,) = (t["template"] for t in template if t["name"] == "default")
    metadata = {
        "model": "gpt2",
        "pre": PRE[folder.name],
        "tokens": tokens,
        "token_type": kinds,
        "merges": [" ".join(merge) for merge in spec["model"]["merges"]],
        "eos_token_id": ids[config["eos_token"]],
    }
    if config.get("bos_token"):
        metadata["bos_token_id"] = ids[config["bos_token"]]
    named = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    return {"tokenizer.chat_template": template} | named


@pytest.fixture(scope="session")
def goldens() -> Mapping[str, Any]:
    return json.loads((GOLDEN / "tokenizers.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def folders() -> Path:
    """One folder for each small tokenizer."""
    return GOLDEN / "tokenizers"


@pytest.fixture(scope="session")
def gguf_metadata(folders) -> Callable[[str], dict[str, Any]]:
    """The metadata of a GGUF file with the tokenizer of the folder of this name."""
    return lambda name: as_gguf(folders / name)
