"""No length bias (Magistral 3.2): what is trained on has the lengths that the policy samples.

A completion of n tokens takes n decode steps, so that long ones finish late. The finishing order,
for comparison, is what a queue of finished groups would give.
"""

from functools import cache

import numpy as np
import pytest
from scipy.stats import ks_2samp

from magistral_jax.batch.backlog import Backlog
from magistral_jax.lengths import QUARTERS
from magistral_jax.loops.asynchronous import run_async
from magistral_jax.types import Group

from .script import Script, make_config

G, GROUPS_PER_BATCH, STEPS = 2, 128, 8


@cache
def drawn(seed, group, index):
    """A lognormal length: the median is 8 tokens, one in forty has more than 50."""
    rng = np.random.default_rng((seed, group, index))
    return 1 + int(rng.lognormal(2.0, 1.0))


class FinishingOrder(Backlog):
    """The same admission, but a batch is made of whatever finished first."""

    def __init__(self, **options):
        super().__init__(**options)
        self._finished = []

    def judged(self, completion, verdict):
        group = super().judged(completion, verdict)
        if group is not None and group.is_diverse:
            with self._changed:
                self._finished.append(group.group)
                self._changed.notify_all()
        return group

    def _num_ready(self):
        return min(len(self._finished), self._groups_per_batch)

    def take_batch(self, timeout=None):
        with self._changed:
            if not self._wait(self._is_ready, "trainer", "a batch", timeout):
                return None
            count = self._groups_per_batch
            first, self._finished = self._finished[:count], self._finished[count:]
            self._untrained.append(count)
            self._unreleased += count
            found = tuple(self._ledger.pop(group) for group in first)
            assert all(isinstance(group, Group) for group in found)
            return found


def play(make_backlog, seed, **changes):
    config = make_config(
        max_lag=3, steps=STEPS, in_flight=512, group_size=G, groups_per_batch=GROUPS_PER_BATCH
    )
    return Script(
        config,
        length=lambda group, index: drawn(seed, group, index),
        make_backlog=make_backlog,
        wants_frontier=lambda step: step == 4,
        **changes,
    ).play(run_async)


def p_value(script, seed):
    """How probable it is, were nothing favoured, that lengths trained on differ so much from as
    many new draws of the policy."""
    trained = [len(c.tokens) for b in script.batches for g in b.groups for c in g.completions]
    groups = GROUPS_PER_BATCH * STEPS
    assert len(trained) == G * groups >= 2_000
    sampled = [drawn(seed, 10_000 + group, index) for group in range(groups) for index in range(G)]
    return ks_2samp(trained, sampled).pvalue


def in_turn(row):
    return [row.shown[f"length/in_turn_q{q}"] for q in QUARTERS]


@pytest.fixture(scope="module", params=[1, 2])
def runs(request):
    return request.param, play(Backlog, request.param), play(FinishingOrder, request.param)


def test_lengths_trained_on_are_those_that_are_sampled(runs):
    seed, ours, _ = runs
    assert p_value(ours, seed) > 0.05


def test_the_order_of_finishing_would_have_been_seen(runs):
    seed, _, finishing = runs
    assert p_value(finishing, seed) < 1e-3


def test_the_runs_own_metric_tells_them_apart(runs):
    _, ours, finishing = runs
    assert all(in_turn(row) == [1, 1, 1, 1] for row in ours.rows)
    shares = in_turn(finishing.rows[-1])
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.4 and shares[-1] < 0.1


def test_a_run_that_goes_on_remembers_what_was_overtaken(runs):
    seed, _, finishing = runs
    after = play(FinishingOrder, seed, frontier=finishing.rows[3].frontier, start=4)
    assert in_turn(after.rows[0])[-1] < 0.1
