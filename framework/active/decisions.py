"""What a module decides about a batch, and how sure it is of each decision: all that acquisition functions see."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from framework.loaders.labels import LABEL_NAMES
from framework.loaders.reindexing import kind


class Decisions(NamedTuple):
    """What a module decides about each item of a batch: one class for a classifier, a tag per token for a tagger.

    Attributes:
        log_probs: Normalised log-probabilities (nats) of the classes of each decision, shape ``(batch, n, classes)``,
            given the decisions chosen before it. So the sum over real ``i`` of ``log_probs[:, i, chosen[:, i]]`` is
            log P(y*|x) of the whole decoded sequence.
        chosen: Class decided on, int64 of shape ``(batch, n)``.
        mask: True for real decisions, False for padding, shape ``(batch, n)``. What stands at padding is not read.
    """

    log_probs: Tensor
    chosen: Tensor
    mask: Tensor


@runtime_checkable
class Scorable(Protocol):
    """A module that says itself how sure it is, such as a tagger; an ordinary classifier need not."""

    def acquisition_scores(self, batch: Any) -> Decisions:
        """Decisions about a batch of the train loader, whose labels must not be looked at."""
        ...


@runtime_checkable
class Embeddable(Protocol):
    """A module that says itself which vector stands for an item."""

    def acquisition_embedding(self, batch: Any) -> Tensor:
        """Vectors of shape ``(batch, dim)``."""
        ...


def decisions_of(module: nn.Module, batch: Any) -> Decisions:
    """What a module decides about a batch.

    A :class:`Scorable` is asked. Any other module is taken as a classifier: called with the inputs it gives logits,
    log-probabilities or probabilities of shape ``(batch, classes)``, or an object that has them as ``logits``. Inputs
    are the first entry of a tuple or list, a tensor that is the batch, or by keyword what is in a mapping but labels.

    Args:
        module: The module, in the mode (dropout on or off) in which it is to decide.
        batch: A batch of the train loader, on the module's device.

    Returns:
        Decisions; n is 1 for a classifier.

    Raises:
        TypeError: If the module is neither; the message names the module and the method that it lacks.
    """
    if isinstance(module, Scorable):
        return module.acquisition_scores(batch)
    return _decided(_logits(module, batch))


def embedding_of(module: nn.Module, batch: Any) -> Tensor:
    """The vector that stands for each item of a batch.

    An :class:`Embeddable` is asked. For any other classifier it is the input of its last linear layer.

    Args:
        module: The module, in the mode in which it is to run.
        batch: A batch of the train loader, on the module's device.

    Returns:
        Vectors of shape ``(batch, dim)``.

    Raises:
        TypeError: If the module is neither; the message names the module and the method that it lacks.
    """
    return module.acquisition_embedding(batch) if isinstance(module, Embeddable) else _hooked(module, batch)[1]


def decisions_and_embedding_of(module: nn.Module, batch: Any) -> tuple[Decisions, Tensor]:
    """Both of the above; from one forward pass where the module is an ordinary classifier.

    Args:
        module: The module, in the mode in which it is to run.
        batch: A batch of the train loader, on the module's device.

    Returns:
        Decisions, and vectors of shape ``(batch, dim)``.

    Raises:
        TypeError: As above.
    """
    if isinstance(module, (Scorable, Embeddable)):
        return decisions_of(module, batch), embedding_of(module, batch)
    logits, vectors = _hooked(module, batch)
    return _decided(logits), vectors


def _decided(logits: Tensor) -> Decisions:
    log_probs = logits.log_softmax(dim=1).unsqueeze(1)
    chosen = log_probs.argmax(dim=2)
    return Decisions(log_probs, chosen, torch.ones_like(chosen, dtype=torch.bool))


def _logits(module: nn.Module, batch: Any) -> Tensor:
    """Logits of a classifier, at least float32, shape ``(batch, classes)``."""
    needs = (
        f"{kind(module)} has no acquisition_scores, which ActiveLearning needs: give it a method "
        "acquisition_scores(batch) -> framework.active.decisions.Decisions, or a forward from inputs to logits of "
        "shape (batch, classes >= 2)"
    )
    args, kwargs = _inputs(batch, needs)
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{needs}; its forward cannot be called with the inputs alone: {error}") from None
    try:
        output = module(*args, **kwargs)
    except NotImplementedError as error:
        raise TypeError(f"{needs}; {str(error).splitlines()[0]}") from None
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise TypeError(f"{needs}; its forward returns {kind(output)}")
    if output.ndim != 2 or output.shape[1] < 2 or not output.is_floating_point():
        raise TypeError(f"{needs}; its forward returns {output.dtype} of shape {tuple(output.shape)}")
    tolerance = 1e-4 if output.dtype in (torch.float32, torch.float64) else 1e-2
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if bool((output >= 0).all()) and bool(((output.sum(dim=1) - 1).abs() < tolerance).all()):
        return output.log()  # the module ends in a softmax
    return output


def _inputs(batch: Any, needs: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a classifier is called with."""
    if isinstance(batch, (tuple, list)) and batch:
        return (batch[0],), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), {name: value for name, value in batch.items() if name not in LABEL_NAMES}
    raise TypeError(f"{needs}; the inputs of a batch of type {kind(batch)} are not known")


def _hooked(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits of a classifier, and the input of the linear layer that made them."""
    ran: list[tuple[Tensor, Tensor]] = []

    def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ran[:] = [(inputs[0], output)] if inputs else []  # only of the last layer that ran

    hooks = [layer.register_forward_hook(remember) for layer in module.modules() if isinstance(layer, nn.Linear)]
    try:
        logits = _logits(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if ran:
        vectors, output = ran[0]
        # After the last layer nothing may come but what keeps the probabilities, such as a softmax.
        if output.shape == logits.shape and torch.allclose(
            output.to(logits.dtype).log_softmax(1).exp(), logits.log_softmax(1).exp(), rtol=0, atol=1e-3
        ):
            return logits, vectors.to(logits.dtype)
    raise TypeError(
        f"{kind(module)} has no acquisition_embedding, which ActiveLearning needs for this acquisition function: give "
        "it a method acquisition_embedding(batch) -> Tensor of shape (batch, dim), or let its forward end in the "
        "torch.nn.Linear that gives the logits"
    )
