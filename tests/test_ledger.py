"""Every second and every token in one bin, by a clock of the test's own and by the real one."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from magistral_jax import build, ledger
from magistral_jax.ledger import (
    BINS,
    DECODE,
    FATES,
    GENERATOR,
    TRAINER,
    Ledger,
    ledger_rows,
    on_compilation,
    shares_of,
)
from magistral_jax.model.sharding import make_mesh


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(ledger, "monotonic", clock)
    return clock


def nonzero(seconds):
    return {name: pytest.approx(value) for name, value in seconds.items() if value}


def test_a_party_does_one_thing_at_a_time_and_nested_work_takes_its_time_out(clock):
    found = Ledger({GENERATOR: 2.0, TRAINER: 1.0})
    clock.now += 1
    found.phase("idle")
    with found.doing(GENERATOR, "push") as outer:
        clock.now += 2
        with found.doing(GENERATOR, "prefill") as inner:
            clock.now += 3
        clock.now += 4
    clock.now += 5
    assert (outer.own_s, inner.own_s) == (6, 3)
    assert found.seconds() == {
        **dict.fromkeys(BINS, 0.0),
        **nonzero({"start": 3, "push": 12, "prefill": 6, "idle": 2 * 5 + 1 * 14}),
    }
    assert found.device_s == pytest.approx(3 * 15)


def test_one_party_may_have_a_phase_of_its_own(clock):
    found = Ledger({GENERATOR: 1.0, TRAINER: 1.0})
    found.phase("idle")
    found.phase("wait_batch", TRAINER)
    clock.now += 2
    assert (found.seconds()["idle"], found.seconds()["wait_batch"]) == (2, 2)


def test_the_seconds_of_decoding_go_where_its_tokens_went(clock):
    found = Ledger({GENERATOR: 1.0})
    with found.doing(GENERATOR, DECODE):
        clock.now += 10
    found.sampled(100)
    found.fate("trained", 50)
    found.fate("uniform", 20)
    found.fate("errored", 10)
    seconds = found.seconds()
    assert {f: seconds[f] for f in ("trained", "uniform", "errored", "unfinished")} == {
        "trained": 5, "uniform": 2, "errored": 1, "unfinished": 2,
    }  # fmt: skip
    assert DECODE not in seconds and sum(seconds.values()) == 10
    # Evaluations and what was lost have seconds of their own.
    found.sampled(40)
    found.fate("evaluation", 40)
    found.lost(device_s=1.0, tokens=30.0)
    assert found.seconds() == seconds | {"lost": 1}
    found.move(GENERATOR, DECODE, "padding", 4.0)
    assert (found.seconds()["padding"], found.seconds()["trained"]) == (4, 3)


def test_seconds_are_moved_on_all_devices_of_their_owner(clock):
    found = Ledger({GENERATOR: 3.0, TRAINER: 1.0})
    with found.doing(GENERATOR, DECODE):
        clock.now += 10
    found.move(GENERATOR, DECODE, "padding", 4.0)
    assert (found.seconds()["padding"], found.seconds()["unfinished"]) == (12, 18)


def test_tokens_are_all_there_were(clock):
    found = Ledger({GENERATOR: 1.0})
    told = []
    found.listen(told.append)
    found.sampled(7)
    found.sampled(5)
    found.fate("evaluation", 4)
    found.lost(device_s=3.0, tokens=6.0)
    assert told == [7, 12]
    tokens = found.tokens()
    assert set(tokens) == set(FATES)
    assert tokens == {**dict.fromkeys(FATES, 0), "evaluation": 4, "lost": 6, "unfinished": 8}
    assert found.seconds()["lost"] == 3
    with pytest.raises(AssertionError):
        found.fate("forgotten", 1)


def test_accounts_go_on_from_what_was_saved(clock):
    first = Ledger({GENERATOR: 1.0})
    clock.now += 5
    first.sampled(9)
    second = Ledger({GENERATOR: 1.0})
    clock.now += 1
    # What it took to find them is counted already.
    second.phase("start")
    second.sampled(2)
    second.restore(first.saved())
    clock.now += 1
    assert second.seconds()["start"] == 5 + 1 + 2
    assert second.tokens()["unfinished"] == 2 + 9


def test_the_watch_sees_who_is_at_what_and_for_how_long(clock):
    found = Ledger({GENERATOR: 1.0, TRAINER: 1.0})
    assert found.activities() == []
    with found.doing(TRAINER, "wait_batch", "a batch"):
        clock.now += 3
        with found.doing(GENERATOR, DECODE, "a decode step"):
            clock.now += 2
            generator, trainer = found.activities()
            assert (generator.owner, generator.what, generator.seconds) == (
                GENERATOR, "a decode step", 2,
            )  # fmt: skip
            assert not generator.is_wait and generator.thread == threading.get_ident()
            assert (trainer.seconds, trainer.is_wait) == (5, True)
            assert found.still_s == 2
            found.beat(GENERATOR)
            assert found.still_s == 0 and found.activities()[0].seconds == 0
            clock.now += 3
        assert found.still_s == 0, "to be done is to have moved"
        clock.now += 1
        assert found.still_s == 1
    assert found.still_s == 1, "to have waited is not"
    found.phase("idle")
    assert found.still_s == 0


def test_a_wait_that_looks_up_for_a_moment_is_one_wait(clock):
    found = Ledger({GENERATOR: 1.0})
    for _ in range(100):
        with found.doing(GENERATOR, "wait_admission", "weights"):
            clock.now += 0.01
            (wait,) = found.activities()
    assert wait.seconds == pytest.approx(1.0)
    clock.now += 1
    with found.doing(GENERATOR, "wait_admission", "weights"):
        assert found.activities()[0].seconds == 0
    # Waiting is not moving.
    assert found.still_s == pytest.approx(2.0)


def test_another_wait_and_the_next_step_of_work_are_things_of_their_own(clock):
    found = Ledger({GENERATOR: 1.0})
    for bin, what in [(DECODE, "a step"), (DECODE, "a step"), ("wait_admission", "weights")]:
        with found.doing(GENERATOR, bin, what):
            assert found.activities()[0].seconds == 0
            clock.now += 1
    for bin, what in [("wait_admission", "room"), ("wait_batch", "room")]:
        with found.doing(GENERATOR, bin, what):
            assert found.activities()[0].seconds == 0
            clock.now += 1


def test_compilation_is_told_from_what_it_was_done_for():
    assert build.on_compilation is ledger.on_compilation, "nobody listens"
    found = Ledger({TRAINER: 1.0})

    @jax.jit
    def program(x):
        for n in range(60):
            x = jnp.sin(x) * (n + 1.0)
        return x

    with found.doing(TRAINER, "trained") as update:
        program(jnp.ones(7)).block_until_ready()
    seconds = found.seconds()
    assert seconds["compile"] > 0.01
    assert update.own_s == pytest.approx(seconds["trained"]) and update.own_s >= 0
    with found.doing(TRAINER, "trained"):
        program(jnp.ones(7)).block_until_ready()
    assert found.seconds()["compile"] == seconds["compile"]


BACKEND, LOWERING = (
    "/jax/core/compile/backend_compile_duration",
    "/jax/core/compile/jaxpr_to_mlir_x",
)


def test_compilation_is_taken_out_of_what_the_thread_that_compiles_is_at(clock):
    found = Ledger({GENERATOR: 2.0, TRAINER: 1.0})
    found.phase("idle")
    with found.doing(TRAINER, "push") as push, found.doing(GENERATOR, "prefill") as prefill:
        clock.now += 10
        on_compilation(BACKEND, 3.0)
        on_compilation(LOWERING, 1.0)
        on_compilation("/jax/core/something_else", 2.0)
        # A thread of a library, that works for nobody.
        thread = threading.Thread(target=on_compilation, args=(BACKEND, 5.0))
        thread.start()
        thread.join()
    on_compilation(BACKEND, 7.0)
    assert {bin: n for bin, n in found.seconds().items() if n} == {
        "compile": 2 * 4, "prefill": 2 * 6, "push": 10,
    }  # fmt: skip
    assert (push.own_s, prefill.own_s) == (10, 6)


def test_the_compiler_speaks_of_itself_as_we_expect():
    heard = []

    def listen(event, _seconds, **_):
        heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(11))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for name in ledger._COMPILATION:
        assert any(event.startswith(name) for event in heard), f"no {name} among {heard}"


def test_real_seconds_add_up_to_wall_time_and_devices():
    began, found = time.monotonic(), Ledger({GENERATOR: 1.5, TRAINER: 0.5})
    over = threading.Event()

    def play(owner, bins):
        while not over.is_set():
            for bin in bins:
                with found.doing(owner, bin):
                    time.sleep(0.001)

    threads = [
        threading.Thread(target=play, args=(GENERATOR, ["prefill", DECODE])),
        threading.Thread(target=play, args=(TRAINER, ["trained", "push", "wait_batch"])),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    over.set()
    for thread in threads:
        thread.join()
    total = sum(found.seconds().values())
    assert total == pytest.approx(2.0 * (time.monotonic() - began), rel=0.01)


def test_a_device_that_both_use_counts_half_for_each():
    devices = jax.devices()
    one, two = make_mesh(devices[:1], fsdp=1, tp=1), make_mesh(devices[:2], fsdp=2, tp=1)
    other = make_mesh(devices[2:4], fsdp=2, tp=1)
    assert shares_of({GENERATOR: one, TRAINER: one}) == {GENERATOR: 0.5, TRAINER: 0.5}
    assert shares_of({GENERATOR: one, TRAINER: two}) == {GENERATOR: 0.5, TRAINER: 1.5}
    assert shares_of({GENERATOR: other, TRAINER: two}) == {GENERATOR: 2.0, TRAINER: 2.0}


def test_the_table_names_what_there_was_and_ends_with_all_of_it(clock):
    found = Ledger({GENERATOR: 1.0})
    clock.now += 2
    found.sampled(3)
    rows = ledger_rows(found.seconds(), found.tokens())
    assert [row[:4] for row in rows] == [
        ["unfinished", 0.0, "0.0%", 3],
        ["start", 2.0, "100.0%", None],
        ["all", 2.0, "100.0%", 3],
    ]
