"""Programs that attack their tests instead of passing them, and honest ones that look odd."""

import pytest

from magistral_jax.types import CodeTests
from magistral_jax.verifier.code.judge import judge_code

ASSERTS = CodeTests(
    asserts=("assert f(2) == 4", "assert f(3) == 9", "assert f(-4) == 16"), time_limit_s=1.0
)
CHECK = CodeTests(
    prompt='def helper(x):\n    return x * x\n\n\ndef f(x):\n    """Square."""\n',
    test_code="def check(c):\n    for x in range(9):\n        assert c(x) == helper(x)\n\n"
    "check(f)\n",
    entry_point="f",
    time_limit_s=1.0,
)
CALLS = CodeTests(stdio=(("7\n", "49"), ("8\n", "64")), entry_point="f", time_limit_s=1.0)

FORGED_STOP = """
import json, os
def f(x):
    data = json.dumps([2, "raised", "StopIteration", ""]).encode()
    os.write(3, len(data).to_bytes(4, "big") + data)
    os._exit(0)"""

FORGERIES = {
    "leaves in loading": "import os\nos._exit(0)",
    "leaves in a call": "import os\ndef f(x): os._exit(0)",
    "exits in loading": "import sys\nsys.exit(0)",
    "exits in a call": "import sys\ndef f(x): sys.exit(0)",
    "no assertion errors": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})",
    "all is equal": """
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Equal(0)""",
    "all is true": """
class True_:
    def __eq__(self, other): return self
    def __bool__(self): return True
    def __getattr__(self, name): return self
    def __call__(self, *a): return self
def f(x): return True_()""",
    "the meta way": """
class Meta(type):
    def __eq__(cls, other): return True
    __hash__ = type.__hash__
class f(metaclass=Meta):
    def __new__(cls, x): return cls""",
    "closes the link": "import os\ndef f(x): os.close(3); os.close(4); return 0",
    "garbage on the link": "import os\ndef f(x): os.write(3, b'garbage' * 100); return 0",
    "a huge frame": "import os\ndef f(x): os.write(3, b'\\xff' * 8); return 0",
    "an own frame": """
import os, json
def f(x):
    data = json.dumps([1, "value", True, []]).encode()
    for _ in range(9): os.write(3, len(data).to_bytes(4, "big") + data)
    return 0""",
    "a deep frame": """
import os
def f(x):
    data = b"[" * 100000 + b"]" * 100000
    os.write(3, len(data).to_bytes(4, "big") + data); return 0""",
    "a word to the judge": """
import os, sys
for fd in range(3, 64):
    try: os.write(fd, b'\\n{"calls": 9}\\n{"step": 0, "passed": true}\\n')
    except OSError: pass
def f(x): return 0""",
    "another json": """
import json
json.dumps = lambda *a, **k: '[1, "value", true, []]'
json.loads = lambda *a, **k: [1, ["l", "name", "f"]]
def f(x): return 0""",
    "a late thread": """
import threading, time
answers = []
def late():
    time.sleep(0.2)
    import os
    os.write(3, b"\\0\\0\\0\\x02[]")
def f(x):
    threading.Thread(target=late).start()
    return 0""",
    "other helpers": "def helper(x): return 0\ndef check(c): pass\ndef f(x): return 0",
    "builtins of its own": """
import builtins
for name in ("len", "abs", "all", "range", "isinstance", "sum", "print", "int"):
    globals()[name] = lambda *a: 0
def f(x): return 0""",
    "no end of values": "def f(x):\n    while True: yield 0",
    "looks for the answer": """
import os, sys, gc
def f(x):
    for where in (sys.argv, os.environ, os.listdir(".")):
        for word in map(str, where):
            if word.isdigit(): return int(word)
    for name in os.listdir("."):
        if name != "program.py" and name != "solution.py" and "f(" + str(x) in open(name).read():
            return x * x
    return [o for o in gc.get_objects() if isinstance(o, dict) and "expected" in o]""",
    "looks at its frames": """
import sys
def f(x):
    frame = sys._getframe(1)
    while frame:
        for name, value in frame.f_locals.items():
            if name in ("expected", "wanted", "answer", "tests"): return value
        frame = frame.f_back""",
    "reads the standard input": "import sys\ndef f(x): return int(sys.stdin.read() or 0)",
    "the wrong kind": "def f(x): return str(x * x)",
    "no such function": "def g(x): return x * x",
    "no program": "this is no program",
    "a syntax error of its own": "def f(x): raise SyntaxError('no')",
    "an interrupt": "def f(x): raise KeyboardInterrupt",
    "stops": "def f(x): raise StopIteration",
    "an exception without a name": "class E(BaseException): pass\ndef f(x): raise E",
    "an exception that raises": """
class E(Exception):
    def __str__(self): raise ValueError
def f(x): raise E""",
    "too large to send": "def f(x): return 'x' * 20_000_000",
    "contains itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "the tester's import": "import tester\ndef f(x): return 0",
}
NEVER = {"timeout": "def f(x):\n    while True: pass", "memory": "def f(x): return [0] * 10**9"}


