"""A private training step against a plain one, and against Opacus' own hooks and optimiser, by network.

A call is ``steps`` steps of SGD on batches of ``batch`` examples. ``cnn`` is the network of Robust-HDP on MNIST, with
28,938 weights, ``wide cnn`` that of classifier/mnist, with a hidden layer;
``transformer`` has an embedding and linear layers so wide that gradients of examples take far more memory than
activations, which is what ghost clipping is for: look at the peak memory, too. ``resnet`` is a ResNet-18 with group
normalisation (11.2 million weights) and images of 32 pixels. ``ghost`` and ``hooks`` are ours;
``Opacus`` is what a user writes with GradSampleHooks and DPOptimizer; ``plain`` is the loop without privacy.
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from framework.privacy.gradients import PrivateGradients
from modules.classifier import CNN
from modules.resnet import ResNet

CASES = [
    {"network": "cnn", "batch": 64, "steps": 10},
    {"network": "wide cnn", "batch": 64, "steps": 10},
    {"network": "transformer", "batch": 32, "steps": 2},
    {"network": "resnet", "batch": 16, "steps": 1},
]


class Transformer(nn.Module):
    """Two blocks of attention and a wide feed-forward layer, for texts of 32 words."""

    def __init__(self, words: int = 5000, dim: int = 128, wide: int = 1024, classes: int = 10) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "norm": nn.LayerNorm(dim), "query": nn.Linear(dim, dim), "key": nn.Linear(dim, dim),
                "value": nn.Linear(dim, dim), "up": nn.Linear(dim, wide), "down": nn.Linear(wide, dim),
            })
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.words(x)
        for block in self.blocks:
            layers: Any = block
            normed = layers["norm"](h)
            h = h + nn.functional.scaled_dot_product_attention(
                layers["query"](normed), layers["key"](normed), layers["value"](normed)
            )
            h = h + layers["down"](layers["up"](h).relu())
        logits: Tensor = self.head(h.mean(1))
        return logits


def setup(network: str, batch: int, steps: int, variant: str) -> dict[str, Any]:
    torch.manual_seed(0)
    net: nn.Module
    if network.endswith("cnn"):
        net, inputs = CNN(784, 10, hidden=[128] if network == "wide cnn" else []), torch.randn(steps, batch, 784)
    elif network == "resnet":
        net, inputs = ResNet(10, channels=3), torch.randn(steps, batch, 3, 32, 32)
    else:
        net, inputs = Transformer(), torch.randint(5000, (steps, batch, 32))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    given: dict[str, Any] = {"net": net.train(), "x": inputs, "y": torch.randint(10, (steps, batch))}
    options: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0}
    if variant == "Opacus":
        given["hooks"] = GradSampleHooks(net, loss_reduction="mean")
        optimizer = DPOptimizer(optimizer, expected_batch_size=batch, **options)
    elif variant != "plain":
        given["private"] = PrivateGradients(net, optimizer, batch_size=batch, mode=variant, **options)
    return {**given, "optimizer": optimizer}


def train(given: dict[str, Any]) -> None:
    net, optimizer, private = given["net"], given["optimizer"], given.get("private")
    for x, y in zip(given["x"], given["y"], strict=True):
        if private is not None:
            private.begin()
            private.expect(len(x))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        if private is not None:
            private.accumulate(len(x))
            private.finish()
        optimizer.step()


VARIANTS = {"hooks": train, "ghost": train, "Opacus": train, "plain": train}
