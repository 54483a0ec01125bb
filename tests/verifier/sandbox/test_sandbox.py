"""The sandbox as its caller meets it: results, links, deadlines, and a launcher that dies."""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magistral_jax.types import UserError
from magistral_jax.verifier.sandbox import layers
from magistral_jax.verifier.sandbox.client import Sandbox, probe
from magistral_jax.verifier.sandbox.job import Job, Layer, Limits, Ran

IS_ROOT = os.geteuid() == 0
LAYERS: tuple[Layer, Layer] = ("namespaces", "uid" if IS_ROOT else "landlock")


@pytest.fixture(scope="module", params=LAYERS)
def sandbox(request) -> Iterator[Sandbox]:
    try:
        opened = Sandbox(request.param)
    except UserError as fault:
        pytest.skip(str(fault))
    with opened:
        yield opened


def job(sandbox: Sandbox, source: str, **rest) -> Job:
    files = {"main.py": source.encode(), **rest.pop("files", {})}
    return Job(argv=(sandbox.python, "-I", "-S", "main.py"), files=files, **rest)


def python(sandbox: Sandbox, source: str, **rest) -> Ran:
    return sandbox.run(job(sandbox, source, **rest))


def test_what_a_run_tells(sandbox):
    ran = python(sandbox, "import sys; print(input()); sys.exit('no')", stdin=b"4\n")
    assert (ran.ended, ran.code, ran.stdout, ran.stderr) == ("exit", 1, b"4\n", b"no\n")
    assert 0 < ran.cpu_s < 2 and 0 < ran.wall_s < 10


def test_pipes_can_be_opened_by_their_names(sandbox):
    if sandbox.layer == "namespaces":
        pytest.skip("there is no /proc, through which those names lead")
    owner = Path("/dev/null").stat().st_uid
    source = "open('/dev/stdout', 'w').write(open('/dev/stdin').read()); open('/dev/stderr', 'w')"
    ran = python(sandbox, source, stdin=b"4\n")
    assert (ran.code, ran.stdout, ran.stderr) == (0, b"4\n", b"")
    assert python(sandbox, source).code == 0
    # What a run without input reads belongs to the machine.
    assert Path("/dev/null").stat().st_uid == owner


def test_a_signal_is_told_by_its_number(sandbox):
    ran = python(sandbox, "import os; os.kill(os.getpid(), 15)")
    assert (ran.ended, ran.code) == ("signal", 15)


def test_stderr_is_kept_by_its_end(sandbox):
    ran = python(sandbox, "import sys\nsys.stderr.write('a' * 100_000 + 'end')")
    assert len(ran.stderr) == 2000 and ran.stderr.endswith(b"end")


def test_stdout_up_to_its_limit_and_not_a_byte_beyond(sandbox):
    limits = Limits(stdout_bytes=100_000)
    ran = python(sandbox, "print('x' * 99_999)", limits=limits)
    assert (ran.ended, len(ran.stdout)) == ("exit", 100_000)
    ran = python(sandbox, "print('x' * 100_000)", limits=limits)
    assert (ran.ended, len(ran.stdout)) == ("output", 100_000)


def test_a_program_that_cannot_start_has_failed_itself(sandbox):
    """Else a compiled program with an odd loader could make the sandbox look broken."""
    ran = sandbox.run(Job(argv=("./absent",)))
    assert (ran.ended, ran.code) == ("exit", 127)
    assert b"absent" in ran.stderr


def test_files_go_in_and_come_back(sandbox):
    ran = python(
        sandbox,
        "import os, shutil\nshutil.copy('data/in.bin', 'out.bin')\nos.symlink('out.bin', 'link')",
        files={"data/in.bin": bytes(range(256)) * 1000},
        keep=("out.bin", "link", "absent"),
    )
    assert ran.files == {"out.bin": bytes(range(256)) * 1000}


def test_a_large_kept_file_waits_for_nobody(sandbox):
    limits = Limits(file_bytes=40_000_000)
    ran = python(sandbox, "open('a', 'wb').write(bytes(30_000_000))", keep=("a",), limits=limits)
    assert len(ran.files["a"]) == 30_000_000


def test_a_file_has_its_limit(sandbox):
    source = (
        "try:\n  with open('a', 'wb') as file: file.write(bytes(2_000_001))\n"
        "except OSError as failure: print(failure.strerror)"
    )
    ran = python(sandbox, source, limits=Limits(file_bytes=2_000_000))
    assert ran.stdout == b"File too large\n"