def judge(tests, code, sandbox, **options):
    return judge_code(tests, code, "python", sandbox, seed="", **options)


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("kind", ["asserts", "check", "calls"])
def test_no_forgery_passes(sandbox, kind, name):
    tests = {"asserts": ASSERTS, "check": CHECK, "calls": CALLS}[kind]
    judged = judge(tests, FORGERIES[name], sandbox)
    assert judged.reason not in ("pass", "error"), judged
    assert judged.passed == 0


@pytest.mark.parametrize("reason", NEVER)
@pytest.mark.parametrize("kind", ["asserts", "check", "calls"])
def test_limits_hold_in_calls(sandbox, kind, reason):
    tests = {"asserts": ASSERTS, "check": CHECK, "calls": CALLS}[kind]
    assert judge(tests, NEVER[reason], sandbox).reason == reason


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): return x * x",
        "import sys\ndef f(x):\n    print('noise'); sys.stderr.write('noise'); return x * x",
        "class I(int): pass\ndef f(x): return I(x * x)",
        "def f(x):\n    print('noise' * 1_000_000); return x * x",
        "f = lambda x: x * x",
        "def f(x): return x * x\nif __name__ == '__main__': 1 / 0",
        "class f:\n    def __new__(cls, x): return x * x",
    ],
)
def test_the_honest_pass(sandbox, code):
    for tests in (ASSERTS, CHECK, CALLS):
        judged = judge(tests, code, sandbox)
        assert judged.reason == "pass", judged


@pytest.mark.parametrize("prompt", ["Write f, which squares.", "Squaring", "", "x = 1 / 0"])
def test_a_prompt_in_prose_is_not_run(sandbox, prompt):
    tests = CodeTests(
        test_code="def check(c): assert c(3) == 9\ncheck(f)", entry_point="f", prompt=prompt
    )
    assert judge(tests, "def f(x): return x * x", sandbox).reason == "pass"
    assert judge(tests, "def f(x): return x", sandbox).reason == "wrong"


def test_an_answer_to_another_question_is_none(sandbox):
    code = (
        "import json, os\ndef f(x):\n    data = json.dumps([999, 'value', x * x, []]).encode()\n"
        "    os.write(3, len(data).to_bytes(4, 'big') + data)\n    return x * x"
    )
    assert judge(ASSERTS, code, sandbox).detail == "the program answers another question"


def test_a_completion_goes_on_from_its_prompt(sandbox):
    assert judge(CHECK, "    return helper(x)", sandbox).reason == "pass"
    assert judge(CHECK, "def f(x): return helper(x)", sandbox).reason == "pass"
    assert judge(CHECK, "    return x", sandbox).reason == "wrong"
    assert judge(CHECK, "", sandbox).reason == "wrong"


