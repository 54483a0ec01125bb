"""The process that judges: one JSON object a line in, one out, until its input ends.

It reads hostile text, so it holds nothing worth stealing and can take nothing down with it. No
exception leaves it: a check that fails becomes the outcome "error".
"""

import json
import os
import resource
import signal
import sys
from dataclasses import asdict

from magistral_jax.types import Problem, Verdict
from magistral_jax.verifier.reward import RewardRule, judge, without_reward

MEMORY_BYTES = 2 * 1024**3
READY = b"ready\n"


def main() -> None:
    """Judge what stdin says under the rule that the one argument holds."""
    settings = json.loads(sys.argv[1])
    rule = RewardRule(**settings["rule"])
    _limit_itself()
    # The protocol keeps the real stdout; whatever prints goes where errors go.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(READY)
    for line in sys.stdin.buffer:
        # Should the parent die, nobody kills a check that hangs. The signal's default action needs
        # no interpreter, so it also ends one that never returns to Python.
        signal.setitimer(signal.ITIMER_REAL, 2 * settings["timeout_s"])
        verdict = _judge_line(line, rule)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(asdict(verdict)).encode() + b"\n")


def _judge_line(line: bytes, rule: RewardRule) -> Verdict:
    try:
        item = json.loads(line)
        return judge(Problem(**item["problem"]), item["text"], item["tokens"], rule)
    except Exception as failure:
        return without_reward("error", f"{type(failure).__name__}: {failure}"[:200])


def _limit_itself() -> None:
    for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    # Ctrl-C is the parent's to handle: it ends its children by closing their input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
