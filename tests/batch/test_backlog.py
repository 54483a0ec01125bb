"""The ledger of groups, rule by rule: order, staleness, drops, what is set aside, and pictures."""

import threading
import time

import pytest

from magistral_jax.types import (
    Group,
    OpenGroup,
    Queue,
    Stalled,
    UserError,
    Verdict,
)

from .groups import (
    EQUAL,
    ERRORED,
    KEPT,
    RIGHT,
    WRONG,
    G,
    contents,
    finish,
    judge,
    make_backlog,
    make_completion,
    make_prompt,
    make_verdict,
    numbers,
    picture,
    sample,
)


def dispatched(count, **more):
    backlog = make_backlog(**more)
    for position in range(count):
        backlog.dispatch(make_prompt(position))
    return backlog


def take_now(backlog):
    batch = backlog.take_batch(timeout=0.0)
    assert batch is not None
    return numbers(batch)


def test_a_finished_group_never_overtakes_an_earlier_one_still_pending():
    backlog = dispatched(4)
    for position in (3, 2, 1):
        assert finish(backlog, position, KEPT)
        assert backlog.take_batch(timeout=0.0) is None
    finish(backlog, 0, KEPT)
    assert take_now(backlog) == [0, 1]
    assert take_now(backlog) == [2, 3]


def test_a_group_comes_whole_and_in_order_of_index_whatever_order_it_is_judged_in():
    backlog = dispatched(1, group_size=3)
    sample(backlog, 0, [2, 0, 1])
    assert judge(backlog, 0, (1, None, 0), [1, 2]) is None
    group = judge(backlog, 0, (1, None, 0), [0])
    assert [c.index for c in group.completions] == [0, 1, 2]
    assert [v.outcome for v in group.verdicts] == ["right", "error", "wrong"]
    assert group.prompt.problem.id == "0"


def test_short_groups_finishing_first_leave_trained_lengths_unbiased():
    """Lengths 9, 8, ... 1: the short end finishes first, yet batches are the dispatched order."""
    backlog = dispatched(8, max_lag=3)
    lengths = {position: 9 - position for position in range(8)}
    trained = []
    for position in sorted(lengths, key=lengths.__getitem__):
        finish(backlog, position, KEPT)
        while (batch := backlog.take_batch(timeout=0.0)) is not None:
            trained += [lengths[g.group] for g in batch]
    assert trained == list(lengths.values())


@pytest.mark.parametrize("max_lag", [0, 2])
def test_the_lag_reaches_its_bound_and_not_more(max_lag):
    """A generator that never hears of new weights gets S + 1 batches out, then must wait."""
    backlog = make_backlog(max_lag=max_lag)
    position = 0
    while backlog.can_dispatch() and position < 50:
        backlog.dispatch(make_prompt(position))
        finish(backlog, position, KEPT)
        position += 1
        if backlog.take_batch(timeout=0.0):
            backlog.trained()
    assert position == 2 * (max_lag + 1)
    backlog.release(2)
    assert backlog.can_dispatch()


def test_each_drop_admits_exactly_one():
    backlog = dispatched(4)
    assert not backlog.can_dispatch()
    assert not finish(backlog, 2, WRONG).is_diverse
    backlog.dispatch(make_prompt(4))
    assert not backlog.can_dispatch()


def drop(backlog, positions, rewards, problem=None):
    for position in positions:
        backlog.dispatch(make_prompt(position, problem))
        finish(backlog, position, rewards)


def test_groups_without_the_format_are_dropped_for_that():
    faults = ("no leading <think>", "no leading <think>", "no boxed answer")
    group = Group(
        prompt=make_prompt(0),
        completions=tuple(make_completion(0, i) for i in range(3)),
        verdicts=tuple(Verdict(reward=0.0, parts={}, reason="format", detail=d) for d in faults),
    )
    assert group.sameness == "without the format: no leading <think>"


def test_nothing_to_learn_ends_the_run_in_the_users_words():
    backlog = make_backlog(max_dropped_in_a_row=5)
    drop(backlog, [0, 1], WRONG)
    drop(backlog, [2], ERRORED)
    drop(backlog, [3], EQUAL)
    # A run that goes on counts on.
    for life in (make_backlog(max_dropped_in_a_row=5, queue=picture(backlog)), backlog):
        words = (
            r"5 groups in a row had no diversity \(2 all wrong, 1 checks failed, 1 equal rewards, "
            r"1 all right\): nothing to learn.*data.path.*generator.group_size"
        )
        with pytest.raises(UserError, match=words):
            drop(life, [4], RIGHT)
        assert numbers(life.report()) == [0, 1, 2, 3, 4], "the last one is in the record, too"


def test_one_group_to_learn_from_starts_the_count_of_drops_again():
    backlog = make_backlog(max_dropped_in_a_row=3, groups_per_batch=4)
    for first in (0, 3, 6):
        drop(backlog, [first, first + 1], WRONG)
        drop(backlog, [first + 2], KEPT)
    assert len(backlog.report()) == 9


