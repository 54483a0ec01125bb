"""A snapshot of a model hub's repository, fetched by a process that is killed at its deadline.

    python -m magistral_jax.model.hub REPOSITORY REVISION

is that process; an empty revision is the newest. It answers in one line of JSON: the folder, or
the reason why there is none and what to do about it. huggingface_hub keeps what it fetched in its
own cache, goes on there after an interruption, and needs no network for what is whole.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from magistral_jax.types import Stalled, UserError

SNAPSHOT_S = 4 * 3600.0
"""Longest wait for a snapshot: 50 GB at 4 MB/s."""

WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tekken.json"]
# The same weights once more, under other names; and folders, from which nothing is read.
_UNWANTED = ["consolidated*", "*/*"]
_ETAG_S = 20.0
_SAID = 300
_ELSE = "Try again, or give the path of a folder that holds config.json and safetensors."


def snapshot(source: str, repository: str, revision: str | None) -> Path:
    """The folder of the repository's files as of `revision`; None is the newest.

    A `UserError` names `source` and says why there is none; `Stalled` if it takes too long.
    """
    command = [sys.executable, "-m", __name__, repository, revision or ""]
    # The package may be imported from a source checkout that only this process knows of.
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SNAPSHOT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise Stalled(
            f"model.source: waited {SNAPSHOT_S:.0f} s for huggingface_hub to download {source}. "
            "What has arrived is kept: start again to go on."
        ) from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = said[-1][:_SAID] if said else "it said nothing"
        answer = {
            "reason": f"the process that fetches it failed (exit code {done.returncode}): {last}",
            "advice": _ELSE,
        }
    if "folder" not in answer:
        raise UserError(
            f"model.source is {source!r}, and no such path is here; as the hub's repository "
            f"{repository} it cannot be fetched: {answer['reason']}. {answer['advice']}"
        )
    return Path(answer["folder"])


def fetch(repository: str, revision: str | None) -> dict[str, str]:
    """{"folder"} of the snapshot, or the {"reason", "advice"} why there is none; never raises."""
    try:
        # Here, so that a run which needs no hub does not load it.
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=WANTED,
            ignore_patterns=_UNWANTED,
            etag_timeout=_ETAG_S,
        )
    except Exception as error:
        return _explained(error, revision)
    return {"folder": folder}


def _explained(error: Exception, revision: str | None) -> dict[str, str]:
    # By name: what is not installed cannot be imported to compare with. Special cases come first.
    kinds = [kind.__name__ for kind in type(error).__mro__]
    known = {
        "GatedRepoError": (
            "it is gated, and this user may not read it",
            "Ask for access on its page, then log in (`hf auth login`, or HF_TOKEN).",
        ),
        "RepositoryNotFoundError": (
            "there is no such repository, or it is private",
            "Check the spelling, or log in (`hf auth login`, or HF_TOKEN).",
        ),
        "RevisionNotFoundError": (
            f"it has no revision {revision!r}",
            "Name a branch, a tag or a commit behind the @, or none for the newest.",
        ),
        "ModuleNotFoundError": (f"{error}", "Run `pip install huggingface_hub`, or name a folder."),
    }
    for kind, (reason, advice) in known.items():
        if kind in kinds:
            return {"reason": reason, "advice": advice}
    if type(error.__cause__).__name__ == "OfflineModeIsEnabled":
        return {
            "reason": "HF_HUB_OFFLINE is set, and the hub's cache does not hold all of it",
            "advice": "Unset HF_HUB_OFFLINE, or give the path of a folder.",
        }
    # Its messages begin with what went wrong, and go on to explain the library.
    said = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {said[0][:_SAID] if said else 'it said nothing'}"
    return {"reason": reason.rstrip("."), "advice": _ELSE}


if __name__ == "__main__":
    repository, revision = sys.argv[1:]
    sys.stdout.write(json.dumps(fetch(repository, revision or None)) + "\n")
