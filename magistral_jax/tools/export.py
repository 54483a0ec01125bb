"""Hand a policy back: a Hugging Face folder that transformers and vLLM load."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from magistral_jax.build import Run
from magistral_jax.config import DType, RunConfig
from magistral_jax.console import table
from magistral_jax.model.export import tensors_of
from magistral_jax.model.families import CONFIG, config_of
from magistral_jax.model.params import Params
from magistral_jax.model.safetensors_file import write_folder
from magistral_jax.tools.ask import policy_params
from magistral_jax.types import UserError

STORED: dict[DType, Literal["F32", "BF16"]] = {"float32": "F32", "bfloat16": "BF16"}


def export(
    config: RunConfig, *, run_dir: Path, out: Path, dtype: DType, json_path: Path | None
) -> int:
    """Write the run's newest weights, its network's config and its tokenizer to `out`.

    The folder appears under its name only when it is whole; one that is there stays as it is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already, and is not overwritten. Name another.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}.")
    unfinished = out.absolute().with_name(f".{out.name}.unfinished-{os.getpid()}")
    with policy_params(config, run_dir) as (run, params, step, _):
        try:
            unfinished.mkdir()
            files = write_model(unfinished, run, params, dtype)
            if out.is_dir():
                out.rmdir()
            unfinished.rename(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    row = {
        "folder": str(out),
        "step": step,
        "family": run.arch.family,
        "dtype": dtype,
        "files": len(files),
        "bytes": sum((out / file.name).stat().st_size for file in files),
    }
    table(f"exported {run_dir}", list(row), [list(row.values())], json_path)
    return 0


def write_model(folder: Path, run: Run, params: Params, dtype: DType) -> list[Path]:
    """Tokenizer, weights (the trainer's layout) and configs into an empty folder; the weights'
    files."""
    run.tokenizer.save(folder)
    files = write_folder(folder, tensors_of(params, run.arch), dtype=STORED[dtype])
    stops = list(run.tokenizer.stop_ids)
    _merge(folder / "generation_config.json", {"eos_token_id": stops})
    described = {**config_of(run.arch), "dtype": dtype, "eos_token_id": stops}
    if not run.arch.max_positions:
        described["max_position_embeddings"] = run.config.sequence_tokens
    _merge(folder / CONFIG, described)
    return files


def _merge(path: Path, values: dict[str, Any]) -> None:
    """The JSON file with these values on top of what it says already."""
    said = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**said, **values}, indent=2) + "\n", encoding="utf-8")
