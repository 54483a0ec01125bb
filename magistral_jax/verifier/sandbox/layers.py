"""What each layer shows of this machine: the interpreter, the compiler, the folders asked for."""

import os
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from magistral_jax.types import UserError

FIRST_UID = 65100
_SLOTS = 200
_PYTHON_HOME = "/python"
_SYSTEM_PATH = "/usr/bin:/bin"
_LOCAL = "/usr/local"


class Slot:
    """Two uids that no other sandbox of this machine uses while this one lives; for root."""

    def __init__(self) -> None:
        for number in range(_SLOTS):
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            uid = FIRST_UID + 2 * number
            # A name without a file, which the kernel frees with the process that holds it.
            with suppress(OSError):
                claim.bind(f"\0magistral-jax-sandbox-{uid}")
                self.uid = uid
                self._claim = claim
                return
            claim.close()
        raise UserError(f"All {_SLOTS} slots for sandboxes are taken; use fewer verifier.workers.")

    def free(self) -> None:
        """Let others have the uids."""
        self._claim.close()


def own_python() -> tuple[Path, Path]:
    """This process's interpreter, out of its virtual environment, and its prefix."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Path(os.path.realpath(base)), Path(os.path.realpath(sys.base_prefix))


def namespaces_view(read_only: Sequence[Path]) -> tuple[dict, str, dict[str, str]]:
    """For layer "namespaces": the launcher's setting, the interpreter inside, and its variables.

    The interpreter of this process is shown at a neutral place, since its own may name a user.
    """
    executable, prefix = own_python()
    binds = {f"/ro/{number}": str(path) for number, path in enumerate(read_only)}
    variables: dict[str, str] = {}
    masks = ["/usr/src", "/usr/lib/python3/dist-packages"]
    python = str(executable)
    if prefix != Path("/usr") and executable.is_relative_to(prefix):
        inside = executable.relative_to(prefix)
        python = f"{_PYTHON_HOME}/{inside}"
        binds[python] = str(executable)
        for library in ("lib", "lib64"):
            if (prefix / library).is_dir():
                binds[f"{_PYTHON_HOME}/{library}"] = str(prefix / library)
        if sysconfig.get_config_var("Py_ENABLE_SHARED"):
            variables["LD_LIBRARY_PATH"] = f"{_PYTHON_HOME}/lib"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        masks += [f"{_PYTHON_HOME}/{lib}/{version}/site-packages" for lib in ("lib", "lib64")]
    compiler = shutil.which("g++", path=_SYSTEM_PATH)
    if compiler or not shutil.which("g++", path=f"{_LOCAL}/bin"):
        masks.append(_LOCAL)
    return {"binds": binds, "masks": masks, "read": [], "folder": ""}, python, variables


def shared_view(read_only: Sequence[Path]) -> dict:
    """For the other layers: programs see the machine's own paths, as far as Landlock lets them."""
    _, prefix = own_python()
    read = [str(path) for path in read_only]
    read += [str(prefix / name) for name in ("bin", "lib", "lib64") if prefix != Path("/usr")]
    return {"binds": {}, "masks": [], "read": read, "folder": tempfile.gettempdir()}


def shared_pythons() -> list[str]:
    """Interpreters to try there, this process's first: it may live where no other uid may look."""
    own, _ = own_python()
    system = [f"{folder}/python3" for folder in ("/usr/bin", "/usr/local/bin")]
    return [str(own), *(path for path in system if os.path.exists(path))]


def compilers() -> list[str]:
    """C++ compilers to try, by their paths inside."""
    found = (shutil.which(name, path=f"{_SYSTEM_PATH}:{_LOCAL}/bin") for name in ("g++", "c++"))
    return [path for path in found if path]
