"""Programs sent to a remote service that speaks SandboxFusion's protocol: POST /run_code.

The service is asked for one thing only, to run a Python program: a launcher of ours, which starts
the job's command beside its files and prints, as JSON, how it ended. What keeps the program in is
the service's business; a program that forges the launcher's report gains nothing by it, as it may
print and exit as it likes anyway. Two programs cannot be linked (`run_linked`).
"""

import base64
import json
import time
import urllib.error
import urllib.request
from typing import Any

from magistral_jax.verifier.sandbox.job import Job, Ran

_TRIES = 3
_PAUSE_S = 0.5
_SLACK_S = 15.0
_ENDS = ("exit", "signal", "timeout", "memory", "output")

_LAUNCHER = """
import base64, json, os, resource, signal, subprocess, sys, time
job = json.loads(base64.b64decode(JOB))
def limit():
    for name, most in job["limits"].items():
        try:
            # At the soft limit on CPU time a signal says so; it may be ignored, the next not.
            spare = 1 if name == "RLIMIT_CPU" else 0
            resource.setrlimit(getattr(resource, name), (most, most + spare))
        except (OSError, ValueError):
            pass
began, ended, code = time.monotonic(), "exit", 0
with open("stdin.bin", "rb") as stdin, open("stdout.bin", "wb") as out, \\
        open("err.bin", "wb") as err:
    for name in job["names"]:
        os.chmod(name, 0o755)
    child = subprocess.Popen(
        [sys.executable if a == "{python}" else a for a in job["argv"]],
        stdin=stdin, stdout=out, stderr=err, preexec_fn=limit, start_new_session=True,
    )
    try:
        code = child.wait(job["wall_s"])
    except subprocess.TimeoutExpired:
        ended = "timeout"
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except OSError:
        pass
    child.wait()
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = usage.ru_utime + usage.ru_stime
if code < 0:
    ended, code = "signal", -code
    if code == signal.SIGXCPU or cpu >= 0.95 * job["cpu_s"]:
        ended = "timeout"
out = open("stdout.bin", "rb").read(job["stdout_bytes"] + 1)
if len(out) > job["stdout_bytes"]:
    ended = "output"
encode = lambda data: base64.b64encode(data).decode()
files = {}
for name in job["keep"]:
    if os.path.isfile(name) and not os.path.islink(name):
        files[name] = encode(open(name, "rb").read())
print(json.dumps({"ended": ended, "code": code, "cpu_s": cpu, "wall_s": time.monotonic() - began,
    "stdout": encode(out), "stderr": encode(open("err.bin", "rb").read()[-2000:]), "files": files}))
"""


class RemoteSandbox:
    """Runs programs on the service at `url`; the interface is `client.Sandbox`'s."""

    layer = "remote"
    python: str = "{python}"
    """Stands for the service's own interpreter."""
    cxx: str | None = "g++"

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/run_code"

    def run(self, job: Job) -> Ran:
        """How the program ended there; "lost" if the service cannot be reached or fails."""
        began = time.monotonic()
        try:
            report = self._report(job)
            return Ran(
                ended=report["ended"],
                code=int(report["code"]),
                stdout=base64.b64decode(report["stdout"]),
                stderr=base64.b64decode(report["stderr"])[-2000:],
                cpu_s=float(report["cpu_s"]),
                wall_s=float(report["wall_s"]),
                files={k: base64.b64decode(v) for k, v in report["files"].items()},
            )
        except _TimedOut:
            return _ended("timeout", "", time.monotonic() - began)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            said = f"{self._url}: {type(fault).__name__}: {fault}"
            return _ended("lost", said, time.monotonic() - began)

    def run_linked(self, first: Job, second: Job) -> tuple[Ran, Ran]:
        """Always lost: the protocol cannot join two programs."""
        lost = _ended("lost", "a remote sandbox cannot run tests that call the program", 0.0)
        return lost, lost

    def close(self) -> None:
        """Nothing is held."""

    def _report(self, job: Job) -> Any:
        answer = self._post(_request(job))
        result = answer.get("run_result") or {}
        if result.get("status") == "TimeLimitExceeded":
            raise _TimedOut
        if result.get("status") != "Finished" or result.get("return_code") != 0:
            told = answer.get("message") or result.get("stderr") or answer.get("status")
            raise ValueError(f"the service did not run it: {str(told)[-300:]}")
        lines = result["stdout"].strip().splitlines()
        report = json.loads(lines[-1])
        if report["ended"] not in _ENDS:
            raise ValueError(f"the launcher reports {report['ended']!r}")
        return report

    def _post(self, request: dict[str, Any]) -> Any:
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        fault: OSError | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S * 2**attempt)
            try:
                asked = urllib.request.Request(self._url, body, headers, method="POST")
                with urllib.request.urlopen(
                    asked, timeout=request["run_timeout"] + _SLACK_S
                ) as got:
                    return json.load(got)
            except OSError as failure:  # URLError and timeouts among them
                fault = failure
                if isinstance(failure, urllib.error.HTTPError):
                    failure.close()  # it is the answer, too, and holds the connection
        assert fault is not None
        raise fault


class _TimedOut(Exception):
    """The service ended the launcher at its own limit."""


def _request(job: Job) -> dict[str, Any]:
    limits = job.limits
    wall_s = 4 * limits.cpu_s  # its load is not ours to know
    described = {
        "argv": job.argv,
        "names": list(job.files),
        "keep": job.keep,
        "wall_s": wall_s,
        "cpu_s": limits.cpu_s,
        "stdout_bytes": limits.stdout_bytes,
        "limits": {
            "RLIMIT_CPU": max(1, round(limits.cpu_s)),
            "RLIMIT_DATA": limits.memory_bytes,
            "RLIMIT_FSIZE": max(limits.file_bytes, limits.stdout_bytes + 1),
            "RLIMIT_CORE": 0,
        },
    }
    coded = base64.b64encode(json.dumps(described).encode()).decode()
    files = {**job.files, "stdin.bin": job.stdin}
    return {
        "code": f"JOB = {coded!r}\n{_LAUNCHER}",
        "language": "python",
        "compile_timeout": wall_s,
        "run_timeout": wall_s + _SLACK_S,
        "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
        "fetch_files": [],
    }


def _ended(how: Any, said: str, wall_s: float) -> Ran:
    return Ran(
        ended=how, code=0, stdout=b"", stderr=said.encode(), cpu_s=0.0, wall_s=wall_s, files={}
    )
