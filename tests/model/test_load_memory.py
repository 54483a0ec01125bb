"""How much of the host's memory a large checkpoint takes while it is loaded, beside its arrays."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from magistral_jax.model.families import config_of
from magistral_jax.model.load import read_architecture
from magistral_jax.model.names import table
from magistral_jax.model.params import Architecture
from magistral_jax.model.safetensors_file import read_folder

GIB = 2**30
SHARDS = 2
# SmolLM3-3B.
LARGE = Architecture(
    family="smollm3",
    layers=36,
    width=2048,
    heads=16,
    kv_heads=4,
    head_dim=128,
    ffn=11008,
    vocab=128256,
    rope_theta=5_000_000.0,
    norm_eps=1e-6,
    tie_embeddings=True,
    nope_layers=tuple(range(3, 36, 4)),
    max_positions=65536,
)

LOADER = """
import resource, sys
from pathlib import Path
import magistral_jax
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, shardings

folder = Path(sys.argv[1])
arch = read_architecture(folder)
onto = shardings(arch, make_mesh(jax.devices(), fsdp=2, tp=1), TRAINER_RULES)
params = jax.block_until_ready(read_params(folder, arch, onto))
held = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, held)
"""


def write_holes(folder: Path, arch: Architecture) -> int:
    """A sharded bf16 checkpoint of zeros that takes no room on disk; its largest shard's bytes."""
    (folder / "config.json").write_text(json.dumps(config_of(arch)))
    names = [(n, e.shape) for e in table(arch).values() for n in e.names(arch.layers)]
    weight_map, largest = {}, 0
    for shard in range(SHARDS):
        header, end = {}, 0
        for name, shape in names[shard::SHARDS]:
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            where = [end, end + size]
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": where}
            end += size
            weight_map[name] = f"model-{shard}.safetensors"
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / f"model-{shard}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        largest = max(largest, end)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return largest


def memory_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc/meminfo tells how much memory there is")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


@pytest.mark.full
def test_loading_takes_less_than_a_gigabyte_beside_the_parameters(tmp_path):
    if memory_available() < 13 * GIB:
        pytest.skip("3 billion float32 parameters and some room need 13 GiB of free memory")
    shard = write_holes(tmp_path, LARGE)
    assert read_architecture(tmp_path) == LARGE and len(read_folder(tmp_path)) > 300
    command = [sys.executable, "-c", LOADER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    peak, held = map(int, done.stdout.split())
    assert held > 11 * GIB
    beside = peak - held
    assert beside < GIB, f"{beside / GIB:.2f} GiB beside the parameters; a shard is {shard / GIB}"
