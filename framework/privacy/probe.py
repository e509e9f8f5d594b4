"""A look at a few examples before training: whether gradients per example are what they are taken for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from framework.privacy.gradients import PrivateGradients
from framework.privacy.sampling import batch_items

PROBED = 4
"""How many examples are looked at."""
_NEAR = 1e-2
"""Relative difference up to which two gradients are taken for the same."""


def check_items(module: LightningModule, loader: DataLoader[Any], loss_reduction: str, mode: str = "hooks") -> str:
    """Refuse a module of which no gradients of examples can be taken, or whose loss mixes the examples of a batch.

    Clipping bounds what an example adds to the sum only if it changes no other's part of it. Neither a mean over the
    tokens of a batch, nor a contrastive loss, nor attention across examples is such a loss, and hooks take "gradients
    per example" of them all the same. So the gradient of a few examples in one batch, and its rows, are compared with
    the gradients of each alone, on a copy of the module without dropout. A batch goes through the hooks of module and
    data module. The look at the data is released nowhere.

    Args:
        module: The module, on its device and without hooks.
        loader: The train loader as it was before batches became Poisson.
        loss_reduction: ``mean`` or ``sum``, of the losses of examples in a batch.
        mode: How gradients of examples are taken.

    Returns:
        Why nothing could be compared; empty where it was.

    Raises:
        ValueError: If they cannot be taken or differ, or a buffer keeps what is in the examples, with what to do.
    """
    try:
        probe = _Probe(module, loader, loss_reduction, mode)
    except (AttributeError, RuntimeError, TypeError) as cause:
        return f"{type(module).__name__} cannot be copied: {cause}"
    with torch.random.fork_rng(), torch.enable_grad():
        return probe.run()


class _Probe:
    """A copy of the module, and examples to try it on; arguments as for :func:`check_items`."""

    def __init__(self, module: LightningModule, loader: DataLoader[Any], loss_reduction: str, mode: str) -> None:
        self.name, self.loader, self.mode, self.device = type(module).__name__, loader, mode, module.device
        self.reduction, self.trainer = loss_reduction, module.trainer
        items = len(loader.dataset)  # type: ignore[arg-type]
        shuffled = torch.randperm(items, generator=torch.Generator().manual_seed(0)).tolist()
        self.chosen: list[int] = shuffled[: min(PROBED, items)]
        self.spare = _copied(module)
        self.spare.train()
        for layer in self.spare.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.eval()
        self.weights = [weight for weight in self.spare.parameters() if weight.requires_grad]
        self.gradient()

    def loss(self, indices: list[int], seed: int = 0) -> Tensor:
        """The module's loss on some examples."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`self.trainer` reference is not registered")
            torch.manual_seed(seed)
            self.spare._trainer = self.trainer  # which knows whose hooks a batch goes through
            try:
                batch = self.spare._apply_batch_transfer_handler(batch_items(self.loader, indices), self.device)
            finally:
                self.spare._trainer = None
            made: Any = self.spare.training_step(batch, 0)
        found: Tensor = made["loss"] if isinstance(made, dict) else made
        return found

    def gradient(self) -> list[Tensor]:
        """What the last backward passes have left."""
        found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return found

    def run(self) -> str:
        """Compare; returns and raises as :func:`check_items`."""
        chosen, count = self.chosen, len(self.chosen)
        try:
            steady = torch.allclose(self.loss(chosen), self.loss(chosen), rtol=1e-6)
            drawn = not torch.allclose(self.loss(chosen), self.loss(chosen, seed=1), rtol=1e-6)
            self.loss(chosen).backward()
            together = self.gradient()
            each = []
            for i in chosen:
                self.loss([i]).backward()
                each.append(self.gradient())
            kept = "" if drawn else self.buffer_of_examples()
        except (AttributeError, RuntimeError, TypeError) as cause:
            return f"{self.name}.training_step cannot run outside of fit: {cause}"
        if kept:
            raise ValueError(
                f"the buffer {kept} of {self.name} is made of the examples, without noise, and is published with the "
                "weights: leave it out, or register it with persistent=False"
            )
        private = self.clipped(chosen, 1e9)
        whole = _norm(together)
        comparable = steady and bool(whole.isfinite())
        if comparable and not _norm(_minus(together, private)) <= _NEAR * whole:
            raise ValueError(
                f"the gradients per example of {self.name} do not add up to its gradient: some of its weights are used "
                "outside of their layers' forward, or in two layers"
            )
        if drawn:
            return (
                f"{self.name}.training_step, or the data, draw random numbers of their own, so that no two losses "
                "compare"
            )
        self.compare_reduction(together, [sum(of) / count for of in zip(*each)])
        if comparable:
            self.compare_rows(each)
        return ""

    def compare_reduction(self, together: list[Tensor], alone: list[Tensor]) -> None:
        """Refuse a gradient that is not the mean (or sum) of those of examples alone."""
        count, scale = len(self.chosen), _norm(alone)
        factor, other = (count, 1) if self.reduction == "sum" else (1, count)

        def near(times: int) -> bool:
            return bool(_norm(_minus(together, alone, times)) <= _NEAR * times * scale)

        if not scale.isfinite() or near(factor):
            return
        if near(other):
            kind = "mean" if self.reduction == "sum" else "sum"
            raise ValueError(
                f"loss_reduction must be {kind}, got {self.reduction}: the loss of {self.name} is the {kind} over the "
                "examples of a batch"
            )
        raise ValueError(
            f"the gradient of an example in {self.name}.training_step depends on the other examples of its batch, so "
            "clipping it bounds nothing: the loss must be the mean over examples of a loss that looks at one (not the "
            "mean over all tokens of a batch, and not a comparison of examples)"
        )

    def compare_rows(self, each: list[list[Tensor]]) -> None:
        """Refuse layers whose rows are those of other examples than the rows of other layers."""
        count, norms = len(each), [_norm(of) for of in each]
        for order in (list(range(count)), list(range(count))[::-1]):  # a layer that sorts changes one of them
            with self.private([self.chosen[k] for k in order], 1.0, "hooks") as examples:
                rows = examples.of_examples(count)
            for row, k in enumerate(order):
                found = [of[row] for of in rows]
                if not _norm(_minus(found, each[k])) <= _NEAR * max(norms[k], 1e-6 * max(norms)):
                    raise ValueError(
                        f"the layers of {self.name} do not see the examples of a batch in one order, so that gradients "
                        "of several are clipped as those of one: keep the order of the batch in all of them, without "
                        "sorting by length in between"
                    )

    def clipped(self, indices: list[int], norm: float) -> list[Tensor]:
        """The sum of clipped gradients, as private training takes it."""
        with self.private(indices, norm, self.mode) as examples:
            examples.accumulate(len(indices))
            examples.finish()
        return self.gradient()

    @contextmanager
    def private(self, indices: list[int], norm: float, mode: str) -> Iterator[PrivateGradients]:
        """What has taken the gradients of some examples."""
        count, optimizer = len(indices), torch.optim.SGD(self.weights, lr=0.0)
        examples = PrivateGradients(
            self.spare, optimizer, noise_multiplier=0.0, max_grad_norm=norm, batch_size=count, mode=mode,
            loss_reduction=self.reduction,
        )  # fmt: skip
        try:
            examples.begin()
            examples.expect(count)
            self.loss(indices).backward()
            yield examples
        except RuntimeError as cause:
            raise ValueError(
                f"no gradient per example can be taken of {self.name}, some layer of which does not see one row for "
                f"each: {cause}"
            ) from cause
        finally:
            examples.detach()

    def buffer_of_examples(self) -> str:
        """Name of a buffer that is another one after other examples, and is part of the state dict; or nothing."""
        weights = {name for name, _ in self.spare.named_parameters(remove_duplicate=False)}

        def buffers() -> dict[str, Tensor]:
            state = self.spare.state_dict()
            return {n: v.clone() for n, v in state.items() if n not in weights and isinstance(v, Tensor)}

        before, after = buffers(), []
        if not before:
            return ""
        for i in (self.chosen[0], self.chosen[-1]):
            self.loss([i])
            after.append(buffers())
            self.spare.load_state_dict(before, strict=False)
        return next((n for n in before if not torch.equal(after[0][n], after[1][n])), "")


def _copied(module: LightningModule) -> LightningModule:
    """A copy of a module without the run that it is in, to which what it holds (an optimiser's maker) may refer."""
    trainer = module.trainer
    shared = [trainer, trainer.strategy, getattr(trainer, "datamodule", None)]
    for layer in module.modules():
        shared += [each for each in vars(layer).values() if callable(each) and not isinstance(each, nn.Module)]
    return copy.deepcopy(module, {id(each): each for each in shared if each is not None})


def _minus(some: list[Tensor], others: list[Tensor], times: float = 1) -> list[Tensor]:
    return [a - times * b for a, b in zip(some, others)]


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([each.double().norm() for each in tensors]).norm()
