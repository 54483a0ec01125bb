"""Files are written by gguf's own writer, from a tree of ours, turned by code of its own."""

import dataclasses
import struct
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from magistral_jax.model import gguf_file
from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.model.params import Architecture, abstract
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, shardings
from magistral_jax.types import UserError

# All sizes differ, so that no two axes can be exchanged unseen; N x H is not D.
ARCH = Architecture(
    layers=3,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=6,
    ffn=64,
    vocab=40,
    rope_theta=50_000.0,
    norm_eps=2.0**-17,
    tie_embeddings=True,
)
UNTIED = dataclasses.replace(ARCH, tie_embeddings=False)


def random_tree(arch):
    rng = np.random.default_rng(0)

    def draw(spec):
        if isinstance(spec, dict):
            return {k: draw(v) for k, v in spec.items()}
        return rng.standard_normal(spec.shape).astype(np.float32)

    return draw(abstract(arch))


def interleaved(rows_HD):
    """llama.cpp's order of one head's rows: (first half's row j, second half's row j), ..."""
    half = len(rows_HD) // 2
    return np.stack([rows_HD[j + part * half] for j in range(half) for part in (0, 1)])


def as_stored(arch, tree):
    """The file's tensors, [out, in], from our tree."""
    stored = {"token_embd": tree["embed"], "output_norm": tree["final_norm"]}
    if not arch.tie_embeddings:
        stored["output"] = tree["head"].T
    for i in range(arch.layers):
        w = {k: v[i] for k, v in tree["layers"].items()}
        q = [interleaved(w["wq"][:, n].T) for n in range(arch.heads)]
        k = [interleaved(w["wk"][:, n].T) for n in range(arch.kv_heads)]
        v = [w["wv"][:, n].T for n in range(arch.kv_heads)]
        stored |= {
            f"blk.{i}.attn_norm": w["attn_norm"],
            f"blk.{i}.attn_q": np.concatenate(q),
            f"blk.{i}.attn_k": np.concatenate(k),
            f"blk.{i}.attn_v": np.concatenate(v),
            f"blk.{i}.attn_output": np.concatenate(list(w["wo"])).T,
            f"blk.{i}.ffn_norm": w["mlp_norm"],
            f"blk.{i}.ffn_gate": w["w_gate"].T,
            f"blk.{i}.ffn_up": w["w_up"].T,
            f"blk.{i}.ffn_down": w["w_down"].T,
        }
    return {f"{name}.weight": np.ascontiguousarray(w) for name, w in stored.items()}


def metadata_of(arch):
    return {
        "block_count": arch.layers,
        "embedding_length": arch.width,
        "feed_forward_length": arch.ffn,
        "attention.head_count": arch.heads,
        "attention.head_count_kv": arch.kv_heads,
        "attention.key_length": arch.head_dim,
        "vocab_size": arch.vocab,
        "rope.freq_base": arch.rope_theta,
        "attention.layer_norm_rms_epsilon": arch.norm_eps,
    }


