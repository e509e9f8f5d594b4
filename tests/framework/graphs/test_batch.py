import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.graphs.batch import NodeBatch, check_probability


def mask(*nodes):
    out = torch.zeros(6, dtype=torch.bool)
    out[list(nodes)] = True
    return out


@pytest.fixture
def batch():
    return NodeBatch(
        x=torch.arange(12.0).reshape(6, 2),
        y=torch.tensor([0, 1, 0, 1, 2, -1]),
        edge_index=torch.tensor([[0, 0, 2], [1, 5, 4]]),
        edge_weight=torch.tensor([1.0, 0.5, 0.0]),
        candidates=torch.tensor([[0, 0, 2, 3], [1, 5, 4, 5]]),
        train=mask(0, 1),
        val=mask(2),
        stop=mask(3),
        test=mask(4),
    )


def test_a_sound_batch_passes_whatever_its_layout(batch):
    assert batch.check() is batch
    assert (batch.nodes, batch.classes) == (6, 3)
    for x in (batch.x.to_sparse(), batch.x.to_sparse_csr()):
        batch._replace(x=x, candidates=None).check()
    batch._replace(edge_index=torch.empty(2, 0, dtype=torch.long), edge_weight=torch.empty(0)).check()


def test_a_batch_survives_pickling(batch):
    again = pickle.loads(pickle.dumps(batch))
    assert all(torch.equal(a, b) for a, b in zip(again, batch))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda b: {"x": b.x.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(NAN))},
            ["x", "nan", "node 3", "feature 1"],
        ),
        (
            lambda b: {"x": b.x.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(-INF))},
            ["x", "-inf", "node 3"],
        ),
        (lambda b: {"x": (b.x / 0).to_sparse()}, ["x", "nan", "sparse"]),
        (lambda b: {"x": (b.x.clamp(min=1) / 0).to_sparse_csr()}, ["x", "inf", "sparse"]),
        (lambda b: {"x": b.x[:5]}, ["x", "(5, 2)"]),
        (lambda b: {"x": b.x.long()}, ["x", "int64"]),
        (lambda b: {"y": b.y.float()}, ["y", "float32"]),
        (lambda b: {"y": b.y - 1}, ["y", "-2"]),
        (lambda b: {"train": mask()}, ["train", "empty"]),
        (lambda b: {"val": mask()}, ["val", "empty"]),
        (lambda b: {"stop": mask()}, ["stop", "empty"]),
        (lambda b: {"test": mask()}, ["test", "empty"]),
        (lambda b: {"test": mask(2, 4)}, ["node 2", "val", "test"]),
        (lambda b: {"test": mask(4, 5)}, ["test", "node 5", "without a label"]),
        (lambda b: {"val": mask(2).long()}, ["val", "int64"]),
        (lambda b: {"edge_index": torch.tensor([[0, 0, 2], [1, 6, 4]])}, ["edge_index", "0 to 5", "6"]),
        (lambda b: {"edge_index": torch.tensor([[-1, 0, 2], [1, 5, 4]])}, ["edge_index", "-1"]),
        (lambda b: {"edge_index": torch.tensor([[0, 5, 2], [1, 0, 4]])}, ["edge_index", "i < j", "(5, 0)"]),
        (lambda b: {"edge_index": torch.tensor([[0, 2, 2], [1, 2, 4]])}, ["edge_index", "i < j", "(2, 2)"]),
        (lambda b: {"edge_index": torch.tensor([[0, 0, 0], [1, 5, 1]])}, ["edge_index", "once", "(0, 1)"]),
        (lambda b: {"edge_index": b.edge_index.int()}, ["edge_index", "int32"]),
        (lambda b: {"edge_weight": torch.tensor([1.0, 1.5, 0])}, ["edge_weight", "[0, 1]", "1.5", "[1]"]),
        (lambda b: {"edge_weight": torch.tensor([1.0, 0, -0.1])}, ["edge_weight", "-0.1"]),
        (lambda b: {"edge_weight": torch.tensor([1.0, NAN, 0])}, ["edge_weight", "nan"]),
        (lambda b: {"edge_weight": torch.tensor([1.0])}, ["edge_weight", "3 edges"]),
        (lambda b: {"candidates": torch.tensor([[0], [9]])}, ["candidates", "9"]),
        (lambda b: {"candidates": torch.tensor([[3], [1]])}, ["candidates", "i < j"]),
    ],
)
def test_a_faulty_field_is_named_in_one_line(batch, change, words):
    with pytest.raises(ValueError, match=r".") as caught:
        batch._replace(**change(batch)).check()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@given(st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_probabilities_pass_exactly_if_all_lie_in_the_unit_interval(values):
    tensor = torch.tensor(values)
    if all(0 <= value <= 1 for value in values):
        check_probability("theta", tensor)
    else:
        with pytest.raises(ValueError, match=r"theta must lie in \[0, 1\]"):
            check_probability("theta", tensor)
