"""Weights that were read and are handed back are the weights that were there."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from magistral_jax.model.export import tensors_of
from magistral_jax.model.families import config_of
from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.model.safetensors_file import read_folder, read_tensor, write_folder
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, shardings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NETWORKS = sorted(folder.name for folder in (GOLDEN / "families").iterdir() if folder.is_dir())


def exported(name, folder):
    """The network, read onto four devices and written again."""
    source = GOLDEN / "families" / name
    arch = read_architecture(source)
    mesh = make_mesh(jax.devices(), fsdp=2, tp=2)
    params = read_params(source, arch, shardings(arch, mesh, TRAINER_RULES))
    write_folder(folder, tensors_of(params, arch), dtype="F32", shard_bytes=20_000)
    return source, arch


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_comes_back_under_its_name_bit_for_bit(name, tmp_path):
    source, _ = exported(name, tmp_path)
    wanted, found = read_folder(source), read_folder(tmp_path)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(read_tensor(found[key]), read_tensor(tensor), err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_computes_the_same_logits_from_what_was_exported(name, tmp_path):
    """In the environment of the extra `golden`; the script is the one that made the goldens."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    import json

    _, arch = exported(name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_of(arch)))
    script, logits = GOLDEN / "make_families.py", GOLDEN / "families" / "logits.npz"
    command = [sys.executable, str(script), "--verify", str(tmp_path), str(logits), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
