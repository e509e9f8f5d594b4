import math

import pytest
import torch

from datamodules.nodes.sbm import SBM
from framework.graphs.sources import GraphOptions


def ready(**kwargs):
    data = SBM(**kwargs)
    data.setup("fit")
    return data


def test_blocks_are_even_and_sizes_known_before_setup():
    data = SBM(size=503, blocks=4, features=9)
    assert (data.nodes, data.inputs, data.classes) == (503, 9, 4)
    data.setup("fit")
    counts = torch.bincount(data.graph.y)
    assert counts.max() - counts.min() <= 1
    assert [int(mask.sum()) for mask in data.graph[5:]] == [40, 40, 40, 383]


def test_edges_appear_at_the_stated_rates_inside_and_between_blocks():
    data = ready(size=600, p_in=0.08, p_out=0.02)
    i, j = data.graph.edge_index
    same = data.truth.triu(1)
    inside, outside = int(same.sum()), 600 * 599 // 2 - int(same.sum())
    hits = int((data.graph.y[i] == data.graph.y[j]).sum())
    assert abs(hits - 0.08 * inside) < 4 * math.sqrt(inside * 0.08 * 0.92)
    assert abs(len(i) - hits - 0.02 * outside) < 4 * math.sqrt(outside * 0.02 * 0.98)


def test_truth_is_sameness_of_blocks():
    data = SBM(size=40, split=(8, 8, 8))
    assert torch.equal(data.truth, data.truth.T)
    assert data.truth.diagonal().all()
    assert data.truth.sum(dim=1).unique().tolist() == [10]


def test_features_stray_from_the_centres_by_one_and_centres_by_the_separation():
    data = ready(size=4000, blocks=40, features=50, separation=3.0)
    x, y = data.graph.x, data.graph.y
    centres = torch.stack([x[y == block].mean(dim=0) for block in range(40)])
    assert (x - centres[y]).std().item() == pytest.approx(1.0, rel=0.02)
    assert centres.std().item() == pytest.approx(3.0, rel=0.07)


def test_seed_decides_everything():
    first, again, other = ready(seed=1), ready(seed=1), ready(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.graph, again.graph) if a is not None)
    assert not torch.equal(first.graph.x, other.graph.x)


def test_the_given_graph_can_be_thinned_or_replaced():
    whole = ready().graph.edge_index.shape[1]
    assert 0.2 * whole < ready(graph=GraphOptions(retained=30)).graph.edge_index.shape[1] < 0.4 * whole
    assert ready(graph=GraphOptions(source="complete")).graph.edge_index.shape[1] == 500 * 499 // 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": 1}, ["blocks", "1"]),
        ({"size": 10}, ["size", "16", "10"]),
        ({"features": 0}, ["features", "0"]),
        ({"separation": -1}, ["separation", "-1"]),
        ({"p_in": 1.5}, ["p_in", "1.5"]),
        ({"p_out": float("nan")}, ["p_out", "nan"]),
    ],
)
def test_bad_input_is_named_in_one_line(options, words):
    with pytest.raises(ValueError, match=r".") as caught:
        SBM(**options)
    for word in words:
        assert word in str(caught.value)
