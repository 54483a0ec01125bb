"""Which sandbox a run gets: the one that the config names, or the best of this machine."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from magistral_jax.config import VerifierConfig
from magistral_jax.types import UserError
from magistral_jax.verifier.code.header import header_folder
from magistral_jax.verifier.sandbox.client import Sandbox, probe
from magistral_jax.verifier.sandbox.job import Job, Ran
from magistral_jax.verifier.sandbox.remote import RemoteSandbox
from magistral_jax.verifier.sandbox.unsafe import UnsafeSandbox

UNSAFE = "programs run WITHOUT a sandbox"


@runtime_checkable
class Runner(Protocol):
    """Whatever runs programs: a sandbox here, a service elsewhere, or nothing but limits."""

    layer: str
    python: str

    @property
    def cxx(self) -> str | None: ...

    def run(self, job: Job) -> Ran: ...

    def run_linked(self, first: Job, second: Job) -> tuple[Ran, Ran]: ...

    def close(self) -> None: ...


def open_sandbox(config: VerifierConfig) -> Runner:
    """The sandbox of this process. Raises UserError, naming what is missing, if none is safe."""
    if config.sandbox == "remote":
        return RemoteSandbox(config.sandbox_url)
    try:
        return Sandbox(config.sandbox, read_only=_headers())
    except UserError:
        if not config.allow_unsafe_code:
            raise
        return UnsafeSandbox()


def _headers() -> list[Path]:
    """Where precompiled headers are; without the folder C++ programs compile more slowly."""
    try:
        return [header_folder()]
    except OSError:
        return []


def describe_sandbox(config: VerifierConfig, *, is_strict: bool = False) -> str:
    """What keeps programs in, in words for people and records. Raises UserError if nothing does.

    With `is_strict`, also if `verifier.code_languages` asks for C++ and there is no compiler.
    """
    if config.sandbox == "remote":
        return f"programs run at {config.sandbox_url} (verifier.sandbox = remote)"
    try:
        found = probe(config.sandbox)
    except UserError as fault:
        if not config.allow_unsafe_code:
            raise UserError(
                f"{fault} Code problems cannot be judged here. Choose another verifier.sandbox, "
                "or set verifier.allow_unsafe_code = true where nothing is worth stealing."
            ) from fault
        return f"{UNSAFE}: {fault} (verifier.allow_unsafe_code = true)"
    if is_strict and found.cxx is None and config.code_languages != "python":
        raise UserError(
            "verifier.code_languages is 'python or C++', and there is no C++ compiler here: right "
            'answers in C++ would not be judged. Install g++, or set it to "python".'
        )
    return str(found)
