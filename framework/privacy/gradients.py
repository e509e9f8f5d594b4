"""From the gradients of single examples to one gradient that is clipped and noisy, by means of Opacus."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import AdaClipDPOptimizer, DPOptimizer, DPPerLayerOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from framework.loaders.stages import World
from framework.privacy.hooks import ExampleHooks, GhostHooks, padding_rows, refuse_sorted_rows

CLIPPINGS = ("flat", "per_layer", "adaptive")
"""What is clipped: the whole gradient of an example, each tensor of it, the whole to a norm that follows a quantile."""
MODES = ("hooks", "ghost")
"""How gradients of examples are taken: stored as such, or only their norms."""


class AdaptiveClip(AdaClipDPOptimizer):  # type: ignore[misc,unused-ignore]
    """Adaptive clipping (Andrew et al. 2021) whose clipping norm is private under Poisson sampling.

    Opacus divides the noisy count by the true number of examples of the batch, which is itself private, and fails where
    that is zero. Here each example counts +1/2 or -1/2, as theorem 1 of the paper has it, and the noisy sum is divided
    by the expected batch size.
    """

    max_grad_norm: float

    def update_max_grad_norm(self) -> None:
        share = (float(self.unclipped_num) - self.sample_size / 2) / self.expected_batch_size + 0.5
        norm = self.max_grad_norm * math.exp(-self.clipbound_learning_rate * (share - self.target_unclipped_quantile))
        self.max_grad_norm = min(max(norm, self.min_clipbound), self.max_clipbound)


class PrivateGradients:
    """Puts one noisy gradient in the place of what a backward pass left in ``grad``.

    Takes the gradients of examples while it is attached, by hooks that leave the names of weights as they are::

        gradients.begin()
        gradients.expect(items)        # for each piece of the batch: before forward and backward,
        gradients.accumulate(items)    # and behind them: clip, and add up
        gradients.finish()             # once: noise, sum over processes, into grad

    Args:
        module: The module, in training mode; every layer with trainable weights is to see examples along the first
            dimension of its inputs.
        optimizer: Its optimiser, which is left as it is.
        noise_multiplier: Standard deviation of the noise in units of the clipping norm, at least 0.
        max_grad_norm: The norm to which the gradient of an example is clipped. With ``per_layer`` either one number,
            shared out so that the norm of the whole is at most that, or one for each tensor.
        batch_size: Expected number of examples in a batch, over all processes.
        clipping: One of :data:`CLIPPINGS`.
        mode: One of :data:`MODES`.
        loss_reduction: ``mean`` or ``sum``.
        generator: Draws the noise, on the device of the weights.
        world: Which process this is; noise is drawn on rank 0.
        quantile: Share of examples that ``adaptive`` leaves unclipped, in (0, 1).
        clip_learning_rate: How fast ``adaptive`` follows it, positive.

    Raises:
        ValueError: If a layer has buffers beside its trainable weights, so that its gradients cannot be taken, or
            ``max_grad_norm`` does not fit the weights.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float | list[float],
        batch_size: int,
        clipping: str = "flat",
        mode: str = "hooks",
        loss_reduction: str = "mean",
        generator: torch.Generator | None = None,
        world: World = World(),  # noqa: B008
        quantile: float = 0.5,
        clip_learning_rate: float = 0.2,
    ) -> None:
        self.module, self.world, self.loss_reduction = module, world, loss_reduction
        self.names = {weight: name for name, weight in module.named_parameters()}
        norms = self._norms_per_layer(optimizer, max_grad_norm) if clipping == "per_layer" else []
        # Asked for once: a walk over the modules computes the hash of every metric among them.
        self._layers = [layer for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None]
        try:
            if mode == "ghost":
                self.hooks: GradSampleHooks = GhostHooks(module, loss_reduction)
            else:
                self.hooks = ExampleHooks(module, loss_reduction=loss_reduction, strict=True)
        except NotImplementedError as cause:
            layers = [
                f"{name} ({type(layer).__name__})"
                for name, layer in module.named_modules()
                if any(w.requires_grad for w in layer.parameters(recurse=False)) and list(layer.buffers())
            ]
            raise ValueError(
                f"{', '.join(layers)} of {type(module).__name__} keeps buffers beside trainable weights, which no "
                "gradient per example covers: move them to a layer without weights, or freeze its weights"
            ) from cause
        options: dict[str, Any] = {
            "noise_multiplier": noise_multiplier,
            "expected_batch_size": batch_size,
            "loss_reduction": loss_reduction,
            "generator": generator,
        }
        self.private: DPOptimizer
        if clipping == "per_layer":
            self.private = DPPerLayerOptimizer(optimizer, max_grad_norm=norms, **options)
        elif clipping == "adaptive":
            start = float(max_grad_norm)  # type: ignore[arg-type]
            self.private = AdaptiveClip(
                optimizer,
                max_grad_norm=start,
                target_unclipped_quantile=quantile,
                clipbound_learning_rate=clip_learning_rate,
                max_clipbound=1e3 * start,
                min_clipbound=1e-3 * start,
                # The paper's twentieth of the batch; not below the noise multiplier, or little would be left for
                # the gradients.
                unclipped_num_std=max(batch_size / 20, noise_multiplier),
                **options,
            )
        else:
            self.private = DPOptimizer(optimizer, max_grad_norm=max_grad_norm, **options)
        self._items = 1
        self._own_hooks = refuse_sorted_rows(module) + [
            layer.register_forward_pre_hook(self._share_rows)
            for layer in module.modules()
            if isinstance(layer, nn.Embedding) and layer.weight.requires_grad
        ]
        self._padding = padding_rows(module)
        self.ghost = self.hooks if isinstance(self.hooks, GhostHooks) else None
        if self.ghost is not None:
            self.ghost.trained = set(self.private.params)

    def _norms_per_layer(self, optimizer: Optimizer, norm: float | list[float]) -> list[float]:
        """The clipping norm of each tensor."""
        trained = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
        for weight in trained:
            if not weight.dim():
                raise ValueError(
                    f"{self.names.get(weight, 'a weight')} is a single number without a dimension, which clipping: "
                    "per_layer does not know: give it the shape (1,), or set clipping to flat"
                )
        norms = norm if isinstance(norm, list) else [norm / math.sqrt(len(trained))] * len(trained)
        if len(norms) != len(trained):
            raise ValueError(
                f"max_grad_norm must be one number or {len(trained)}, one for each tensor, got {len(norms)}"
            )
        return norms

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise in units of the clipping norm."""
        return float(self.private.noise_multiplier)

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        self.private.noise_multiplier = value
        if isinstance(self.private, AdaptiveClip):
            self.private.unclipped_num_std = max(self.private.expected_batch_size / 20, value)

    @property
    def max_grad_norm(self) -> float:
        """The clipping norm of the whole gradient, which ``adaptive`` changes."""
        return float(self.private.max_grad_norm)

    def begin(self) -> None:
        """Forget what an earlier step, or a pass outside of a step, has left."""
        self._clear(sums=True)
        self._drop()

    def expect(self, items: int) -> None:
        """Say over how many examples the next pass is.

        Args:
            items: Their number, at least 1.
        """
        self._items = items

    def _share_rows(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Positions that a module looks up once for all examples are looked up for each, so that each has a gradient.

        The rows are then added to something of each example, to which it makes no difference.
        """
        rows = inputs[0]
        if not (layer.training and torch.is_grad_enabled() and rows.dim() > 1 and len(rows) == 1 < self._items):
            return None
        return rows.expand(self._items, *rows.shape[1:]).contiguous(), *inputs[1:]

    def accumulate(self, items: int, counts: bool = True) -> None:
        """Clip the gradients of the examples of a backward pass, and add them to those of the batch.

        Args:
            items: Number of examples that the pass was over.
            counts: Whether they are part of the batch; False for what stands in for an empty one.

        Raises:
            ValueError: If the gradients are not those of ``items`` examples.
        """
        if counts:
            self._check(items)
            with torch.no_grad(), self._in_full():
                if self.ghost is not None:
                    norms = torch.stack([norm.to(self.device) for norm in self.ghost.norms(items)]).norm(2, dim=0)
                    factors = (self.private.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
                    self.ghost.add_weighted(factors.masked_fill(~norms.isfinite(), 0.0))
                else:
                    self._clip()
        self._drop()
        self._clear(sums=False)

    def of_examples(self, items: int) -> list[Tensor]:
        """The gradients of examples of the last pass, with hooks, for each weight of shape ``(items, *shape)``.

        Args:
            items: Number of examples that the pass was over.

        Raises:
            ValueError: If the gradients are not those of ``items`` examples.
        """
        self._check(items)
        return [weight.grad_sample for weight in self.private.params]

    def _drop(self) -> None:
        """Drop gradients of passes, unclipped, so that what is found after the next pass is its own."""
        for weight in self.private.params:
            weight.grad = None

    def _in_full(self) -> torch.autocast:
        """Sums of 16 bits would round by more than an example may add."""
        return torch.autocast(self.device.type, enabled=False)

    def _clip(self) -> None:
        """Clip and add up, without examples whose gradient is not finite: no factor makes NaN or infinity small."""
        private = self.private
        for weight in private.params:  # norms of 16 bits would be off by per cents
            weight.grad_sample = weight.grad_sample.to(weight.dtype)
        before = [None if weight.summed_grad is None else weight.summed_grad.clone() for weight in private.params]
        counts = (private.sample_size, private.unclipped_num) if isinstance(private, AdaptiveClip) else None
        private.clip_and_accumulate()
        # A sum is not finite if one of its terms is not, and takes no memory to find.
        if torch.stack([weight.summed_grad.sum().to(self.device) for weight in private.params]).isfinite().all():
            return
        samples = [weight.grad_sample for weight in private.params]
        finite = torch.stack([each.flatten(1).isfinite().all(1).to(self.device) for each in samples]).all(0)
        for weight, sample, total in zip(private.params, samples, before):
            rows = finite.to(sample.device).view(-1, *[1] * (sample.dim() - 1))
            weight.grad_sample, weight.summed_grad = torch.where(rows, sample, 0.0), total
        if isinstance(private, AdaptiveClip) and counts is not None:
            private.sample_size, private.unclipped_num = counts
        private.clip_and_accumulate()

    def finish(self) -> None:
        """Add the noise, sum over processes, and leave the result in ``grad``."""
        for weight in self.private.params:
            if weight.summed_grad is None:
                weight.summed_grad = torch.zeros_like(weight)
        adaptive = isinstance(self.private, AdaptiveClip)
        if adaptive:
            self.private.unclipped_num = torch.as_tensor(self.private.unclipped_num, device=self.device)
        with torch.no_grad(), self._in_full():
            if self.world.rank == 0:
                self.private.add_noise()
            else:
                for weight in self.private.params:
                    weight.grad = weight.summed_grad.view_as(weight)
            for weight in self.private.params:
                if self.world.size > 1:
                    dist.all_reduce(weight.grad)
                if self.loss_reduction == "mean":
                    weight.grad /= self.private.expected_batch_size
                if weight in self._padding:
                    weight.grad[self._padding[weight]] = 0.0  # no example moves it, and noise alone should not
            if adaptive:
                self.private.update_max_grad_norm()
        self._clear(sums=True)

    def pause(self, paused: bool) -> None:
        """Leave passes alone that are no part of training, such as validation that takes gradients, or do so no longer.

        Args:
            paused: Whether to leave them alone.
        """
        if paused:
            self.hooks.disable_hooks()
        else:
            self.hooks.enable_hooks()

    def detach(self) -> None:
        """Take everything off the module again."""
        self._clear(sums=True)
        self.hooks.cleanup()
        for handle in self._own_hooks:
            handle.remove()
        for layer in self.module.modules():
            for name in ("activations", "max_batch_len"):
                layer.__dict__.pop(name, None)
        for weight in self.names:
            weight.__dict__.pop("summed_grad", None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.private.params[0].device

    def _check(self, items: int) -> None:
        """Refuse what is not one gradient per example; weights that had no part in the loss get zeros."""
        for weight in self.private.params:
            name = self.names.get(weight, "a weight")
            if not hasattr(weight, "grad_sample"):
                raise ValueError(f"{name} is trained but was not when fit began: no gradient per example is taken")
            if hasattr(weight, "_current_grad_sample"):
                raise ValueError(
                    f"{name} was used more often in a step than the loss depends on it, so that its gradient per "
                    "example is incomplete: leave out, or put under torch.no_grad(), what the loss does not need"
                )
            found = getattr(weight, "_norm_sample", None) if self.ghost is not None else weight.grad_sample
            if isinstance(found, list):
                raise ValueError(f"{name} got gradients of several backward passes in one: private training has one")
            if found is None:
                if weight.grad is not None and weight.grad.any():
                    raise ValueError(
                        f"{name} is used outside of its layer's forward, so that no gradient per example is taken: "
                        "call the layer, or freeze the weight"
                    )
                if self.ghost is None:
                    weight.grad_sample = weight.new_zeros(items, *weight.shape)
            elif len(found) != items:
                raise ValueError(
                    f"{name} has gradients of {len(found)} examples in a batch of {items}: its layer does not see "
                    "examples along the first dimension, and a gradient per example cannot be clipped"
                )

    def _clear(self, sums: bool) -> None:
        for weight in self.names:
            if not weight.requires_grad or not hasattr(weight, "grad_sample"):
                continue
            weight.__dict__.update(grad_sample=None, _forward_counter=0)
            for name in ("_current_grad_sample", "_norm_sample"):
                weight.__dict__.pop(name, None)
        for layer in self._layers:
            layer.__dict__.pop("activations", None)
            layer.__dict__.pop("max_batch_len", None)
        if self.ghost is not None:
            self.ghost.kept.clear()
        if sums:
            for weight in self.private.params:
                weight.summed_grad = None
            if isinstance(self.private, AdaptiveClip):
                self.private.sample_size = self.private.unclipped_num = 0
