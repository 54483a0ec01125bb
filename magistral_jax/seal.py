"""The seal of a folder: what its files were when it was whole.

A file that holds nothing but arrays may be large, and each array has a checksum of its own, which
is looked at when it is read (`checkpoint.py`): of such a file the seal knows the size. Of every
other it has a digest.
"""

import hashlib
import json
import os
from pathlib import Path

ARRAYS, SEAL = "arrays", "seal"
SMALL_BYTES = 1 << 20
"""A file of arrays up to this size is digested like any other: that costs nothing."""


def seal(folder: Path) -> None:
    """Write the digests of a folder's files into it; only a whole seal ever has that name."""
    text = json.dumps(_digests(folder), sort_keys=True)
    draft = folder / f"{SEAL}.new"
    with draft.open("w", encoding="ascii") as file:
        file.write(f"{digest(text.encode())}\n{text}")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / SEAL)


def fault(folder: Path) -> str:
    """What is wrong with a sealed folder; empty if it is as it was when it was sealed."""
    try:
        head, _, text = (folder / SEAL).read_bytes().partition(b"\n")
    except FileNotFoundError:
        return "was not finished when its process ended"
    if head.decode("ascii", "replace") != digest(text):
        return "is damaged: its seal is"
    sealed, found = json.loads(text), _digests(folder)
    changed = sorted(n for n in sealed.keys() | found if sealed.get(n) != found.get(n))
    return f"is damaged: {', '.join(changed[:3])} changed since" if changed else ""


def _digests(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder but its seal, by its path in there; for large files of
    arrays, whose checksums are looked at when they are read, only their size."""
    seals = (folder / SEAL, folder / f"{SEAL}.new")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in seals)
    return {path.relative_to(folder).as_posix(): _file_digest(folder, path) for path in paths}


def _file_digest(folder: Path, path: Path) -> str:
    size = path.stat().st_size
    if size > SMALL_BYTES and (path.suffix == ".npz" or folder / ARRAYS in path.parents):
        return f"{size} bytes"
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest(data: bytes) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
