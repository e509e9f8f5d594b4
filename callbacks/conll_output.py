"""Write the tags that a tagger predicts as a file in CoNLL's columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, repeat
from typing import Any, Literal

from lightning import LightningModule, Trainer

from callbacks.predictions import WritePredictions
from framework.text.conll import write_conll
from framework.text.tags import SCHEMES, convert

ORDER = ("sentence", "position")
COLUMNS = ("sentence", "token", "prediction", "confidence")


class WriteConll(WritePredictions):
    """Write predicted tags to ``<run dir>/predictions/predictions.conll``: columns token, tag and confidence.

    Sentences come in the order of the data, with the comments that stand before them in a file of columns, and a blank
    line after each; with several processes, too. The confidence in a token's tag, in [0, 1], is the one that the module
    gives to the tag it predicted itself: a tag that breaks its scheme is written as conlleval reads it.

    ``predict_step`` returns a row for each token, with the columns ``sentence``, ``position``, ``token``,
    ``prediction`` (a tag of any scheme) and ``confidence``; the module says so by its ``prediction_order``,
    ``("sentence", "position")``.

    Args:
        directory: Folder for the file; ``None`` for ``<run dir>/predictions``.
        scheme: Scheme of the tags: ``iob1``, ``iob2`` or ``iobes``.

    Raises:
        ValueError: If ``scheme`` is unknown.
        TypeError: Before predicting, if the module does not tag tokens.
    """

    def __init__(self, directory: str | None = None, scheme: Literal["iob1", "iob2", "iobes"] = "iob2") -> None:
        super().__init__(directory)
        if scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
        self.scheme = scheme
        self.format = "conll"
        self._comments: list[Sequence[str]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict" and tuple(getattr(pl_module, "prediction_order", ())) != ORDER:
            raise TypeError(
                f"{type(pl_module).__name__} has no prediction_order {ORDER}, which WriteConll needs: "
                "predict_step returns a row for each token of a sentence"
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        loaders = trainer.predict_dataloaders
        loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        self._comments = [getattr(getattr(loader, "dataset", None), "comments", ()) for loader in loaders]

    def _write(self, name: str, chunks: Iterator[Mapping[str, Sequence[Any]]]) -> None:
        if name != "predictions":
            return  # a module's own tables are no sentences
        rows = (row for chunk in chunks for row in zip(chunk.get("dataloader", repeat(0)), *map(chunk.get, COLUMNS)))
        tokens, tags, confidence, comments = [], [], [], []
        for (loader, sentence), part in groupby(rows, key=lambda row: row[:2]):
            _, _, words, predicted, sure = zip(*part)
            tokens.append(words)
            tags.append(convert(predicted, self.scheme))
            confidence.append(sure)
            known = self._comments[loader]
            comments.append(known[sentence] if known else "")
        write_conll(self._folder / f"{name}.{self.format}", tokens, tags, confidence, comments=comments)
