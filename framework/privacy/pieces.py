"""Batches in pieces that fit into memory, of which each batch is still one step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import LightningModule


class Pieces(list[Any]):
    """A batch in pieces that fit into memory; together they are one batch of one step."""


class PieceCollate:
    """Makes the pieces of a batch from its items.

    Args:
        collate: Makes a batch from items.
        most: The most items of a piece, at least 1.
    """

    def __init__(self, collate: Callable[..., Any], most: int) -> None:
        self.collate, self.most = collate, most

    def __call__(self, items: Sequence[Any]) -> Pieces:
        pieces, start = Pieces(), 0
        for size in piece_sizes(len(items), self.most):
            pieces.append(self.collate(items[start : start + size]))
            start += size
        return pieces


def piece_sizes(items: int, most: int) -> list[int]:
    """Sizes of the pieces of a batch: as few as possible, and as equal as possible.

    Args:
        items: Number of items, at least 1.
        most: The most items of a piece, at least 1.
    """
    count = math.ceil(items / most)
    return [items // count + (i < items % count) for i in range(count)]


class PiecewiseStep:
    """Has a module's ``training_step`` take batches in pieces, until :meth:`undo`.

    All pieces but the last are taken back through the module here; the last one's loss is returned, so that Lightning
    does with it what it does with every loss, and makes one step.

    Args:
        module: The module.
        sizes: Gives the numbers of examples in the pieces of the present batch.
        expect: Called with the number of examples before each piece.
        accumulate: Called with the number of examples after the backward pass of each piece but the last.
    """

    def __init__(
        self,
        module: LightningModule,
        sizes: Callable[[], list[int]],
        expect: Callable[[int], None],
        accumulate: Callable[[int], None],
    ) -> None:
        self._module, self._replaced = module, vars(module).get("training_step")
        own = module.training_step

        @functools.wraps(own)
        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(batch, Pieces):
                return own(batch, *args, **kwargs)
            results = module.trainer._results
            for number, (piece, items) in enumerate(zip(batch, sizes(), strict=True), start=1):
                if results is not None:  # what is logged is a mean over the examples of the piece
                    results.batch, results.batch_size = piece, None
                expect(items)
                made: Any = own(piece, *args, **kwargs)
                if number == len(batch):
                    return made
                loss = made["loss"] if isinstance(made, dict) else made
                if loss is not None:  # which says that there is nothing to learn from
                    with torch.autocast(module.device.type, enabled=False):
                        loss.backward()
                accumulate(items)
            raise RuntimeError("a batch has at least one piece")

        module.training_step = step  # type: ignore[method-assign]

    def undo(self) -> None:
        """Give the module its step back."""
        if self._replaced is None:
            del self._module.training_step
        else:
            self._module.training_step = self._replaced  # type: ignore[method-assign]
