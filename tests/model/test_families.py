"""Every family against transformers, whose small random networks and logits are in tests/golden."""

import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import NamedSharding

from magistral_jax.generator.programs import prefill
from magistral_jax.generator.sampling import Sampler
from magistral_jax.model.cache import attend_cached, empty_cache, insert_prefix
from magistral_jax.model.families import FAMILIES, config_of, read_config
from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.model.params import unstack
from magistral_jax.model.sharding import GENERATOR_RULES, TRAINER_RULES, make_mesh, shardings
from magistral_jax.model.transformer import attend_packed, head_weight, logits, transform
from magistral_jax.types import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "families"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
each_network = pytest.mark.parametrize("name", NAMES)
PREFILLED = 17
F32 = jnp.dtype("float32")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "logits.npz") as found:
        return dict(found)


def on(mesh, x):
    return jax.device_put(np.asarray(x, np.int32), NamedSharding(mesh, P(*[None] * x.ndim)))


def full_forward(params, arch, tokens):
    positions = jnp.zeros_like(tokens) + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    attend = attend_packed(jnp.ones_like(tokens), positions)
    hidden, _ = transform(params, arch, tokens, positions, attend=attend, dtype=F32)
    return logits(hidden, head_weight(params, F32), tied=arch.tie_embeddings)


def decode_step(params, token, length, cache, *, arch):
    """Logits after `token`, which stands at place `length`."""
    hidden, cache = transform(
        params,
        arch,
        token[:, None],
        length[:, None],
        attend=attend_cached(length),
        states=cache,
        dtype=F32,
    )
    return logits(hidden, head_weight(params, F32), tied=arch.tie_embeddings)[:, 0], cache


def test_every_family_has_a_network():
    assert {read_config(GOLDEN / name / "config.json").family for name in NAMES} == set(FAMILIES)


@each_network
@pytest.mark.parametrize("layout", ["stacked", "per layer"])
def test_logits_equal_those_of_transformers(name, layout, golden):
    mesh = make_mesh(jax.devices(), fsdp=2, tp=2)
    arch = read_architecture(GOLDEN / name)
    params = read_params(GOLDEN / name, arch, shardings(arch, mesh, TRAINER_RULES))
    if layout == "per layer":
        with jax.set_mesh(mesh):
            params = unstack(params, arch.layers)
    with jax.set_mesh(mesh):
        found = jax.jit(partial(full_forward, arch=arch))(params, tokens=on(mesh, golden["tokens"]))
    np.testing.assert_allclose(found, golden[f"{name}_logits"], atol=1e-4, rtol=0)


@each_network
def test_prefill_and_decode_equal_the_full_forward(name, golden):
    """Each row prefilled for a while, then decoded token by token, on a tensor-parallel mesh."""
    mesh = make_mesh(jax.devices(), fsdp=1, tp=2)
    arch = read_architecture(GOLDEN / name)
    tokens, wanted = golden["tokens"], golden[f"{name}_logits"]
    with jax.set_mesh(mesh):
        params = read_params(GOLDEN / name, arch, shardings(arch, mesh, GENERATOR_RULES))
        params = unstack(params, arch.layers)
        cache = empty_cache(arch, mesh, len(tokens), tokens.shape[1], F32)
        fill = jax.jit(partial(prefill, arch=arch, dtype=F32), static_argnums=5)
        step, insert = jax.jit(partial(decode_step, arch=arch)), jax.jit(insert_prefix)
        for row, sequence in enumerate(tokens):
            padded = np.pad(sequence[:PREFILLED], (0, 32 - PREFILLED))[None]
            length, key = on(mesh, np.array(PREFILLED)), jax.random.key(0)
            key = jax.device_put(key, NamedSharding(mesh, P()))
            prefix, _ = fill(params, on(mesh, padded), length, Sampler(), key, 1)
            cache = insert(cache, prefix.cache, on(mesh, np.array([row])))
        for place in range(PREFILLED, tokens.shape[1]):
            lengths = np.full(len(tokens), place)
            found, cache = step(params, on(mesh, tokens[:, place]), on(mesh, lengths), cache)
            np.testing.assert_allclose(found, wanted[:, place], atol=1e-4, rtol=0)


