"""A checkpoint gives back exactly what was saved, and one that fails costs only itself."""

import asyncio
import gc
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import NamedSharding

import magistral_jax
from magistral_jax.checkpoint import Checkpoints, Meta, check_identity, only_one_failure
from magistral_jax.config import ShapeConfig
from magistral_jax.model.params import Architecture, Params, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.types import Cursor, UserError

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
        "cursor": Cursor(next=7 * step, pending=(3, 5)),
        "identity": {"model width": 16, "data.path": "", "data.heldout_percent": 5.0},
        "notes": {"before": {"accuracy": 0.1 + step, "ci": [0.0, 1.0]}, "counts": {"a": 3.0}},
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


def steps_in(checkpoints):
    return sorted(int(p.name) for p in checkpoints.folder.iterdir() if p.name.isdigit())


def test_what_was_saved_comes_back_bit_for_bit(checkpoints):
    state = make_state(seed=1)
    meta = make_meta(4)
    checkpoints.save(meta, state)
    found = checkpoints.latest()
    assert found == meta
    assert_equal(checkpoints.restore(found, make_state(seed=2)), state)


@pytest.mark.parametrize(
    "meta",
    [
        make_meta(1, cursor=Cursor(next=0)),
        make_meta(1, notes={"before": None, "counts": {}}),
        make_meta(1, identity={"model tie_embeddings": True, "model rope_theta": 1e4, "seed": 3}),
    ],
    ids=["no position pending", "no evaluation", "an identity of several types"],
)
def test_the_description_keeps_its_types(checkpoints, meta):
    checkpoints.save(meta, {"w": jnp.ones(2)})
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
        checkpoints.save(make_meta(step), {"w": jnp.full(2, step, jnp.float32)})
    assert steps_in(checkpoints) == [2, 10]
    assert checkpoints.latest().step == 10


def test_a_state_is_restored_onto_another_mesh(checkpoints):
    state = make_state(fsdp=2, tp=2)
    checkpoints.save(make_meta(1), state)
    like = make_state(seed=9, fsdp=1, tp=2)
    found = checkpoints.restore(checkpoints.latest(), like)
    assert_equal(found, state)
    for array, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
        assert array.sharding.is_equivalent_to(wanted.sharding, array.ndim)
    assert found.params["embed"].sharding.spec == P("tp", "fsdp")
    assert found.params["embed"].sharding.mesh.shape == {"fsdp": 1, "tp": 2}


def test_weights_come_without_the_optimizer_that_was_saved_with_them(checkpoints):
    state = make_state()
    checkpoints.save(make_meta(1), state)
    replicated = NamedSharding(make_mesh(jax.devices(), fsdp=1, tp=1), P())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state.params
    )
    found = checkpoints.restore_params(checkpoints.latest(), like)
    assert_equal(found, state.params)


def test_what_a_killed_save_left_behind_is_not_taken_for_a_checkpoint(checkpoints):
    checkpoints.save(make_meta(1), {"w": jnp.ones(2)})
    partial = checkpoints.folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(checkpoints.folder / "1", partial)
    (partial / "commit_success.txt").unlink(missing_ok=True)
    assert checkpoints.latest() == make_meta(1)
    checkpoints.save(make_meta(2), {"w": jnp.full(2, 2.0)})
    found = checkpoints.latest()
    assert found == make_meta(2)
    np.testing.assert_array_equal(checkpoints.restore(found, {"w": jnp.ones(2)})["w"], [2.0, 2.0])


FULL_DISK = """
import resource, sys, traceback
import magistral_jax
import jax.numpy as jnp
from magistral_jax.checkpoint import CannotSave, Checkpoints, Meta
from magistral_jax.types import Cursor

def meta(step):
    return Meta(step=step, cursor=Cursor(next=step), identity={}, notes={})

def state(step):
    return {f"w{i}": jnp.arange(5000, dtype=jnp.float32) * step for i in range(10)}

checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(meta(1), state(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    checkpoints.save(meta(2), state(2))
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
    for array in checkpoints.restore(found, like).values():
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


def test_every_flipped_bit_is_found_and_the_checkpoint_before_it_used(tmp_path):
    """A hundred of them, each in a random byte of a random file, seals included."""
    told = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, tell=told.append)
    for step in (1, 2):
        checkpoints.save(make_meta(step), make_state(seed=step))
    folder = tmp_path / "checkpoints"
    files = [*(p for p in (folder / "2").rglob("*") if p.is_file()), folder / "2.seal"]
    files = [path for path in files if path.stat().st_size]
    rng = np.random.default_rng(0)
    for n in range(100):
        path = files[n % len(files)]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        assert checkpoints.latest() == make_meta(1), f"bit {bit} of {path}"
        flip(path, bit)
    assert len(told) == 100
    assert all(f"{folder / '2'} is damaged" in t and "looking at step 1" in t for t in told)
    assert checkpoints.latest() == make_meta(2)
    assert_equal(checkpoints.restore(make_meta(2), make_state(seed=3)), make_state(seed=2))


@pytest.mark.parametrize("name", ["2.seal", "2/state"])
def test_a_checkpoint_that_lacks_a_part_is_passed_over(tmp_path, name):
    told = []
    checkpoints = Checkpoints(tmp_path, keep=2, tell=told.append)
    for step in (1, 2):
        checkpoints.save(make_meta(step), {"w": jnp.ones(3)})
    path = tmp_path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert checkpoints.latest() == make_meta(1) and len(told) == 1


def test_where_all_are_damaged_there_is_none(tmp_path):
    told = []
    checkpoints = Checkpoints(tmp_path, keep=2, tell=told.append)
    checkpoints.save(make_meta(1), {"w": jnp.ones(3)})
    flip(tmp_path / "1.seal", 7)
    assert checkpoints.latest() is None
    assert told == [f"{tmp_path / '1'} is damaged: its seal is; there is none before it"]


def test_a_run_that_went_back_saves_over_what_was_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, tell=lambda _: None)
    for step in (1, 4):
        checkpoints.save(make_meta(step), {"w": jnp.full(2, step)})
    flip(tmp_path / "4.seal", 0)
    checkpoints.save(make_meta(2), {"w": jnp.full(2, 2)})
    assert checkpoints.latest() == make_meta(2)
    assert sorted(p.name for p in tmp_path.glob("*.seal")) == ["1.seal", "2.seal"]
