"""Programs that try to get out of the sandbox; see corpus.py for what they have to print."""

# ruff: noqa: E501 - a small program is read most easily on its line

from corpus import Case, bad, held, right

READING = [
    held("secret", "print(open('@SECRET@').read())"),
    held("shadow", "open('/etc/shadow').read()"),
    held("home-of-root", "os.listdir('/root')"),
    held("homes", "print([os.listdir('/home/' + n)[0] for n in os.listdir('/home')][0])"),
    held("parent-environment", "print(open(f'/proc/{os.getppid()}/environ').read())"),
    held("first-environment", "print(open('/proc/1/environ').read()[0])"),
    held("parent-memory", "open(f'/proc/{os.getppid()}/mem', 'rb+')"),
    held("parent-files", "os.listdir(f'/proc/{os.getppid()}/fd')"),
    held("own-process-files", "os.listdir('/proc/self/fd')"),
    held(
        "command-lines",
        "print([open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc') if p.isdigit()][0])",
    ),
    held("by-chdir", "os.chdir(os.path.dirname('@SECRET@')); print(os.listdir('.'))"),
    held("by-link", "os.link('@SECRET@', 'mine'); print(open('mine').read())"),
    held("by-symlink", "os.symlink('@SECRET@', 'mine'); print(open('mine').read())"),
    held("by-handle", "call(303, -100, b'/', bytes(128), bytes(8), 0)"),
    held("by-dots", "print(open('../' * 30 + '@SECRET@'.lstrip('/')).read())"),
    held("by-shell", "print(open('x').read() if os.system('cp @SECRET@ x') == 0 else [][0])"),
    held(
        "inherited-files",
        """
for n in range(3, 300):
    try:
        os.fstat(n)
        print("open:", n)
    except OSError:
        pass
raise OSError""",
    ),
    held("kernel-log", "print(call(103, 3, bytes(4096), 4096))"),
    held("memory-device", "open('/dev/mem', 'rb')"),
    held("disks", "open('/dev/vda', 'rb').read(1)"),
    held("terminal", "open('/dev/tty', 'w')"),
    held("watching", "print(call(254, call(294, 0), b'@SECRET@', 1))"),
    right(
        "secrets-in-environment",
        "import os; print([k for k in os.environ if k in ('USER', 'SHELL', 'PWD', 'LOGNAME')])",
        "[]\n",
    ),
]

WRITING = [
    held("usr", "open('/usr/x', 'w')"),
    held("etc", "open('/etc/x', 'w')"),
    held("root", "open('/x', 'w')"),
    held("secret-content", "open('@SECRET@', 'w')"),
    held("secret-append", "open('@SECRET@', 'a')"),
    held("secret-truncate", "os.truncate('@SECRET@', 0)"),
    held("secret-unlink", "os.unlink('@SECRET@')"),
    held("secret-rename", "os.rename('@SECRET@', 'mine')"),
    held("beside-secret", "open('@SECRET@.new', 'w')"),
    held("tmp-of-the-machine", "open('/var/tmp/sandbox-leak', 'w')"),
    held("device-node", "os.mknod('d', 0o60666, os.makedev(8, 0)); open('d', 'rb').read(1)"),
    # These may seem to work, or fail: the file is looked at afterwards.
    right(
        "secret-modes",
        "import os\ntry: os.chmod('@SECRET@', 0)\nexcept OSError: pass\nprint(4)",
        "4\n",
    ),
    right(
        "secret-times",
        "import os\ntry: os.utime('@SECRET@', (0, 0))\nexcept OSError: pass\nprint(4)",
        "4\n",
    ),
    right(
        "secret-attributes",
        "import os\ntry: os.setxattr('@SECRET@', 'user.a', b'x')\nexcept OSError: pass\nprint(4)",
        "4\n",
    ),
]

PROCESSES = [
    # Owning is allowed here and there; the victim is looked at afterwards.
    right(
        "signals-victim-through-a-pipe",
        "import fcntl, os\nr, w = os.pipe()\ntry:\n  fcntl.fcntl(r, fcntl.F_SETOWN, @VICTIM@)\n  fcntl.fcntl(r, fcntl.F_SETSIG, 9)\n  fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\n  os.write(w, b'x')\nexcept OSError: pass\nprint(4)",
        "4\n",
    ),
    held("kills-victim", "os.kill(@VICTIM@, 9)"),
    held("kills-parent-group", "os.killpg(os.getpgid(os.getppid()) or [][0], 9)"),
    held("signals-victim-by-thread", "call(234, @VICTIM@, @VICTIM@, 9)"),
    held("queues-for-victim", "call(129, @VICTIM@, 9, bytes(128))"),
    held("traces-parent", "call(101, 16, os.getppid(), 0, 0)"),
    held("traces-itself", "call(101, 0, 0, 0, 0)"),
    held("reads-memory", "call(310, @VICTIM@, bytes(16), 1, bytes(16), 1, 0)"),
    held("limits-victim", "call(302, @VICTIM@, 0, bytes(16), 0)"),
    held("pins-victim", "os.sched_setaffinity(@VICTIM@, {0})"),
    held("slows-users", "os.setpriority(os.PRIO_USER, 0, 19)"),
    held("nicer", "os.nice(-20)"),
    held("real-time", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))"),
    held("takes-descriptors", "call(438, os.pidfd_open(@VICTIM@), 0, 0)"),
    held(
        "raises-limits", "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999))"
    ),
    bad(
        "kills-all",
        "import os\nos.kill(-1, 9)\nos.kill(os.getpid(), 9)",
        "signal",
        "wrong",
        "timeout",
    ),
    bad("kills-its-group", "import os; os.kill(0, 9)", "signal"),
    bad(
        "kills-parent",
        "import os\nos.kill(os.getppid(), 9)\nimport time; time.sleep(9)",
        "wrong",
        "timeout",
    ),
    bad(
        "stops-parent",
        "import os\nos.kill(os.getppid(), 19)\nimport time; time.sleep(9)",
        "wrong",
        "timeout",
    ),
]

