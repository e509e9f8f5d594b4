"""Prices of layers: operations against closed forms, seconds on a clock that the backward pass itself moves."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from framework.federated import costs
from framework.federated.costs import FLOOR, backward_flops, backward_seconds, step_flops
from framework.federated.layer_groups import LayerGroups

ITEMS, WIDTHS, CLASSES = 7, (5, 8, 6, 9), 3


class Mlp(nn.Module):
    """Linear blocks of unequal width, so that no two products have the same price, and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(k, n), nn.Tanh()) for k, n in itertools.pairwise(WIDTHS))
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss_of(net):
    def loss(batch):
        return functional.cross_entropy(net(batch[0]), batch[1]), len(batch[1])

    return loss


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    net = Mlp()
    return net, LayerGroups.of(net), (torch.randn(ITEMS, WIDTHS[0]), torch.randint(CLASSES, (ITEMS,)))


PRODUCTS = [2 * ITEMS * k * n for k, n in itertools.pairwise((*WIDTHS, CLASSES))]
"""Of each block and the head: the product of the forward pass, of the weights' gradient and of the inputs', alike."""


def expected_backward(taken):
    """Gradients of weights that are trained; of inputs for all that lies above the lowest trained layer."""
    trained = [*taken, len(WIDTHS) - 1]
    return sum(PRODUCTS[layer] for layer in trained) + sum(PRODUCTS[min(trained) + 1 :])


def subsets(layers):
    return [taken for size in range(layers + 1) for taken in itertools.combinations(range(layers), size)]


@pytest.mark.parametrize("taken", subsets(3))
def test_operations_of_linear_blocks_have_a_closed_form(mlp, taken):
    net, groups, batch = mlp
    counted = step_flops(net, loss_of(net), batch, groups, [groups.names[layer] for layer in taken])
    assert counted == (sum(PRODUCTS), expected_backward(taken))


def test_the_backward_pass_of_everything_is_twice_the_forward_pass_but_for_the_inputs_of_the_first_layer(mlp):
    net, groups, batch = mlp
    forward, backward = step_flops(net, loss_of(net), batch, groups, groups.names)
    assert backward == 2 * forward - PRODUCTS[0]


def test_a_lower_layer_is_dearer_than_the_same_layer_further_up():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(5)), nn.Linear(6, 2))
    groups = LayerGroups.of(net)
    batch = torch.randn(4, 6), torch.randint(2, (4,))
    alone = [step_flops(net, loss_of(net), batch, groups, [name]).backward for name in groups.names]
    product = 2 * 4 * 6 * 6
    assert np.diff(alone).tolist() == [-product] * (len(alone) - 1)
    # Adding layers above the lowest one saves or costs no more than their own weights' gradients.
    full = step_flops(net, loss_of(net), batch, groups, groups.names).backward
    assert full == alone[0] + product * (len(alone) - 1)


def test_without_anything_to_train_there_is_no_backward_pass(mlp):
    net, _, batch = mlp
    groups = LayerGroups.of(net, common=[])
    assert step_flops(net, loss_of(net), batch, groups, []) == (sum(PRODUCTS), 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_is_counted_whatever_kernel_would_run(training, dropout):
    items, length, width = 3, 5, 8

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(width, 2, 16, dropout, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(width, 1)

        def forward(self, x):
            return self.head(self.layers(x))

    torch.manual_seed(0)
    net = Encoder().train(training)
    groups = LayerGroups.of(net)

    def loss(batch):
        return net(batch).mean(), len(batch)

    tokens = items * length
    attention = 2 * 2 * items * length * length * width  # scores, and weighted values
    block = 2 * tokens * width * (4 * width + 2 * 16) + attention
    head = 2 * tokens * width
    batch = torch.randn(items, length, width)
    before = torch.backends.mha.get_fastpath_enabled()
    counted = step_flops(net, loss, batch, groups, groups.names[-1:])
    assert counted.forward == 3 * block + head
    inputs_of_first_product = 2 * tokens * width * 3 * width
    assert counted.backward == 2 * head + 2 * block - inputs_of_first_product
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_convolutions_are_counted():
    net = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()) for _ in range(2)), nn.Flatten(), nn.Linear(32, 3)
    )
    groups = LayerGroups.of(net)
    batch = torch.randn(5, 2, 4, 4), torch.randint(3, (5,))
    convolution, head = 2 * 5 * 16 * 2 * 2 * 9, 2 * 5 * 32 * 3
    assert step_flops(net, loss_of(net), batch, groups, ["0"]) == (
        2 * convolution + head,
        2 * head + 2 * convolution,  # the inputs of the second, the weights of the first
    )


