"""Read and written as the safetensors library reads and writes; what is not whole is refused."""

import json
import os
import struct
import tracemalloc
import weakref
from math import prod

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.model import safetensors_file
from magistral_jax.model.safetensors_file import read_folder, read_tensor, write_folder
from magistral_jax.types import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def networks(dtypes):
    return st.dictionaries(names, st.tuples(shapes, st.sampled_from(dtypes)), max_size=6)


def bits(rng, shape, dtype):
    """Any bits at all: not-a-numbers and infinities, too."""
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    raw = np.frombuffer(rng.bytes(prod(shape) * itemsize), f"<u{itemsize}")
    return raw.view(DTYPES[dtype]).reshape(shape)


def cast(array, dtype):
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def assert_same_bits(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


def made(tensors):
    return [(name, array.shape, lambda array=array: array) for name, array in tensors.items()]


def entry(shape=(4,), start=0, end=16, dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]} | more


def file_of(header, data=16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


# ── as the library does ────────────────────────────────────────────────────────────────────────


@given(networks(sorted(DTYPES)), st.integers(0, 2**32))
def test_what_the_library_writes_is_read_bit_for_bit(tmp_path_factory, network, seed):
    rng = np.random.default_rng(seed)
    tensors = {name: bits(rng, *what) for name, what in network.items()}
    folder = tmp_path_factory.mktemp("net")
    (folder / SINGLE).write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
    found = read_folder(folder)
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        array = tensors[name]
        assert (tensor.name, tensor.shape, tensor.size) == (name, array.shape, array.nbytes)
        assert tensor.dtype == network[name][1]
        assert_same_bits(read_tensor(tensor), cast(array, np.float32))


@given(networks(["F32"]), st.sampled_from(["F32", "BF16"]), st.integers(0, 2**32))
def test_what_is_written_the_library_reads_bit_for_bit(tmp_path_factory, network, dtype, seed):
    rng = np.random.default_rng(seed)
    tensors = {name: cast(bits(rng, *what), np.float32) for name, what in network.items()}
    folder = tmp_path_factory.mktemp("net")
    assert write_folder(folder, made(tensors), dtype=dtype) == [folder / SINGLE]
    found = dict(safetensors.deserialize((folder / SINGLE).read_bytes()))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        expected = cast(array, DTYPES[dtype])
        assert found[name]["dtype"] == dtype
        assert tuple(found[name]["shape"]) == array.shape
        assert bytes(found[name]["data"]) == expected.tobytes()
        assert_same_bits(read_tensor(read_folder(folder)[name]), cast(expected, np.float32))


def test_a_file_written_here_is_laid_out_as_the_library_lays_it_out(tmp_path):
    write_folder(tmp_path, made({"b": np.ones((2, 3)), "a": np.zeros(5)}), dtype="BF16")
    whole = (tmp_path / SINGLE).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    text = whole[8 : 8 + length]
    assert length % 8 == 0 and text == text.rstrip(b" ") + b" " * (len(text) - len(text.rstrip()))
    assert json.loads(text) == {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "a": {"dtype": "BF16", "shape": [5], "data_offsets": [12, 22]},
    }
    assert list(json.loads(text)) == ["__metadata__", "b", "a"]
    assert len(whole) == 8 + length + 22
    with safetensors.safe_open(tmp_path / SINGLE, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_header_may_name_tensors_in_any_order(tmp_path):
    header = {
        "w": entry(shape=(3,), start=4, end=16),
        "empty": entry(shape=(0, 2), start=4, end=4),
        "v": entry(shape=(1,), start=0, end=4),
    }
    data = np.arange(4, dtype=np.float32)
    (tmp_path / SINGLE).write_bytes(file_of(header, 0) + data.tobytes())
    found = read_folder(tmp_path)
    assert list(found) == ["v", "empty", "w"]
    assert_same_bits(read_tensor(found["w"]), data[1:])
    assert_same_bits(read_tensor(found["v"]), data[:1])
    assert_same_bits(read_tensor(found["empty"]), np.empty((0, 2), np.float32))


# ── rows ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 3)])
def test_rows_read_alone_are_the_rows_of_the_whole(shape, dtype, rng, tmp_path):
    w = rng.standard_normal(shape).astype(DTYPES[dtype])
    tensors = {"before": w, "w": w[::-1].copy(), "zafter": w}
    (tmp_path / SINGLE).write_bytes(safetensors.numpy.save(tensors))
    stored, whole = read_folder(tmp_path)["w"], tensors["w"].astype(np.float32)
    for rows in [
        *(slice(None), slice(0, 1), slice(2, 5), slice(-2, None), slice(None, -3)),
        *(slice(3, 3), slice(5, 2), slice(4, 99), slice(99, None)),
    ]:
        assert_same_bits(read_tensor(stored, rows), whole[rows])


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_only_the_rows_asked_for_are_in_memory(dtype, tmp_path):
    w = np.ones((1000, 1024), DTYPES[dtype])
    (tmp_path / SINGLE).write_bytes(safetensors.numpy.save({"w": w}))
    tensor = read_folder(tmp_path)["w"]
    tracemalloc.start()
    try:
        read_tensor(tensor, slice(500, 510))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    cast_bytes = 0 if dtype == "F32" else 10 * 1024 * 4
    assert peak < 10 * 1024 * w.itemsize + cast_bytes + 20_000


def test_rows_with_gaps_are_no_rows(tmp_path):
    write_folder(tmp_path, made({"w": np.ones((4, 4))}), dtype="F32")
    with pytest.raises(AssertionError):
        read_tensor(read_folder(tmp_path)["w"], slice(0, 4, 2))


def test_a_tensor_without_axes_has_no_rows(tmp_path):
    write_folder(tmp_path, made({"w": np.ones(())}), dtype="F32")
    with pytest.raises(AssertionError):
        read_tensor(read_folder(tmp_path)["w"], slice(0, 1))


def test_a_file_that_shrinks_after_it_was_checked_is_refused(tmp_path):
    write_folder(tmp_path, made({"w": np.ones((4, 4))}), dtype="F32")
    tensor = read_folder(tmp_path)["w"]
    tensor.path.write_bytes(tensor.path.read_bytes()[:-4])
    with pytest.raises(UserError, match="'w' holds 15 of the expected 16 numbers"):
        read_tensor(tensor)
    tensor.path.unlink()
    with pytest.raises(UserError, match=r"tensor 'w' cannot be read .*No such file"):
        read_tensor(tensor)


# ── one damaged file ───────────────────────────────────────────────────────────────────────────


def refusal(folder, content, name=SINGLE):
    """What a folder whose one file has this content is refused with."""
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_folder(folder)
    said = str(refused.value)
    assert said.startswith(f"model.source: {folder / name} is no safetensors that can be read: ")
    assert said.endswith("Fetch it again, or name another source.")
    return said


def test_a_file_cut_anywhere_is_refused(tmp_path):
    tensors = {"a": np.ones((2, 3)), "b": np.ones(4), "c": np.ones(())}
    write_folder(tmp_path, made(tensors), dtype="F32")
    whole = (tmp_path / SINGLE).read_bytes()
    assert read_folder(tmp_path).keys() == tensors.keys()
    for cut in range(len(whole)):
        said = refusal(tmp_path, whole[:cut])
        assert "expected" in said
    assert "has 0 bytes; expected at least 8" in refusal(tmp_path, b"")
    assert "has 7 bytes; expected at least 8" in refusal(tmp_path, whole[:7])
    assert "expected at most the 0 behind it" in refusal(tmp_path, whole[:8])
    assert "'c' would end at byte" in refusal(tmp_path, whole[:-1])
    assert "where its last tensor ends" in refusal(tmp_path, whole + b"\0")


@pytest.mark.parametrize("claimed", [2**60, 2**64 - 1, 100_000_001])
def test_a_header_that_claims_too_much_is_refused_before_it_is_believed(claimed, tmp_path):
    # The file is sparse, and large enough for the last claim to be true.
    with (tmp_path / SINGLE).open("wb") as stream:
        stream.write(struct.pack("<Q", claimed))
        stream.truncate(200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"claims {claimed} bytes; expected at most 100000000"):
            read_folder(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_tensor_that_claims_too_much_is_refused_before_it_is_believed(tmp_path):
    huge = {"w": entry(shape=(2**30, 2**20), end=2**52)}
    assert "'w' would end at byte 45035996273" in refusal(tmp_path, file_of(huge))


@pytest.mark.parametrize(
    "header, match",
    [
        (b"", "begins with b''"),
        (b" {}", "begins with b' '"),
        (b"[1]", r"begins with b'['"),
        (b"{", "is not the expected JSON object"),
        (b"{}x", "is not the expected JSON object"),
        (b'{"\xff": 1}', "is not the expected JSON object"),
        (b'{"a": ' * 10**5, "is not the expected JSON object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not the expected JSON object"),
        (b'{"w": 1, "v": 2, "w": 3}', "'w' is in it twice"),
        (b'{"w": {"dtype": "F32", "dtype": "F16"}}', "'dtype' is in it twice"),
        ({"__metadata__": "pt"}, "__metadata__ is 'pt'; expected texts by name"),
        ({"__metadata__": {"a": 1}}, "__metadata__ is {'a': 1}; expected texts by name"),
        ({"w": 1}, "'w' is described by 1; expected dtype, shape and data_offsets"),
        ({"w": entry(strides=[1])}, "'w' is described by {"),
        ({"w": {"dtype": "F32", "shape": [4]}}, "'w' is described by {"),
        ({"w": entry(shape=(3,))}, "'w' has 16 bytes; expected 12 for F32 of shape [3]"),
        ({"w": entry(shape=(5,))}, "'w' has 16 bytes; expected 20 for F32 of shape [5]"),
        ({"w": entry(dtype="F16")}, "'w' has 16 bytes; expected 8 for F16 of shape [4]"),
        ({"w": entry(shape=(-4,))}, "'w' has shape [-4]; expected up to 8 lengths"),
        ({"w": entry(shape=(True, 4))}, "'w' has shape [True, 4]"),
        ({"w": entry(shape=(4.0,))}, "'w' has shape [4.0]"),
        ({"w": entry() | {"shape": 4}}, "'w' has shape 4"),
        ({"w": entry(shape=(1,) * 8 + (4,))}, "'w' has shape [1, 1, 1, 1, 1, 1, 1, 1, ...]"),
        ({"w": entry(shape=(0, 2**59, 2**59), end=0)}, "'w' has shape [0, 576460752303423488"),
        ({"w": entry(shape=(10**4000,))}, "'w' has shape [1000"),
        ({"w": entry() | {"data_offsets": [0]}}, "'w' has data_offsets [0]"),
        ({"w": entry() | {"data_offsets": [0, 16, 16]}}, "'w' has data_offsets [0, 16, 16]"),
        ({"w": entry(start=-16, end=0)}, "'w' has data_offsets [-16, 0]"),
        ({"w": entry(start=16, end=0)}, "'w' has data_offsets [16, 0]"),
        ({"w": entry(start=0, end=10**4000)}, "'w' has data_offsets [0, 1000"),
        ({"w": entry(start=4, end=20)}, "'w' would end at byte"),
        ({"w": entry(shape=(3,), start=4)}, "'w' leaves a hole before it: it begins at byte"),
        ({"w": entry(shape=(3,), end=12)}, "where its last tensor ends"),
        ({"v": entry(), "w": entry(shape=(2,), start=8)}, "'w' overlaps the one before: it begin"),
        ({"v": entry(), "w": entry()}, "'w' overlaps the one before"),
        ({"v": entry((1,), 0, 4), "w": entry((2,), 8, 16)}, "'w' leaves a hole before it"),
        ({}, "where its last tensor ends"),
    ],
)
def test_a_header_that_contradicts_the_format_is_refused(header, match, tmp_path):
    said = refusal(tmp_path, file_of(header))
    assert match in said
    assert len(said) < 1000 and said.isprintable()


@pytest.mark.parametrize(
    "dtype", ["F64", "F8_E4M3", "F8_E5M2", "I64", "I8", "U8", "BOOL", "f32", "", 4, None, ["F32"]]
)
def test_a_dtype_that_is_none_of_weights_is_named(dtype, tmp_path):
    said = refusal(tmp_path, file_of({"model.norm.weight": entry(dtype=dtype)}))
    assert f"tensor 'model.norm.weight' has dtype {dtype!r}; expected weights in F32, F16, " in said


def test_what_a_file_says_cannot_flood_or_drive_the_terminal(tmp_path):
    said = refusal(tmp_path, file_of({"\x1b[2J" + "w" * 10**6: entry(dtype="\x1b" * 10**6)}))
    assert len(said) < 2000 and said.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from(["v", "w", "__metadata__"]),
        json_values
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*DTYPES, "I8"]) | json_values,
                "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
                "data_offsets": st.lists(st.integers(-1, 18), min_size=2, max_size=2) | json_values,
            }
        ),
    )
)
def test_any_header_gives_tensors_or_a_refusal_and_nothing_else(tmp_path_factory, header):
    folder = tmp_path_factory.mktemp("net")
    (folder / SINGLE).write_bytes(file_of(header))
    try:
        found = read_folder(folder)
    except UserError:
        return
    assert sum(read_tensor(t).size * DTYPES[t.dtype](0).itemsize for t in found.values()) == 16