PRIVILEGES = [
    held("setuid", "os.setuid(0)"),
    held("setgroups", "os.setgroups([0])"),
    held("chroot", "os.chroot('.')"),
    held("mount", "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)"),
    held("unshare-user", "call(272, 0x10000000)"),
    held("unshare-net", "call(272, 0x40000000)"),
    held("clone-user", "call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
    held("clone3", "call(435, bytes(88), 88)"),
    held("setns", "call(308, 0, 0)"),
    held("pivot-root", "call(155, b'.', b'.')"),
    held("new-mount-interface", "call(430, b'tmpfs', 0)"),
    held("personality", "call(135, 0x0040000)"),
    held("bpf", "call(321, 0, bytes(128), 128)"),
    held("io-uring", "call(425, 8, bytes(120))"),
    held("keys", "call(248, b'user', b'a', b'b', 1, -3)"),
    held("userfaultfd", "call(323, 1)"),
    held("perf", "call(298, bytes(128), 0, -1, -1, 0)"),
    held("modules", "call(175, bytes(16), 16, b'')"),
    held("reboot", "call(169, 0xfee1dead, 672274793, 0, 0)"),
    held("clock", "time.clock_settime(time.CLOCK_REALTIME, 0)"),
    held("host-name", "socket.sethostname('x')"),
    held("unknown-call", "call(600)"),
    held("terminal-input", "import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
    held("su", "print(os.listdir('/root') if os.system('su -c true </dev/null') == 0 else [][0])"),
]

NETWORK = [
    held("tcp", "socket.create_connection(('127.0.0.1', @PORT@), 2).send(b'x')"),
    held("tcp6", "socket.socket(socket.AF_INET6).connect(('::1', @PORT@))"),
    held(
        "udp",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@))",
    ),
    held("raw", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    held("packet", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
    held("netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    held("unix", "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')"),
    held("abstract", "socket.socket(socket.AF_UNIX).connect('\\0sandbox-@PORT@')"),
    held("listens", "s = socket.create_server(('0.0.0.0', 0))"),
    held("vsock", "socket.socket(40, socket.SOCK_STREAM).connect((2, 1))"),
    held(
        "names",
        "socket.getaddrinfo('localhost', 80, socket.AF_INET); socket.create_connection(('localhost', @PORT@))",
    ),
    held(
        "bash",
        "print([][0] if os.system('bash -c \"echo x > /dev/tcp/127.0.0.1/@PORT@\"') else 'sent')",
    ),
    right(
        "socketpair",
        "import socket\na, b = socket.socketpair()\na.send(b'4')\nprint(b.recv(1).decode())",
        "4\n",
    ),
]

FORGING = [
    bad(
        "writes-everywhere",
        'import os\nfor n in range(3, 300):\n  try: os.write(n, b\'{"status": 0, "sizes": []}\')\n'
        "  except OSError: pass\nraise SystemExit(1)",
        "wrong",
    ),
    bad("early-exit", "import os; os._exit(0)", "wrong"),
    bad(
        "patches-exit",
        "import builtins, sys\nbuiltins.print = lambda *a: None\nsys.exit = lambda *a: None\nprint(4)",
        "wrong",
    ),
    bad(
        "frames",
        "import sys, os\nprint(sys._getframe(0).f_back, [k for k in sys.modules if 'magistral' in k])",
        "wrong",
    ),
    bad(
        "garbage",
        "import gc; print([o for o in gc.get_objects() if isinstance(o, dict) and 'expected' in o])",
        "wrong",
    ),
    bad(
        "message-on-stdout",
        "import sys\nsys.stdout.buffer.write(bytes(12) + b'{\"runs\": []}')",
        "wrong",
    ),
]

ALL_ATTACKS: list[Case] = [*READING, *WRITING, *PROCESSES, *PRIVILEGES, *NETWORK, *FORGING]
