"""The protocol of a remote sandbox, against a real HTTP server that runs what it is sent."""

import base64
import json
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import CodeTests
from magistral_jax.verifier.code.judge import judge_code
from magistral_jax.verifier.sandbox import remote
from magistral_jax.verifier.sandbox.choose import describe_sandbox, open_sandbox
from magistral_jax.verifier.sandbox.job import Job, Limits


class Service(BaseHTTPRequestHandler):
    """SandboxFusion's /run_code as its documentation describes it, for Python only."""

    failures: ClassVar[list[int]] = []

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/run_code" and asked["language"] == "python"
        if self.failures:
            self.send_error(self.failures.pop())
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, data in asked["files"].items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(data))
            done = subprocess.run(
                [sys.executable, "-c", asked["code"]],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=asked["run_timeout"],
                check=False,
            )
        result = {
            "status": "Finished",
            "return_code": done.returncode,
            "stdout": done.stdout,
            "stderr": done.stderr,
            "execution_time": 0.1,
        }
        body = json.dumps({"status": "Success", "message": "", "run_result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_S", 0.01)
    monkeypatch.setattr(Service, "failures", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def run(url, code, stdin=b"", **limits):
    config = VerifierConfig(sandbox="remote", sandbox_url=url)
    sandbox = open_sandbox(config)
    argv = (sandbox.python, "main.py")
    job = Job(argv=argv, files={"main.py": code.encode()}, stdin=stdin, limits=Limits(**limits))
    return sandbox.run(job)


def test_a_program_reads_prints_and_exits(service):
    ran = run(service, "import sys; print(input()[::-1]); sys.exit(3)", b"abc\n")
    assert (ran.ended, ran.code, ran.stdout) == ("exit", 3, b"cba\n")


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("while True: pass", "timeout"),
        ("import os; os.abort()", "signal"),
        ("print('x' * 3000)", "output"),
    ],
)
def test_limits_are_told(service, code, ended):
    assert run(service, code, cpu_s=1.0, stdout_bytes=2000).ended == ended


def test_a_service_that_stumbles_is_asked_again_and_one_that_fails_is_our_error(service):
    Service.failures = [503, 503]
    assert run(service, "print(1)").stdout == b"1\n"
    Service.failures = [503] * 3
    ran = run(service, "print(1)")
    assert ran.ended == "lost" and b"503" in ran.stderr


def test_no_service_is_our_error():
    ran = run("http://127.0.0.1:9", "print(1)")
    assert ran.ended == "lost" and b"127.0.0.1:9" in ran.stderr


def test_programs_are_judged_there(service):
    config = VerifierConfig(sandbox="remote", sandbox_url=service)
    tests = CodeTests(stdio=(("1 2\n", "3\n"), ("2 2\n", "4\n")))
    sandbox = open_sandbox(config)
    right = judge_code(tests, "print(sum(map(int, input().split())))", "python", sandbox, seed="")
    wrong = judge_code(tests, "print(3)", "python", sandbox, seed="")
    assert (right.reason, wrong.reason) == ("pass", "wrong")
    assert describe_sandbox(config) == f"programs run at {service} (verifier.sandbox = remote)"


def test_tests_that_call_the_program_cannot_be_run_there(service):
    config = VerifierConfig(sandbox="remote", sandbox_url=service)
    tests = CodeTests(asserts=("assert f(1) == 2",))
    code = "def f(x): return x + 1"
    judged = judge_code(tests, code, "python", open_sandbox(config), seed="")
    assert judged.reason == "error"