def write(path, tensors, metadata, *, name="llama", kinds=None):
    writer = gguf.GGUFWriter(path, name)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(40)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 40)
    for key, value in metadata.items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](f"{name}.{key}", value)
    for tensor, w in tensors.items():
        kind = (kinds or {}).get(tensor)
        if kind is None:
            writer.add_tensor(tensor, w)
        else:
            writer.add_tensor(tensor, gguf.quants.quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tree():
    return random_tree(ARCH)


@pytest.fixture
def stored(tree):
    return as_stored(ARCH, tree)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "net.gguf"


def assert_same_tree(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same_tree(found[key], value)
        else:
            assert found[key].dtype == np.float32, key
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("arch", [ARCH, UNTIED])
def test_what_was_written_is_read_back_exactly(arch, path):
    tree = random_tree(arch)
    write(path, as_stored(arch, tree), metadata_of(arch))
    assert read_architecture(path) == arch
    assert_same_tree(read_params(path, arch), tree)


def test_what_the_metadata_leaves_out_follows_from_the_rest(path, stored):
    left_out = (
        "attention.head_count_kv",
        "attention.key_length",
        "vocab_size",
        "rope.freq_base",
    )
    metadata = {k: v for k, v in metadata_of(ARCH).items() if k not in left_out}
    found = read_architecture(write(path, stored, metadata))
    assert found == dataclasses.replace(ARCH, kv_heads=4, head_dim=32 // 4, rope_theta=10_000.0)


def test_quantised_tensors_are_dequantised_before_they_are_turned(path, tree, stored):
    kinds = {
        "token_embd.weight": Kind.Q8_0,
        "blk.1.attn_q.weight": Kind.Q4_1,
        "blk.0.ffn_down.weight": Kind.F16,
        "blk.2.ffn_up.weight": Kind.BF16,
    }
    for name, kind in kinds.items():
        w = stored[name]
        stored[name] = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    write(path, stored, metadata_of(ARCH), kinds=kinds)
    found = read_params(path, ARCH)
    np.testing.assert_array_equal(found["embed"], stored["token_embd.weight"])
    np.testing.assert_array_equal(found["layers"]["w_down"][0].T, stored["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(found["layers"]["w_up"][2].T, stored["blk.2.ffn_up.weight"])
    heads = [interleaved(found["layers"]["wq"][1][:, n].T) for n in range(ARCH.heads)]
    np.testing.assert_array_equal(np.concatenate(heads), stored["blk.1.attn_q.weight"])
    assert_same_tree({"wk": found["layers"]["wk"]}, {"wk": tree["layers"]["wk"]})


def test_each_array_is_put_on_its_devices_as_it_is_on_the_host(path, tree, stored):
    """Pieces written into shards: width over "fsdp", heads and vocabulary over "tp"."""
    write(path, stored, metadata_of(ARCH))
    mesh = make_mesh(jax.devices(), fsdp=2, tp=2)
    onto = shardings(ARCH, mesh, TRAINER_RULES)
    found = read_params(path, ARCH, onto)
    assert jax.tree.map(lambda x: x.sharding, found) == onto
    assert_same_tree(jax.tree.map(np.asarray, found), tree)


def refuse_tensors(tensors, path, match):
    write(path, tensors, metadata_of(ARCH))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=match):
        patch.setattr(gguf_file, "read_tensor", lambda *_: pytest.fail("read before the check"))
        read_params(path, ARCH)


def test_a_missing_tensor_is_named(path, stored):
    del stored["blk.2.ffn_up.weight"]
    expected = r"blk\.2\.ffn_up\.weight: found no such tensor, expected \(64, 32\)"
    refuse_tensors(stored, path, expected)


def test_a_misshapen_tensor_is_named_with_both_shapes(path, stored):
    stored["blk.1.attn_k.weight"] = stored["blk.1.attn_k.weight"][:-2]
    expected = r"blk\.1\.attn_k\.weight: found \(10, 32\), expected \(12, 32\)"
    refuse_tensors(stored, path, expected)


def test_an_unexpected_tensor_is_named(path, stored):
    stored["blk.0.attn_q.bias"] = np.ones(24, np.float32)
    refuse_tensors(stored, path, r"blk\.0\.attn_q\.bias: found \(24,\), expected no such tensor$")


def test_everything_wrong_is_told_at_once(path, stored):
    stored["extra"] = stored.pop("output_norm.weight")
    refuse_tensors(stored, path, r"(?s)output_norm.*extra")


@pytest.mark.parametrize(
    "changed, match",
    [
        ({"rope.scaling.type": "longrope"}, r"rope\.scaling\.type is 'longrope'"),
        ({"rope.scaling.type": "yarn"}, r"rope\.scaling\.factor of .* is missing"),
        ({"rope.scale_linear": 2.0}, r"rope\.scale_linear is 2\.0"),
        ({"rope.dimension_count": 4}, r"rope\.dimension_count is 4; only 6"),
        ({"attention.value_length": 8}, r"value_length is 8; only 6"),
        ({"expert_count": 8}, "expert_count is 8"),
        ({"attention.key_length": 7}, "head size is 7"),
        ({"attention.head_count_kv": 3}, "3 key/value heads do not divide its 4"),
        ({"block_count": 2**31}, "2147483648 layers cannot be made of 29 tensors"),
        ({"block_count": 0}, "block_count of .* is 0"),
        ({"block_count": 2.0}, r"block_count of .* is 2\.0"),
        ({"rope.freq_base": float("nan")}, "rope.freq_base of .* is nan"),
        ({"feed_forward_length": None}, "feed_forward_length of .* is missing"),
    ],
)
def test_a_network_we_cannot_run_is_refused(changed, match, path, stored):
    metadata = {k: v for k, v in (metadata_of(ARCH) | changed).items() if v is not None}
    write(path, stored, metadata)
    with pytest.raises(UserError, match=match):
        read_architecture(path)


def test_another_architecture_is_refused_by_name(path, stored):
    write(path, stored, metadata_of(ARCH), name="gemma3")
    with pytest.raises(UserError, match="'gemma3'; only 'llama', 'qwen2'"):
        read_architecture(path)


def test_a_file_cut_anywhere_is_refused(path, stored):
    write(path, stored, metadata_of(ARCH))
    whole = path.read_bytes()
    reader = gguf.GGUFReader(path)
    end = max(t.data_offset + t.n_bytes for t in reader.tensors)
    path.write_bytes(whole[:end])
    assert read_architecture(path) == ARCH
    cuts = [*range(0, int(reader.data_offset), 41), int(reader.data_offset), end - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"{cut} bytes.* is not a whole GGUF file"):
            read_architecture(path)


def test_the_tensor_that_leaves_the_file_is_named(path, stored):
    write(path, stored, metadata_of(ARCH))
    last = max(gguf.GGUFReader(path).tensors, key=lambda t: t.data_offset)
    path.write_bytes(path.read_bytes()[: last.data_offset])
    with pytest.raises(UserError, match=f"tensor {last.name} would end at byte"):
        read_params(path, ARCH)


def test_a_damaged_header_gives_an_answer_or_a_refusal_and_nothing_else(path, stored):
    write(path, stored, metadata_of(ARCH))
    whole = path.read_bytes()
    header = int(gguf.GGUFReader(path).data_offset)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, header, 100):
        damaged = bytearray(whole)
        damaged[place : place + 8] = rng.integers(0, 256, 8, np.uint8).tobytes()
        path.write_bytes(damaged)
        try:
            read_params(path, read_architecture(path))
        except UserError:
            continue


@pytest.mark.parametrize(
    "start, match",
    [
        (b"PK\x03\x04" + bytes(60), "does not begin with the letters GGUF"),
        (b"GGUF\x01\x00\x00\x00" + bytes(60), "of version 1"),
        (b"GGUF\x00\x00\x00\x03" + bytes(60), "big-endian"),
        (b"", "ends inside its header"),
    ],
)
def test_a_file_of_another_kind_is_refused(start, match, path):
    path.write_bytes(start)
    with pytest.raises(UserError, match=match):
        read_architecture(path)


def test_a_type_gguf_cannot_dequantise_is_named(path, stored):
    stored["output_norm.weight"] = np.ones(32, np.int32)
    write(path, stored, metadata_of(ARCH))
    with pytest.raises(UserError, match=r"output_norm\.weight of .* is stored as I32"):
        read_params(path, ARCH)


def text(letters):
    return struct.pack("<Q", len(letters)) + letters.encode()


def number(key, value):
    return text(key) + struct.pack("<II", gguf.GGUFValueType.UINT32, value)


def numbers(key, count):
    return text(key) + struct.pack(
        "<IIQ", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32, count
    )


def tensor(shape, kind: int = Kind.F32):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text("w") + sizes + struct.pack("<IQ", kind, 0)


@pytest.mark.parametrize(
    "metadata, tensors, match",
    [
        ([number("a", 1), number("a", 2)], [], "metadata names a twice"),
        ([numbers("a", 2**63)], [], "promises a list of 9223372036854775808 values"),
        ([number("general.alignment", 0)], [], "general.alignment is 0"),
        ([], [tensor([4]), tensor([4])], "tensor w is in it twice"),
        ([], [tensor([])], "tensor w has 0 axes"),
        ([], [tensor([1] * 5)], "tensor w has 5 axes"),
        ([], [tensor([0, 4])], r"shape \(4, 0\) is not made of blocks"),
        ([], [tensor([48, 2], Kind.Q8_0)], r"shape \(2, 48\) is not made of blocks of 32"),
        ([], [tensor([4], 99)], "tensor w has unknown type 99"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(metadata, tensors, match, path):
    counts = struct.pack("<IQQ", 3, len(tensors), len(metadata))
    path.write_bytes(b"GGUF" + counts + b"".join([*metadata, *tensors]) + bytes(256))
    with pytest.raises(UserError, match=match):
        read_architecture(path)


FAMILY_NETWORKS = {
    "qwen2": dataclasses.replace(ARCH, family="qwen2", qkv_bias=True),
    "qwen3": dataclasses.replace(ARCH, family="qwen3", qk_norm=True),
    "smollm3": dataclasses.replace(ARCH, family="smollm3", layers=4, nope_layers=(3,)),
}


@pytest.mark.parametrize("name", FAMILY_NETWORKS)
def test_the_other_families_of_llama_cpp_are_read_exactly(name, path):
    """Their biases, norms and unrotated layers; only smollm3 keeps q and k in rotary pairs."""
    arch = FAMILY_NETWORKS[name]
    tree = random_tree(arch)
    stored = as_stored(arch, tree)
    for i in range(arch.layers):
        w = {k: v[i] for k, v in tree["layers"].items()}
        if name != "smollm3":
            for ours, theirs in (("wq", "attn_q"), ("wk", "attn_k")):
                rows = w[ours].transpose(1, 2, 0).reshape(-1, arch.width)
                stored[f"blk.{i}.{theirs}.weight"] = np.ascontiguousarray(rows)
        if arch.qkv_bias:
            for ours, theirs in (("bq", "attn_q"), ("bk", "attn_k"), ("bv", "attn_v")):
                stored[f"blk.{i}.{theirs}.bias"] = w[ours].reshape(-1)
        if arch.qk_norm:
            for ours, theirs in (("q_norm", "attn_q_norm"), ("k_norm", "attn_k_norm")):
                stored[f"blk.{i}.{theirs}.weight"] = w[ours]
    write(path, stored, metadata_of(arch), name=name)
    assert read_architecture(path) == arch
    assert_same_tree(read_params(path, arch), tree)


def test_a_stretched_context_is_read(path, stored):
    metadata = metadata_of(ARCH) | {
        "context_length": 128,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    found = read_architecture(write(path, stored, metadata))
    assert found.max_positions == 128
    assert dict(found.rope_scaling) == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }


def test_llama_3s_frequency_factors_are_recognised_and_others_refused(path, stored):
    """llama.cpp's own arithmetic (convert_hf_to_gguf), spelled out."""
    factors = []
    for pair in range(ARCH.head_dim // 2):
        wavelength = 2 * np.pi * ARCH.rope_theta ** (2 * pair / ARCH.head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32.0 + smooth))
    assert 1.0 in factors and 32.0 in factors
    stored["rope_freqs.weight"] = np.array(factors, np.float32)
    arch = read_architecture(write(path, stored, metadata_of(ARCH)))
    assert dict(arch.rope_scaling)["rope_type"] == "llama3"
    assert dict(arch.rope_scaling)["factor"] == 32.0
    read_params(path, arch)
    stored["rope_freqs.weight"] = np.array([1.0, 2.0, 3.0], np.float32)
    with pytest.raises(UserError, match="rescales its rotary frequencies"):
        read_architecture(write(path, stored, metadata_of(ARCH)))
