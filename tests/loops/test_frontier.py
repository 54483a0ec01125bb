"""Any moment of a run can be gone on from: nothing is skipped, trained twice or told twice."""

import random
import threading
from collections import Counter

import pytest

from magistral_jax.loops.asynchronous import run_async
from magistral_jax.loops.clockwork import Clockwork
from magistral_jax.loops.sync import run_sync
from magistral_jax.types import OpenGroup

from .script import (
    G,
    Script,
    delays_of,
    indices_in,
    is_whole,
    lag_of,
    make_config,
    open_in,
    positions,
    uniform_where,
)

STEPS, MAX_LAG = 10, 2


def is_uniform(group):
    return group % 5 == 2


def make_script(seed, **changes):
    config = make_config(max_lag=MAX_LAG, steps=STEPS, in_flight=8)
    chance = random.Random(seed)
    lengths = {}

    def length(group, index):
        return lengths.setdefault((group, index), chance.choice([1, 2, 3, 12]))

    return Script(
        config,
        length=length,
        reward=uniform_where(is_uniform),
        **{**delays_of("chaos", seed), **changes},
    )


def check_is_complete(frontier, trained, told):
    """Every group dispatched so far is in one place, and so is every completion of it."""
    whole = positions(e for e in frontier.queue.entries if is_whole(e))
    judged = [*told, *positions(frontier.queue.judged)]
    dropped = [group for group in judged if is_uniform(group)]
    dispatched = Counter(range(frontier.queue.next))
    assert Counter(judged) + Counter(open_in(frontier)) == dispatched
    assert Counter(trained) + Counter(dropped) + Counter(whole) + Counter(open_in(frontier)) == (
        dispatched
    )
    in_queue = positions(frontier.queue.entries)
    assert in_queue == sorted(in_queue)
    wanted = Counter((group, index) for group in open_in(frontier) for index in range(G))
    assert Counter(indices_in(frontier)) == wanted
    for entry in frontier.queue.entries:
        assert not isinstance(entry, OpenGroup) or set(entry.verdicts) <= set(entry.completions)


def check_went_on(before, after, step):
    """A run that ended after `step`, and the one that went on from there, are one run."""
    batches = before.batches[:step] + after.batches
    assert [batch.version for batch in batches] == list(range(STEPS))
    trained = [group.group for batch in batches for group in batch.groups]
    assert trained == [g for g in range(100) if not is_uniform(g)][: len(trained)]
    told = [g for row in before.rows[:step] + after.rows for g in positions(row.groups)]
    assert max(Counter(told).values()) == 1 and set(trained) <= set(told)
    assert max(lag_of(batch) for batch in batches) <= MAX_LAG
    assert after.steps == list(range(step + 1, STEPS + 1))


@pytest.mark.parametrize("loop", [run_sync, run_async])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_goes_on_from_the_frontier_of_any_step(loop, seed):
    chance = random.Random(seed)
    wanted = set(chance.sample(range(1, STEPS), 5))
    before = make_script(seed, wants_frontier=lambda step: step in wanted)

    def on_step(row):
        assert (row.frontier is not None) == (row.step in wanted)
        if row.frontier is not None:
            trained = before.trained[: row.step * before.config.groups_per_batch]
            check_is_complete(row.frontier, trained, positions(before.judged))

    before.on_step = on_step
    before.play(loop)
    step = chance.choice(sorted(wanted))
    after = before.resumed(before.rows[step - 1].frontier, step)
    after.on_step, after.wants_frontier = lambda row: None, lambda step: False
    check_went_on(before, after.play(loop), step)


def stopped_at(loop, seed, decode_steps, *, awaits_verdicts=False):
    """A run that is told to stop amid its decode steps; if asked, when verdicts are awaited."""
    script = make_script(seed)
    stopped = threading.Event()
    if awaits_verdicts:
        # None comes between the stop and the frontier.
        script.verify_delay = lambda: 0.2 if stopped.wait(0.02) else 0.0
    delay = script.decode_delay

    def decode():
        is_time = script.generator.num_steps >= decode_steps and not stopped.is_set()
        if is_time and (not awaits_verdicts or script.backlog.unjudged()):
            stopped.set()
            (script.clock if loop is Clockwork else script.backlog).stop()
        return delay()

    script.decode_delay = decode
    return script.play(loop)


@pytest.mark.parametrize("loop", [run_sync, run_async])
@pytest.mark.parametrize("decode_steps", [0, 7, 20, 33])
def test_a_run_goes_on_from_a_stop(loop, decode_steps):
    before = stopped_at(loop, decode_steps, decode_steps)
    step = len(before.rows)
    assert step < STEPS
    check_is_complete(before.at_stop, before.trained, positions(before.judged))
    after = before.resumed(before.at_stop, step)
    after.decode_delay = make_script(0).decode_delay
    check_went_on(before, after.play(loop), step)
    counted = sum(row.values["dispatched"] for row in before.rows + after.rows)
    counted += after.tally.drain()[0].get("dispatched", 0)
    assert counted == after.prompts.next_position


@pytest.mark.parametrize("then", [run_sync, run_async, Clockwork])
@pytest.mark.parametrize("first", [run_async, Clockwork])
def test_a_run_goes_on_in_another_mode(first, then):
    # Verdicts are awaited at the stop: whoever goes on has them made.
    before = stopped_at(first, 3, 20, awaits_verdicts=True)
    in_queue = [e for e in before.at_stop.queue.entries if isinstance(e, OpenGroup)]
    assert any(set(e.completions) - set(e.verdicts) for e in in_queue)
    step = len(before.rows)
    after = before.resumed(before.at_stop, step)
    after.decode_delay = after.verify_delay = lambda: 0.0
    check_went_on(before, after.play(then), step)


def test_tokens_of_a_sequence_that_was_stopped_are_kept():
    # Nothing is sampled again: what the two runs drew is what all completions are made of.
    before = stopped_at(run_async, 1, 9)
    assert before.at_stop.in_flight.drafts
    begun = {(d.prompt.group, d.index): len(d.tokens) for d in before.at_stop.in_flight.drafts}
    after = before.resumed(before.at_stop, len(before.rows))
    after.decode_delay = lambda: 0.0
    after.play(run_async)
    refilled = {(c.group, c.index): c.refills for group in after.judged for c in group.completions}
    for key, count in begun.items():
        assert count == 0 or key not in refilled or refilled[key] == (count,)
    drawn = before.generator.num_sampled + after.generator.num_sampled
    assert after.ledger.tokens()["unfinished"] >= 0
    assert sum(after.ledger.tokens().values()) == drawn
