"""Copies of one module, again and again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class ModuleCopies:
    """What ``copy.deepcopy`` makes of a module, in a fraction of the time where there are many copies.

    ``deepcopy`` walks through thousands of small objects, most of them of metrics, in Python. Here they are pickled
    once and unpickled in C; tensors are cloned from the module. What cannot be pickled, such as a lambda, and tensors
    that share memory are left to ``deepcopy``.

    Args:
        module: The module. What is no tensor in it should not change from the first copy on.
        shared: Objects of it that the copies have in common with it.
    """

    def __init__(self, module: LightningModule, shared: Iterable[Any] = ()) -> None:
        self._module = module
        self._shared = {id(value): value for value in shared}
        self._tensors: list[Tensor] = []
        self._pickled: bytes | None = None
        self._tried = False

    def make(self) -> LightningModule:
        """A copy of the module with the weights it has now."""
        if not self._tried:
            self._tried = True
            self._pickled = self._pickle()
        if self._pickled is None:
            return copy.deepcopy(self._module, dict(self._shared))
        made: LightningModule = _Unpickler(self._pickled, self._tensors, self._shared).load()
        return made

    def _pickle(self) -> bytes | None:
        stream = io.BytesIO()
        pickler = _Pickler(stream, self._shared)
        try:
            pickler.dump(self._module)
            _Unpickler(stream.getvalue(), pickler.tensors, self._shared).load()
        except Exception:  # whatever an object of the user's says to being pickled
            return None
        places = [tensor.untyped_storage().data_ptr() for tensor in pickler.tensors if tensor.numel()]
        if len(set(places)) < len(places) or not all(map(_simple, pickler.tensors)):
            return None
        self._tensors = pickler.tensors
        return stream.getvalue()


class _Pickler(pickle.Pickler):
    """Leaves out tensors, and what is shared."""

    def __init__(self, stream: io.BytesIO, shared: dict[int, Any]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._shared, self._places = shared, dict[int, int]()

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self._places:
                self._places[id(value)] = len(self.tensors)
                self.tensors.append(value)
            return self._places[id(value)]
        return ("shared", id(value)) if id(value) in self._shared else None


class _Unpickler(pickle.Unpickler):
    """Puts clones of the tensors in, one for each, and what is shared itself."""

    def __init__(self, content: bytes, tensors: list[Tensor], shared: dict[int, Any]) -> None:
        super().__init__(io.BytesIO(content))
        self._tensors, self._shared = tensors, shared
        self._clones: dict[int, Tensor] = {}

    def persistent_load(self, place: Any) -> Any:
        if isinstance(place, tuple):
            return self._shared[place[1]]
        if place not in self._clones:
            tensor = self._tensors[place]
            clone = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            self._clones[place] = nn.Parameter(clone, tensor.requires_grad) if is_parameter else clone
        return self._clones[place]


def _simple(tensor: Tensor) -> bool:
    """Whether a clone is all there is to it."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not vars(tensor)
    return plain and tensor.grad is None and (isinstance(tensor, nn.Parameter) or not tensor.requires_grad)
