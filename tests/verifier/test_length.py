import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.verifier.length import length_reward


@pytest.mark.parametrize(
    ("tokens", "reward"),
    [(0, 0), (80, 0), (81, -0.1 / 20), (90, -0.05), (100, -0.1), (101, -0.1), (10**9, -0.1)],
)
def test_the_penalty_is_the_papers(tokens, reward):
    l_max, l_cache = 100, 20
    got = length_reward(tokens, soft_tokens=l_max - l_cache, max_tokens=l_max)
    assert got == pytest.approx(reward)


def test_without_a_cache_it_is_a_step():
    assert length_reward(10, soft_tokens=10, max_tokens=10) == 0
    assert length_reward(11, soft_tokens=10, max_tokens=10) == -0.1


@given(st.integers(0, 300), st.integers(0, 100), st.integers(0, 100), st.floats(0, 2))
def test_it_never_pays_and_longer_is_never_cheaper(tokens, soft, cache, penalty):
    def reward(n: int) -> float:
        return length_reward(n, soft_tokens=soft, max_tokens=soft + cache, penalty=penalty)

    assert -penalty <= reward(tokens + 1) <= reward(tokens) <= 0
