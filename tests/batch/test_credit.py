import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.batch.credit import advantages, center, token_shares

lengths_by_group = st.lists(
    st.lists(st.integers(1, 500), min_size=2, max_size=8), min_size=1, max_size=12
)


def f32(*values):
    return np.array(values, np.float32)


def test_centering_uses_the_group_mean():
    np.testing.assert_allclose(center(f32(1, 0, 0, 1)), [0.5, -0.5, -0.5, 0.5])


@given(st.floats(-2, 2, width=32), st.integers(2, 64))
def test_equal_rewards_center_to_exactly_zero(reward, size):
    assert not center(np.full(size, reward, np.float32)).any()


def test_minibatch_advantages_are_the_papers_formula():
    """Written out: subtract each group's mean, then whiten over all five completions alike."""
    a, b, c, d, e = 1 - 0.5, 0 - 0.5, 1 - 1 / 3, 0 - 1 / 3, 0 - 1 / 3
    spread = ((a**2 + b**2 + c**2 + d**2 + e**2) / 5) ** 0.5
    got = advantages([f32(1, 0), f32(1, 0, 0)], "minibatch")
    np.testing.assert_allclose(got[0], [a / spread, b / spread], rtol=1e-5)
    np.testing.assert_allclose(got[1], [c / spread, d / spread, e / spread], rtol=1e-5)


def test_minibatch_advantages_have_mean_zero_and_spread_one():
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 9, 20)
    got = advantages([rng.normal(3, 7, n).astype(np.float32) for n in sizes], "minibatch")
    assert [len(group) for group in got] == sizes.tolist()
    assert {group.dtype for group in got} == {np.dtype(np.float32)}
    everyone = np.concatenate(got)
    np.testing.assert_allclose([everyone.mean(), everyone.std()], [0, 1], atol=1e-6)


def test_group_rule_whitens_each_group_by_itself():
    quiet, loud = advantages([f32(0, 0.1), f32(0, 5, 10)], "group")
    np.testing.assert_allclose(quiet, [-1, 1], rtol=1e-6)
    np.testing.assert_allclose(loud, [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-6)


def test_no_rule_only_centers():
    got = advantages([f32(0, 0.5), f32(0, 4)], "none")
    np.testing.assert_allclose(np.concatenate(got), [-0.25, 0.25, -2, 2])


@pytest.mark.parametrize("rule", ["minibatch", "group"])
def test_dividing_by_no_spread_is_refused(rule):
    with pytest.raises(ValueError, match="no gradient"):
        advantages([f32(0.1, 0.1, 0.1), f32(1, 1)], rule)


def weighed(shares, lengths):
    """Each completion's part of the loss."""
    return [
        [share * length for share, length in zip(*of_group, strict=True)]
        for of_group in zip(shares, lengths, strict=True)
    ]


@given(lengths_by_group, st.sampled_from(["group", "batch", "sequence"]))
def test_shares_sum_to_one_over_the_minibatch(lengths, rule):
    total = sum(map(sum, weighed(token_shares(lengths, rule), lengths)))
    assert total == pytest.approx(1)


@given(lengths_by_group)
def test_completions_count_alike_by_sequence_and_tokens_by_constant(lengths):
    count = sum(map(len, lengths))
    for of_group in weighed(token_shares(lengths, "sequence"), lengths):
        assert of_group == pytest.approx([1 / count] * len(of_group))
    shares = token_shares(lengths, "constant", longest=50)
    assert {share for of_group in shares for share in of_group} == {1 / (count * 50)}


def test_group_rule_gives_groups_an_equal_say_and_batch_rule_gives_tokens_one():
    lengths = [[1, 1], [10, 10]]
    assert token_shares(lengths, "group") == [[1 / 4] * len(lengths[0]), [1 / 40] * len(lengths[1])]
    assert token_shares(lengths, "batch") == [[1 / 22] * len(of_group) for of_group in lengths]
