"""Small programs, and how each has to end in any layer of the sandbox.

A program that attacks prints "held" when it was refused; anything else it prints is an escape. The
placeholders @SECRET@, @PORT@ and @VICTIM@ become a file that everybody may read, a port on which
somebody listens, and a sleeping process of the user who runs the sandbox.
"""

# ruff: noqa: E501 - a small program is read most easily on its line

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Case:
    """`prints`: it must exit with 0 and print exactly this. Otherwise it must not pass, and end so:

    "wrong" (it exited, with another code or output), "compile", or an end of the sandbox's.
    """

    name: str
    source: str
    language: str = "python"
    stdin: bytes = b""
    prints: str | None = None
    ends: tuple[str, ...] = ()
    limits: dict = field(default_factory=dict)
    keep: tuple[str, ...] = ()


def right(name: str, source: str, prints: str, **rest) -> Case:
    return Case(name=name, source=source, prints=prints, **rest)


def bad(name: str, source: str, *ends: str, **rest) -> Case:
    return Case(name=name, source=source, ends=ends, **rest)


def held(name: str, attack: str, **rest) -> Case:
    """An attack in Python: it must raise OSError; what it returns without is printed."""
    lines = "\n".join("    " + line for line in attack.strip().splitlines())
    source = f"""
import ctypes, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
try:
{lines}
    print("ESCAPED")
except (OSError, LookupError, ValueError) as failure:
    print("held")
    print(repr(failure), file=sys.stderr)
"""
    return Case(name=name, source=source, prints="held\n", **rest)


RIGHT = [
    right("sum", "print(sum(map(int, input().split())))", "6\n", stdin=b"1 2 3\n"),
    right("sorted", "print(*sorted(map(int, open(0))))", "1 2 3\n", stdin=b"3\n1\n2\n"),
    right("unicode", "print(input()[::-1])", "éà\n", stdin="àé\n".encode()),
    right("no-newline", "import sys; sys.stdout.write('4')", "4"),
    right(
        "large-input",
        "import sys; print(len(sys.stdin.read()))",
        "3000000\n",
        stdin=b"x" * 3_000_000,
    ),
    right("input-unread", "print('done')", "done\n", stdin=b"x" * 3_000_000),
    right("large-output", "print('y' * 900_000)", "y" * 900_000 + "\n"),
    right(
        "recursion",
        "import sys\nsys.setrecursionlimit(20000)\nf = lambda n: n and 1 + f(n - 1)\nprint(f(9000))",
        "9000\n",
    ),
    right("memory-in-limit", "a = bytearray(200_000_000)\nprint(len(a))", "200000000\n"),
    right(
        "shares-memory-with-children",
        "import os, time\na = bytearray(180_000_000)\nfor _ in range(4):\n  if not os.fork():\n    time.sleep(0.3)\n    os._exit(a[5])\nfor _ in range(4): os.wait()\nprint(4)",
        "4\n",
    ),
    right(
        "writes-a-file",
        "open('a.txt', 'w').write('7')\nprint(open('a.txt').read())",
        "7\n",
    ),
    right(
        "temporary-file",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f:\n  f.write(b'x')\nprint('ok')",
        "ok\n",
    ),
    right(
        "child-process",
        "import subprocess, sys\n"
        "print(subprocess.check_output([sys.executable, '-c', 'print(3)']).decode().strip())",
        "3\n",
    ),
    right(
        "threads",
        "import threading\na = []\n"
        "t = [threading.Thread(target=a.append, args=(i,)) for i in range(20)]\n"
        "[x.start() for x in t]; [x.join() for x in t]\nprint(sum(a))",
        "190\n",
    ),
    right(
        "asyncio",
        "import asyncio\nasync def f():\n  await asyncio.sleep(0.01)\n  return 5\nprint(asyncio.run(f()))",
        "5\n",
    ),
    right("random-bytes", "import os; print(len(os.urandom(8)))", "8\n"),
    right("null-device", "open('/dev/null', 'w').write('x'); print(1)", "1\n"),
    right("chatter", "import sys\nsys.stderr.write('x' * 300_000)\nprint(2)", "2\n"),
    right("exit-zero", "import sys; print(1); sys.exit(0)", "1\n"),
    right("short-work", "s = 0\nfor i in range(4_000_000): s += i\nprint(s)", "7999998000000\n"),
    right(
        "environment", "import os; print(sorted(k for k in os.environ if 'MAGISTRAL' in k))", "[]\n"
    ),
    right("own-folder", "import os; print(sorted(os.listdir('.')))", "['main.py']\n"),
    right("shell", "import os; print(os.system('echo hi > f; test -s f'))", "0\n"),
    right(
        "kills-its-child",
        "import subprocess\np = subprocess.Popen(['sleep', '60'])\np.kill()\np.wait()\nprint('ok')",
        "ok\n",
    ),
]

