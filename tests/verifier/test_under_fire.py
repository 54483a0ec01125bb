"""The whole verifier under hostile answers, and on a machine that is busy with other things."""

import multiprocessing
import os
import runpy
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import CodeTests, Problem
from magistral_jax.verifier.reward import RewardRule
from magistral_jax.verifier.worker import VerifierPool

RULE = RewardRule(soft_tokens=80, max_tokens=100)
HOSTILE = runpy.run_path(str(Path(__file__).parent / "math" / "hostile.py"))
RIGHT = r"<think></think>\boxed{\frac{10}{2}}"


def test_hostile_answers_are_settled_in_time_and_leave_the_pool_whole(tmp_path, monkeypatch):
    """From a thread, as the trainer asks; gmpy2 is installed."""
    import gmpy2  # noqa: F401  what made a peer's timer deaf

    monkeypatch.chdir(tmp_path)
    config = VerifierConfig(workers=2)
    with VerifierPool(RULE, config) as pool, ThreadPoolExecutor(1) as thread:

        def judge(gold: str, answer: str) -> tuple[str, float]:
            problem = Problem(id="h", domain="math", question="?", answer=gold)
            text = rf"<think></think>\boxed{{{answer}}}"
            began = time.monotonic()
            verdict = pool.submit(problem, text, 1).result(60)
            return verdict.reason, time.monotonic() - began

        servers = pool.pids
        said = [
            thread.submit(judge, gold, answer).result(120)
            for gold in HOSTILE["REFERENCES"]
            for answer in HOSTILE["HOSTILE"]
        ]
        assert pool.pids == servers
        problem = Problem(id="p", domain="math", question="?", answer="5")
        afterwards = [pool.submit(problem, RIGHT, 1).result(60) for _ in range(8)]
    assert [verdict.outcome for verdict in afterwards] == ["right"] * 8
    assert not {reason for reason, _ in said} & {"pass", "error"}
    seconds = sorted(s for _, s in said)
    assert seconds[int(0.99 * len(seconds))] < 2.0
    # One that is stopped is followed by a known-good answer and its format: 1.5 times in all.
    assert seconds[-1] < 1.5 * 1.4 * config.timeout_s + 0.5
    assert os.listdir(tmp_path) == []


WAITS = "import time\nwhile time.process_time() < {s}: pass\nprint(int(input()) * 2)"
PROGRAMS = [
    ("print(int(input()) * 2)", "pass"),
    ("print(int(input()) * 3)", "wrong"),
    ("n = int(input())\nprint(sum(1 for _ in range(2 * n)))", "pass"),
    ("print(undefined)", "wrong"),
    ("import sys\nsys.stdout.write('x' * 10**7)", "output"),
    ("x = bytearray(10**9)\nprint(int(input()) * 2)", "memory"),
    (WAITS.format(s=0.6), "pass"),
]
SLOW = [(WAITS.format(s=2.5), "pass"), ("while True: pass", "timeout")]
LATEX = [
    (r"\frac{%d}{7}", r"%d/7", "pass"),
    (r"%d\sqrt{2}", r"\sqrt{2}\cdot %d", "pass"),
    (r"x^2+%dx", r"x(x+%d)", "pass"),
    (r"[0,%d)", r"[0,%d]", "wrong"),
    (r"%d", r"%d.5", "wrong"),
]


def mixed(count: int, slow: int) -> list[tuple[Problem, str, str]]:
    """Programs and answers in turn, and what is known of each."""
    items: list[tuple[Problem, str, str]] = []
    tests = CodeTests(stdio=(("21\n", "42\n"),))
    code = Problem(id="c", domain="code", question="Double it.", answer="", tests=tests)
    programs = [PROGRAMS[n % len(PROGRAMS)] for n in range(count // 3)]
    programs += [SLOW[n % len(SLOW)] for n in range(slow)]
    for body, reason in programs:
        items.append((code, f"<think></think>\n```python\n{body}\n```", reason))
    for n in range(count - len(programs)):
        gold, answer, reason = LATEX[n % len(LATEX)]
        problem = Problem(id="m", domain="math", question="?", answer=gold % (n + 2))
        items.append((problem, rf"<think></think>\boxed{{{answer % (n + 2)}}}", reason))
    return items


def spin(until: float) -> None:
    while time.time() < until:
        pass


@pytest.mark.parametrize(
    ("count", "slow"), [(40, 1), pytest.param(300, 12, marks=pytest.mark.full)]
)
def test_a_busy_machine_changes_no_verdict(count, slow):
    """As many busy processes as cores, all of the time."""
    items = mixed(count, slow)
    load = [
        multiprocessing.get_context("spawn").Process(target=spin, args=(time.time() + 600,))
        for _ in range(os.cpu_count() or 1)
    ]
    for process in load:
        process.start()
    try:
        with VerifierPool(RULE, VerifierConfig(workers=2)) as pool:
            futures = [pool.submit(problem, text, 1) for problem, text, _ in items]
            said = [future.result(600).reason for future in futures]
    finally:
        for process in load:
            process.kill()
            process.join()
    different = [
        (text[-60:], reason, known)
        for (_, text, known), reason in zip(items, said, strict=True)
        if reason != known
    ]
    assert not different
