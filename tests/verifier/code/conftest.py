"""One sandbox for all tests of programs, in the best layer of this machine."""

from collections.abc import Iterator

import pytest

from magistral_jax.types import UserError
from magistral_jax.verifier.code.header import header_folder
from magistral_jax.verifier.sandbox.client import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    try:
        made = Sandbox("auto", read_only=[header_folder()])
    except UserError as failure:
        pytest.skip(f"no sandbox here: {failure}")
    with made:
        yield made


@pytest.fixture
def cxx(sandbox) -> str:
    if sandbox.cxx is None:
        pytest.skip("no C++ compiler here")
    return sandbox.cxx
