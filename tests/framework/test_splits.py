"""Splits are disjoint, complete, exact in size, reproducible, and stratified when asked."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from framework.splits import check_shares, split_indices, split_sizes


@given(st.integers(1, 500), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 3))
def test_parts_are_a_partition_of_exact_sizes(count, weights, seed):
    shares = [weight / sum(weights) for weight in weights]
    assume(min(share * count for share in shares) >= 1)
    parts = split_indices(count, shares, seed)
    assert torch.cat(parts).sort().values.tolist() == list(range(count))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - count * share) < 1
    again = split_indices(count, shares, seed)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


@given(st.lists(st.integers(0, 4), min_size=20, max_size=300), st.integers(0, 3))
def test_stratified_parts_have_their_share_of_every_class(labels, seed):
    y, shares = torch.tensor(labels), (0.6, 0.25, 0.15)
    for part, share in zip(split_indices(len(y), shares, seed, y), shares, strict=True):
        for label in y.unique():
            assert abs(int((y[part] == label).sum()) - share * int((y == label).sum())) < 3


def test_seeds_differ():
    assert not torch.equal(split_indices(100, (0.5, 0.5), 0)[0], split_indices(100, (0.5, 0.5), 1)[0])


def test_largest_remainders_first():
    assert split_sizes(10, (0.34, 0.33, 0.33)) == [4, 3, 3]
    assert split_sizes(11, (0.25, 0.75)) == [3, 8]


@pytest.mark.parametrize("shares", [(), (0.5, 0.4), (1.2, -0.2), (1.0, 0.0)])
def test_bad_shares(shares):
    with pytest.raises(ValueError, match="split must be positive shares that sum to 1"):
        check_shares(shares)


def test_a_part_without_an_item_and_labels_of_another_length():
    with pytest.raises(ValueError, match="leaves a part of 3 items empty"):
        split_indices(3, (0.9, 0.1), 0)
    with pytest.raises(ValueError, match="2 labels for 3 items"):
        split_indices(3, (0.5, 0.5), 0, torch.zeros(2))
