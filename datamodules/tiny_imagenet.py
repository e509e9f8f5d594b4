"""Tiny ImageNet at 32 x 32 pixels, its 200 classes divided for few-shot learning and for transfer."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from datamodules._classification import ClassificationData
from framework.errors import near
from framework.loaders import Items
from framework.paths import data_root, missing_files
from framework.splits import check_shares, split_indices

SOURCE = "https://github.com/seshuad/IMagenet"
FILES = ("images.npz", "classes.json")
MEMBERS = ("blob", "offsets", "label", "wnid", "split")
ClassSplit = Literal["base", "val", "test", "all"]
CHANNELS, SIDE = 3, 32
FORMATS = ("WEBP", "PNG", "JPEG")  # named, because Pillow looks for WebP last and has tried forty others by then
# Mean and standard deviation of each channel over the images of the base classes, values in [0, 1].
MEAN, STD = (0.4801, 0.4464, 0.3966), (0.2622, 0.2542, 0.2679)


class Chosen(NamedTuple):
    """The images that arguments choose.

    Attributes:
        wnids: WordNet identifiers of the classes; class ``k`` is the ``k``-th.
        numbers: Numbers of the images in the file, int64.
        targets: Class of each of them, int64.
    """

    wnids: list[str]
    numbers: Tensor
    targets: Tensor


class ColourImages(Dataset[tuple[Any, ...]]):
    """Colour images kept as bytes, standardised as they are served: ``(image, class, number)``.

    Args:
        images: Shape ``(items, 3, height, width)``, uint8.
        targets: Classes, shape ``(items,)``, int64.
        numbers: What names the items in predictions, shape ``(items,)``, int64.
    """

    def __init__(self, images: Tensor, targets: Tensor, numbers: Tensor) -> None:
        self.images, self.targets, self.numbers = images, targets, numbers
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._standardised(self.images[index]), self.targets[index], self.numbers[index]

    def __getitems__(self, indices: list[int]) -> Items:
        """Several items: a DataLoader asks for a batch at once, which is several times faster."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Items(self._standardised(self.images[rows]), self.targets[rows], self.numbers[rows])

    def _standardised(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std)


