import pytest
import torch

from framework.graphs.baselines import BASELINES, sklearn_baseline, tune_baseline
from framework.graphs.batch import NodeBatch


def blobs(nodes=120, distance=6.0, sparse=False):
    """Three well separated clouds; masks cover every class."""
    y = torch.arange(nodes) % 3
    random = torch.Generator().manual_seed(0)
    x = distance * torch.eye(3)[y] + torch.randn(nodes, 3, generator=random)
    order = torch.arange(nodes) // 3  # position within the class
    masks = [order < 5, (order >= 5) & (order < 8), (order >= 8) & (order < 11), order >= 11]
    x = x.clamp(min=1.0) - 1.0
    empty = torch.empty(2, 0, dtype=torch.long)
    return NodeBatch(x.to_sparse() if sparse else x, y, empty, torch.empty(0), None, *masks).check()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("sparse", [False, True])
def test_separated_classes_are_learned_from_five_labels_each(name, sparse):
    assert sklearn_baseline(name, blobs(sparse=sparse)) > 0.9


@pytest.mark.parametrize("name", BASELINES)
def test_test_labels_reach_only_the_score(name):
    batch = blobs(distance=1.5)
    wrong = torch.where(batch.test, (batch.y + 1) % 3, batch.y)
    told, lied = tune_baseline(name, batch), tune_baseline(name, batch._replace(y=wrong))
    assert (told.selection, told.parameters) == (lied.selection, lied.parameters)
    assert told.test + lied.test <= 1 + 1e-9  # the same predictions cannot be right about both


@pytest.mark.parametrize("name", BASELINES)
def test_selection_labels_do_not_train(name):
    batch = blobs(distance=1.5)
    unlabelled = torch.where(batch.val | batch.stop, (batch.y + 1) % 3, batch.y)
    told, lied = tune_baseline(name, batch), tune_baseline(name, batch._replace(y=unlabelled))
    if told.parameters == lied.parameters:
        assert told.test == lied.test


def test_the_same_seed_gives_the_same_score():
    batch = blobs(distance=1.5)
    assert tune_baseline("random_forest", batch, 3) == tune_baseline("random_forest", batch, 3)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"baseline must be one of logistic_regression.*, got boosting"):
        sklearn_baseline("boosting", blobs())
