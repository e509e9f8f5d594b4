"""The gradients of single examples, or their norms, by the hooks of Opacus."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from opacus.layers.dp_rnn import DPRNNBase
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# The first layer's inputs need no gradient, and its weights' are all that is asked for.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed with respect to")

_CANCELS = 0.03
"""Share of its bound below which a norm taken from products of tokens has lost its digits to rounding."""


class _Named:
    """Says which layer it is that no gradient per example can be taken of."""

    _module: nn.Module
    hooks_enabled: bool

    def capture_backprops_hook(
        self, module: nn.Module, _forward_input: Any, forward_output: Any, loss_reduction: str, batch_first: bool
    ) -> None:
        if not self.hooks_enabled:
            return
        name = _name(self._module, module)
        if not module.training:
            raise ValueError(
                f"{name} ({type(module).__name__}) of {type(self._module).__name__} is in evaluation mode while it is "
                "trained, so that no gradient per example is taken: call its train(), or freeze its weights"
            )
        try:
            self._capture(module, _forward_input, forward_output[0].detach(), loss_reduction, batch_first)
        except (AttributeError, IndexError, RuntimeError, TypeError) as cause:
            raise ValueError(
                f"{name} ({type(module).__name__}) of {type(self._module).__name__} has no gradient per example in "
                f"Opacus: {str(cause).partition(chr(10))[0]}"
            ) from cause

    def _capture(
        self, module: nn.Module, _forward_input: Any, outputs: Tensor, loss_reduction: str, batch_first: bool
    ) -> None:
        outputs = _without_padding(module, outputs)
        super().capture_backprops_hook(module, _forward_input, (outputs,), loss_reduction, batch_first)  # type: ignore[misc]


class ExampleHooks(_Named, GradSampleHooks):  # type: ignore[misc,unused-ignore]
    """The gradients of examples, as Opacus takes them."""


class GhostHooks(_Named, GradSampleHooksFastGradientClipping):  # type: ignore[misc,unused-ignore]
    """Norms of the gradients of examples, and their clipped sum, without the gradients themselves.

    Opacus' ghost clipping takes the clipped sum by a second backward pass, for which it needs the loss of each example.
    Here what the first pass met is kept (inputs and output gradients of every layer: book-keeping, Bu et al. 2023), and
    the sum is a product of the two, so that a module need not give more than its loss. Layers other than Linear and
    Embedding have their gradients of examples computed, one layer at a time.

    Args:
        module: The module.
        loss_reduction: ``mean`` or ``sum``: how the module's loss comes from the losses of examples.

    Attributes:
        trained: The weights that norms are of; others have gradients, but nobody trains them.
    """

    def __init__(self, module: nn.Module, loss_reduction: str) -> None:
        self.kept: list[tuple[nn.Module, list[Tensor], Tensor]] = []
        self.trained: set[nn.Parameter] = set()
        super().__init__(module, loss_reduction=loss_reduction, strict=True)

    def capture_activations_hook(self, module: nn.Module, forward_input: Any, _forward_output: Any) -> None:
        try:
            super().capture_activations_hook(module, forward_input, _forward_output)
        except NotImplementedError as cause:
            raise ValueError(
                f"grad_sample_mode: ghost cannot serve weights that are used twice in a step, as those of a "
                f"{type(module).__name__} are: set grad_sample_mode to hooks"
            ) from cause

    def _capture(
        self, module: nn.Module, _forward_input: Any, outputs: Tensor, loss_reduction: str, batch_first: bool
    ) -> None:
        layer: Any = module
        inputs, outputs = layer.activations[-1], _without_padding(module, outputs)
        if type(module) is nn.Linear and outputs.dim() > 3:  # Opacus takes norms of up to three dimensions only
            inputs = layer.activations[-1] = [inputs[0].flatten(1, -2)]
            outputs = outputs.flatten(1, -2)
        super()._capture(module, _forward_input, outputs, loss_reduction, batch_first)
        if type(module) is nn.Linear and outputs.dim() == 3:
            _mend_norms(module, inputs[0], outputs, len(outputs) if loss_reduction == "mean" else 1)
        self.kept.append((module, inputs, outputs))

    def norms(self, items: int) -> list[Tensor]:
        """Norms of the gradients of examples by tensor, each of shape ``(items,)``; they are forgotten."""
        found = []
        for weight in self.trainable_parameters:
            norm = getattr(weight, "_norm_sample", None)
            if norm is not None:
                del weight._norm_sample
                if weight in self.trained:
                    found.append(norm)
        return found or [torch.zeros(items)]

    def add_weighted(self, factors: Tensor) -> None:
        """Add the sum of the gradients of examples, each times its factor, to ``summed_grad``; all is forgotten.

        Args:
            factors: Of shape ``(items,)``.
        """
        left_out = factors == 0  # their gradients may hold infinity, which no factor makes small
        some = bool(left_out.any())
        for module, inputs, outputs in self.kept:
            if some:
                outputs = _without(outputs, left_out)
                inputs = [_without(each, left_out) for each in inputs]
            weights = factors.to(outputs) * (len(factors) if self.loss_reduction == "mean" else 1)
            outputs = outputs * weights.view(-1, *[1] * (outputs.dim() - 1))
            for weight, total in self._sums(module, inputs, outputs).items():
                if weight in self.trained:
                    total = total.to(weight.dtype)
                    weight.summed_grad = total if weight.summed_grad is None else weight.summed_grad + total
        self.kept.clear()

    def _sums(self, module: nn.Module, inputs: list[Tensor], outputs: Tensor) -> dict[Any, Tensor]:
        """Gradients of a layer's weights, summed over examples."""
        if type(module) is nn.Linear:
            rows = outputs.flatten(0, -2)
            sums = {module.weight: rows.T @ inputs[0].to(outputs.dtype).flatten(0, -2)}
            return sums if module.bias is None else {**sums, module.bias: rows.sum(0)}
        if type(module) is nn.Embedding:
            rows = outputs.reshape(-1, module.embedding_dim)
            flat = torch.zeros_like(module.weight, dtype=outputs.dtype)
            return {module.weight: flat.index_add_(0, inputs[0].reshape(-1), rows)}
        sampler = self.GRAD_SAMPLERS.get(type(module), ft_compute_per_sample_gradient)
        return {weight: each.sum(0) for weight, each in sampler(module, inputs, outputs).items()}


