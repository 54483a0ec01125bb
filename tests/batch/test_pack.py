"""What must hold for every packing, whatever the lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_jax.batch.pack import pack
from magistral_jax.types import UserError

ROW = 64
lengths = st.lists(st.integers(1, ROW), max_size=40)


def naive_first_fit_decreasing(lengths, row_tokens):
    rows = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row in rows:
            if sum(lengths[i] for i in row) + lengths[item] <= row_tokens:
                row.append(item)
                break
        else:
            rows.append([item])
    return rows


@given(lengths)
def test_it_is_first_fit_decreasing(lengths):
    assert pack(lengths, ROW) == naive_first_fit_decreasing(lengths, ROW)


@given(lengths)
def test_every_item_lands_in_exactly_one_row(lengths):
    placed = [item for row in pack(lengths, ROW) for item in row]
    assert sorted(placed) == list(range(len(lengths)))


@given(lengths)
def test_no_row_overflows(lengths):
    assert all(sum(lengths[i] for i in row) <= ROW for row in pack(lengths, ROW))


@given(lengths)
def test_at_most_one_row_is_under_half_full(lengths):
    """Two half-empty rows would have been merged: the waste bound that packing exists for."""
    fills = [sum(lengths[i] for i in row) for row in pack(lengths, ROW)]
    assert sum(fill <= ROW // 2 for fill in fills) <= 1


def test_longest_first_saves_a_row():
    """In arrival order 20 + 20 share a row and each 44 needs its own: three rows, not two."""
    assert pack([20, 20, 44, 44], ROW) == [[2, 0], [3, 1]]


def test_an_item_longer_than_a_row_names_the_knobs_to_turn():
    with pytest.raises(UserError, match=r"sequence 1 takes 65 positions.*Raise batch.row_tokens"):
        pack([3, 65], ROW)