def snapshot(net):
    return {
        "weights": {name: p.detach().clone() for name, p in net.named_parameters()},
        "gradients": {name: (id(p.grad), p.grad.clone()) for name, p in net.named_parameters() if p.grad is not None},
        "buffers": {name: (id(b), b.clone()) for name, b in net.named_buffers()},
        "modes": [m.training for m in net.modules()],
        "flags": [p.requires_grad for p in net.parameters()],
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def measure(net, loss, batch, groups):
    step_flops(net, loss, batch, groups, groups.names[:1])
    backward_seconds(net, loss, batch, groups, repeats=1)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(context, fails):
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)) for _ in range(3))
    net = nn.Sequential(*blocks, nn.Linear(6, 2))
    batch = torch.randn(8, 6), torch.randint(2, (8,))
    loss_of(net)(batch)[0].backward()
    net[0][0].weight.grad = None
    net[1].eval()
    net[2][0].bias.requires_grad_(False)
    groups = LayerGroups.of(net)
    calls = itertools.count()

    def loss(batch):
        np.random.rand(), random.random()
        if fails and next(calls) == 3:
            raise KeyError("in the middle")
        return loss_of(net)(batch)

    before = snapshot(net)
    with context():
        if fails:
            with pytest.raises(KeyError, match="in the middle"):
                measure(net, loss, batch, groups)
        else:
            measure(net, loss, batch, groups)
    after = snapshot(net)
    for part, value in before.items():
        assert same(value, after[part]), part


def shapley(names, price):
    """By the definition: the mean over all orders of what a layer adds to those before it."""
    total = dict.fromkeys(names, 0.0)
    for order in itertools.permutations(names):
        for position, name in enumerate(order):
            total[name] += price(frozenset(order[: position + 1])) - price(frozenset(order[:position]))
    return [total[name] / math.factorial(len(names)) for name in names]


def test_costs_of_layers_in_operations_are_shapley_values(mlp):
    net, groups, batch = mlp

    def price(selected):
        return step_flops(net, loss_of(net), batch, groups, selected).backward

    found = backward_flops(net, loss_of(net), batch, groups)
    assert found == pytest.approx(shapley(groups.names, price), rel=1e-9)
    assert found.sum() == pytest.approx(price(groups.names) - price([]), rel=1e-9)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Work(torch.autograd.Function):
    """Passes its input on; in the backward pass the clock moves by what autograd asks for."""

    @staticmethod
    def forward(ctx, x, weight, clock, own, way):
        ctx.clock, ctx.own, ctx.way = clock, own, way
        return x + weight

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.now += ctx.own() * ctx.needs_input_grad[1] + ctx.way() * ctx.needs_input_grad[0]
        return gradient, gradient.sum(0), None, None, None


class Layer(nn.Module):
    def __init__(self, clock, own, way):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.work = clock, own, way

    def forward(self, x):
        return Work.apply(x, self.weight, *self.work)


def slow(clock, own, way, noise=lambda: 1.0):
    """Layers and a head (the last) that need ``own`` seconds for their weights, ``way`` to pass a gradient on."""
    made = [Layer(clock, lambda o=o: o * noise(), lambda w=w: w * noise()) for o, w in zip(own, way, strict=True)]
    net = nn.Sequential(*made)
    groups = LayerGroups.of(net, {str(k): rf"{k}\." for k in range(len(own) - 1)}, common=rf"{len(own) - 1}\.")

    def loss(batch):
        clock.now += 5.0  # the forward pass does not count
        return net(batch).mean(), len(batch)

    return net, groups, loss