def refuse_sorted_rows(module: nn.Module) -> list[Any]:
    """Have recurrent layers of Opacus refuse packed sequences whose order is not the batch's.

    The rows of their gradients would be those of other examples than the rows of other layers', and what is clipped
    together would belong to several.

    Args:
        module: The module.

    Returns:
        Handles by which the check is taken off again.
    """

    def refuse(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        packed = inputs[0] if inputs else None
        if layer.training and isinstance(packed, PackedSequence) and packed.sorted_indices is not None:
            raise ValueError(
                f"{_name(module, layer)} ({type(layer).__name__}) of {type(module).__name__} gets its sequences sorted "
                "by length (pack_padded_sequence with enforce_sorted=False), so that its gradients per example are in "
                "another order than those of other layers: pad the sequences, or sort the examples where batches are "
                "made and set enforce_sorted=True"
            )

    return [layer.register_forward_pre_hook(refuse) for layer in module.modules() if isinstance(layer, DPRNNBase)]


def padding_rows(module: nn.Module) -> dict[Tensor, int]:
    """Rows of embeddings that stand for padding, which nothing trains and no noise is to move, by weight.

    Args:
        module: The module. Weights that another layer uses, too, are left out.
    """
    uses: dict[int, int] = {}
    for layer in module.modules():
        for weight in layer._parameters.values():
            uses[id(weight)] = uses.get(id(weight), 0) + 1
    return {
        layer.weight: layer.padding_idx
        for layer in module.modules()
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None and uses[id(layer.weight)] == 1
    }


def _without_padding(module: nn.Module, outputs: Tensor) -> Tensor:
    """Gradients of an embedding's outputs without those of padding, which autograd leaves out, too."""
    if type(module) is not nn.Embedding or module.padding_idx is None:
        return outputs
    words: Tensor = module.activations[-1][0]  # type: ignore[index]
    return outputs.masked_fill((words == module.padding_idx).unsqueeze(-1), 0.0)


def _mend_norms(layer: nn.Linear, inputs: Tensor, outputs: Tensor, scale: int) -> None:
    """Norms of a layer that sees several rows of each example, where those of Opacus have lost their digits.

    It sums products of rows, in which gradients that nearly cancel leave rounding alone: an example would be clipped by
    a norm of next to nothing. These are taken again, in 64 bits; the bias' norm is taken of its gradient.

    Args:
        layer: The layer, with norms.
        inputs: Shape ``(examples, rows, in)``.
        outputs: Gradients of its outputs, shape ``(examples, rows, out)``.
        scale: What the gradient of an example is multiplied by.
    """
    norm: Tensor | None = getattr(layer.weight, "_norm_sample", None)
    if norm is not None:
        bound = scale * (inputs.norm(dim=2).to(outputs.dtype) * outputs.norm(dim=2)).sum(1)
        lost = norm < _CANCELS * bound
        if lost.any():
            x, g = inputs[lost].double(), outputs[lost].double()
            products = (x @ x.transpose(1, 2)) * (g @ g.transpose(1, 2))
            norm[lost] = (scale * products.sum((1, 2)).clamp(min=0).sqrt()).to(norm.dtype)
    if layer.bias is not None and hasattr(layer.bias, "_norm_sample"):
        layer.bias._norm_sample = scale * outputs.sum(1).norm(dim=1)


def _without(values: Tensor, rows: Tensor) -> Tensor:
    """Zeros in some rows; numbers of words stay as they are."""
    if not values.is_floating_point() or len(values) != len(rows):
        return values
    return values.masked_fill(rows.to(values.device).view(-1, *[1] * (values.dim() - 1)), 0.0)


def _name(module: nn.Module, layer: nn.Module) -> str:
    return next((name for name, each in module.named_modules() if each is layer), "a layer") or "itself"
