"""Prompts, completions and verdicts by their numbers, for tests of the ledger of groups."""

import numpy as np

from magistral_jax.batch.backlog import Backlog
from magistral_jax.types import (
    Completion,
    Group,
    Problem,
    Prompt,
    Verdict,
    VersionSpan,
)

G = 2
KEPT, RIGHT, WRONG, EQUAL, ERRORED = (1, 0), (1, 1), (0, 0), "equal", (1, None)


def make_prompt(position, problem=None):
    name = str(position if problem is None else problem)
    problem = Problem(id=name, domain="math", question="", answer="")
    return Prompt(group=position, problem=problem, tokens=np.zeros(1, np.int32))


def make_completion(position, index):
    return Completion(
        group=position,
        index=index,
        prompt=np.zeros(1, np.int32),
        tokens=np.ones(1, np.int32),
        logprobs=np.zeros(1, np.float32),
        sampled=np.ones(1, bool),
        spans=(VersionSpan(start=0, version=0),),
        finish="length",
    )


def make_verdict(rewards, index):
    """EQUAL is one right and one wrong of the same reward; None a check that failed."""
    reward = (KEPT if rewards == EQUAL else rewards)[index]
    if reward is None:
        return Verdict(reward=0.0, parts={}, reason="error")
    shown = 0.5 if rewards == EQUAL else float(reward)
    return Verdict(reward=shown, parts={}, reason="pass" if reward > 0 else "wrong")


def make_backlog(*, groups_per_batch=2, max_lag=1, stall_s=5.0, group_size=G, **more):
    return Backlog(
        groups_per_batch=groups_per_batch,
        group_size=group_size,
        max_lag=max_lag,
        stall_s=stall_s,
        **more,
    )


def sample(backlog, position, indices=range(G)):
    for index in indices:
        backlog.sampled(make_completion(position, index))


def judge(backlog, position, rewards, indices=range(G)):
    """What the last of these verdicts gives."""
    found = [
        backlog.judged(make_completion(position, index), make_verdict(rewards, index))
        for index in indices
    ]
    return found[-1]


def finish(backlog, position, rewards):
    sample(backlog, position)
    return judge(backlog, position, rewards)


def numbers(groups):
    return None if groups is None else [group.group for group in groups]


def picture(backlog, *, report=False):
    return backlog.queue(report=report)[0]


def contents(entry):
    """A whole or an open group: its position, and indices that are sampled and judged."""
    if isinstance(entry, Group):
        return entry.group, list(range(G)), set(range(G))
    return entry.prompt.group, sorted(entry.completions), set(entry.verdicts)