@each_network
def test_a_config_written_is_the_config_that_was_read(name, tmp_path):
    arch = read_architecture(GOLDEN / name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(arch)))
    assert read_config(path) == arch
    hash(arch)  # it is a static argument of jit


def changed(tmp_path, name="llama", **changes):
    values = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "left out"}))
    return path


def test_the_spelling_before_transformers_5_means_the_same(tmp_path):
    new = json.loads((GOLDEN / "llama3" / "config.json").read_text())["rope_parameters"]
    old = {k: v for k, v in new.items() if k != "rope_theta"}
    path = changed(
        tmp_path,
        "llama3",
        rope_parameters="left out",
        rope_scaling=old,
        rope_theta=new["rope_theta"],
    )
    assert read_config(path) == read_config(GOLDEN / "llama3" / "config.json")
    older = {"type": "linear", "factor": 2.0}
    path = changed(tmp_path, rope_parameters="left out", rope_scaling=older, rope_theta=100.0)
    assert read_config(path).rope_scaling == (("factor", 2.0), ("rope_type", "linear"))


def test_windows_on_any_layers_are_written_as_they_were_read(tmp_path):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    arch = read_config(changed(tmp_path, "qwen2_windows", layer_types=kinds))
    assert (arch.window, arch.window_layers) == (5, (0, 2))
    (tmp_path / "config.json").write_text(json.dumps(config_of(arch)))
    assert read_config(tmp_path / "config.json") == arch


def test_a_multimodal_wrapper_is_its_language_model(tmp_path):
    inner = json.loads((GOLDEN / "mistral_small" / "config.json").read_text())
    path = tmp_path / "config.json"
    said = {"model_type": "mistral3", "text_config": inner, "tie_word_embeddings": False}
    path.write_text(json.dumps(said))
    assert read_config(path) == read_config(GOLDEN / "mistral_small" / "config.json")


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"model_type": "gemma3"}, "family 'gemma3', which is not known here. Families: llama,"),
        ({"model_type": "left out"}, "family None"),
        ({"model_type": ["llama"]}, "family ..llama"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type ..yarn.. is not known"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "weights are quantised"),
        ({"hidden_size": "left out"}, "hidden_size is missing; it must be a number above 0"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads"),
        ({"head_dim": 5}, "its head size is 5"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' is not known"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn rope scaling lacks ..factor"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "llama_4_scaling": 1.0}},
            "says ..llama_4_scaling",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "not numbers above 0"),
        ({"rope_parameters": {"rope_type": "linear", "factor": math.nan}}, "not numbers above 0"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one set for all layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_a_network_we_cannot_run_is_refused(changes, match, tmp_path):
    with pytest.raises(UserError, match=match) as refused:
        read_config(changed(tmp_path, **changes))
    assert str(refused.value).startswith("model.source: ")


@pytest.mark.parametrize(
    "name, changes, window",
    [
        ("mistral_window", {"sliding_window": "left out"}, 4096),
        ("qwen2_windows", {"sliding_window": "left out"}, 4096),
        ("smollm3", {"use_sliding_window": True, "sliding_window": "left out"}, 0),
    ],
)
def test_a_window_of_no_size_has_that_of_transformers(name, changes, window, tmp_path):
    assert read_config(changed(tmp_path, name, **changes)).window == window


@pytest.mark.parametrize(
    "name, changes, match",
    [
        ("smollm3", {"no_rope_layers": [[1], 0, 1, 1]}, "no_rope_layers must hold"),
        ("qwen2_windows", {"layer_types": [["a"], "b", "c"]}, "layer_types must name"),
        ("qwen2_windows", {"layer_types": None, "max_window_layers": "1"}, "max_window_layers is"),
    ],
)
def test_layers_that_are_none_are_refused(name, changes, match, tmp_path):
    with pytest.raises(UserError, match=match):
        read_config(changed(tmp_path, name, **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "mistral3"}'])
def test_a_config_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.source: .*config\.json"):
        read_config(tmp_path / "config.json")
    with pytest.raises(UserError, match="there is no"):
        read_config(tmp_path / "none.json")
