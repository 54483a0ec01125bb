"""Which sandbox is taken, and what is said where none can be had."""

import subprocess
import sys
from pathlib import Path

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import UserError
from magistral_jax.verifier.sandbox import choose
from magistral_jax.verifier.sandbox.unsafe import UnsafeSandbox

ROOT = Path(__file__).parents[3]


@pytest.fixture
def bare(monkeypatch):
    """A machine on which no layer can be had."""

    def refuse(layer, **_):
        raise UserError(f"No sandbox for programs (verifier.sandbox = {layer!r}): no Landlock.")

    monkeypatch.setattr(choose, "probe", refuse)
    monkeypatch.setattr(choose, "Sandbox", refuse)


def test_where_nothing_is_safe_programs_are_refused_with_what_is_missing(bare):
    with pytest.raises(UserError, match=r"no Landlock.*verifier\.allow_unsafe_code = true"):
        choose.describe_sandbox(VerifierConfig())
    with pytest.raises(UserError, match="no Landlock"):
        choose.open_sandbox(VerifierConfig())


def test_only_on_demand_programs_run_without_a_sandbox(bare):
    config = VerifierConfig(allow_unsafe_code=True)
    assert choose.describe_sandbox(config).startswith(choose.UNSAFE)
    assert isinstance(choose.open_sandbox(config), UnsafeSandbox)


def test_without_a_compiler_a_run_that_asks_for_cpp_is_refused(monkeypatch):
    class Found:
        cxx = None

    monkeypatch.setattr(choose, "probe", lambda layer: Found())
    with pytest.raises(UserError, match=r"verifier\.code_languages.*Install g\+\+"):
        choose.describe_sandbox(VerifierConfig(), is_strict=True)
    choose.describe_sandbox(VerifierConfig(code_languages="python"), is_strict=True)
    choose.describe_sandbox(VerifierConfig())


def test_plain_processes_have_their_limits_too():
    """In a process of its own, as in a worker: no other thread is there."""
    program = """
from magistral_jax.types import CodeTests
from magistral_jax.verifier.code.judge import judge_code
from magistral_jax.verifier.sandbox.unsafe import UnsafeSandbox
stdio = CodeTests(stdio=(("3", "9"),), time_limit_s=1.0)
asserts = CodeTests(asserts=("assert f(3) == 9",), time_limit_s=1.0)
say = lambda tests, code: print(
    judge_code(tests, code, "python", UnsafeSandbox(), seed="").reason
)
say(stdio, "print(int(input()) ** 2)")
say(stdio, "print(8)")
say(stdio, "while True: pass")
say(stdio, "print('x' * 10**7)")
say(asserts, "def f(x): return x * x")
say(asserts, "def f(x): return x")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["pass", "wrong", "timeout", "output", "pass", "wrong"], done