# ── shards and their index ─────────────────────────────────────────────────────────────────────

TENSORS = {name: np.full((4, 2), i, np.float32) for i, name in enumerate("dacb")}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "net"
    write_folder(folder, made(TENSORS), dtype="F32", shard_bytes=64)
    return folder


def test_shards_are_read_as_one(sharded):
    found = read_folder(sharded)
    assert list(found) == list(TENSORS)
    assert [tensor.path.name for tensor in found.values()] == [FIRST, FIRST, SECOND, SECOND]
    for name, array in TENSORS.items():
        assert_same_bits(read_tensor(found[name]), array)


def test_an_index_may_name_the_single_file(tmp_path):
    write_folder(tmp_path, made(TENSORS), dtype="F32")
    index = {"weight_map": dict.fromkeys(TENSORS, SINGLE)}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert read_folder(tmp_path).keys() == TENSORS.keys()


def index_refusal(folder, change):
    """What is said after `change` was made to the index's weight_map."""
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    return refusal(folder, json.dumps(index).encode(), INDEX)


def test_a_missing_shard_is_named(sharded):
    (sharded / SECOND).unlink()
    said = index_refusal(sharded, lambda where: None)
    assert f"it names {SECOND}, expected beside it, and not there" in said


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda where: where.update(e=FIRST), f"'e' is not in {FIRST}"),
        (lambda where: where.pop("d"), f"'d' is in {FIRST}, and the index does not name it"),
        (
            lambda where: where.update(d=SECOND),
            f"'d' is in {FIRST}, and the index expects it in {SECOND}, 'd' is not in {SECOND}",
        ),
    ],
)
def test_an_index_of_other_shards_is_refused(change, match, sharded):
    assert f"not the index of these shards: {match}" in index_refusal(sharded, change)


