"""The gradients of single examples, or their norms, by the hooks of Opacus."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from opacus.layers.dp_rnn import DPRNNBase
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from framework.privacy import layer_gradients

# The first layer's inputs need no gradient, and its weights' are all that is asked for.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed with respect to")


def _kept(sampler: layer_gradients.Sampler) -> layer_gradients.Sampler:
    """A sampler whose gradients are kept as they are where Opacus would copy them into zeros: a third of a large step.

    That copy is for weights that are used several times in a step, and for layers that see part of the batch.
    """

    def sample(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        rest = {}
        for weight, each in sampler(layer, activations, backprops).items():
            state = vars(weight)
            once = state.get("_forward_counter") == 1 and "_current_grad_sample" not in state
            if once and len(each) == layer.max_batch_len:
                state["_current_grad_sample"] = each
            else:
                rest[weight] = each
        return rest

    return sample


_GRADIENTS: dict[Any, layer_gradients.Sampler] = {**GradSampleHooks.GRAD_SAMPLERS, **layer_gradients.GRADIENTS}
_SAMPLERS = {kind: _kept(sampler) for kind, sampler in _GRADIENTS.items()}


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
    """The gradients of examples, as Opacus takes them but for convolutions."""

    GRAD_SAMPLERS: ClassVar[dict[Any, Any]] = _SAMPLERS


class GhostHooks(_Named, GradSampleHooksFastGradientClipping):  # type: ignore[misc,unused-ignore]
    """Norms of the gradients of examples, and their clipped sum, without the gradients themselves.

    Opacus' ghost clipping takes the clipped sum by a second backward pass, for which it needs the loss of each example.
    Here what the first pass met is kept (inputs and output gradients of every layer: book-keeping, Bu et al. 2023), and
    the sum is a product of the two, so that a module need not give more than its loss. Layers other than Linear,
    Embedding and convolutions have their gradients of examples computed, one layer at a time.

    Args:
        module: The module.
        loss_reduction: ``mean`` or ``sum``: how the module's loss comes from the losses of examples.

    Attributes:
        trained: The weights that norms are of; others have gradients, but nobody trains them.
    """

    GRAD_SAMPLERS: ClassVar[dict[Any, Any]] = _SAMPLERS
    NORM_SAMPLERS: ClassVar[dict[Any, Any]] = {
        **GradSampleHooksFastGradientClipping.NORM_SAMPLERS,
        **layer_gradients.NORMS,
    }

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
        super()._capture(module, _forward_input, outputs, loss_reduction, batch_first)
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
        found = layer_gradients.sums(module, inputs[0], outputs)
        if found is not None:
            return found
        sampler = _GRADIENTS.get(type(module), ft_compute_per_sample_gradient)
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


def _without(values: Tensor, rows: Tensor) -> Tensor:
    """Zeros in some rows; numbers of words stay as they are."""
    if not values.is_floating_point() or len(values) != len(rows):
        return values
    return values.masked_fill(rows.to(values.device).view(-1, *[1] * (values.dim() - 1)), 0.0)


def _name(module: nn.Module, layer: nn.Module) -> str:
    return next((name for name, each in module.named_modules() if each is layer), "a layer") or "itself"
