"""A checkpoint gives back exactly what was saved, and one that fails costs only itself."""

import asyncio
import gc
import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import NamedSharding
from orbax.checkpoint import v1 as ocp

import magistral_jax
from magistral_jax.checkpoint import (
    Checkpoints,
    Damaged,
    Meta,
    _seal,
    check_identity,
    only_one_failure,
)
from magistral_jax.config import ShapeConfig
from magistral_jax.model.params import Architecture, Params, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.types import Stalled, UserError

SHAPE = ShapeConfig(layers=2, width=16, heads=2, kv_heads=2, head_dim=8, ffn=16)
ARCH = Architecture.from_config(SHAPE, 32)


class State(NamedTuple):
    params: Params
    optimizer: optax.OptState


def make_state(seed=0, *, fsdp=1, tp=1):
    """Weights and the optimizer's state, drawn on the host: nothing is compiled."""
    rng = np.random.default_rng(seed)
    mesh = make_mesh(jax.devices(), fsdp=fsdp, tp=tp)

    def tree():
        host = map_specs(lambda spec: rng.normal(size=spec.shape).astype("f4"), abstract(ARCH))
        return place(host, shardings(ARCH, mesh, TRAINER_RULES))

    count = jax.device_put(np.int32(seed + 3), NamedSharding(mesh, P()))
    adam = optax.ScaleByAdamState(count=count, mu=tree(), nu=tree())
    return State(tree(), (optax.EmptyState(), adam))


def make_meta(step, **changes):
    values = {
        "identity": {"model width": 16, "data.path": "", "data.heldout_percent": 5.0},
        "notes": {"before": {"accuracy": 0.1 + step, "ci": [0.0, 1.0]}, "counts": {"a": 3.0}},
        "frontier": {"queue": {"next": 7 * step, "entries": [{"prompt": [3, "id", 5]}]}},
    }
    return Meta(step=step, **{**values, **changes})


