"""Gradients, norms and sums of single layers against autograd, one example at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from framework.privacy import layer_gradients

ITEMS = 3
LINEAR = [((5,), 5, 7), ((4, 5), 5, 7), ((2, 3, 5), 5, 7), ((2, 40), 40, 30), ((40, 3), 3, 2)]  # few rows, and many
CONVOLUTIONS = [
    (nn.Conv1d(2, 4, 3), (2, 9)),
    (nn.Conv1d(4, 6, 3, padding="same", dilation=2, groups=2, bias=False), (4, 9)),
    (nn.Conv2d(3, 5, 3), (3, 6, 7)),
    (nn.Conv2d(3, 5, (1, 3), padding=(2, 0), stride=(2, 1)), (3, 6, 7)),
    (nn.Conv2d(4, 8, 3, padding="same", dilation=(1, 2)), (4, 5, 6)),
    (nn.Conv2d(4, 4, 4, padding="same", groups=4), (4, 5, 6)),  # pads more on one side
    (nn.Conv2d(12, 16, 3, stride=2, padding=1), (12, 4, 4)),  # few places, many weights
    (nn.Conv2d(6, 8, 3, padding=1), (6, 1, 1)),  # one place
    (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1), dilation=(1, 1, 2), groups=2), (2, 3, 4, 5)),
]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "channels last, 3d": lambda x: x.to(memory_format=torch.channels_last_3d) if x.dim() == 5 else x,
    "transposed": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "slice": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


def of_each(layer, x):
    """Output gradients, and by autograd the gradients of each example, by weight."""
    g = torch.randn_like(layer(x)).contiguous()
    found = [torch.autograd.grad(layer(a[None]), list(layer.parameters()), b[None]) for a, b in zip(x, g, strict=True)]
    return g, dict(zip(layer.parameters(), map(torch.stack, zip(*found, strict=True)), strict=True))


def agree(found, expected):
    assert found.keys() == expected.keys()
    for weight, value in expected.items():
        torch.testing.assert_close(found[weight], value, rtol=1e-4, atol=1e-5)


def check(layer, x, norms):
    g, expected = of_each(layer, x)
    agree(norms(layer, [x], g), {weight: each.flatten(1).norm(dim=1) for weight, each in expected.items()})
    agree(layer_gradients.sums(layer, x, g), {weight: each.sum(0) for weight, each in expected.items()})
    return g, expected


@pytest.mark.parametrize(("shape", "width", "height"), LINEAR)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_of_any_number_of_rows(shape, width, height, bias):
    torch.manual_seed(0)
    check(nn.Linear(width, height, bias=bias), torch.randn(ITEMS, *shape), layer_gradients.linear_norms)


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolutions_of_any_kind_and_layout(layer, shape, layout):
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(ITEMS, *shape))
    g, expected = check(layer, x, layer_gradients.convolution_norms)
    agree(layer_gradients.convolution_gradients(layer, [x], g), expected)


@pytest.mark.parametrize("rows", [2, 64])
def test_both_ways_to_a_norm_are_the_norm(rows):
    """Products of rows where they are few, products of gradients where they are many."""
    torch.manual_seed(0)
    x, g = torch.randn(ITEMS, 24, rows), torch.randn(ITEMS, 24, rows)
    expected = (g @ x.transpose(1, 2)).flatten(1).norm(dim=1)
    torch.testing.assert_close(layer_gradients._of_products(x, g), expected)
    torch.testing.assert_close(layer_gradients._from_rows(x, g), expected)


def test_frozen_weights_have_no_gradients():
    for layer, x in ((nn.Conv2d(2, 3, 3), torch.randn(ITEMS, 2, 5, 5)), (nn.Linear(4, 3), torch.randn(ITEMS, 4))):
        layer.bias.requires_grad_(False)
        g = torch.randn_like(layer(x))
        assert layer_gradients.NORMS[type(layer)](layer, [x], g).keys() == {layer.weight}
    assert layer_gradients.convolution_gradients(nn.Conv2d(2, 3, 3).requires_grad_(False), [torch.randn(1, 2, 5, 5)],
                                                 torch.randn(1, 3, 3, 3)) == {}  # fmt: skip


def test_other_layers_have_no_short_way():
    assert layer_gradients.sums(nn.LayerNorm(3), torch.randn(2, 3), torch.randn(2, 3)) is None