def test_runs_share_nothing(sandbox):
    python(sandbox, "import os\nopen('left', 'w'); open(os.environ['TMPDIR'] + '/left', 'w')")
    ran = python(sandbox, "import os; print(os.listdir('.'), os.listdir(os.environ['TMPDIR']))")
    assert ran.stdout == b"['main.py'] []\n"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a//b", "a\0b", ""])
def test_names_that_leave_the_folder_are_refused(sandbox, name):
    with pytest.raises(ValueError, match="must stay in its folder"):
        sandbox.run(Job(argv=("x",), files={name: b""}))


def test_linked_runs_talk_and_see_each_other_end(sandbox):
    first = job(sandbox, "import os\nwhile line := os.read(4, 100): os.write(3, line[::-1])")
    second = job(
        sandbox,
        "import os\nos.write(3, b'abc')\nprint(os.read(4, 100).decode())\nos.close(3)\n"
        "print(os.read(4, 100))",
    )
    one, two = sandbox.run_linked(first, second)
    assert (one.ended, one.code) == ("exit", 0)
    assert (two.ended, two.stdout) == ("exit", b"cba\nb''\n")


def test_a_linked_run_that_is_killed_reads_as_an_end(sandbox):
    limits = Limits(cpu_s=0.5)
    hangs = job(sandbox, "while True: pass", limits=limits)
    asks = job(sandbox, "import os\nprint(os.read(4, 100))")
    one, two = sandbox.run_linked(hangs, asks)
    assert one.ended == "timeout"
    assert (two.ended, two.stdout) == ("exit", b"b''\n")


def test_linked_runs_cannot_touch_each_other(sandbox):
    asks = job(
        sandbox,
        "import os, time\nprint(os.getpid(), flush=True)\nos.write(3, str(os.getpid()).encode())\n"
        "print(os.read(4, 100))",
    )
    kills = job(
        sandbox,
        "import os\npid = int(os.read(4, 100))\n"
        "try: os.kill(pid, 9) if pid != os.getpid() else os.write(3, b'same')\n"
        "except OSError as failure: os.write(3, type(failure).__name__.encode())",
    )
    one, two = sandbox.run_linked(asks, kills)
    assert one.ended == "exit" and two.ended == "exit"
    assert b"Error" in one.stdout or b"same" in one.stdout


def test_only_linked_runs_have_further_descriptors(sandbox):
    source = "import os\nfor fd in (3, 4):\n  try: print(os.fstat(fd))\n  except OSError: pass"
    ran = python(sandbox, source)
    assert ran.stdout == b""


def test_time_that_a_program_waits_for_a_busy_machine_is_not_its_own(sandbox):
    """Right programs stay right under load: here each CPU has three others to run."""
    busy = [
        multiprocessing.get_context("spawn").Process(target=_burn, daemon=True)
        for _ in range(3 * len(os.sched_getaffinity(0)))
    ]
    for process in busy:
        process.start()
    try:
        time.sleep(1.0)
        ran = python(
            sandbox,
            "while __import__('time').process_time() < 0.7: pass\nprint(4)",
            limits=Limits(cpu_s=1.0),
        )
    finally:
        for process in busy:
            process.kill()
            process.join()
    assert (ran.ended, ran.stdout) == ("exit", b"4\n")


def _burn() -> None:
    os.setsid()  # the kernel may share time out by sessions: each of these is to have a full share
    while True:
        pass


def test_a_sleeper_is_told_within_one_and_a_half_limits(sandbox):
    ran = python(sandbox, "import time; time.sleep(60)", limits=Limits(cpu_s=1.0))
    assert ran.ended == "timeout"
    assert 1.3 < ran.wall_s < 1.5


def kill_launchers(sandbox: Sandbox, times: int) -> threading.Thread:
    """Kills the launcher of now, and the next ones, each 0.3 s into its life."""

    def kill() -> None:
        killed = None
        for _ in range(times):
            while sandbox._process in (None, killed):
                time.sleep(0.01)
            killed = sandbox._process
            time.sleep(0.3)
            killed.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_run_whose_launcher_dies_is_run_again(sandbox):
    thread = kill_launchers(sandbox, 1)
    ran = python(sandbox, "import time; time.sleep(1); print(4)")
    thread.join()
    assert (ran.ended, ran.stdout) == ("exit", b"4\n")