def assert_equal(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run" / "checkpoints", keep=2)


def numbers_in(checkpoints):
    return sorted(int(p.name) for p in checkpoints.folder.iterdir())


def save(checkpoints, meta, state):
    """A whole checkpoint of one item."""
    checkpoints.save(meta, {"state": state})
    checkpoints.settle()


def test_what_was_saved_comes_back_bit_for_bit(checkpoints):
    state = make_state(seed=1)
    meta = make_meta(4)
    save(checkpoints, meta, state)
    found = checkpoints.latest()
    assert found == meta
    assert_equal(checkpoints.restore(found, "state", make_state(seed=2)), state)


@pytest.mark.parametrize(
    "meta",
    [
        make_meta(1, frontier={}),
        make_meta(1, notes={"before": None, "counts": {}}),
        make_meta(1, identity={"model tie_embeddings": True, "model rope_theta": 1e4, "seed": 3}),
    ],
    ids=["no frontier", "no evaluation", "an identity of several types"],
)
def test_the_description_keeps_its_types(checkpoints, meta):
    save(checkpoints, meta, {"w": jnp.ones(2)})
    found = checkpoints.latest()
    assert found == meta
    assert {k: type(v) for k, v in found.identity.items()} == {
        k: type(v) for k, v in meta.identity.items()
    }


def test_a_folder_without_a_checkpoint_has_no_newest_and_is_not_made(checkpoints):
    assert checkpoints.latest() is None
    assert not checkpoints.folder.parent.exists()


def test_the_newest_ones_are_kept_and_older_ones_deleted(checkpoints):
    for step in (1, 2, 10):
        save(checkpoints, make_meta(step), {"w": jnp.full(2, step, jnp.float32)})
    assert numbers_in(checkpoints) == [1, 2]
    assert [m.step for m in (checkpoints.latest(), checkpoints._described(1))] == [10, 2]


def test_a_state_is_restored_onto_another_mesh(checkpoints):
    state = make_state(fsdp=2, tp=2)
    save(checkpoints, make_meta(1), state)
    like = make_state(seed=9, fsdp=1, tp=2)
    found = checkpoints.restore(checkpoints.latest(), "state", like)
    assert_equal(found, state)
    for array, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
        assert array.sharding.is_equivalent_to(wanted.sharding, array.ndim)
    assert found.params["embed"].sharding.spec == P("tp", "fsdp")
    assert found.params["embed"].sharding.mesh.shape == {"fsdp": 1, "sp": 1, "tp": 2}


def test_no_large_file_of_arrays_is_read_to_seal_it_or_to_find_the_newest(checkpoints, monkeypatch):
    """What is in them is digested twice: where it was before it is written, and once read."""
    read, digested = [], []
    honest_read, honest = ocp.load_checkpointables, hashlib.file_digest

    def file_digest(file, *rest):
        digested.append((Path(file.name).relative_to(checkpoints.folder), os.stat(file.name)))
        return honest(file, *rest)

    def load(path, wanted):
        read.extend(wanted["state"])
        return honest_read(path, wanted)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    monkeypatch.setattr("magistral_jax.checkpoint.ocp.load_checkpointables", load)
    rng = np.random.default_rng(0)
    state = {f"w{n}": jnp.asarray(rng.normal(size=(700, 700)).astype("f4")) for n in range(4)}
    host = {"tokens": rng.integers(0, 1 << 31, 1 << 19)}
    checkpoints.save(make_meta(1), {"state": state, "host": host})
    checkpoints.settle()
    found = Checkpoints(checkpoints.folder, keep=2).latest()
    assert sum(stat.st_size for _, stat in digested) < 200_000
    assert len({name for name, _ in digested}) * 2 == len(digested)
    assert_equal(checkpoints.restore(found, "state", state), state)
    assert_equal(checkpoints.restore_host(found, "host"), host)
    assert sorted(read) == sorted(state)


def test_weights_come_without_the_optimizer_that_was_saved_with_them(checkpoints):
    state = make_state()
    save(checkpoints, make_meta(1), state)
    replicated = NamedSharding(make_mesh(jax.devices(), fsdp=1, tp=1), P())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state.params
    )
    found = checkpoints.restore_params(checkpoints.latest(), like)
    assert_equal(found, state.params)


def test_what_a_killed_save_left_behind_is_not_taken_for_a_checkpoint(checkpoints):
    save(checkpoints, make_meta(1), {"w": jnp.ones(2)})
    shutil.copytree(checkpoints.folder / "0", checkpoints.folder / "1")
    (checkpoints.folder / "1" / "seal").unlink()
    assert checkpoints.latest() == make_meta(1)
    save(checkpoints, make_meta(2), {"w": jnp.full(2, 2.0)})
    found = checkpoints.latest()
    assert found == make_meta(2)
    restored = checkpoints.restore(found, "state", {"w": jnp.ones(2)})
    np.testing.assert_array_equal(restored["w"], [2.0, 2.0])
    assert numbers_in(checkpoints) == [0, 2], "the leftover stays"


FULL_DISK = """
import resource, sys, traceback
import magistral_jax
import jax.numpy as jnp
from magistral_jax.checkpoint import CannotSave, Checkpoints, Meta

def meta(step):
    return Meta(step=step, identity={}, notes={})

def state(step):
    return {f"w{i}": jnp.arange(5000, dtype=jnp.float32) * step for i in range(10)}

checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(meta(1), {"state": state(1)})
checkpoints.settle()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    checkpoints.save(meta(2), {"state": state(2)})
    checkpoints.settle()
except CannotSave as failure:
    print(failure)
"""


