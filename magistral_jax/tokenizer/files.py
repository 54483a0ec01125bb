"""Which tokenizer a model's files hold, and whether it is the model's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magistral_jax.tokenizer.gguf import GgufTokenizer
from magistral_jax.tokenizer.hf import HfTokenizer
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.tokenizer.tekken import TekkenTokenizer
from magistral_jax.types import UserError


def read_tokenizer(path: str | Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a .gguf file, or of a folder with tokenizer.json or tekken.json.

    `metadata` is that of the GGUF file, from whoever has read it already. A folder with both
    files is read by tekken.json: there, the other is a translation.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return GgufTokenizer(path, metadata)
    if (path / "tekken.json").is_file():
        return TekkenTokenizer(path / "tekken.json")
    if (path / "tokenizer.json").is_file():
        return HfTokenizer(path)
    raise UserError(
        f"model.source is {str(path)!r}, which holds neither tokenizer.json nor tekken.json. Give "
        "a folder with one of them, or a .gguf file."
    )


def check_vocabulary(tokenizer: Tokenizer, vocab: int, source: str | Path) -> None:
    """Refuses a tokenizer with ids that the model has no row for. The model may have more rows."""
    largest = max(tokenizer.vocab_size - 1, *tokenizer.stop_ids)
    if largest >= vocab:
        raise UserError(
            f"{source}: wrong tokenizer. Its largest token id is {largest}, and the model's "
            f"vocabulary ends at {vocab - 1}. Take tokenizer and weights in model.source from the "
            "same model."
        )