class TinyImageNet(ClassificationData):
    """Photographs of 32 x 32 colour pixels in 200 classes: 190, 60 and 100 images of each base, val and test class.

    The images of Tiny ImageNet's training set, halved in size. The division of the classes (120 base, 30 val, 50 test)
    is not that of miniImageNet or tieredImageNet. Train, val and test of this DataModule divide the images of the
    chosen classes; to pre-train on some classes and go on with others, run it with two values of ``class_split``.

    It reads ``images.npz`` and ``classes.json`` in the folder ``tinyimagenet_fs`` of ``data_dir``.

    Args:
        data_dir: Folder that holds the folder ``tinyimagenet_fs``. None means the environment variable
            ``FULGURITE_DATA``, else ``data``.
        class_split: Which classes there are to choose from: ``base``, ``val``, ``test`` or ``all``.
        classes: How many of them, the first in the order of their WordNet identifiers; or the identifiers of at least
            two of them, in the order in which they are to be numbered. None means all of ``class_split``.
        per_class: The most images of a class that are used, the first ones. None means all.
        split: Shares of train, val and test, stratified by class; they sum to 1.
        batch_size: Images per batch, at least 1.
        seed: Seed of the split.
        num_workers: Processes that load batches.

    Attributes:
        inputs: 3072 values per image.
        classes: Number of classes (reads the list of classes when first asked).
        wnids: Their WordNet identifiers.
        class_names: Their names in WordNet.

    Raises:
        ValueError: If an argument is out of range; when the data are first needed, if there are no such classes or a
            file is not in its format.
        FileNotFoundError: When the data are first needed, if files are missing; the message says which and where they
            go.
    """

    inputs = CHANNELS * SIDE * SIDE
    persistent_workers = True

    def __init__(
        self,
        data_dir: str | None = None,
        class_split: ClassSplit = "base",
        classes: int | Sequence[str] | None = None,
        per_class: int | None = None,
        split: tuple[float, float, float] = (0.7, 0.15, 0.15),
        batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_shares(split)
        if class_split not in get_args(ClassSplit):
            raise ValueError(f"class_split must be one of {', '.join(get_args(ClassSplit))}, got {class_split!r}")
        count = classes if isinstance(classes, int) or classes is None else len(classes)
        if count is not None and count < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        for field, value in (("per_class", per_class), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")
        self.save_hyperparameters()
        self.folder = Path(data_dir).expanduser() / "tinyimagenet_fs" if data_dir else data_root("tinyimagenet_fs")

    @cached_property
    def chosen(self) -> Chosen:
        """The classes and their images; the list of them is read once, when first needed, without the images."""
        self.prepare_data()
        members = _read_npz(self.folder / FILES[0], ("label", "wnid", "split"))
        label, wnid = members["label"].astype(np.int64), [str(name) for name in members["wnid"]]
        if len(members["split"]) != len(wnid) or (len(label) and not 0 <= label.min() <= label.max() < len(wnid)):
            raise ValueError(f"{self.folder / FILES[0]} must hold a split of each wnid, and labels below {len(wnid)}")
        wanted = self.hparams["class_split"]
        offered = [name for name, part in zip(wnid, members["split"]) if wanted in (part, "all")]
        wnids = _chosen(self.hparams["classes"], sorted(offered), wanted)
        pieces = [np.flatnonzero(label == wnid.index(name))[: self.hparams["per_class"]] for name in wnids]
        targets = np.repeat(np.arange(len(wnids)), [len(piece) for piece in pieces])
        return Chosen(wnids, torch.from_numpy(np.concatenate(pieces)), torch.from_numpy(targets))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.wnids)

    @property
    def wnids(self) -> list[str]:
        """WordNet identifiers of the classes."""
        return self.chosen.wnids

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes: the first of each in WordNet."""
        file = self.folder / FILES[1]
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            return [str(known[wnid]["names"][0]) for wnid in self.wnids]
        except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{file} must give each wnid a list of names: {error!r}") from error

    def prepare_data(self) -> None:
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise missing_files("TinyImageNet", missing, f"{SOURCE} (packed as docs/data.md says)", self.folder)

    def setup(self, stage: str | None = None) -> None:
        _, numbers, targets = self.chosen
        file = (self.folder / FILES[0]).resolve()
        images = ColourImages(_decoded(file, file.stat().st_mtime_ns, numbers.numpy().tobytes()), targets, numbers)
        parts = split_indices(len(targets), self.hparams["split"], self.hparams["seed"], targets)
        self.train, self.val, self.test = (Subset(images, part.tolist()) for part in parts)


def decode_images(file: Path, numbers: Tensor) -> Tensor:
    """Decode images of ``images.npz``.

    Args:
        file: The file: ``blob``, WebP, PNG or JPEG images one after the other, uint8; ``offsets``, where each begins
            and the last one ends.
        numbers: Which images.

    Returns:
        Shape ``(numbers, 3, 32, 32)``, uint8.

    Raises:
        ValueError: If an image cannot be decoded or has another size.
    """
    from PIL import Image, UnidentifiedImageError

    members = _read_npz(file, ("blob", "offsets"))
    blob, offsets = members["blob"].tobytes(), members["offsets"].tolist()
    pixels = np.empty((len(numbers), SIDE, SIDE, CHANNELS), np.uint8)
    for row, number in enumerate(numbers.tolist()):
        try:
            with Image.open(io.BytesIO(blob[offsets[number] : offsets[number + 1]]), formats=FORMATS) as image:
                pixels[row] = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, IndexError, ValueError) as error:
            raise ValueError(
                f"image {number} of {file} must be one of {SIDE} x {SIDE} pixels that Pillow decodes: {error}"
            ) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


@lru_cache(maxsize=2)
def _decoded(file: Path, changed: int, numbers: bytes) -> Tensor:
    """Decoded images, once per process: nobody writes to them. ``changed`` makes a rewritten file another one."""
    return decode_images(file, torch.from_numpy(np.frombuffer(numbers, np.int64).copy()))


def _read_npz(file: Path, members: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file) as content:
            return {name: content[name] for name in members}
    except (BadZipFile, KeyError, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{file} must be an .npz file with {', '.join(MEMBERS)}: {error}") from error


def _chosen(classes: int | Sequence[str] | None, offered: list[str], class_split: str) -> list[str]:
    """WordNet identifiers of the classes that are asked for."""
    if classes is None or isinstance(classes, int):
        if classes is not None and classes > len(offered):
            raise ValueError(f"classes must be at most {len(offered)} for class_split={class_split}, got {classes}")
        return offered[:classes]
    for name in classes:
        if name not in offered:
            hint = near(name, offered) or f"; the first is {offered[0]}"
            raise ValueError(f"classes: {name!r} is no class of class_split={class_split}{hint}")
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes must not repeat a class, got {list(classes)}")
    return list(classes)
