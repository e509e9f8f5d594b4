"""The pool: labelled and left are disjoint and complete, costs add up, mistakes are refused before anything changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strangers import counting, numbers

from framework.active.pool import LabelledItems, LabelPool
from framework.loaders import World


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_labelled_and_left_are_disjoint_and_complete_and_costs_add_up(costs, random):
    pool = LabelPool(torch.tensor(costs))
    bought: dict[int, int] = {}
    for number in range(4):
        left = [i for i in range(len(costs)) if i not in bought]
        chosen = random.sample(left, random.randint(0, len(left)))
        pool.label(chosen, number)
        bought |= dict.fromkeys(chosen, number)
        assert pool.bought.tolist() == sorted(bought)
        assert sorted(pool.bought.tolist() + pool.left.tolist()) == list(range(len(costs)))
        assert pool.cost_bought == sum(costs[i] for i in bought)
        assert pool.share == pool.cost_bought / sum(costs)
    assert pool.acquired_round.tolist() == [bought.get(i, -1) for i in range(len(costs))]
    assert pool.acquired_round.dtype == torch.int32


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([1, 4], r"item 4 is labelled already, since round 2"),
        ([1, 5], r"indices must be in \[0, 5\), got 5"),
        ([-1], r"indices must be in \[0, 5\), got -1"),
        ([1, 0, 1], "indices must be different, got 1 twice"),
    ],
)
def test_what_cannot_be_labelled_changes_nothing(indices, message):
    pool = LabelPool(torch.ones(5))
    pool.label([4], 2)
    with pytest.raises(ValueError, match=message):
        pool.label(indices, 3)
    assert pool.acquired_round.tolist() == [-1, -1, -1, -1, 2]
    with pytest.raises(ValueError, match="round must be at least 0, got -1"):
        pool.label([0], -1)


def test_amounts_are_units_or_shares():
    pool = LabelPool(torch.tensor([10, 30]))
    assert pool.units(1) == 1
    assert pool.units(25) == 25
    assert pool.units(0.25) == 10


def test_state_goes_through_a_checkpoint_and_only_to_the_same_data(tmp_path):
    pool = LabelPool(torch.tensor([1, 2, 3]))
    pool.label([2], 0)
    state = pool.state_dict()
    pool.label([0], 1)
    assert state["acquired_round"].tolist() == [-1, -1, 0]  # a copy
    torch.save(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    again = LabelPool(torch.tensor([1, 2, 3]))
    again.load_state_dict(state)
    again.label([1], 1)
    assert state["acquired_round"].tolist() == [-1, -1, 0]
    with pytest.raises(ValueError, match="the checkpoint's pool has 3 items, these data have 4"):
        LabelPool(torch.ones(4)).load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint's pool has 6 units of cost, these data have 3"):
        LabelPool(torch.ones(3)).load_state_dict(state)


def test_few_labelled_items_still_make_a_batch():
    loader = counting(20, drop_last=True)  # batches of 4
    assert numbers(LabelledItems([3, 7]).apply(loader, World())) == [3, 7]
    assert numbers(LabelledItems(range(6)).apply(loader, World())) == [0, 1, 2, 3]
    # Two ranks get three items each: none would make a batch.
    assert not LabelledItems(range(6)).apply(loader, World(0, 2)).drop_last
    assert LabelledItems(range(8)).apply(loader, World(0, 2)).drop_last