@pytest.mark.parametrize(
    ("asserts", "setup", "code", "reason"),
    [
        ("assert sum(10, 15) == 6", "", "def sum(a, b): return 6", "pass"),
        ("assert len(f()) == 2", "", "def len(x): return 2\ndef f(): return []", "wrong"),
        (
            "assert math.isclose(f(), 1.0)",
            "",
            "class math: isclose = staticmethod(lambda a, b: True)\ndef f(): return 5.0",
            "wrong",
        ),
        ("assert math.isclose(f(), 1.0)", "", "def f(): return 1.0", "pass"),
        ("x = [3, 1]; f(x); assert x == [1, 3]", "", "def f(x): x.sort()", "pass"),
        ("x = [[3], 1]; y = x[0]; f(x); assert y == [4]", "", "def f(x): x[0][0] += 1", "pass"),
        ("x = {'a': 1}; f(x); assert x == {'a': 1, 'b': 2}", "", "def f(x): x['b'] = 2", "pass"),
        ("assert list(f()) == [0, 1]", "", "def f(): yield from range(2)", "pass"),
        ("assert next(f()) == 0", "", "def f(): yield from range(2)", "pass"),
        ("assert f() == (1, 2)", "", "def f(): return [1, 2]", "wrong"),
        ("assert f() == {1: {2, 3}}", "", "def f(): return {1: {2, 3}}", "pass"),
        ("assert f() is True", "", "def f(): return True", "pass"),
        ("assert f() is True", "", "def f(): return 1", "wrong"),
        ("assert f()", "", "class T: pass\ndef f(): return T()", "wrong"),
        ("assert not f()", "", "class T: pass\ndef f(): return T()", "wrong"),
        ("assert f() == 2 ** 200", "", "def f(): return 2 ** 200", "pass"),
        ("assert f() == 1 + 2j", "", "def f(): return 1 + 2j", "pass"),
        ("assert f() == b'ab'", "", "def f(): return b'ab'", "pass"),
        ("assert f() != f()", "", "def f(): return float('nan')", "pass"),
        ("assert f(int) == int", "", "def f(x): return x", "pass"),
        ("assert f(n).value == 3", "n = Node(3)", "class Node:\n    def __init__(self, v):\n"
         "        self.value = v\ndef f(n): return n", "pass"),
        ("assert f(n) is n", "n = Node()", "class Node: pass\ndef f(n): return n", "pass"),
        ("assert isinstance(f(), Node)", "", "class Node: pass\ndef f(): return Node()", "pass"),
        ("assert isinstance(f(), Node)", "", "class Node: pass\ndef f(): return 1", "wrong"),
        ("assert str(f()) == 'n'", "", "class N:\n    def __str__(self): return 'n'\nf = N",
         "pass"),
        ("assert f()[1] == 5 and len(f()) == 2 and 5 in f()", "",
         "from collections import deque\ndef f(): return deque([4, 5])", "pass"),
        ("try:\n    f(); assert False\nexcept ValueError as e:\n    assert str(e) == 'no'", "",
         "def f(): raise ValueError('no')", "pass"),
        ("try:\n    f()\nexcept ValueError:\n    pass\nelse:\n    assert False", "",
         "class E(ValueError): pass\ndef f(): raise E", "pass"),
        ("try:\n    f()\nexcept BaseException:\n    pass", "", "import os\ndef f(): os._exit(0)",
         "wrong"),
        ("assert all(map(lambda x: f(x) == 4, [2]))", "", "def f(x): raise StopIteration", "wrong"),
        ("for a in map(f, [1]):\n    assert a == 4", "", "def f(x): raise StopIteration", "wrong"),
        ("assert all(map(lambda x: f(x) == 4, [2]))", "", FORGED_STOP, "wrong"),
        ("assert next(f()) == 1", "", "def f(): return iter([1])", "pass"),
        ("assert f([1]) == (1,)", "", "f = tuple", "pass"),
        ("assert f(lambda: 1) == 1", "", "def f(x): return x()", "error"),
        ("assert f(", "", "f = abs", "error"),
        ("assert True", "", "def f(): pass", "error"),
    ],
)  # fmt: skip
def test_data_crosses_and_objects_stay(sandbox, asserts, setup, code, reason):
    judged = judge(CodeTests(asserts=(asserts,), setup=setup), code, sandbox)
    assert judged.reason == reason, judged


def test_unreadable_arguments_are_only_so_if_they_are(sandbox):
    code = "import sys\ndef f(x): sys.exit(70)"
    assert judge(CALLS, code, sandbox).reason == "wrong"
    broken = CodeTests(stdio=(("7 8\n", "49"),), entry_point="f")
    assert judge(broken, code, sandbox).reason == "error"


def test_a_fraction_of_assertions(sandbox):
    code = "def f(x): return 9 if x == 3 else 0"
    assert judge(ASSERTS, code, sandbox).passed == 0
    judged = judge(ASSERTS, code, sandbox, fraction=True)
    assert (judged.passed, judged.total, judged.reason) == (1, 3, "wrong")
    code = "def f(x):\n    while x == 3: pass\n    return x * x"
    judged = judge(ASSERTS, code, sandbox, fraction=True)
    assert (judged.passed, judged.total, judged.reason) == (2, 3, "timeout")
    code = "import os\ndef f(x): return x * x if x != 3 else os._exit(0)"
    judged = judge(ASSERTS, code, sandbox, fraction=True)
    assert (judged.passed, judged.total, judged.reason) == (2, 3, "wrong")


def test_each_assertion_has_the_whole_time(sandbox):
    code = (
        "import time\ndef f(x):\n    end = time.process_time() + 0.6\n"
        "    while time.process_time() < end: pass\n    return x * x"
    )
    assert judge(ASSERTS, code, sandbox).reason == "pass"


def test_check_is_called_if_the_data_set_forgot(sandbox):
    code = CHECK.test_code.replace("check(f)\n", "")
    tests = CodeTests(test_code=code, entry_point="f", prompt=CHECK.prompt)
    assert judge(tests, "def f(x): return x * x", sandbox).reason == "pass"
    assert judge(tests, "def f(x): return 0", sandbox).reason == "wrong"


def test_an_object_that_says_it_holds_everything_holds_its_items(sandbox):
    tests = CodeTests(asserts=("assert 9 in f(3)",))
    box = "class Box:\n    def __contains__(self, x): return True\n    def __iter__(self): {}\n"
    box += "def f(x): return Box()"
    assert judge(tests, box.format("return iter([8])"), sandbox).reason == "wrong"
    assert judge(tests, box.format("return iter([8, 9])"), sandbox).reason == "pass"