def test_a_run_is_lost_with_its_second_launcher(sandbox):
    thread = kill_launchers(sandbox, 2)
    ran = python(sandbox, "import time; time.sleep(60)")
    thread.join()
    assert ran.ended == "lost" and b"ended" in ran.stderr
    assert python(sandbox, "print(4)").stdout == b"4\n"


def test_what_the_client_ignores_and_its_soft_limits_are_not_passed_on(sandbox):
    source = (
        "import os, resource, signal\n"
        "print(resource.getrlimit(resource.RLIMIT_STACK)[0], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGHUP)"
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (1_000_000, hard))
    try:
        with Sandbox(sandbox.layer) as other:
            ran = python(other, source)
    finally:
        signal.signal(signal.SIGHUP, before)
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    assert (ran.ended, ran.code) == ("signal", signal.SIGHUP)
    assert int(ran.stdout) == Limits().stack_bytes


_CLIENT = """
import sys
from magistral_jax.verifier.sandbox.client import Sandbox
from magistral_jax.verifier.sandbox.job import Job
with Sandbox(sys.argv[1]) as sandbox:
    print(sandbox._process.pid, flush=True)
    source = b"import os\\nos.fork() or os.setsid(); os.fork()\\nwhile True: pass"
    sandbox.run(Job(argv=(sandbox.python, "-c", source.decode())))
"""


def test_nothing_outlives_a_client_that_is_killed(sandbox):
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, sandbox.layer], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    launcher = int(client.stdout.readline())
    time.sleep(0.5)
    family = _descendants(launcher)
    assert len(family) >= 4  # the supervisor, and what the program forked
    client.send_signal(signal.SIGKILL)
    client.wait()
    client.stdout.close()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in family if Path(f"/proc/{pid}").exists()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert left == []


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _descendants(int(child))
    return found


def test_a_folder_to_read_is_shown_and_cannot_be_written(sandbox):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with Sandbox(sandbox.layer, read_only=[folder]) as other:
            (folder / "later.txt").write_text("4")
            (folder / "later.txt").chmod(0o666)
            inside = other.mount_point(folder)
            ran = python(
                other,
                f"print(open({inside!r} + '/later.txt').read())\n"
                f"for name in ('x', 'later.txt'):\n"
                f"  try: open({inside!r} + '/' + name, 'w')\n  except OSError: print('held')",
            )
    assert ran.stdout == b"4\nheld\nheld\n", ran


def test_the_compiler_works_with_a_precompiled_header(sandbox):
    if sandbox.cxx is None:
        pytest.skip("no C++ compiler")
    limits = Limits(cpu_s=10.0, memory_bytes=1_500_000_000, file_bytes=200_000_000)
    made = sandbox.run(
        Job(
            argv=(sandbox.cxx, "-x", "c++-header", "all.h", "-o", "all.h.gch"),
            files={"all.h": b"#include <vector>\n"},
            keep=("all.h.gch",),
            limits=limits,
        )
    )
    assert (made.ended, made.code) == ("exit", 0), made.stderr
    assert len(made.files["all.h.gch"]) > 100_000


def test_what_is_found_can_be_read(sandbox):
    text = str(sandbox.found())
    assert text.startswith(f"sandbox: layer {sandbox.layer}; python 3.")


def test_auto_finds_the_best_layer():
    assert probe("auto").layer in ("namespaces", "uid", "landlock")


@pytest.mark.skipif(not IS_ROOT, reason="forces what only an ordinary user may have")
def test_root_is_refused_the_layer_it_could_undo():
    with pytest.raises(UserError, match=r"verifier\.sandbox is 'landlock', which needs an"):
        Sandbox("landlock")


def test_a_refused_layer_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(layers, "shared_pythons", lambda: ["/nowhere/python3"])
    with pytest.raises(UserError, match=r"no Python 3\.10 works inside, tried /nowhere/python3"):
        Sandbox(LAYERS[1])


def test_a_machine_without_a_folder_for_files_is_refused(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(UserError, match="cannot be had: No usable temporary directory"):
        Sandbox(LAYERS[1])


@pytest.mark.skipif(not IS_ROOT, reason="only root has uids to give")
def test_each_sandbox_has_uids_of_its_own():
    slots = [layers.Slot() for _ in range(3)]
    try:
        uids = [slot.uid for slot in slots]
        assert len(set(uids)) == 3 and all(uid % 2 == 0 for uid in uids)
    finally:
        for slot in slots:
            slot.free()
    with contextlib.closing(layers.Slot()._claim):
        pass