def test_a_tensor_in_two_shards_is_refused(sharded):
    (sharded / SECOND).write_bytes(safetensors.numpy.save({n: TENSORS[n] for n in "acb"}))
    said = index_refusal(sharded, lambda where: None)
    assert f"'a' is in {SECOND}, and the index expects it in {FIRST}" in said


@pytest.mark.parametrize(
    "shard",
    [
        *("../net/" + FIRST, "/etc/passwd", "a/b.safetensors", "..safetensors", "b\\c.safetensors"),
        *("..\\c.safetensors", ".safetensors", "c.bin", "", "\0.safetensors", "\n.safetensors"),
        *(FIRST + "\n", 3, None, [FIRST]),
    ],
)
def test_a_shard_that_is_no_file_beside_the_index_is_refused(shard, sharded):
    said = index_refusal(sharded, lambda where: where.update(a=shard))
    assert f"places tensor 'a' in {shard!r}; expected the name of a .safetensors file" in said


@pytest.mark.parametrize(
    "text, match",
    [
        (b"", "it is not the expected JSON object"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' is in it twice"),
        (b"{}", "its weight_map is None; expected tensor names to files"),
        (b'{"weight_map": {}}', "its weight_map is {}"),
        (b'{"weight_map": ["a"]}', "its weight_map is ['a']"),
    ],
)
def test_an_index_that_is_none_is_refused(text, match, sharded):
    assert match in refusal(sharded, text, INDEX)


def test_an_index_too_large_to_parse_is_refused(sharded):
    with (sharded / INDEX).open("ab") as stream:
        stream.truncate(100_000_001)
    with pytest.raises(UserError, match="has 100000001 bytes; expected at most 100000000"):
        read_folder(sharded)


def test_two_sets_of_weights_in_one_folder_are_refused(sharded):
    (sharded / SINGLE).write_bytes((sharded / FIRST).read_bytes())
    said = index_refusal(sharded, lambda where: None)
    assert "model.safetensors lies beside it, and it does not name it: expected only one" in said


def test_damage_in_a_shard_names_the_shard(sharded):
    whole = (sharded / SECOND).read_bytes()
    assert "'b' would end at byte" in refusal(sharded, whole[:-1], SECOND)


# ── no weights ─────────────────────────────────────────────────────────────────────────────────


def refused(folder):
    with pytest.raises(UserError) as found:
        read_folder(folder)
    return str(found.value)


def test_a_folder_without_weights_is_told_what_is_in_it(tmp_path):
    assert refused(tmp_path) == (
        f"model.source: {tmp_path} holds neither {SINGLE} nor {INDEX}; it holds nothing. "
        "Fetch the weights, or name another source."
    )
    (tmp_path / "config.json").touch()
    (tmp_path / "consolidated.safetensors").touch()
    assert "it holds config.json, consolidated.safetensors. Fetch the" in refused(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-1-of-2.bin", "net.pth"])
def test_pickles_are_named_and_not_read(name, tmp_path):
    (tmp_path / name).touch()
    assert f"it holds {name}. Pickles can run code and are never read: convert" in refused(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert "nowhere cannot be read ([Errno 2]" in refused(tmp_path / "nowhere")


# ── writing ────────────────────────────────────────────────────────────────────────────────────


def test_several_shards_come_with_the_index_others_expect(tmp_path):
    tensors = {f"w{i}": np.full(n, i) for i, n in enumerate([3, 1, 9, 2, 2])}
    paths = write_folder(tmp_path, made(tensors), dtype="BF16", shard_bytes=8)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert paths == [tmp_path / name for name in [*names, INDEX]]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    first, second, third = names
    assert json.loads(paths[-1].read_text()) == {
        "metadata": {"total_size": 2 * (3 + 1 + 9 + 2 + 2)},
        # The third tensor is larger than a shard, and alone in its own.
        "weight_map": {"w0": first, "w1": first, "w2": second, "w3": third, "w4": third},
    }
    held = [sorted(n for n, _ in safetensors.deserialize(p.read_bytes())) for p in paths[:-1]]
    assert held == [["w0", "w1"], ["w2"], ["w3", "w4"]]


def test_a_first_tensor_larger_than_a_shard_is_alone_in_the_first(tmp_path):
    paths = write_folder(
        tmp_path, made({"w": np.ones(9), "v": np.ones(1)}), dtype="F32", shard_bytes=8
    )
    held = [[n for n, _ in safetensors.deserialize(p.read_bytes())] for p in paths[:-1]]
    assert held == [["w"], ["v"]]


def test_one_array_exists_at_a_time(tmp_path):
    seen = []

    def make():
        assert all(array() is None for array in seen), "the last array was not let go"
        array = np.ones((3, 2), np.float32)
        seen.append(weakref.ref(array))
        return array

    tensors = [(name, (3, 2), make) for name in "abcd"]
    for dtype in ("F32", "BF16"):
        write_folder(tmp_path / dtype, tensors, dtype=dtype, shard_bytes=24)


def test_axes_in_any_order_are_written_as_they_are_indexed(tmp_path):
    w = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_folder(tmp_path, made({"w": w}), dtype="F32")
    assert_same_bits(safetensors.numpy.load((tmp_path / SINGLE).read_bytes())["w"], w)


def test_an_array_of_another_shape_than_promised_is_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"tensor w was promised as \(3, 2\) and made as"):
        write_folder(tmp_path, [("w", (3, 2), lambda: np.ones((2, 3)))], dtype="F32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("twice", [["w", "w"], ["__metadata__"]])
def test_a_name_the_format_cannot_hold_is_refused(twice, tmp_path):
    with pytest.raises(AssertionError):
        write_folder(tmp_path, [(name, (), lambda: np.ones(())) for name in twice], dtype="F32")


@pytest.mark.parametrize("broken", range(4))
def test_what_is_interrupted_leaves_only_whole_files_and_no_index(broken, tmp_path):
    seen = []

    def make():
        seen.append(sorted(path.name for path in tmp_path.glob("model*")))
        if len(seen) == broken + 1:
            raise KeyboardInterrupt
        return np.ones((4, 2), np.float32)

    tensors = [(name, (4, 2), make) for name in "abcd"]
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, tensors, dtype="F32", shard_bytes=64)
    assert seen[-1] == ([FIRST] if broken >= 2 else [])
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([FIRST] if broken >= 2 else [])


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_index_is_last(tmp_path, monkeypatch):
    done, synced = [], []
    fsync, replace = safetensors_file.os.fsync, safetensors_file.os.replace

    def watched_fsync(number):
        fsync(number)
        done.append("fsync")
        synced.append(os.fstat(number).st_size)

    def watched_replace(part, path):
        # A rename is atomic only within one file system; what moves must be whole by then.
        assert part.parent == path.parent
        content = part.read_bytes()
        assert json.loads(content) if path.name == INDEX else safetensors.deserialize(content)
        assert synced[-1] == len(content), "what was synced was not all of it"
        done.append(path.name)
        replace(part, path)

    monkeypatch.setattr(safetensors_file.os, "fsync", watched_fsync)
    monkeypatch.setattr(safetensors_file.os, "replace", watched_replace)
    write_folder(tmp_path, made(TENSORS), dtype="F32", shard_bytes=64)
    assert done == ["fsync", FIRST, "fsync", SECOND, "fsync", INDEX]


@pytest.mark.parametrize("name", [SINGLE, INDEX])
def test_weights_that_are_there_are_not_overwritten(name, tmp_path):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(UserError, match=f"already holds {name}; weights are not overwritten"):
        write_folder(tmp_path, made(TENSORS), dtype="F32")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]