def test_the_default_patience_is_64_batches():
    backlog = make_backlog(groups_per_batch=1)
    drop(backlog, range(63), WRONG)
    with pytest.raises(UserError, match="64 groups in a row"):
        drop(backlog, [63], WRONG)


def test_a_problem_whose_checks_always_fail_is_set_aside_after_two_groups():
    backlog = make_backlog()
    drop(backlog, [0], ERRORED, problem="bad")
    assert not backlog.is_set_aside(make_prompt(1, "bad"))
    drop(backlog, [1], WRONG, problem="bad")
    assert not backlog.is_set_aside(make_prompt(2, "bad")), "a wrong answer is no strike"
    drop(backlog, [2], ERRORED, problem="bad")
    for life in (backlog, make_backlog(queue=picture(backlog))):
        assert not life.is_set_aside(make_prompt(3, "good"))
        assert life.is_set_aside(make_prompt(3, "bad"))
        assert picture(life).next == 4, "it was passed over, and does not come again"
        with pytest.raises(AssertionError, match="3 was dispatched before"):
            life.dispatch(make_prompt(3, "other"))


def test_a_group_of_which_two_verdicts_stand_is_judged_by_these():
    backlog = make_backlog(group_size=3)
    for position in (0, 1):
        backlog.dispatch(make_prompt(position, "p"))
        sample(backlog, position, range(3))
        judge(backlog, position, (0, 0, None), range(3))
    assert not backlog.is_set_aside(make_prompt(2, "p"))
    assert picture(backlog).dropped_in_a_row == {"all wrong": 2}


def test_when_every_problem_is_set_aside_the_user_is_told():
    backlog = make_backlog(max_dropped_in_a_row=4)
    backlog.dispatch(make_prompt(0, "bad"))
    backlog.set_aside(0)
    for position in (1, 2):
        assert backlog.is_set_aside(make_prompt(position, "bad"))
    with pytest.raises(UserError, match=r"4 groups in a row .*\(4 set aside\)"):
        backlog.is_set_aside(make_prompt(3, "bad"))


def test_a_group_that_is_given_up_makes_room_and_its_verdicts_are_ignored():
    backlog = dispatched(4)
    sample(backlog, 1)
    judge(backlog, 1, KEPT, [0])
    given_up = backlog.set_aside(1)
    assert contents(given_up) == (1, [0, 1], {0})
    assert judge(backlog, 1, KEPT, [1]) is None
    assert backlog.report() == []
    backlog.dispatch(make_prompt(4))
    assert not backlog.can_dispatch()
    assert backlog.is_set_aside(make_prompt(5, 1)) and not backlog.is_set_aside(make_prompt(6, 2))
    assert [entry.prompt.group for entry in picture(backlog).entries] == [0, 2, 3, 4]
    for position in (0, 2, 3, 4):
        finish(backlog, position, KEPT)
    assert (take_now(backlog), take_now(backlog)) == ([0, 2], [3, 4])


def test_a_finished_group_cannot_be_given_up():
    backlog = dispatched(1)
    finish(backlog, 0, KEPT)
    with pytest.raises(AssertionError, match="group 0 is finished"):
        backlog.set_aside(0)


def test_a_picture_is_of_one_moment():
    backlog = dispatched(3)
    sample(backlog, 0)
    judge(backlog, 0, KEPT, [0])
    finish(backlog, 1, KEPT)
    before = picture(backlog)
    judge(backlog, 0, KEPT, [1])
    sample(backlog, 2)
    backlog.dispatch(make_prompt(3))
    assert before.next == 3
    assert [contents(entry) for entry in before.entries] == [
        (0, [0, 1], {0}),
        (1, [0, 1], {0, 1}),
        (2, [], set()),
    ]
    assert numbers(before.judged) == [1]
    assert before.entries[0].verdicts[0] == make_verdict(KEPT, 0)


def test_what_is_judged_is_told_by_a_report_or_left_to_who_goes_on():
    backlog = dispatched(3)
    finish(backlog, 2, WRONG)
    finish(backlog, 0, KEPT)
    queue, told = backlog.queue(report=False)
    assert told == [] and numbers(queue.judged) == [2, 0]
    assert numbers(make_backlog(queue=queue).report()) == [2, 0]
    queue, told = backlog.queue(report=True)
    assert numbers(told) == [2, 0] and queue.judged == ()
    assert backlog.report() == [] == make_backlog(queue=queue).report()


def test_no_picture_is_taken_while_a_batch_is_with_the_trainer():
    backlog = dispatched(3)
    for position in (0, 1):
        finish(backlog, position, KEPT)
    assert take_now(backlog) == [0, 1]
    with pytest.raises(AssertionError, match="a batch is being trained on"):
        backlog.queue(report=False)
    backlog.release(2)
    with pytest.raises(AssertionError, match="a batch is being trained on"):
        backlog.queue(report=False)
    backlog.trained()
    assert [entry.prompt.group for entry in picture(backlog).entries] == [2]


