"""Gradients of single examples, their norms, and weighted sums of them, layer by layer.

A linear layer gives an example the gradient ``g x^T``, where ``x`` holds what it met, a column for each row (word,
patch) of the example, and ``g`` the gradients of its outputs; a convolution does, too, with its patches unfolded. The
norm is that of ``(x^T x) * (g^T g)`` summed up, which is less work and memory where rows are few and weights are many;
else the product is made, for one layer at a time (mixed ghost clipping: Bu, Mao and Xu 2022, who decide by memory
alone).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad

_CANCELS = 0.03
"""Share of its bound below which a norm taken from products of rows has lost its digits to rounding."""
_ROOMIER = 8
"""How many times the memory of products of rows a gradient may take where it is less work."""

Sampler = Callable[..., dict[nn.Parameter, Tensor]]
"""What Opacus asks of a layer: from layer, inputs and output gradients to a tensor for each weight, by example."""


def convolution_gradients(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradients of examples of a convolution, by weight, for any layout of its input.

    That of Opacus 1.6 takes inputs for contiguous, and reads other numbers where they are not (channels last).

    Args:
        layer: A convolution of one, two or three dimensions, padded with zeros.
        activations: Its input, of shape ``(examples, in, *places)``.
        backprops: Gradients of its outputs, each for the loss of its own example, of shape
            ``(examples, out, *places)``.

    Returns:
        Tensors of shape ``(examples, *weight)``.
    """
    x, g = _columns(layer, activations[0], backprops)
    found = {}
    if layer.weight.requires_grad:
        found[layer.weight] = _products(g, x).view(-1, *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = g.sum(2).view(-1, *layer.bias.shape)
    return found


def linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Norms of the gradients of examples of a linear layer, by weight.

    Args:
        layer: The layer.
        activations: Its input, of shape ``(examples, ..., in)``.
        backprops: Gradients of its outputs, each for the loss of its own example, of shape ``(examples, ..., out)``.

    Returns:
        Tensors of shape ``(examples,)``.
    """
    items = len(backprops)
    x = activations[0].to(backprops.dtype).reshape(items, -1, layer.in_features)
    g = backprops.reshape(items, -1, layer.out_features)
    return _norms(layer, x.transpose(1, 2), g.transpose(1, 2), items)


def convolution_norms(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Norms of the gradients of examples of a convolution, by weight.

    Args:
        layer: As for :func:`convolution_gradients`.
        activations: As there.
        backprops: As there.

    Returns:
        Tensors of shape ``(examples,)``.
    """
    return _norms(layer, *_columns(layer, activations[0], backprops), len(backprops))


GRADIENTS: dict[type[nn.Module], Sampler] = dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution_gradients)
"""Layers whose gradients of examples are taken here, and not by Opacus."""
NORMS: dict[type[nn.Module], Sampler] = {nn.Linear: linear_norms, **dict.fromkeys(GRADIENTS, convolution_norms)}
"""Layers whose norms are taken here."""


def sums(layer: Any, inputs: Tensor, outputs: Tensor) -> dict[nn.Parameter, Tensor] | None:
    """Gradients of a layer's weights, summed over examples.

    Args:
        layer: The layer.
        inputs: What it met.
        outputs: Gradients of its outputs, each times the weight of its example.

    Returns:
        None for a layer that there is no short way for.
    """
    kind = type(layer)
    if kind is nn.Embedding:
        total = torch.zeros_like(layer.weight, dtype=outputs.dtype)
        return {layer.weight: total.index_add_(0, inputs.reshape(-1), outputs.reshape(-1, layer.embedding_dim))}
    if kind is nn.Linear:
        rows = outputs.flatten(0, -2)
        found = {layer.weight: rows.T @ inputs.to(outputs.dtype).flatten(0, -2)}
        bias = rows.sum(0)
    elif kind in GRADIENTS:
        total_of = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)[outputs.dim() - 3]
        x, shape = _padded(layer, inputs.to(outputs.dtype)), layer.weight.shape
        found = {layer.weight: total_of(x, shape, outputs, layer.stride, 0, layer.dilation, layer.groups)}
        bias = outputs.transpose(0, 1).flatten(1).sum(1)
    else:
        return None
    return found if layer.bias is None else {**found, layer.bias: bias}


def _norms(layer: Any, x: Tensor, g: Tensor, items: int) -> dict[nn.Parameter, Tensor]:
    """Norms from ``x`` of shape ``(items * groups, in, rows)`` and ``g`` of shape ``(items * groups, out, rows)``."""
    norms = {}
    if layer.weight.requires_grad:
        norms[layer.weight] = _of_products(x, g)
    if layer.bias is not None and layer.bias.requires_grad:
        norms[layer.bias] = g.sum(2).norm(dim=1)
    return {weight: norm.view(items, -1).norm(dim=1) for weight, norm in norms.items()}


def _of_products(x: Tensor, g: Tensor) -> Tensor:
    """Norm of each ``g x^T``."""
    (_, width, rows), height = x.shape, g.shape[1]
    if rows == 1:
        return x.flatten(1).norm(dim=1) * g.flatten(1).norm(dim=1)
    weights = width * height
    if rows * (width + height) >= weights and _ROOMIER * rows * rows >= weights:
        return _products(g, x).flatten(1).norm(dim=1)
    norms = _from_rows(x, g)
    # Gradients of rows that nearly cancel leave rounding alone in a sum of squares: an example would be clipped by a
    # norm of next to nothing.
    lost = norms < _CANCELS * (x.norm(dim=1) * g.norm(dim=1)).sum(1)
    if lost.any():
        norms[lost] = _from_rows(x[lost].double(), g[lost].double()).to(norms.dtype)
    return norms


def _products(g: Tensor, x: Tensor) -> Tensor:
    """Each ``g x^T``; that of single columns is no work for a matrix product."""
    return g * x.transpose(1, 2) if x.shape[2] == 1 else g @ x.transpose(1, 2)


def _from_rows(x: Tensor, g: Tensor) -> Tensor:
    return ((x.transpose(1, 2) @ x) * (g.transpose(1, 2) @ g)).sum((1, 2)).clamp(min=0).sqrt()


def _columns(layer: Any, x: Tensor, backprops: Tensor) -> tuple[Tensor, Tensor]:
    """Patches that a convolution meets, and output gradients, by example and group: ``(items * groups, *, places)``."""
    places, groups = math.prod(backprops.shape[2:]), len(backprops) * layer.groups
    x = _padded(layer, x.to(backprops.dtype))
    each = list(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True))
    for axis, (size, stride, dilation) in enumerate(each, start=2):
        x = x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    axes = len(each)
    x = x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return x.reshape(groups, -1, places), backprops.reshape(groups, -1, places)


def _padded(layer: Any, x: Tensor) -> Tensor:
    """A convolution's input with the zeros around it, also where its padding is a word."""
    return nn.functional.pad(x, layer._reversed_padding_repeated_twice)
