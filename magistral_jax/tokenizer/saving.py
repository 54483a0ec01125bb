"""Writing a tokenizer as transformers and vLLM read it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers


def write_folder(
    folder: str | Path,
    tokenizer: tokenizers.Tokenizer,
    *,
    special_texts: Mapping[str, str],
    template: str,
    stop_ids: Sequence[int],
) -> None:
    """The files from which `AutoTokenizer.from_pretrained(folder)` makes this tokenizer.

    `generation_config.json` holds every stop id: tokenizer_config.json has room for one.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Otherwise " ." would decode as ".", and be another text than the one that was judged.
        "clean_up_tokenization_spaces": False,
        **special_texts,
        "chat_template": template,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    _write_json(folder / "generation_config.json", {"eos_token_id": list(stop_ids)})


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
