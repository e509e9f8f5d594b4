"""What travels between server and clients: weights as Flower's arrays, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

REFUSAL = "refusal"
"""Record of a reply by which a client says why it does not train."""

_WIDER = {torch.bfloat16: torch.float32}
"""What numpy has no type for travels in one that holds every value of it."""


def pack(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as an ``ArrayRecord``; what numpy cannot hold (bfloat16) travels as float32.

    Args:
        state: Tensors by state-dict key, on any device.
    """
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({key: Array(_plain(value).numpy()) for key, value in state.items()})


def unpack(arrays: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of an ``ArrayRecord``, by key, as they travelled."""
    return {key: torch.from_numpy(array.numpy()) for key, array in arrays.items()}


def cast_like(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the types of others: averaging turns integers (``num_batches_tracked``) into fractions.

    Args:
        state: Tensors by key; integers among the reference are rounded to.
        reference: At least the same keys.
    """
    return {key: _cast(value, _plain(reference[key]).dtype) for key, value in state.items()}


def complaint(arrays: ArrayRecord, reference: Mapping[str, Tensor], partial: bool = False) -> str:
    """What is wrong with the weights of a reply; empty if nothing is.

    Averaging would broadcast a wrong shape and let one NaN poison the model, both in silence.

    Args:
        arrays: What came.
        reference: The weights that were sent, by key.
        partial: Whether a client may send fewer keys.
    """
    unknown = [key for key in arrays if key not in reference]
    if unknown:
        return f"unknown weights {_some(unknown)}"
    missing = [] if partial else [key for key in reference if key not in arrays]
    if missing:
        return f"weights {_some(missing)} are missing"
    for key, array in arrays.items():
        wanted = _plain(reference[key])
        value = array.numpy()
        if tuple(value.shape) != tuple(wanted.shape):
            return f"{key} has shape {tuple(value.shape)}, expected {tuple(wanted.shape)}"
        if str(value.dtype) != _name(wanted):
            return f"{key} has type {value.dtype}, expected {_name(wanted)}"
        if wanted.is_floating_point() and not _is_finite(value):
            return f"{key} holds NaN or infinity"
    return ""


def size(arrays: ArrayRecord) -> int:
    """Bytes of the arrays, headers included."""
    return sum(len(array.data) for array in arrays.values())


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Logged metrics as Flower's ``MetricRecord`` takes them: plain floats; what is no single number is left out."""
    found = {}
    for key, value in metrics.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            continue
        found[key] = float(value)
    return found


def _plain(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.to(_WIDER[value.dtype]) if value.dtype in _WIDER else value.contiguous()


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.dtype == dtype:
        return value
    return (value.round() if value.is_floating_point() and not dtype.is_floating_point else value).to(dtype)


def _is_finite(values: np.ndarray[Any, Any]) -> bool:
    """Whether all are; their sum says so in one pass, unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