def time_of(taken, own, way):
    trained = {*taken, len(own) - 1}
    return sum(own[layer] for layer in trained) + sum(way[min(trained) + 1 :])


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_seconds_are_shared_as_shapley_values(monkeypatch, layers):
    clock = Clock()
    monkeypatch.setattr(costs, "perf_counter", clock)
    draw = np.random.default_rng(layers)
    own, way = draw.uniform(0.1, 1, layers + 1).tolist(), draw.uniform(0.1, 1, layers + 1).tolist()
    net, groups, loss = slow(clock, own, way)
    found = backward_seconds(net, loss, torch.zeros(3, 2), groups, repeats=1)
    assert found == pytest.approx(shapley(range(layers), lambda taken: time_of(taken, own, way)), rel=1e-6)
    assert found.sum() == pytest.approx(time_of(range(layers), own, way) - time_of((), own, way), rel=1e-6)


def test_equal_layers_cost_the_more_the_lower_they_are(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(costs, "perf_counter", clock)
    net, groups, loss = slow(clock, [1.0] * 5, [1.0] * 5)
    found = backward_seconds(net, loss, torch.zeros(3, 2), groups, repeats=1)
    # The way from the head is shared by four, the next by three, and so on.
    assert found == pytest.approx([1 + 1 / 4 + 1 / 3 + 1 / 2 + 1, 1 + 1 / 4 + 1 / 3 + 1 / 2, 1 + 1 / 4 + 1 / 3, 1.25])


def test_the_least_time_of_the_repeats_counts_and_the_first_step_does_not(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(costs, "perf_counter", clock)
    own, way = [2.0, 1.0, 3.0], [1.0, 2.0, 1.0]
    steps = {"made": 0}

    def noise():  # quick at first, when nothing counts yet; later disturbed in all repeats but the second
        if steps["made"] <= 4:
            return 0.001
        return 1.0 if 8 < steps["made"] <= 12 else 50.0

    net, groups, loss = slow(clock, own, way, noise)

    def counted(batch):
        steps["made"] += 1
        return loss(batch)

    found = backward_seconds(net, counted, torch.zeros(3, 2), groups, repeats=3)
    assert steps["made"] == 2 * 2 * (3 + 1)
    assert found == pytest.approx(shapley(range(2), lambda taken: time_of(taken, own, way)), rel=1e-6)


@pytest.mark.parametrize(("own", "way"), [([1.0, 0.0, 1.0], [1.0, 0.0, 0.0]), ([0.0] * 3, [0.0] * 3)])
def test_no_layer_is_free(monkeypatch, own, way):
    clock = Clock()
    monkeypatch.setattr(costs, "perf_counter", clock)
    net, groups, loss = slow(clock, own, way)
    found = backward_seconds(net, loss, torch.zeros(3, 2), groups, repeats=1)
    assert (found > 0).all()
    assert found.min() >= FLOOR * found.mean() * 0.99


def test_noise_makes_no_cost_negative(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(costs, "perf_counter", clock)
    draw = np.random.default_rng(0)
    net, groups, loss = slow(clock, [1.0] * 7, [1.0] * 7, lambda: draw.uniform(0.2, 1.8))
    found = backward_seconds(net, loss, torch.zeros(3, 2), groups, repeats=2)
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_real_seconds_are_positive(mlp):
    net, groups, batch = mlp

    def loss(batch):
        assert all(parameter.grad is None for parameter in net.parameters())  # each pass starts anew, as in training
        return loss_of(net)(batch)

    found = backward_seconds(net, loss, batch, groups, repeats=2)
    assert found.shape == (3,)
    assert found.dtype == np.float64
    assert (found > 0).all()


def test_bad_input_is_named(mlp):
    net, groups, batch = mlp
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        backward_seconds(net, loss_of(net), batch, groups, repeats=0)
    with pytest.raises(ValueError, match=r"unknown layer group 'blocks\.7'"):
        step_flops(net, loss_of(net), batch, groups, ["blocks.7"])
    with pytest.raises(ValueError, match=r"scalar for each batch, got shape \(7, 3\)"):
        step_flops(net, lambda batch: (net(batch[0]), 7), batch, groups, [])
    with pytest.raises(TypeError, match="its number of items, got Tensor"):
        backward_seconds(net, lambda batch: net(batch[0]).mean(), batch, groups)
