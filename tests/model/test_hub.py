"""The hub is a server in this process; huggingface_hub and the process that calls it are real."""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from magistral_jax.model import hub
from magistral_jax.model.sources import resolve
from magistral_jax.types import Stalled, UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tekken.json": b"[]",
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
UNWANTED = {
    "README.md": b"# Tiny",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the weights again",
    "original/params.json": b"{}",
    "run.py": b"import os",
}


class Hub(BaseHTTPRequestHandler):
    """Repository "org/tiny"; "org/gated", "org/broken" and any other are refused."""

    asked: list[str]
    """Every path asked for, in order."""

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = WANTED | UNWANTED
        if "org/gated" in path:
            return self.answer(403, b"", X_Error_Code="GatedRepo")
        if "org/broken" in path:
            return self.answer(500, b"")
        if "org/tiny" not in path:
            return self.answer(404, b"", X_Error_Code="RepoNotFound")
        if path.startswith("/api/models/org/tiny/revision/"):
            if path.rsplit("/", 1)[1] not in ("main", "v1"):
                return self.answer(404, b"", X_Error_Code="RevisionNotFound")
            body = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode()
        elif path == f"/api/models/org/tiny/tree/{COMMIT}":
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{i:040x}"}
                for i, (name, content) in enumerate(files.items())
            ]
            body = json.dumps(listed).encode()
        else:
            name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
            tag = f"{list(files).index(name):040x}"
            return self.answer(200, files[name], ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
        return self.answer(200, body, Content_Type="application/json")

    do_HEAD = do_GET


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the hub was asked for. It is the only hub that processes started here can see."""
    handler = type("Handler", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    # Nothing here may be taken for a local path.
    monkeypatch.chdir(tmp_path)
    yield handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


def refusal(source):
    with pytest.raises(UserError) as refused:
        resolve(source)
    said = str(refused.value)
    repository = source.partition("@")[0]
    assert said.startswith(
        f"model.source is {source!r}, and no such path is here; as the hub's repository "
        f"{repository} it cannot be fetched: "
    )
    return said


@pytest.mark.parametrize("source", ["org/tiny", "org/tiny@v1", f"org/tiny@{COMMIT}"])
def test_the_model_files_of_a_repository_are_fetched_and_no_others(source, asked):
    folder = resolve(source)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == WANTED
    fetched = {path.rsplit("/", 1)[1] for path in asked if "/resolve/" in path}
    assert fetched == WANTED.keys()


def test_what_was_fetched_is_there_without_the_hub(asked, monkeypatch):
    folder = resolve("org/tiny")
    asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/tiny") == folder
    assert asked == []


def test_a_folder_of_that_name_wins_over_the_hub(asked, tmp_path):
    folder = tmp_path / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert resolve("org/tiny").resolve() == folder
    assert asked == []


def test_a_gated_repository_says_how_to_get_in(asked):
    said = refusal("org/gated")
    assert "it is gated, and this user may not read it. Ask for access on its page, then" in said


def test_a_repository_that_is_not_there_is_refused(asked):
    said = refusal("org/misspelt")
    assert "there is no such repository, or it is private. Check the spelling, or log in" in said


def test_a_revision_that_is_not_there_is_named(asked):
    assert "it has no revision 'v2'. Name a branch, a tag or a commit" in refusal("org/tiny@v2")


def test_a_hub_that_fails_is_quoted(asked):
    assert "500 Internal Server Error" in refusal("org/broken")


def test_a_hub_that_cannot_be_reached_is_refused(asked, monkeypatch):
    # Port 1 is nobody's: the connection is refused at once.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    said = refusal("org/tiny")
    assert "LocalEntryNotFoundError: Got: ConnectError" in said
    assert said.endswith(
        "Try again, or give the path of a folder that holds config.json and safetensors."
    )


def test_offline_without_the_files_says_so(asked, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refusal("org/tiny")
    assert "HF_HUB_OFFLINE is set, and the hub's cache does not hold all of it. Unset HF_" in said
    assert asked == []


def test_a_name_no_hub_could_have_is_refused(asked):
    assert "HFValidationError" in refusal("org/a--b")
    assert asked == []


# ── the process ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """pretend(code) makes `code` the huggingface_hub of processes started here."""

    def start(code: str) -> None:
        (tmp_path / "stub").mkdir()
        (tmp_path / "stub" / "huggingface_hub.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
        monkeypatch.chdir(tmp_path)

    return start


def test_a_download_that_hangs_is_killed_at_its_deadline(pretend, tmp_path, monkeypatch):
    pretend(
        "import os, time\n"
        "def snapshot_download(*_, **__):\n"
        "    open('pid', 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.setattr(hub, "SNAPSHOT_S", 5.0)
    start = time.monotonic()
    with pytest.raises(Stalled, match="waited 5 s for huggingface_hub to download org/tiny@v1"):
        resolve("org/tiny@v1")
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_process_imports_this_very_package(pretend, tmp_path):
    pretend(
        "import os\n"
        "def snapshot_download(*_, **__):\n"
        "    open('config.json', 'w').write(os.environ['PYTHONPATH'])\n"
        "    return '.'\n"
    )
    told = (resolve("org/tiny") / "config.json").read_text().split(os.pathsep)
    assert told == [str(Path(hub.__file__).parents[2]), str(tmp_path / "stub")]


def test_a_process_that_dies_is_quoted(pretend):
    pretend("import os, sys\nsys.stderr.write('out of luck\\n')\nsys.stderr.flush()\nos._exit(3)\n")
    assert "failed (exit code 3): out of luck. Try again" in refusal("org/tiny")


def test_without_huggingface_hub_it_says_what_to_install(pretend):
    pretend("raise ModuleNotFoundError(\"No module named 'huggingface_hub'\")")
    said = refusal("org/tiny")
    assert "No module named 'huggingface_hub'. Run `pip install huggingface_hub`" in said


def test_a_snapshot_without_a_config_is_refused(pretend, tmp_path):
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").touch()
    pretend("def snapshot_download(*_, **__): return 'snapshot'")
    with pytest.raises(UserError, match=r"'org/tiny': snapshot holds no config.json; it holds mod"):
        resolve("org/tiny")


def test_the_hub_is_asked_for_exactly_this(monkeypatch):
    asked = []

    def snapshot_download(repository, **options):
        asked.append((repository, options))
        return "folder"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.fetch("org/tiny", "v1") == {"folder": "folder"}
    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tekken.json"]
    assert asked == [
        (
            "org/tiny",
            {
                "revision": "v1",
                "allow_patterns": patterns,
                "ignore_patterns": ["consolidated*", "*/*"],
                "etag_timeout": 20.0,
            },
        )
    ]
