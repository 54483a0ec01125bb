"""From groups to arrays: what is trained on, where it lies, and how much it counts."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.batch.assemble import (
    Control,
    assemble,
    assemble_minibatch,
    laid_out,
    permuted_rewards,
)
from magistral_jax.batch.credit import AdvantageRule, ShareRule
from magistral_jax.types import Completion, Group, Problem, Prompt, Verdict, VersionSpan

STOP = 2
by_the_paper = partial(assemble_minibatch, advantage_rule="minibatch", share_rule="group")


def make_completion(prompt, index, tokens, *, sampled=None):
    tokens = np.asarray(tokens, np.int32)
    return Completion(
        group=prompt.group,
        index=index,
        prompt=prompt.tokens,
        tokens=tokens,
        logprobs=-0.01 * (1 + np.arange(len(tokens), dtype=np.float32)),
        sampled=np.ones(len(tokens), bool) if sampled is None else np.asarray(sampled, bool),
        spans=(VersionSpan(start=0, version=0),),
        finish="stop" if tokens[-1] == STOP else "length",
    )


def make_group(group, prompt, answers, rewards, *, sampled=None):
    """A reward of None is a check that failed."""
    problem = Problem(id=str(group), domain="math", question="", answer="")
    prompt = Prompt(group=group, problem=problem, tokens=np.asarray(prompt, np.int32))
    sampled = sampled or [None] * len(answers)
    return Group(
        prompt=prompt,
        completions=tuple(
            make_completion(prompt, i, tokens, sampled=sampled[i])
            for i, tokens in enumerate(answers)
        ),
        verdicts=tuple(
            Verdict(reward=0.0, parts={}, reason="error")
            if reward is None
            else Verdict(reward=reward, parts={}, reason="pass" if reward > 0 else "wrong")
            for reward in rewards
        ),
    )


@st.composite
def drawn_groups(draw):
    """Arguments of make_group: any lengths, with failed checks and tokens not sampled.

    The groups are made inside the test: beartype spends randomness, which hypothesis forbids here.
    """

    def exactly(n, values):
        return draw(st.lists(values, min_size=n, max_size=n))

    drawn = []
    for group in range(draw(st.integers(1, 4))):
        size = draw(st.integers(3, 5))
        lengths = exactly(size, st.integers(1, 12))
        rewards = [1.0, 0.0, *exactly(size - 2, st.sampled_from([0.0, 1.0, None]))]
        sampled = [[True, *exactly(n - 1, st.booleans())] for n in lengths]
        answers = [list(range(100 * group + 10, 100 * group + 10 + n)) for n in lengths]
        prompt = list(range(5, 5 + draw(st.integers(1, 6))))
        drawn.append((group, prompt, answers, rewards, sampled))
    return drawn


def make_groups(drawn):
    return [make_group(*arguments, sampled=sampled) for *arguments, sampled in drawn]


def segments_of(minibatch):
    """(microbatch, row, columns) of every sequence."""
    for microbatch in minibatch.microbatches:
        for row, ids in enumerate(microbatch.segments):
            for segment in range(1, int(ids.max()) + 1):
                yield microbatch, row, np.flatnonzero(ids == segment)


def valid_completions(groups):
    return [g.completions[i] for g in groups for i in g.valid]


def test_a_row_looks_like_the_picture_in_arrays():
    """Prompt "P p" answered "a b ." and, in another group, prompt "Q" answered "c ."."""
    P, p, a, b, Q, c, dot = 11, 12, 13, 14, 15, 16, STOP
    groups = [
        make_group(0, [P, p], [[a, b, dot], [a]], [1.0, 0.0]),
        make_group(1, [Q], [[c, dot], [c]], [0.0, 1.0]),
    ]
    minibatch = assemble_minibatch(
        groups, row_tokens=6, rows=2, advantage_rule="none", share_rule="group"
    )
    (m,) = minibatch.microbatches
    first, second = 1 / (2 * 4), 1 / (2 * 3)
    np.testing.assert_array_equal(m.inputs, [[P, p, a, b, P, p], [Q, c, Q, 0, 0, 0]])
    np.testing.assert_array_equal(m.targets, [[p, a, b, dot, p, a], [c, dot, c, 0, 0, 0]])
    np.testing.assert_array_equal(m.positions, [[0, 1, 2, 3, 0, 1], [0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(m.segments, [[1, 1, 1, 1, 2, 2], [1, 1, 2, 0, 0, 0]])
    np.testing.assert_allclose(
        m.shares, [[0, first, first, first, 0, first], [second, second, second, 0, 0, 0]], 1e-6
    )
    np.testing.assert_allclose(
        m.advantages, [[0, 0.5, 0.5, 0.5, 0, -0.5], [-0.5, -0.5, 0.5, 0, 0, 0]]
    )
    np.testing.assert_allclose(
        m.behavior_logprobs,
        [[0, -0.01, -0.02, -0.03, 0, -0.01], [-0.01, -0.02, -0.01, 0, 0, 0]],
        rtol=1e-6,
    )
    assert minibatch.padding == pytest.approx(3 / 12)


@given(drawn_groups(), st.integers(1, 3), st.sampled_from(["group", "batch"]))
def test_shares_sum_to_one_over_a_minibatch(drawn, rows, rule):
    groups = make_groups(drawn)
    minibatch = assemble_minibatch(
        groups, row_tokens=24, rows=rows, advantage_rule="minibatch", share_rule=rule
    )
    total = sum(m.shares.sum(dtype=np.float64) for m in minibatch.microbatches)
    assert total == pytest.approx(1, abs=1e-6)


@given(drawn_groups(), st.integers(1, 3))
def test_shapes_are_static_and_padding_counts_every_empty_position(drawn, rows):
    groups = make_groups(drawn)
    minibatch = by_the_paper(groups, row_tokens=24, rows=rows)
    (shape,) = {m.inputs.shape for m in minibatch.microbatches}
    assert shape in {(rows, 24), (2 * rows, 12), (4 * rows, 6)}
    for m in minibatch.microbatches:
        for name, array in vars(m).items():
            floating = name in {"behavior_logprobs", "advantages", "shares"}
            assert array.shape == shape, name
            assert array.dtype == (np.float32 if floating else np.int32), name
            if name not in {"segments", "positions"}:
                assert not array[m.segments == 0].any(), name
    assert all(m.segments.any() for m in minibatch.microbatches)
    used = sum(len(c.prompt) + len(c.tokens) - 1 for c in valid_completions(groups))
    total = len(minibatch.microbatches) * rows * 24
    assert minibatch.padding == pytest.approx(1 - used / total)


@given(drawn_groups(), st.integers(1, 3))
def test_exactly_the_valid_completions_are_trained_whole(drawn, rows):
    """Nothing is filtered by length or cut: trained token records equal sampled ones."""
    groups = make_groups(drawn)
    minibatch = by_the_paper(groups, row_tokens=24, rows=rows)
    got = Counter()
    for m, row, columns in segments_of(minibatch):
        np.testing.assert_array_equal(m.positions[row, columns], np.arange(len(columns)))
        np.testing.assert_array_equal(m.inputs[row, columns][1:], m.targets[row, columns][:-1])
        sequence = (m.inputs[row, columns[0]], *m.targets[row, columns])
        got[sequence, tuple(m.shares[row, columns] > 0)] += 1
    want = Counter(
        (
            (*c.prompt.tolist(), *c.tokens.tolist()),
            (*[False] * (len(c.prompt) - 1), *c.sampled.tolist()),
        )
        for c in valid_completions(groups)
    )
    assert got == want


@given(drawn_groups())
def test_trained_lengths_are_the_sampled_lengths(drawn):
    groups = make_groups(drawn)
    minibatch = by_the_paper(groups, row_tokens=24, rows=2)
    trained = Counter(
        int((m.shares[row, columns] > 0).sum()) for m, row, columns in segments_of(minibatch)
    )
    assert trained == Counter(int(c.sampled.sum()) for c in valid_completions(groups))


@given(drawn_groups())
def test_tokens_argumentsto_the_policy_carry_no_loss_and_no_logprob(drawn):
    groups = make_groups(drawn)
    minibatch = by_the_paper(groups, row_tokens=24, rows=2)
    for m in minibatch.microbatches:
        assert not m.behavior_logprobs[m.shares == 0].any()
        assert not m.advantages[m.shares == 0].any()
        assert (m.behavior_logprobs[m.shares > 0] < 0).all()


@pytest.mark.parametrize(
    "places, shape",
    [
        ([24], (2, 24)),  # the longest sequence needs the whole row
        ([14, 2, 2], (2, 24)),
        ([12, 12, 12], (4, 12)),
        ([6] * 8, (8, 6)),
        ([2] * 8, (8, 6)),  # 6 is odd when halved: no row of 3
        # Rows of 12 hold one each and cost 16 rows of 12; rows of 24 hold three and cost 6 of 24.
        ([8] * 16, (2, 24)),
    ],
)
def test_short_sequences_are_laid_in_short_rows_where_that_costs_less(places, shape):
    packed, rows, row_tokens = laid_out(places, 2, 24)
    assert (rows, row_tokens) == shape
    assert sorted(item for row in packed for item in row) == list(range(len(places)))
    assert all(sum(places[item] for item in row) <= row_tokens for row in packed)


def test_the_stop_token_carries_loss_and_its_own_logprob():
    group = make_group(0, [7, 8], [[9, 9, STOP], [9, 9]], [1.0, 0.0])
    (m,) = by_the_paper([group], row_tokens=8, rows=1).microbatches
    (place,) = np.argwhere(m.targets == STOP)
    assert m.shares[tuple(place)] == pytest.approx(1 / 5)
    assert m.behavior_logprobs[tuple(place)] == pytest.approx(-0.03)


def test_an_errored_completion_moves_neither_advantages_nor_shares():
    answers = [[9, STOP], [9, 9, 9], [9]]
    with_error = make_group(0, [7], [*answers, [66, 66]], [1.0, 0.0, 0.0, None])
    without = make_group(0, [7], answers, [1.0, 0.0, 0.0])
    ours, theirs = (
        by_the_paper([g], row_tokens=8, rows=1).microbatches for g in (with_error, without)
    )
    for mine, other in zip(ours, theirs, strict=True):
        for name, array in vars(mine).items():
            np.testing.assert_array_equal(array, getattr(other, name))


@given(drawn_groups())
def test_advantages_have_mean_zero_and_spread_one_over_completions(drawn):
    groups = make_groups(drawn)
    minibatch = by_the_paper(groups, row_tokens=24, rows=2)
    per_completion = [
        m.advantages[row, columns][m.shares[row, columns] > 0].max()
        for m, row, columns in segments_of(minibatch)
    ]
    np.testing.assert_allclose([np.mean(per_completion), np.std(per_completion)], [0, 1], atol=1e-5)


def make_batch(
    groups,
    *,
    control: Control = "none",
    advantage_rule: AdvantageRule = "minibatch",
    share_rule: ShareRule = "group",
):
    return assemble(
        groups,
        groups_per_minibatch=2,
        row_tokens=16,
        rows=2,
        advantage_rule=advantage_rule,
        share_rule=share_rule,
        control=control,
        seed=0,
        version=3,
    )


def four_groups():
    return [
        make_group(
            i, [7], [[10 * i + 10 + j] * (j + 1) for j in range(6)], [1.0, 0.0, 0.0, 0.5, 0.25, 0.0]
        )
        for i in range(4)
    ]


def test_a_batch_keeps_dispatch_order_and_cuts_it_into_minibatches():
    groups = four_groups()
    batch = make_batch(groups)
    assert batch.groups == tuple(groups)
    assert (batch.version, batch.lag_max) == (3, 3)
    tens = [
        {int(t) // 10 - 1 for m in mb.microbatches for t in m.targets[m.shares > 0]}
        for mb in batch.minibatches
    ]
    assert tens == [{0, 1}, {2, 3}]
    for minibatch in batch.minibatches:
        assert sum(m.shares.sum() for m in minibatch.microbatches) == pytest.approx(1)


def test_a_batch_of_parts_of_minibatches_is_refused():
    with pytest.raises(AssertionError):
        make_batch(four_groups()[:3])


@pytest.mark.parametrize("advantage_rule, share_rule", [("none", "group"), ("minibatch", "batch")])
def test_a_batch_gives_credit_by_the_rules_it_is_told(advantage_rule, share_rule):
    groups = four_groups()
    groups[1] = make_group(1, [7], [[20] * 9, [21]], [1.0, 0.0])
    batch = make_batch(groups, advantage_rule=advantage_rule, share_rule=share_rule)
    want = assemble_minibatch(
        groups[:2], row_tokens=16, rows=2, advantage_rule=advantage_rule, share_rule=share_rule
    )
    for got, same in zip(batch.minibatches[0].microbatches, want.microbatches, strict=True):
        np.testing.assert_array_equal(got.advantages, same.advantages)
        np.testing.assert_array_equal(got.shares, same.shares)


def test_permuted_rewards_keep_each_groups_multiset_and_depend_on_seed_and_group():
    groups = four_groups()
    orders = [tuple(permuted_rewards(g, seed).tolist()) for g in groups for seed in range(3)]
    assert all(sorted(order) == [0, 0, 0, 0.25, 0.5, 1] for order in orders)
    assert len(set(orders)) > 6
    assert orders == [tuple(permuted_rewards(g, s).tolist()) for g in groups for s in range(3)]


def test_the_control_permutes_rewards_before_advantages_and_only_among_valid_completions():
    def advantage_by_token(batch):
        return {
            int(token): float(advantage)
            for mb in batch.minibatches
            for m in mb.microbatches
            for token, advantage in zip(
                m.targets[m.shares > 0], m.advantages[m.shares > 0], strict=True
            )
        }

    groups = four_groups()
    groups[0] = make_group(
        0, [7], [[10 + j] * (j + 1) for j in range(6)], [1.0, 0.0, None, 0.5, 0.25, 0.0]
    )
    plain = advantage_by_token(make_batch(groups))
    control = advantage_by_token(make_batch(groups, control="permute_rewards"))
    assert plain.keys() == control.keys() and 12 not in plain
    assert plain != control
    for group in range(4):
        tokens = [t for t in plain if t // 10 - 1 == group]
        np.testing.assert_allclose(
            sorted(plain[t] for t in tokens), sorted(control[t] for t in tokens), atol=1e-6
        )
