"""Residual networks without batch statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modules.classifier import Classifier
from modules.resnet import ResNet


def size(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"classes": 1000}, 11_689_512),  # as torchvision's, whose batch normalisation has as many weights
        ({"classes": 10}, 11_181_642),
        ({"classes": 1000, "depth": 34}, 21_797_672),
    ],
)
def test_it_has_as_many_weights_as_the_original(arguments, expected):
    assert size(ResNet(**arguments)) == expected


def test_images_of_any_size_and_colour():
    torch.manual_seed(0)
    assert ResNet(10)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert ResNet(5, channels=1, stem="small", groups=0)(torch.randn(1, 1, 28, 28)).shape == (1, 5)


def test_an_example_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    network, x = ResNet(10).train(), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    assert not list(network.buffers())
    groups = {layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)}
    assert groups == {2}


def test_it_is_a_network_of_the_classifier_that_trains_in_private():
    from opacus import GradSampleModule

    torch.manual_seed(0)
    module = Classifier(3 * 16 * 16, 4, network=ResNet(4, stem="small"))
    network = GradSampleModule(module.network, loss_reduction="sum")
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([0, 3])
    nn.functional.cross_entropy(network(x), y, reduction="sum").backward()
    weight = module.network.stem[0].weight
    torch.testing.assert_close(weight.grad_sample.sum(0), weight.grad, rtol=1e-3, atol=1e-5)


def test_networks_of_the_papers_have_their_sizes():
    """The CNN and the softmax regression of Robust-HDP are settings of what there is."""
    assert size(Classifier(784, 10, network="cnn", hidden=[])) == 28_938
    assert size(Classifier(784, 10, network="mlp", hidden=[])) == 7_850


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 50}, "depth must be 18 or 34, got 50"),
        ({"groups": 3}, "groups must be 0 or a divisor of 64, got 3"),
        ({"stem": "big"}, "stem must be imagenet or small, got 'big'"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        ResNet(10, **arguments)
