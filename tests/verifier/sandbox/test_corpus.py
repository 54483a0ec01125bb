"""Some 220 small programs, each ended as it must be, with nothing let out and nothing left behind.

The quick suite runs a choice of them in the best layer of this machine; --full runs all of them in
every layer: as root and as an ordinary user, freely and in a container's conditions.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from magistral_jax.verifier.sandbox.layers import own_python

HERE = Path(__file__).parent
PACKAGE = Path(__file__).parents[3] / "magistral_jax"
# An ordinary user that nobody else is: what is left behind is found by its uid.
SOMEBODY = 20000 + os.getpid() % 20000
IS_ROOT = os.geteuid() == 0
CHOICE = [
    "sum",
    "large-input",
    "child-process",
    "shares-memory-with-children",
    "raises",
    "kills-itself",
    "endless-recursion",
    "busy",
    "sleeps",
    "deaf",
    "one-block",
    "children",
    "one-large-file",
    "memfd",
    "many-files",
    "bomb",
    "sleepers",
    "stdout",
    "stderr",
    "both",
    "leaves-a-deaf-daemon",
    "locks-its-folder",
    "deep-folders",
    "keeps-a-link",
    "secret",
    "parent-environment",
    "inherited-files",
    "secret-modes",
    "secret-truncate",
    "kills-victim",
    "limits-victim",
    "kills-all",
    "unshare-user",
    "clone3",
    "tcp",
    "abstract",
    "socketpair",
    "writes-everywhere",
    "cpp-sum",
    "cpp-deep",
    "cpp-bomb",
    "cpp-includes-stdin",
    "cpp-embeds-secret",
]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the attacks name Linux's system calls by their numbers on x86_64",
)


@pytest.fixture(scope="module")
def open_place() -> Iterator[Path]:
    """A folder that every user may enter, with an interpreter and the sandbox's own files."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    package = place / "source" / "magistral_jax"
    shutil.copytree(PACKAGE / "verifier" / "sandbox", package / "verifier" / "sandbox")
    # All that the sandbox takes from the rest of the package.
    (package / "types.py").write_text("class UserError(ValueError):\n    pass\n")
    shutil.copytree(HERE, place / "corpus")
    executable, prefix = own_python()
    if IS_ROOT:  # whose interpreter may be where nobody else can look
        library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
        skip = shutil.ignore_patterns("site-packages", "test", "config-*", "idlelib", "*.a")
        shutil.copytree(prefix / library, place / "python" / library, ignore=skip, symlinks=True)
        for shared in (prefix / "lib").glob("libpython*.so*"):
            shutil.copy(shared, place / "python" / "lib" / shared.name)
        (place / "python" / "bin").mkdir()
        shutil.copy(executable, place / "python" / "bin" / "python3")
    yield place
    shutil.rmtree(place)


def run_corpus(place: Path, *arguments: str, as_somebody: bool = False) -> list[dict]:
    """The report's lines; the first tells what was found."""
    scratch = Path(tempfile.mkdtemp())
    scratch.chmod(0o755)
    python = str(own_python()[0])
    ids = {}
    if as_somebody:
        python = str(place / "python" / "bin" / "python3")
        os.chown(scratch, SOMEBODY, SOMEBODY)
        ids = {"user": SOMEBODY, "group": SOMEBODY, "extra_groups": []}
    done = subprocess.run(
        [python, "-B", "run_corpus.py", *arguments],
        cwd=place / "corpus",
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(place / "source"),
            "LD_LIBRARY_PATH": str(Path(python).parents[1] / "lib"),
            "TMPDIR": str(scratch),
            "A_SECRET": "MAGISTRAL",
        },
        capture_output=True,
        timeout=540,
        **ids,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    scratch.rmdir()  # empty, or this fails
    return [json.loads(line) for line in done.stdout.splitlines()]


def faults(rows: list[dict]) -> dict[str, list[str]]:
    return {row["name"]: row["faults"] for row in rows[1:] if row["faults"]}


def test_a_choice_of_programs_in_the_best_layer(open_place):
    rows = run_corpus(open_place, "auto", "free", *CHOICE)
    assert len(rows) >= len(CHOICE)
    assert faults(rows) == {}


@pytest.mark.full
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to become any user")
@pytest.mark.parametrize(
    ("layer", "conditions", "as_somebody"),
    [
        ("namespaces", "free", False),
        ("namespaces", "free", True),
        ("uid", "container", False),
        ("landlock", "container", True),
    ],
)
def test_every_program_in_every_layer(open_place, layer, conditions, as_somebody):
    rows = run_corpus(open_place, layer, conditions, "all", as_somebody=as_somebody)
    assert rows[0]["layer"] == layer
    assert len(rows) > 200
    assert faults(rows) == {}


@pytest.mark.full
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to become any user")
@pytest.mark.parametrize(("layer", "as_somebody"), [("uid", False), ("landlock", True)])
def test_every_program_on_the_oldest_landlock(open_place, tmp_path, layer, as_somebody):
    """Version 1 knows nothing of signals, truncation and networks: the filter has to refuse."""
    source = open_place / "source/magistral_jax/verifier/sandbox/landlock.py"
    text = source.read_text()
    ask = 'return syscall("landlock_create_ruleset", 0, 0, 1)'
    assert ask in text
    source.write_text(text.replace(ask, "return 1"))
    try:
        rows = run_corpus(open_place, layer, "container", "all", as_somebody=as_somebody)
    finally:
        source.write_text(text)
    assert "Landlock ABI 1" in rows[0]["found"]
    # There, a program can signal nothing but itself.
    lost = {"kills-its-child", "kills-its-group"} if layer == "landlock" else set()
    assert set(faults(rows)) == lost


@pytest.mark.parametrize(
    ("as_somebody", "expected"), [(False, "uid"), (True, "landlock")], ids=["root", "user"]
)
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to become any user")
def test_a_container_without_namespaces_gets_the_next_best_layer(open_place, as_somebody, expected):
    rows = run_corpus(open_place, "auto", "container", "sum", as_somebody=as_somebody)
    assert rows[0]["layer"] == expected
    assert "layer namespaces cannot be had" in rows[0]["found"]
    assert faults(rows) == {}
