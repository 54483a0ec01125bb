"""Every second and every token of a run is accounted for, and by its cause."""

import random
import time

import pytest

from magistral_jax.loops.asynchronous import run_async
from magistral_jax.loops.clockwork import Clockwork
from magistral_jax.loops.sync import run_sync

from .script import ALL_LOOPS, Script, delays_of, make_config

WAITS = ("wait_verifier", "wait_batch", "wait_admission")


def reward(group, index):
    """Some groups are uniform, in some a check fails, in some all do."""
    if group % 6 == 2:
        return 0
    if group % 6 == 4:
        return None
    if group % 6 == 3 and group < 10:
        return 1 if index == 0 else None
    return None if group % 6 == 5 and index == 0 else index % 2


def make_script(**changes):
    config = make_config(max_lag=2, steps=10, in_flight=12, group_size=3, kv="save")
    return Script(
        config,
        length=lambda group, index: random.Random(3 * group + index).choice([1, 3, 7, 16]),
        reward=reward,
        **{**delays_of("chaos", seed=0), **changes},
    )


@ALL_LOOPS
def test_seconds_add_up_to_all_devices_for_all_the_time(loop):
    script = make_script()
    began = time.monotonic()
    script.play(loop)
    seconds = script.ledger.seconds()
    wall_s = time.monotonic() - began
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) == pytest.approx(2 * wall_s, rel=0.01)


@ALL_LOOPS
def test_tokens_add_up_to_those_that_were_sampled(loop):
    script = make_script().play(loop)
    script.threads.shutdown(wait=True)
    tokens = script.ledger.tokens()
    assert sum(tokens.values()) == script.generator.num_sampled

    trained = [g for batch in script.batches for g in batch.groups]
    # Those judged after the record's last row came to nothing, and count as unfinished.
    dropped = [g for g in script.judged if not g.is_diverse]
    of = {"trained": 0, "uniform": 0, "errored": 0}
    for group in trained:
        for place, completion in enumerate(group.completions):
            of["trained" if place in group.valid else "errored"] += len(completion.tokens)
    for group in dropped:
        fate = "uniform" if group.group % 6 == 2 else "errored"
        of[fate] += sum(len(c.tokens) for c in group.completions)
    assert {fate: tokens[fate] for fate in of} == of
    assert min(of.values()) > 0


def test_tokens_of_a_stopped_run_and_the_one_that_goes_on_add_up():
    before = make_script()
    delay = before.decode_delay

    def decode():
        if before.generator.num_steps == 20:
            before.clock.stop()
        return delay()

    before.decode_delay = decode
    before.play(Clockwork)
    after = before.resumed(before.at_stop, len(before.rows)).play(Clockwork)
    tokens = after.ledger.tokens()
    assert sum(tokens.values()) == before.generator.num_sampled + after.generator.num_sampled
    whole = make_script().play(Clockwork)
    assert tokens == whole.ledger.tokens()


def slow(room):
    """One room takes nearly all the time; the bound keeps all others from working ahead."""
    config = make_config(max_lag=0, steps=6, in_flight=4, deterministic_steps=1)
    # Long beside what a loaded machine keeps a thread waiting.
    delays = {"verify": 0.1, "decode": 0.02, "train": 0.15}
    return Script(config, **{f"{room}_delay": lambda: delays[room]})


@pytest.mark.parametrize(
    ("room", "wait"),
    [("verify", "wait_verifier"), ("decode", "wait_batch"), ("train", "wait_admission")],
)
def test_waits_are_told_apart_by_who_is_slow(room, wait):
    seconds = slow(room).play(run_async).ledger.seconds()
    # The trainer's own waits; a bound of 0 makes the generator wait for it all the time.
    if room != "train":
        other = {"wait_verifier": "wait_batch", "wait_batch": "wait_verifier"}[wait]
        assert seconds[wait] > 6 * 0.03 * 0.7
        assert seconds[wait] > 3 * seconds[other]
    else:
        assert max(WAITS, key=seconds.__getitem__) == wait
        assert seconds[wait] > 3 * (seconds["wait_batch"] + seconds["wait_verifier"])


@pytest.mark.parametrize("loop", [run_sync, Clockwork])
def test_waits_for_verdicts_are_told_without_a_second_thread(loop):
    seconds = slow("verify").play(loop).ledger.seconds()
    assert seconds["wait_verifier"] > 6 * 0.05 * 0.8
    assert seconds["idle"] < seconds["wait_verifier"] / 3
    assert slow("decode").play(loop).ledger.seconds()["wait_verifier"] < 0.02


@ALL_LOOPS
def test_seconds_of_decoding_go_where_its_tokens_go(loop):
    script = slow("decode")
    script.reward = lambda group, index: 0 if group % 2 else index
    script.play(loop)
    seconds, tokens = script.ledger.seconds(), script.ledger.tokens()
    decoded = sum(row.values["decode_s"] for row in script.rows)
    assert seconds["uniform"] > 0.01
    trained = seconds["trained"] / seconds["uniform"]
    assert trained == pytest.approx(tokens["trained"] / tokens["uniform"], rel=0.15)
    assert seconds["uniform"] + seconds["trained"] <= decoded * 1.1


@ALL_LOOPS
def test_empty_slots_are_padding(loop):
    # Three of four slots stay empty: one prompt of two, and one of the two is short.
    config = make_config(max_lag=0, steps=4, in_flight=8, groups_per_batch=1)
    script = Script(
        config,
        length=lambda group, index: 10 if index else 1,
        decode_delay=lambda: 0.003,
    ).play(loop)
    seconds = script.ledger.seconds()
    decoded = sum(row.values["decode_s"] for row in script.rows)
    # 2 of 8 slots at the first of ten steps, 1 of 8 at the others.
    assert seconds["padding"] == pytest.approx(decoded * (1 - 11 / 80), rel=0.02)