def test_a_resumed_ledger_goes_on_with_the_next_position():
    open_group = OpenGroup(prompt=make_prompt(4))
    backlog = make_backlog(queue=Queue(next=9, entries=(open_group,)))
    with pytest.raises(AssertionError, match="8 was dispatched before"):
        backlog.dispatch(make_prompt(8))
    backlog.dispatch(make_prompt(9))
    with pytest.raises(AssertionError, match="9 was dispatched before"):
        backlog.dispatch(make_prompt(9))
    assert [entry.prompt.group for entry in picture(backlog).entries] == [4, 9]
    assert picture(backlog).next == 10


def test_broken_promises_are_caught_where_they_are_made():
    backlog = dispatched(4)
    with pytest.raises(AssertionError, match="staleness bound"):
        backlog.dispatch(make_prompt(4))
    with pytest.raises(AssertionError, match="0/0 was not sampled"):
        judge(backlog, 0, KEPT, [0])
    sample(backlog, 0, [0])
    with pytest.raises(AssertionError, match="0/0 was sampled twice"):
        sample(backlog, 0, [0])
    with pytest.raises(AssertionError):
        sample(backlog, 0, [G])
    judge(backlog, 0, KEPT, [0])
    with pytest.raises(AssertionError, match="0/0 was judged twice"):
        judge(backlog, 0, KEPT, [0])
    finish(backlog, 1, KEPT)
    with pytest.raises(AssertionError, match="group 1 is finished"):
        sample(backlog, 1, [0])
    with pytest.raises(KeyError):
        sample(backlog, 7, [0])
    with pytest.raises(AssertionError, match="no batch"):
        backlog.trained()
    with pytest.raises(AssertionError):
        backlog.release(1)


def test_a_trainer_without_a_batch_stalls_with_what_it_waited_for():
    backlog = dispatched(4, groups_per_batch=3, stall_s=0.02)
    finish(backlog, 0, KEPT)
    finish(backlog, 2, KEPT)
    sample(backlog, 1)
    judge(backlog, 1, KEPT, [1])
    sample(backlog, 3)
    words = (
        r"trainer waited 0.0\d+ s for a batch: 2 of 3 groups ready, oldest pending group 1, "
        r"3 completions with the verifier, 4 of 6 outstanding"
    )
    with pytest.raises(Stalled, match=words):
        backlog.take_batch()


def test_a_generator_without_room_stalls_with_who_holds_it():
    backlog = dispatched(2, max_lag=0, stall_s=0.02)
    for position in (0, 1):
        finish(backlog, position, KEPT)
    backlog.take_batch()
    words = r"generator waited .* for room for a group: .* 2 of 2 outstanding, 2 of these with the"
    with pytest.raises(Stalled, match=words):
        backlog.wait_admission()


def results_of_waiters(backlog, wake):
    """What a waiting trainer and a waiting generator get when `wake` is called."""
    results = {}

    def call(name, method):
        try:
            results[name] = method()
        except Exception as exception:
            results[name] = exception

    threads = [
        threading.Thread(target=call, args=("trainer", backlog.take_batch)),
        threading.Thread(target=call, args=("generator", backlog.wait_admission)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    wake()
    for thread in threads:
        thread.join(2)
        assert not thread.is_alive(), "a waiter slept on"
    return results["trainer"], results["generator"]


def test_a_death_anywhere_wakes_every_waiter_with_its_cause():
    backlog = dispatched(4)
    sample(backlog, 0)
    first = RuntimeError("the verifier died")
    assert results_of_waiters(backlog, lambda: backlog.fail(first)) == (first, first)
    backlog.fail(RuntimeError("the generator died of it"))
    for call in (
        lambda: backlog.dispatch(make_prompt(4)),
        backlog.take_batch,
        lambda: judge(backlog, 0, KEPT),
        lambda: backlog.is_batch_ready,
    ):
        with pytest.raises(RuntimeError, match="verifier"):
            call()


def test_stopping_wakes_every_waiter_with_nothing():
    backlog = dispatched(4)
    assert not backlog.is_stopped
    assert results_of_waiters(backlog, backlog.stop) == (None, None)
    assert backlog.is_stopped
    finish(backlog, 0, WRONG)
    assert not backlog.can_dispatch()
    for position in (1, 2):
        finish(backlog, position, KEPT)
    assert backlog.take_batch() is None
    # What finished meanwhile is for the run that goes on.
    assert take_now(make_backlog(queue=picture(backlog))) == [1, 2]


def test_release_and_giving_up_wake_a_waiting_generator_and_a_verdict_a_waiting_trainer():
    backlog = dispatched(1, groups_per_batch=1, max_lag=0)

    def wake():
        finish(backlog, 0, KEPT)
        time.sleep(0.02)
        backlog.release(1)

    batch, admitted = results_of_waiters(backlog, wake)
    assert numbers(batch) == [0]
    assert admitted is True

    backlog = dispatched(2, groups_per_batch=1, max_lag=1)
    finish(backlog, 1, KEPT)
    batch, admitted = results_of_waiters(backlog, lambda: backlog.set_aside(0))
    assert numbers(batch) == [1]
    assert admitted is True
