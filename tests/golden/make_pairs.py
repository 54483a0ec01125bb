"""Writes pairs.npz: what transformers and llama.cpp compute of the networks in pairs.py.

    python make_pairs.py pairs.npz [TEXT]

Needs torch, transformers, gguf, and llama-cpp-py-sync, whose declarations it calls llama.cpp by:
its own library, or the one that $LLAMA_CPP names (xllamacpp's wheel holds one for older systems).
TEXT: only cases with it in their name, shown and not written. Imports nothing of ours.

pairs.npz holds, under "<pair>|<name>", logits [PLACES, vocabulary] of the first row of tokens of
families/logits.npz; a case that either refuses, or for which it invents weights, has none.
"""

import os
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from llama_cpp_py_sync import _cffi_bindings as llama
from pairs import FAMILIES, FILES, FOLDERS, PLACES, build
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging

os.environ["GGML_NO_BACKTRACE"] = "1"
NAMED = os.environ.get("LLAMA_CPP")
LLAMA = llama.get_ffi().dlopen(NAMED) if NAMED else llama.get_lib()
TOKENS = np.load(FAMILIES / "logits.npz")["tokens"][0]


@torch.no_grad()
def of_transformers(path: Path) -> np.ndarray | str:
    wrapped = "text_config" in (path / "config.json").read_text()
    kind = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    try:
        model, told = kind.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        found = model.eval()(torch.from_numpy(TOKENS[None].astype(np.int64)), use_cache=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    invented = [key for key in told["missing_keys"] if "vision" not in key and "multi" not in key]
    return f"invents {invented}" if invented else found.logits.numpy()[0]


def of_llama(path: Path) -> np.ndarray | str:
    """In a process of its own: llama.cpp aborts on some files."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with tempfile.TemporaryFile() as errors, os.fdopen(writing, "wb") as out:
            os.dup2(errors.fileno(), 2)
            pickle.dump(_of_llama(path), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as results:
        data = results.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else "it aborts"


def _of_llama(path: Path) -> np.ndarray | str:
    ffi, lib, said = llama.get_ffi(), LLAMA, []

    @ffi.callback("void(enum ggml_log_level, const char*, void*)")
    def log(level, text, _):
        if level >= 3:
            said.append(ffi.string(text).decode("utf-8", "replace"))

    lib.llama_log_set(log, ffi.NULL)
    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    options.n_gpu_layers, options.use_extra_bufts = 0, False
    model = lib.llama_model_load_from_file(str(path).encode(), options)
    if model == ffi.NULL:
        return " ".join("".join(said).split())
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 64
    options.type_k = options.type_v = 0  # float32
    options.flash_attn_type = 0
    context = lib.llama_init_from_model(model, options)
    batch = lib.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for i, token in enumerate(TOKENS):
        batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert lib.llama_decode(context, batch) == 0
    vocab = lib.llama_n_vocab(lib.llama_model_get_vocab(model))
    raw = ffi.buffer(lib.llama_get_logits(context), 4 * vocab * len(TOKENS))
    return np.frombuffer(raw, np.float32).reshape(len(TOKENS), vocab).copy()


def make(path: Path, wanted: str) -> None:
    made = {}
    # llama.cpp first: a process that torch has given threads to is not one to fork.
    for case in [case for case in FILES + FOLDERS if wanted in case.name]:
        with tempfile.TemporaryDirectory() as folder:
            source = build(case, Path(folder))
            found = of_llama(source) if case.arch else of_transformers(source)
        what = found if isinstance(found, str) else f"logits from {found.min():.3f}"
        print(f"{case.pair} | {case.name}: {what}", flush=True)
        if not isinstance(found, str):
            made[f"{case.pair}|{case.name}"] = found[list(PLACES)].astype(np.float32)
    if not wanted:
        np.savez_compressed(path, **made)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    make(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
