"""Precision, recall and F1 of entities, counted where the predictions are: no lists, sums over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from framework.text.tags import split_tag


class SpanF1(Metric):
    """Exact-match precision, recall and F1 over entities, micro-averaged.

    A predicted entity is right if its type and both of its ends are. ``lenient`` reads broken tag sequences as
    conlleval does, which is the default mode of seqeval: an entity also begins at an ``I-`` or ``E-`` that continues
    nothing, and ends where the type changes. ``strict`` counts nothing but whole IOBES entities (``S``,
    or ``B I .. I E`` of one type), which is seqeval's ``mode="strict", scheme=IOBES``.

    Args:
        tags: Names of the tags, of which predictions and targets are numbers.
        mode: ``lenient`` or ``strict``.
        by_type: Whether ``compute`` also gives the values of each entity type.
        **options: Options of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``mode`` is unknown, or a name is no tag.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    predicted: Tensor
    true: Tensor
    prefix: Tensor
    kind: Tensor

    def __init__(
        self,
        tags: Sequence[str],
        mode: Literal["lenient", "strict"] = "lenient",
        by_type: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if mode not in ("lenient", "strict"):
            raise ValueError(f"mode must be lenient or strict, got {mode!r}")
        parts = [split_tag(tag) for tag in tags]
        self.mode, self.by_type = mode, by_type
        self.types = list(dict.fromkeys(kind for _, kind in parts if kind))
        self.register_buffer("prefix", torch.tensor(["OBIES".index(prefix) for prefix, _ in parts]), False)
        self.register_buffer("kind", torch.tensor([self.types.index(kind) if kind else -1 for _, kind in parts]), False)
        for name in ("correct", "predicted", "true"):
            self.add_state(name, torch.zeros(len(self.types), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor, mask: Tensor) -> None:
        """Count the entities of some sentences.

        Args:
            predicted: Tag numbers, shape ``(batch, n)``.
            target: True tag numbers, shape ``(batch, n)``. A sentence with a negative one is left out.
            mask: True at tokens, False at the padding on the right, shape ``(batch, n)``.
        """
        mask = mask & ((target >= 0) | ~mask).all(1, keepdim=True)
        ends, starts, kinds = self._entities(predicted, mask)
        true_ends, true_starts, true_kinds = self._entities(target, mask)
        right = ends & true_ends & (starts == true_starts) & (kinds == true_kinds)
        for count, found in ((self.correct, right), (self.predicted, ends)):
            count += torch.bincount(kinds[found], minlength=len(self.types))
        self.true += torch.bincount(true_kinds[true_ends], minlength=len(self.types))

    def compute(self) -> dict[str, Tensor]:
        """``precision``, ``recall`` and ``f1`` of all entities, in [0, 1]; 0 where there is nothing to divide by.

        With ``by_type`` also ``precision/<type>``, ``recall/<type>``, ``f1/<type>`` and ``entities/<type>``, the number
        of true ones.
        """
        values = _scores(self.correct.sum(), self.predicted.sum(), self.true.sum())
        if self.by_type:
            for number, kind in enumerate(self.types):
                scores = _scores(self.correct[number], self.predicted[number], self.true[number])
                values |= {f"{name}/{kind}": value for name, value in scores.items()}
                values[f"entities/{kind}"] = self.true[number]
        return values

    def _entities(self, tags: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At each token, shape ``(batch, n)``: whether an entity ends here, where it began, and its type."""
        tags = tags.clamp_min(0)
        prefix = self.prefix[tags].masked_fill(~mask, 0)
        kind = self.kind[tags].masked_fill(~mask, -1)
        outside, begins, inside, ends, single = (prefix == number for number in range(5))
        # A token goes on with the entity of the token before it, or begins a run of its own.
        opened = (begins | inside)[:, :-1]
        goes_on = (inside | ends)[:, 1:] & opened & (kind[:, 1:] == kind[:, :-1])
        goes_on = torch.nn.functional.pad(goes_on, (1, 0))
        places = torch.arange(tags.shape[1], device=tags.device).expand_as(tags)
        starts = places.masked_fill(goes_on, 0).cummax(1).values
        if self.mode == "strict":
            return single | (ends & goes_on & begins.gather(1, starts)), starts, kind
        stops = torch.nn.functional.pad(~goes_on[:, 1:], (0, 1), value=True)
        return ~outside & stops, starts, kind


def _scores(correct: Tensor, predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    return {
        "precision": correct / predicted.clamp_min(1),
        "recall": correct / true.clamp_min(1),
        "f1": 2 * correct / (predicted + true).clamp_min(1),
    }