@pytest.mark.parametrize("limit", [100, 20_000], ids=["at once", "in the middle of an array"])
def test_a_save_that_finds_no_room_leaves_the_one_before_it(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints"), str(limit)],
        cwd=Path(magistral_jax.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    (message,) = done.stdout.splitlines()
    assert "the checkpoint of step 2 could not be saved" in message
    assert "that of step 1 is usable" in message
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    found = checkpoints.latest()
    assert found.step == 1
    like = {f"w{i}": jnp.zeros(5000) for i in range(10)}
    for array in checkpoints.restore(found, "state", like).values():
        np.testing.assert_array_equal(array, np.arange(5000, dtype=np.float32))


def abandon_a_failing_writer():
    """What orbax does with its other writers once one has failed: nobody asks how they ended."""

    async def write():
        raise OSError("no space left")

    loop = asyncio.new_event_loop()
    writer = loop.create_task(write())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del writer
    gc.collect()


@pytest.mark.parametrize("fails, lines", [(False, 1), (True, 0)])
def test_only_after_a_failed_save_do_its_other_writers_stay_silent(
    fails, lines, monkeypatch, caplog
):
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", False)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        with only_one_failure():
            if fails:
                raise OSError("no space left")
    except OSError:
        pass
    abandon_a_failing_writer()
    assert len(caplog.records) == lines


def test_a_checkpoint_of_another_run_is_refused_with_every_difference():
    saved = {"model width": 32, "seed": 0, "data.path": "a.jsonl"}
    check_identity(saved, dict(saved), Path("runs/a"))
    with pytest.raises(UserError) as caught:
        check_identity(saved, {**saved, "model width": 64, "seed": 1}, Path("runs/a"))
    message = str(caught.value)
    assert "runs/a" in message
    assert "model width was 32 and is now 64" in message
    assert "seed was 0 and is now 1" in message
    assert "data.path" not in message


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_every_flipped_bit_is_found_and_the_checkpoint_before_it_used(checkpoints):
    """A hundred of them, each in a random byte of a random file, seals included."""
    for step in (1, 2):
        checkpoints.save(
            make_meta(step), {"state": make_state(seed=step), "host": {"t": np.arange(9)}}
        )
        checkpoints.settle()
    files = [p for p in (checkpoints.folder / "1").rglob("*") if p.is_file()]
    files = [path for path in files if path.stat().st_size]
    assert {"seal", "meta.json", "host.npz"} <= {path.name for path in files}
    rng, told = np.random.default_rng(0), []
    for n in range(100):
        path = files[n % len(files)]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        found = Checkpoints(checkpoints.folder, keep=2, tell=told.append).latest()
        assert found == make_meta(1), f"bit {bit} of {path}"
        flip(path, bit)
    assert len(told) == 100
    assert all(f"{checkpoints.folder / '1'} is damaged" in t and "looking at 0" in t for t in told)
    found = checkpoints.latest()
    assert found == make_meta(2)
    assert_equal(checkpoints.restore(found, "state", make_state(seed=3)), make_state(seed=2))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_flipped_bit_in_arrays_too_large_to_digest_is_found_when_they_are_read(
    checkpoints, monkeypatch
):
    """A flip in a byte that means nothing may pass: what is read is then what was saved."""
    monkeypatch.setattr("magistral_jax.seal.SMALL_BYTES", 0)
    for step in (1, 2):
        host = {"t": np.arange(9000) * step}
        checkpoints.save(make_meta(step), {"state": make_state(seed=step), "host": host})
        checkpoints.settle()
    files = [p for p in (checkpoints.folder / "1").rglob("*") if p.is_file()]
    files = [p for p in files if p.parent.name == "d" or p.suffix == ".npz"]
    assert len(files) >= 2
    rng, like, told = np.random.default_rng(0), make_state(seed=9), []
    for n in range(60):
        path = files[n % len(files)]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        now = Checkpoints(checkpoints.folder, keep=2, tell=told.append)

        def read(meta, now=now):
            return meta.step, now.restore(meta, "state", like), now.restore_host(meta, "host")

        step, state, host = now.newest(read)
        assert_equal(state, make_state(seed=step))
        np.testing.assert_array_equal(host["t"], np.arange(9000) * step)
        flip(path, bit)
    gc.collect()  # what orbax left behind speaks now, or in another test
    assert len(told) >= 55, "most bits mean something"
    assert all(f"{checkpoints.folder / '1'} is damaged: " in line for line in told)


@pytest.mark.parametrize("failure", [MemoryError("no room"), OSError(5, "Input/output error")])
def test_who_cannot_read_now_does_not_call_it_damage(checkpoints, monkeypatch, failure):
    save(checkpoints, make_meta(1), {"w": jnp.ones(3)})

    def fail(*_):
        raise failure

    monkeypatch.setattr("magistral_jax.checkpoint.ocp.load_checkpointables", fail)
    with pytest.raises(type(failure)):
        checkpoints.newest(lambda meta: checkpoints.restore(meta, "state", {"w": jnp.ones(3)}))
    assert checkpoints.latest() == make_meta(1)


@pytest.mark.parametrize("name", ["seal", "meta.json", "arrays"])
def test_a_checkpoint_that_lacks_a_part_is_passed_over(tmp_path, name):
    told = []
    checkpoints = Checkpoints(tmp_path, keep=2, tell=told.append)
    for step in (1, 2):
        save(checkpoints, make_meta(step), {"w": jnp.ones(3)})
    path = tmp_path / "1" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert checkpoints.latest() == make_meta(1) and len(told) == 1


def test_where_all_are_damaged_there_is_none(tmp_path):
    told = []
    checkpoints = Checkpoints(tmp_path, keep=2, tell=told.append)
    save(checkpoints, make_meta(1), {"w": jnp.ones(3)})
    flip(tmp_path / "0" / "seal", 7)
    assert checkpoints.latest() is None
    assert told == [f"{tmp_path / '0'} is damaged: its seal is; there is none before it"]


def test_a_run_that_went_back_gives_up_what_came_after(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, tell=lambda _: None)
    for step in (1, 4):
        save(checkpoints, make_meta(step), {"w": jnp.full(2, step)})
    flip(tmp_path / "1" / "meta.json", 0)
    assert checkpoints.latest() == make_meta(1)
    save(checkpoints, make_meta(2), {"w": jnp.full(2, 2)})
    assert checkpoints.latest() == make_meta(2)
    assert numbers_in(checkpoints) == [0, 2]


def test_arrays_that_are_not_those_that_were_meant_are_damage_though_the_files_are_whole(
    checkpoints,
):
    """As if orbax had read or written something else: the seal is right, the arrays are not."""
    state, other = make_state(seed=1), make_state(seed=1)
    other.params["embed"] = other.params["embed"] * np.float32(1.0000001)
    for step, saved in ((1, state), (2, state), (3, other)):
        save(checkpoints, make_meta(step), saved)
    shutil.rmtree(checkpoints.folder / "1" / "arrays")
    shutil.copytree(checkpoints.folder / "2" / "arrays", checkpoints.folder / "1" / "arrays")
    shutil.rmtree(checkpoints.folder / "2")
    _seal(checkpoints.folder / "1")
    found = checkpoints.latest()
    assert found.step == 2
    with pytest.raises(Damaged, match="state/params/embed and 0 more"):
        checkpoints.restore(found, "state", state)
    with pytest.raises(Damaged, match="state/params/embed and 0 more"):
        checkpoints.restore_params(found, state.params)
    told = []
    checkpoints._tell = told.append
    checkpoints.pass_over(found, "it differs")
    assert checkpoints.latest() is None
    assert "it differs" in told[0]


def test_what_is_saved_is_what_was_there_though_the_next_step_takes_the_buffers(checkpoints):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    state = {f"w{i}": jnp.full((200, 200), float(i)) for i in range(20)}
    for number in range(1, 9):
        expected = jax.tree.map(np.array, state)
        checkpoints.save(make_meta(number), {"state": state})
        state = step(state)
        jax.block_until_ready(state)
        checkpoints.settle()
        assert_equal(checkpoints.restore(checkpoints.latest(), "state", state), expected)


def test_arrays_of_the_host_may_be_changed_once_they_are_being_saved(checkpoints, monkeypatch):
    changed, write = threading.Event(), np.savez
    monkeypatch.setattr(np, "savez", lambda *a, **k: changed.wait(30) and write(*a, **k))
    host = {"x": np.arange(3)}
    checkpoints.save(make_meta(1), {"state": {"w": jnp.ones(2)}, "host": host})
    host["x"] += 7
    changed.set()
    checkpoints.settle()
    assert_equal(checkpoints.restore_host(checkpoints.latest(), "host"), {"x": np.arange(3)})


def test_an_old_one_that_cannot_be_deleted_costs_the_new_one_nothing(tmp_path, monkeypatch):
    told, delete = [], shutil.rmtree
    checkpoints = Checkpoints(tmp_path, keep=1, tell=told.append)
    save(checkpoints, make_meta(1), {"w": jnp.ones(2)})

    def refuse(path):
        raise OSError("device busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(checkpoints, make_meta(2), {"w": jnp.ones(2)})
    assert told == [
        f"{tmp_path / '0'} could not be deleted (device busy); the next save tries again"
    ]
    monkeypatch.setattr(shutil, "rmtree", delete)
    assert checkpoints.latest() == make_meta(2)
    save(checkpoints, make_meta(3), {"w": jnp.ones(2)})
    assert numbers_in(checkpoints) == [2]


def test_items_of_devices_and_of_the_host_come_back_by_name(checkpoints):
    def decode_state(fsdp, tp):
        mesh = make_mesh(jax.devices(), fsdp=fsdp, tp=tp)
        arrays = {
            "tokens": (np.arange(8).reshape(2, 4).astype("i4"), P("fsdp", "tp")),
            "active": (np.array([True, False]), P("fsdp")),
            "b": (np.asarray(jnp.linspace(0, 1, 8, dtype="bfloat16")), P("tp")),
            "count": (np.int32(3), P()),
        }
        return {k: jax.device_put(x, NamedSharding(mesh, p)) for k, (x, p) in arrays.items()}

    decode, elsewhere = decode_state(2, 2), decode_state(1, 4)
    host = {"none": np.zeros(0, np.int32), "flags": np.array([True, False]), "x": np.ones(2)}
    checkpoints.save(make_meta(1), {"state": {"w": jnp.ones(2)}, "decode": decode, "host": host})
    checkpoints.settle()
    found = checkpoints.latest()
    assert [checkpoints.has(found, n) for n in ("decode", "host", "other")] == [True, True, False]
    for like in (decode, elsewhere):
        restored = checkpoints.restore(found, "decode", like)
        assert_equal(restored, decode)
        assert all(restored[name].sharding == like[name].sharding for name in like)
    assert_equal(checkpoints.restore_host(found, "host"), host)
    with pytest.raises(ValueError, match=r"decode/tokens was int32\[2,4\] and is now int32\[5\]"):
        checkpoints.restore(found, "decode", {**decode, "tokens": jnp.arange(5)})


def test_who_waits_for_a_writer_that_hangs_says_so(tmp_path, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr("magistral_jax.checkpoint._seal", lambda folder: go_on.wait(30))
    checkpoints = Checkpoints(tmp_path, keep=2, stall_s=0.3)
    checkpoints.save(make_meta(7), {"state": {"w": jnp.ones(2)}})
    step, seconds, thread = checkpoints.saving
    assert (step, thread) == (7, checkpoints._writer.ident) and 0 <= seconds < 10
    with pytest.raises(Stalled, match="for the checkpoint writer, which writes step 7"):
        checkpoints.settle()
    go_on.set()
    checkpoints._writer.join()
    assert checkpoints.saving is None


def test_a_save_that_comes_forward_may_take_as_long_as_it_likes(tmp_path, monkeypatch):
    """Four times stall_s, a piece at a time; and then it hangs."""
    is_slow, seals = [True], []

    def seal(folder):
        for piece in range(12):
            time.sleep(0.2)
            with (folder / "arrays" / "more").open("ab") as file:
                file.write(b"x" * piece)
        seals.append(folder)
        time.sleep(0 if is_slow else 30)

    monkeypatch.setattr("magistral_jax.checkpoint._seal", seal)
    beats, checkpoints = [], Checkpoints(tmp_path, keep=2, stall_s=0.6)
    checkpoints.on_progress = lambda: beats.append(time.monotonic())
    checkpoints.save(make_meta(7), {"state": {"w": jnp.ones(2)}})
    longest = 0.0
    while (saving := checkpoints.saving) is not None:
        longest = max(longest, saving[1])
        time.sleep(0.02)
    checkpoints.settle()
    assert longest < 0.6 and len(seals) == 1
    checkpoints.save(make_meta(8), {"state": {"w": jnp.ones(2)}})
    checkpoints.settle()
    assert len(beats) >= 3, "who waits for it is taken to stand still"
    is_slow.clear()
    checkpoints.save(make_meta(9), {"state": {"w": jnp.ones(2)}})
    with pytest.raises(Stalled, match="nothing more came to the disk"):
        checkpoints.settle()


KILLED = """
import sys
import magistral_jax
import jax.numpy as jnp, numpy as np
from magistral_jax.checkpoint import Checkpoints, Meta

checkpoints = Checkpoints(sys.argv[1], keep=2)
found = checkpoints.latest()
like = {f"w{i}": jnp.zeros(2000) for i in range(8)}
step = 0
if found is not None:
    step = found.step
    state = checkpoints.restore(found, "state", like)
    assert all((np.asarray(x) == step).all() for x in state.values()), step
    assert checkpoints.restore_host(found, "host")["step"] == step
print(step, flush=True)
while True:
    step += 1
    state = {name: jnp.full(2000, step, jnp.float32) for name in like}
    meta = Meta(step=step, identity={}, notes={})
    checkpoints.save(meta, {"state": state, "host": {"step": np.array(step)}})
    print(step - 1, flush=True)  # the one before is whole, or this would not have begun
"""


def test_a_process_killed_amid_its_saves_finds_a_whole_one_each_time(tmp_path):
    chance, whole = random.Random(0), 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "checkpoints")],
            cwd=Path(magistral_jax.__file__).parents[1],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process:
            began = int(process.stdout.readline())
            assert began >= whole, "a kill lost what had been whole before it"
            time.sleep(chance.uniform(0.05, 0.8))
            process.kill()
            whole = max([began, *map(int, process.stdout.read().split())])
    assert whole > 0, "no process lived long enough to save anything"


NEVER_SETTLED = """
import sys, time
import magistral_jax
import jax.numpy as jnp
from magistral_jax import checkpoint

if sys.argv[2] == "hangs":
    checkpoint._seal = lambda folder: time.sleep(1000)
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=2)
meta = checkpoint.Meta(step=1, identity={}, notes={})
checkpoints.save(meta, {"state": {f"w{i}": jnp.ones(100_000) for i in range(8)}})
time.sleep(2 if sys.argv[2] == "hangs" else 0)
"""


@pytest.mark.parametrize("writer", ["has just begun", "hangs"])
def test_a_process_that_does_not_wait_for_its_writer_ends_all_the_same(tmp_path, writer):
    done = subprocess.run(
        [sys.executable, "-c", NEVER_SETTLED, str(tmp_path / "checkpoints"), writer],
        cwd=Path(magistral_jax.__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