WRONG = [
    bad("other-output", "print(5)", "wrong"),
    bad("no-output", "", "wrong"),
    bad("raises", "print(4); raise ValueError", "wrong"),
    bad("exit-three", "print(4); raise SystemExit(3)", "wrong"),
    bad("syntax", "print(", "wrong"),
    bad("kills-itself", "import os; print(4, flush=True); os.kill(os.getpid(), 9)", "signal"),
    bad("aborts", "import os; os.abort()", "signal"),
    bad("segfault", "import ctypes; ctypes.string_at(0)", "signal"),
    bad("reads-expected", "print(open('expected.txt').read())", "wrong"),
    bad(
        "searches-expected",
        "import os\nfor d, _, fs in os.walk('/'):\n  for f in fs:\n"
        "    if 'expected' in f or f.endswith('.out'): print(d, f)\nraise SystemExit(1)",
        "wrong",
        "timeout",
    ),
    bad("endless-recursion", "f = lambda: f()\nf()", "wrong"),
]

SLOW = [
    bad("busy", "while True: pass", "timeout"),
    bad("sleeps", "import time; time.sleep(60)", "timeout"),
    bad("sleeps-after-answer", "import time; print(4, flush=True); time.sleep(60)", "timeout"),
    bad("big-power", "print(len(str(7 ** (10 ** 8))))", "timeout", "memory"),
    bad("regex", "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')", "timeout"),
    bad(
        "deaf",
        "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
        "timeout",
    ),
    bad("busy-children", "import os\nos.fork(); os.fork()\nwhile True: pass", "timeout"),
    bad("child-sleeps", "import os, time\nif not os.fork(): time.sleep(60)\nos.wait()", "timeout"),
    bad(
        "busy-threads",
        "import threading\ndef f():\n  while True: pass\n"
        "for _ in range(8): threading.Thread(target=f).start()",
        "timeout",
    ),
    bad(
        "closed-output",
        "import os, time\nfor i in range(3): os.close(i)\ntime.sleep(60)",
        "timeout",
    ),
    bad("stopped", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    bad(
        "short-lived-children",
        "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "while True:\n  if not os.fork():\n    sum(range(10 ** 6)); os._exit(0)\n"
        "  try: os.wait()\n  except OSError: pass",
        "timeout",
    ),
    bad("waits-for-input", "import os\nr, w = os.pipe()\nos.read(r, 1)", "timeout"),
]

GREEDY = [
    bad("heap", "a = []\nwhile True: a.append(bytearray(10 ** 6))", "memory", "wrong"),
    bad("one-block", "a = bytearray(600_000_000); print(4)", "memory"),
    bad("huge-block", "a = bytearray(20 * 10 ** 9)", "memory", "wrong"),
    bad(
        "shared-map",
        "import mmap\na = mmap.mmap(-1, 10 ** 9, flags=mmap.MAP_PRIVATE)\nfor i in range(0, 10 ** 9, 4096): a[i] = 1",
        "memory",
    ),
    bad(
        "children",
        "import os, time\nfor _ in range(5):\n  if not os.fork():\n    a = bytearray(100_000_000)\n"
        "    time.sleep(9)\ntime.sleep(9)",
        "memory",
    ),
    bad(
        "memory-of-a-grandchild",
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    a = bytearray(500_000_000); time.sleep(9)\n  os._exit(0)\ntime.sleep(9)",
        "memory",
    ),
    held(
        "shared-memory-file",
        "f = open('/dev/shm/a', 'wb')\nfor _ in range(400): f.write(bytes(10 ** 6))",
    ),
    bad(
        "temporary-files",
        "import os, time\nfor i in range(400):\n"
        "  with open(f\"{os.environ['TMPDIR']}/{i}\", 'wb') as f: f.write(bytes(10 ** 6))\ntime.sleep(9)",
        "wrong",
        "output",
    ),
    held("one-large-file", "f = open('a', 'wb')\nfor _ in range(400): f.write(bytes(10 ** 6))"),
    bad("sparse-file", "open('a', 'wb').truncate(10 ** 12)", "wrong", "output"),
    bad(
        "many-files",
        "for i in range(100_000): open(str(i), 'w').close()\nimport time; time.sleep(9)",
        "wrong",
        "output",
        "timeout",
    ),
    held("memfd", "fd = os.memfd_create('x')\nos.write(fd, bytes(10 ** 6))"),
    held("system-v", "call(29, 0, 10 ** 9, 0o1600)"),
    held("message-queue", "call(240, b'/q', 0o102, 0o600, 0)"),
    held("locked", "call(149, id(call) & ~4095, 8192)"),
    bad(
        "thousand-threads",
        "import threading, time\nfor _ in range(1000): threading.Thread(target=time.sleep, args=(9,)).start()",
        "wrong",
        "memory",
        "timeout",
    ),
    bad(
        "page-tables",
        "import mmap\nm = [mmap.mmap(-1, 1 << 34, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) for _ in range(64)]\n"
        "x = sum(a[i] for a in m for i in range(0, 1 << 34, 1 << 21))",
        "wrong",
        "memory",
        "timeout",
    ),
    bad("pipes", "import os, time\np = [os.pipe() for _ in range(10_000)]\ntime.sleep(9)", "wrong"),
]

FORKING = [
    bad("bomb", "import os\nwhile True: os.fork()", "wrong", "memory", "timeout", "signal"),
    bad(
        "patient-bomb",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "memory",
        "timeout",
    ),
    bad(
        "sleepers",
        "import os, time\nfor _ in range(300):\n  if not os.fork(): time.sleep(60)\nprint(4)",
        "wrong",
        "memory",
    ),
    bad(
        "runner",
        "import os, sys\nos.fork() and os._exit(0)\nos.setsid()\n"
        "while True:\n  if os.fork(): os._exit(0)",
        "wrong",
    ),
    bad(
        "execs-itself",
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-S', 'main.py'])",
        "timeout",
    ),
]

FLOODING = [
    bad("stdout", "while True: print('x' * 10_000)", "output"),
    bad("stdout-a-bit", "print('x' * 1_000_000)", "output"),
    bad(
        "stdout-of-a-child", "import os\nos.fork()\nwhile True: os.write(1, b'x' * 65536)", "output"
    ),
    bad("stderr", "import os\nwhile True: os.write(2, b'x' * 65536)", "timeout"),
    bad("both", "import os\nwhile True: os.write(2, b'x'); os.write(1, b'x' * 4096)", "output"),
    bad("lines", "while True: print()", "output", "timeout"),
]

DAEMONS = [
    right(
        "leaves-a-child",
        "import os, time\nprint(4, flush=True)\nif not os.fork(): time.sleep(60)",
        "4\n",
    ),
    right(
        "leaves-a-daemon",
        "import os, time\nprint(4, flush=True)\nif not os.fork():\n  os.setsid()\n"
        "  if not os.fork():\n    time.sleep(60)\n  os._exit(0)\nos.wait()",
        "4\n",
    ),
    right(
        "leaves-a-deaf-daemon",
        "import os, signal, time\nprint(4, flush=True)\nif not os.fork():\n  os.setsid()\n"
        "  for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n  for i in range(3): os.close(i)\n"
        "  while True: time.sleep(1)\nos._exit(0)",
        "4\n",
    ),
    bad(
        "child-writes-late",
        "import os, time\nif not os.fork():\n  time.sleep(0.3); print(4, flush=True)\nos._exit(0)",
        "wrong",
    ),
    right(
        "child-of-a-dead-parent",
        "import os, time\nr, w = os.pipe()\nif not os.fork():\n  if not os.fork():\n    os.write(w, b'x')\n"
        "    while True: os.fork(); time.sleep(0.01)\n  os._exit(0)\nos.read(r, 1); print(4)",
        "4\n",
    ),
]

FOLDERS = [
    right(
        "deletes-its-folder",
        "import shutil, os\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nprint(4)",
        "4\n",
    ),
    right(
        "locks-its-folder",
        "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\n"
        "for p in ('a/b/c', 'a/b', 'a', '.'):\n  os.chmod(p, 0)\nprint(4)",
        "4\n",
    ),
    right(
        "deep-folders",
        "import os\nfor _ in range(1500):\n  os.mkdir('d'); os.chdir('d')\nprint(4)",
        "4\n",
    ),
    right(
        "odd-names",
        "import os\nfor n in (b'\\xff', b'-rf', b'a\\nb', b' ', b'x' * 255): open(n, 'w').close()\nprint(4)",
        "4\n",
    ),
    right(
        "links-out",
        "import os\nos.symlink('/etc', 'etc'); os.symlink('@SECRET@', 's'); os.symlink('.', 'loop')\n"
        "os.mkfifo('f')\nprint(4)",
        "4\n",
    ),
    right(
        "keeps-a-link", "import os\nos.symlink('@SECRET@', 'kept')\nprint(4)", "4\n", keep=("kept",)
    ),
    right("keeps-a-pipe", "import os\nos.mkfifo('kept')\nprint(4)", "4\n", keep=("kept",)),
    right("keeps-a-folder", "import os\nos.mkdir('kept')\nprint(4)", "4\n", keep=("kept",)),
    right("five-hundred-files", "for i in range(500): open(str(i), 'w').close()\nprint(4)", "4\n"),
]

PLAIN = [*RIGHT, *WRONG, *SLOW, *GREEDY, *FORKING, *FLOODING, *DAEMONS, *FOLDERS]
