"""The pool under fire: processes killed at random, and nothing lost or judged twice."""

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from magistral_jax.config import VerifierConfig
from magistral_jax.types import CodeTests, Problem
from magistral_jax.verifier.reward import RewardRule
from magistral_jax.verifier.worker import VerifierPool

RULE = RewardRule(soft_tokens=80, max_tokens=100)
TESTS = CodeTests(stdio=(("1 2\n", "3\n"),))


def item(number: int) -> tuple[Problem, str, str]:
    """A mixed stream: mostly numbers, some LaTeX, now and then a program; with its reason."""
    if number % 50 == 7:
        problem = Problem(id="c", domain="code", question="Add.", answer="", tests=TESTS)
        body = "print(sum(map(int, input().split())))" if number % 100 == 7 else "print(4)"
        text = f"<think></think>\n```python\n{body}\n```"
        return problem, text, "pass" if number % 100 == 7 else "wrong"
    answer = rf"{number}\sqrt{{2}}" if number % 10 == 3 else str(number)
    said = answer if number % 3 else str(number + 1)
    problem = Problem(id="m", domain="math", question="?", answer=answer)
    return problem, rf"<think></think>\boxed{{{said}}}", "pass" if number % 3 else "wrong"


def processes_under(pids: list[int]) -> list[int]:
    found = list(pids)
    for pid in found:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def memory(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return total


@pytest.mark.parametrize(
    ("items", "kills"), [(500, 10), pytest.param(10_000, 100, marks=pytest.mark.full)]
)
def test_killed_at_random_every_item_gets_one_verdict(items, kills):
    rng, is_over, killed = random.Random(4), threading.Event(), 0
    config = VerifierConfig(workers=2, timeout_s=20.0)
    told: list[str] = []
    with VerifierPool(RULE, config, tell=told.append) as pool:
        done: Counter[int] = Counter()
        futures = []

        def kill() -> None:
            nonlocal killed
            while killed < kills and not is_over.wait(rng.uniform(0.02, 0.2)):
                with suppress(ProcessLookupError, IndexError):
                    os.kill(rng.choice(processes_under(pool.pids)), signal.SIGKILL)
                    killed += 1

        killer = threading.Thread(target=kill)
        killer.start()
        early = 0
        began = time.monotonic()
        for number in range(items):
            problem, text, _ = item(number)
            future = pool.submit(problem, text, 1)
            future.add_done_callback(lambda _, n=number: done.update([n]))
            futures.append(future)
            # The most of several looks: at one moment some of them may have just been killed.
            if number in range(items // 10, items // 5, items // 50):
                future.result(300)
                early = max(early, memory(processes_under(pool.pids)))
        verdicts = [future.result(600) for future in futures]
        is_over.set()
        killer.join(10)
        late = memory(processes_under(pool.pids))
        assert pool.replaced == len(told)
    assert killed >= min(kills, 3), f"only {killed} kills in {time.monotonic() - began:.0f} s"
    # Not every victim is a server, and some are killed twice before they are missed.
    assert 0 < len(told) <= killed and all("(by signal 9)" in message for message in told)
    assert set(done.values()) == {1} and len(done) == items
    reasons = Counter((verdict.reason, item(number)[2]) for number, verdict in enumerate(verdicts))
    aside = sum(count for (said, _), count in reasons.items() if said == "error")
    assert all(said == known or said == "error" for said, known in reasons), reasons
    assert aside <= kills / 10
    assert late < 1.3 * early + 50e6, f"{early / 1e6:.0f} MB became {late / 1e6:.0f} MB"
