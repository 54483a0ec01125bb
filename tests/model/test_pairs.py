"""Networks described twice: what transformers or llama.cpp computes, or a refusal by name.

The cases are tests/golden/pairs.py, the others' logits pairs.npz, the list docs/MODELS.md.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.model.params import unstack
from magistral_jax.model.sharding import make_mesh
from magistral_jax.model.transformer import attend_packed, head_weight, logits, transform
from magistral_jax.types import UserError
from tests.golden.pairs import FAMILIES, FILES, FOLDERS, PLACES, build

F32 = jnp.dtype("float32")
CASES = [*FOLDERS, *FILES]
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "pairs.npz"
MODELS = Path(__file__).resolve().parents[2] / "docs" / "MODELS.md"


@pytest.fixture(scope="module")
def theirs():
    with np.load(GOLDEN) as found:
        return dict(found)


@pytest.fixture(scope="module")
def tokens():
    with np.load(FAMILIES / "logits.npz") as found:
        return jnp.asarray(found["tokens"][:1])


def ours(path, tokens):
    """Logits of the network there; not compiled, and layer by layer: nearly each is another."""
    arch = read_architecture(path)
    mesh = make_mesh(jax.devices(), fsdp=1, tp=1)
    with jax.set_mesh(mesh):
        params = jax.device_put(unstack(read_params(path, arch), arch.layers), P())
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        attend = attend_packed(jnp.ones_like(tokens), positions)
        hidden, _ = transform(params, arch, tokens, positions, attend=attend, dtype=F32)
        return logits(hidden, head_weight(params, F32), tied=arch.tie_embeddings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.arch or case.base}: {case.name}")
def test_what_is_said_twice_is_computed_as_others_do_or_refused(case, theirs, tokens, tmp_path):
    path, key = build(case, tmp_path / "net"), f"{case.pair}|{case.name}"
    if case.refused:
        with pytest.raises(UserError, match=case.refused) as refused:
            read_params(path, read_architecture(path))
        assert str(refused.value).startswith("model.source: ")
        return
    found = np.asarray(ours(path, tokens))
    np.testing.assert_allclose(found[0, PLACES], theirs[key], atol=1e-4, rtol=0)


def rows_of(heading):
    """{first cell: last cell} of the table below that heading of docs/MODELS.md."""
    section = MODELS.read_text("utf-8").split(f"## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == 3 for row in cells) and len({row[0] for row in cells}) == len(cells)
    return {row[0]: row[2].lower() for row in cells}


@pytest.mark.parametrize("heading, cases", [("Folders", FOLDERS), ("GGUF", FILES)])
def test_the_list_and_the_cases_are_of_the_same_pairs(heading, cases):
    listed = rows_of(heading)
    assert set(listed) == {case.pair for case in cases}
    for pair, here in listed.items():
        refused = [bool(case.refused) for case in cases if case.pair == pair]
        assert ("the same" in here) == (not all(refused)), pair
        assert ("refus" in here) == any(refused), pair


def test_no_two_cases_have_one_name(theirs):
    names = [(case.pair, case.name, bool(case.arch)) for case in CASES]
    assert len(set(names)) == len(names)
    assert set(theirs) <= {f"{case.pair}|{case.name}" for case in CASES}
