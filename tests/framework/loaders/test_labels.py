"""Labels without decoding an item, wherever a data set keeps them."""

from __future__ import annotations

import pytest
import torch
from strangers import Stream, TokenisedTexts
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from framework.loaders.labels import labels_of


def test_labels_without_decoding():
    class Images(Dataset):
        targets = [2, 0, 1]

        def __getitem__(self, i):
            raise AssertionError("an item was decoded")

        def __len__(self):
            return 3

    pair = TensorDataset(torch.zeros(4, 2), torch.tensor([1, -1, 0, 2], dtype=torch.int32))
    assert labels_of(Images()).tolist() == [2, 0, 1]
    assert labels_of(pair).tolist() == [1, -1, 0, 2]
    assert labels_of(pair).dtype == torch.int64
    assert labels_of(Subset(Subset(pair, [3, 2, 1]), [0, 2])).tolist() == [2, -1]
    assert labels_of(ConcatDataset([pair, Images()])).tolist() == [1, -1, 0, 2, 2, 0, 1]
    assert labels_of(TokenisedTexts(4)).tolist() == [0, 1, 2, 0]
    assert labels_of([{"x": 1.0, "label": 3}, {"x": 2.0, "label": 5}]).tolist() == [3, 5]
    assert labels_of([(torch.zeros(2), 3), (torch.zeros(2), 5)]).tolist() == [3, 5]
    triple = TensorDataset(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([[4], [6]]))
    assert labels_of(triple, field=2).tolist() == [4, 6]


def test_labels_of_columns():
    class Columns:
        """As ``datasets.Dataset``: a column comes by its name, lazily."""

        column_names = ["text", "label", "other"]

        def __getitem__(self, key):
            return {"label": LazyColumn([1, 0]), "other": LazyColumn([7, 8])}[key]

        def __len__(self):
            return 2

    class LazyColumn:
        def __init__(self, values):
            self.values = values

        def __getitem__(self, key):
            return self.values[key]

    assert labels_of(Columns()).tolist() == [1, 0]
    assert labels_of(Columns(), field="other").tolist() == [7, 8]


def test_labels_of_a_torch_geometric_data_set(tmp_path):
    from torch_geometric.data import Data, InMemoryDataset

    class Graphs(InMemoryDataset):
        def __init__(self):
            super().__init__(None)
            self.data, self.slices = self.collate([Data(x=torch.zeros(2, 1), y=torch.tensor([k])) for k in (2, 0, 1)])

    assert labels_of(Graphs()).tolist() == [2, 0, 1]
    assert labels_of(Graphs()[[2, 1]]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Stream(), TypeError, "Stream is an IterableDataset"),
        (TensorDataset(torch.zeros(2), torch.zeros(2), torch.zeros(2)), TypeError, "TensorDataset of 3 tensors"),
        (
            TensorDataset(torch.zeros(2, 1), torch.zeros(2)),
            ValueError,
            "one integer per item, but tensor 1 holds torch.fl",
        ),
        (TensorDataset(torch.zeros(2), torch.zeros(2, 5).long()), ValueError, r"shape \(2, 5\) for 2 items"),
        ([1, 2], TypeError, "items of type int have no labels"),
        ([{"label": "dog"}], ValueError, "holds strings such as 'dog'"),
        (type("Opaque", (Dataset,), {"__len__": lambda self: 1})(), TypeError, "Opaque has no labels .* targets"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_labels_that_cannot_be_known(dataset, error, message):
    with pytest.raises(error, match=message):
        labels_of(dataset)
