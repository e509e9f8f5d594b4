"""Costs: one positive number an item, found through what data sets are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from framework.active.costs import cost_field, costs_of


class Texts(Dataset):
    def __init__(self, words) -> None:
        self.words = words

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i):
        raise AssertionError("costs must not decode items")


@pytest.mark.parametrize("words", [[4, 1, 7], np.array([4, 1, 7], np.int32), torch.tensor([4, 1, 7])])
def test_costs_are_found_through_subsets_and_concatenations(words):
    data = ConcatDataset([Subset(Texts(words), [2, 0]), Texts(words)])
    costs = costs_of(Subset(data, [4, 0, 1]), "words")
    assert costs.tolist() == [7, 7, 4]
    assert costs.dtype == torch.int64


def test_a_data_set_says_in_what_its_labels_are_paid():
    paid, free = Texts([1, 2, 3]), TensorDataset(torch.zeros(2, 1))
    paid.unit = "words"
    assert cost_field(Subset(ConcatDataset([paid, Subset(paid, [0])]), [1, 3])) == "words"
    assert cost_field(free) == cost_field(ConcatDataset([paid, free])) == "items"


def test_fractions_stay_and_items_cost_one():
    assert costs_of(Texts([0.5, 1.5, 2.0]), "words").tolist() == [0.5, 1.5, 2.0]
    assert costs_of(Texts(None)).tolist() == [1, 1, 1]


def test_a_column_is_a_cost_too():
    class Columns(Texts):
        column_names = ["words", "text"]

        def __init__(self) -> None: ...

        def __getitem__(self, name):
            return {"words": [1, 2, 3]}[name]

    assert costs_of(Columns(), "words").tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([1, 0, 2], "'words' of Texts must be positive and finite, got 0 for item 1"),
        ([1.0, 2.0, float("nan")], "must be positive and finite, got nan for item 2"),
        ([1.0, float("inf"), 2.0], "must be positive and finite, got inf for item 1"),
        ([1, 2], r"must hold one number an item, got torch.int64 of shape \(2,\) for 3 items"),
        (["a", "b", "c"], "must hold numbers, got list"),
        (None, "Texts has no attribute 'words'; use 'items', or give"),
    ],
)
def test_what_is_no_cost_is_refused(words, message):
    with pytest.raises(ValueError, match=f"^cost: .*{message}"):
        costs_of(Texts(words), "words")
    with pytest.raises(ValueError, match=r"^cost: TensorDataset has no attribute 'words'"):
        costs_of(Subset(TensorDataset(torch.ones(3)), [1]), "words")
