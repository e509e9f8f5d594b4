"""Scores of layers, against autograd on all data at once; and that scoring leaves no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from framework.federated.importance import KINDS, importance
from framework.federated.layer_groups import LayerGroups


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(self.norm(self.linear(x)).tanh())


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), Block(8), Block(8), Block(8), nn.Linear(8, 3))
    for _ in range(3):
        net(torch.randn(16, 5))  # running statistics that are not those of the start
    return net


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(23, 5, generator=generator), torch.randint(3, (23,), generator=generator)


def batches(data, *sizes):
    return list(zip(*(part.split(list(sizes)) for part in data), strict=True))


def loss_of(net):
    def loss(batch):
        return functional.cross_entropy(net(batch[0]), batch[1]), len(batch[1])

    return loss


def gradients(net, data, groups):
    """Gradients of the mean loss over the data in evaluation mode, by group."""
    net.eval()
    names = [name for group in groups.names for name in groups.parameters(group)]
    found = torch.autograd.grad(loss_of(net)(data)[0], [net.get_parameter(name) for name in names])
    net.train()
    by_name = dict(zip(names, found, strict=True))
    return {group: [by_name[name] for name in groups.parameters(group)] for group in groups.names}


def square(tensors):
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


@pytest.mark.parametrize("sizes", [(23,), (8, 8, 7), (1, 20, 2), (1,) * 23])
def test_the_norm_is_that_of_the_gradient_on_all_data_at_once(network, data, sizes):
    groups = LayerGroups.of(network)
    expected = [square(tensors) for tensors in gradients(network, data, groups).values()]
    parts = batches(data, *sizes)
    assert importance(network, loss_of(network), parts, groups) == pytest.approx(expected, rel=1e-5)
    assert importance(network, loss_of(network), parts[::-1], groups) == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 1e-6


def test_other_scores_follow_their_formulas(network, data):
    groups = LayerGroups.of(network)
    parts = batches(data, 8, 8, 7)
    full = gradients(network, data, groups)

    def score(kind, given=parts):
        return importance(network, loss_of(network), given, groups, kind)

    per_batch = [gradients(network, part, groups) for part in parts]
    assert score("norm_per_batch") == pytest.approx(
        [sum(square(g[name]) for g in per_batch) for name in groups.names], rel=1e-5
    )
    assert score("norm_per_batch", [data]) == pytest.approx(score("norm"), rel=1e-5)
    weights = {name: [network.get_parameter(p).detach() for p in groups.parameters(name)] for name in groups.names}
    assert score("rgn") == pytest.approx(
        [(square(full[name]) / square(weights[name])) ** 0.5 for name in groups.names], rel=1e-5
    )
    # A bias before batch norm's scale has a gradient here: in evaluation mode the statistics are fixed.
    assert score("snr") == pytest.approx(
        [sum(float(g.mean() ** 2 / g.std()) for g in full[name]) for name in groups.names], rel=1e-4
    )


def test_snr_skips_what_has_no_spread():
    net = nn.ModuleDict({"a": nn.ParameterDict({"one": torch.ones(1), "many": torch.ones(3), "idle": torch.ones(4)})})
    groups = LayerGroups.of(net, {"a": r"a\."})

    def loss(batch):
        return (net["a"]["many"] * batch).sum() + net["a"]["one"].sum(), 1

    values = torch.tensor([1.0, 2, 6])
    scores = importance(net, loss, [values], groups, "snr")
    assert scores == pytest.approx([float(values.mean() ** 2 / values.std())])
    with pytest.raises(ValueError, match="importance snr of layer a must be finite, got inf"):
        importance(net, loss, [torch.ones(3)], groups, "snr")


def test_a_layer_without_a_part_in_the_loss_scores_zero(network, data):
    groups = LayerGroups.of(network)
    shorter = nn.Sequential(*list(network)[:2], *list(network)[3:])
    scores = importance(network, loss_of(shorter.eval()), [data], groups)
    assert scores[1] == 0
    assert (scores[[0, 2]] > 0).all()


def snapshot(net):
    return {
        "weights": {name: p.detach().clone() for name, p in net.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()},
        "objects": {name: id(p.grad) for name, p in net.named_parameters() if p.grad is not None},
        "buffers": {name: (b.clone(), id(b)) for name, b in net.named_buffers()},
        "modes": [m.training for m in net.modules()],
        "flags": [p.requires_grad for p in net.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(network, data, kind, fails):
    groups = LayerGroups.of(network)
    loss_of(network)(data)[0].backward()
    network[0].weight.grad = None
    network[1].linear.bias.grad = None
    network[1].norm.eval()  # modes that differ
    network[4].bias.requires_grad_(False)
    network[2].linear.weight.requires_grad_(False)
    network.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    network.register_buffer("private", torch.ones(2), persistent=False)
    network.register_buffer("none", None)
    before = snapshot(network)
    modes = []

    def loss(batch):
        modes.append([module.training for module in network.modules()])
        network.calls += 1
        network.private = network.private * 2
        network.none = torch.rand(3)
        np.random.rand(), random.random()
        value = loss_of(network)(batch)[0]
        if fails and len(modes) == 2:
            raise KeyError("in the middle")
        (network[3].linear.weight.sum() * 0).backward()  # a loss that uses .grad
        return value, len(batch[1])

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), 8, shuffle=True)
    if fails:
        with pytest.raises(KeyError, match="in the middle"):
            importance(network, loss, loader, groups, kind)
    else:
        scores = importance(network, loss, loader, groups, kind)
        assert scores.shape == (3,)
        assert scores.dtype == np.float64
    assert not any(any(flags) for flags in modes)
    after = snapshot(network)
    for part, value in before.items():
        assert same(value, after[part]), part
    assert network.none is None


def test_scores_do_not_depend_on_the_mode_or_on_no_grad(network, data):
    groups = LayerGroups.of(network)
    first = importance(network, loss_of(network), [data], groups)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert (importance(network, loss_of(network), [data], groups) == first).all()
    network.eval()
    assert (importance(network, loss_of(network), [data], groups) == first).all()
    with groups.set_trainable(network, []):  # all layers are scored, whatever trains
        assert (importance(network, loss_of(network), [data], groups) == first).all()


def test_a_score_that_is_not_finite_names_the_layer(network, data):
    groups = LayerGroups.of(network)
    with torch.no_grad():
        network[2].linear.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="importance norm of layer 1 must be finite, got nan"):
        importance(network, loss_of(network), [data], groups)


def test_relative_norms_of_zero_weights_are_refused(network, data):
    groups = LayerGroups.of(network)
    with torch.no_grad():
        for parameter in network[3].parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="importance rgn of layer 3 must be finite, got nan because all its weights"):
        importance(network, loss_of(network), [data], groups, "rgn")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"kind": "norms"},
            ValueError,
            "unknown importance 'norms'; did you mean norm.*norm, norm_per_batch, rgn, snr",
        ),
        ({"batches": []}, ValueError, "at least one batch, got none"),
        (
            {"loss": lambda b: (torch.zeros(2, requires_grad=True), 2)},
            ValueError,
            r"scalar.*got shape \(2,\) for batch 0",
        ),
        ({"loss": lambda b: (torch.zeros(()), 2)}, ValueError, "loss of batch 0 must depend on a selectable layer"),
        (
            {"loss": lambda b: torch.zeros(())},
            TypeError,
            "the mean loss of a batch and its number of items, got Tensor",
        ),
        ({"weight": 0}, ValueError, "positive weight.*got 0.0 for batch 0"),
        ({"weight": float("nan")}, ValueError, "positive weight.*got nan"),
    ],
)
def test_bad_input_is_named(network, data, change, error, message):
    weight = change.pop("weight", None)
    arguments = {"loss": loss_of(network), "batches": [data], "kind": "norm"} | change
    if weight is not None:
        arguments["loss"] = lambda batch: (loss_of(network)(batch)[0], weight)
    with pytest.raises(error, match=message):
        importance(network, groups=LayerGroups.of(network), **arguments)


def test_half_precision_is_added_up_in_single():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)).to(torch.bfloat16)
    groups = LayerGroups.of(net)
    x = torch.randn(1, 4, dtype=torch.bfloat16)

    def loss(batch):
        return net(batch).mean(), len(batch)

    once = importance(net, loss, [x], groups)
    assert importance(net, loss, [x] * 500, groups) == pytest.approx(once, rel=1e-3)
