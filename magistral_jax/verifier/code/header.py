"""A precompiled bits/stdc++.h, which costs a compiler two seconds whenever it reads it anew (2.2).

It is made once per machine, user, compiler and flags, from nothing but the compiler's own header,
so outside the sandbox; programs see its folder read-only. It lies in the folder for temporary
files, as a program that runs under a uid of its own cannot enter its owner's home.
"""

import hashlib
import os
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

FLAGS = ("-std=c++20", "-O2")
_HEADER = "bits/stdc++.h"
_BUILD_S = 120.0


def header_folder() -> Path:
    """Where this user's headers are; made if need be. Give it to `Sandbox` as `read_only`.

    Raises OSError if it cannot be made, or is not this user's alone to write to.
    """
    folder = Path(tempfile.gettempdir()) / f"magistral-jax-headers-{os.geteuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not a folder that only this user can write to")
    return folder


def include_flags(sandbox: Any) -> tuple[str, ...]:
    """What a compiler in this sandbox has to be told to find the header; nothing if it is not seen
    there or cannot be made."""
    try:
        inside = sandbox.mount_point(folder := header_folder())
        return ("-I", f"{inside}/{_made(sandbox.cxx, folder).name}")
    except (AttributeError, ValueError, OSError, subprocess.SubprocessError):
        return ()  # a sandbox without shared folders, or a compiler that is not on this side


def _made(compiler: str, folder: Path) -> Path:
    """The include folder for this compiler; other processes may be making it at the same time."""
    version = _version(compiler)
    key = hashlib.sha256("\0".join([compiler, version, *FLAGS]).encode()).hexdigest()[:16]
    made = folder / key
    if made.is_dir():
        return made
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as draft:
        target = Path(draft) / key / f"{_HEADER}.gch"
        target.parent.mkdir(parents=True)
        # Read through a file that includes it, as the header's own folder is the compiler's affair.
        source = Path(draft) / "all.h"
        source.write_text(f"#include <{_HEADER}>\n")
        _output([compiler, *FLAGS, "-x", "c++-header", str(source), "-o", str(target)])
        target.chmod(0o644)
        for path in (target.parent, target.parent.parent):
            path.chmod(0o755)
        try:
            (Path(draft) / key).rename(made)
        except OSError:
            if not made.is_dir():  # else another process was first
                raise
    return made


@cache
def _version(compiler: str) -> str:
    return _output([compiler, "--version"])


def _output(command: list[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_BUILD_S, check=True
    )
    return done.stdout.decode("utf-8", "replace")
