"""A user's own images, one folder per class."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules._classification import ClassificationData
from framework.splits import check_shares, split_indices

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PARTS = ("train", "val", "test")


class Listing(NamedTuple):
    """Files of the parts and their classes.

    Attributes:
        class_names: Names of the classes: the folders, sorted.
        files: Files of ``train``, ``val``, ``test`` and ``predict``.
        targets: Class of each of them; -1 for ``predict`` where it is not known.
    """

    class_names: list[str]
    files: dict[str, list[Path]]
    targets: dict[str, Tensor]


class ImageFiles(Dataset[tuple[Any, ...]]):
    """Images decoded as they are served: shorter side scaled to ``size``, the middle square cut out, values in [-1, 1].

    Args:
        files: The image files.
        targets: Classes, shape ``(files,)``, int64.
        size: Pixels of a side.
        channels: 1 for grey, 3 for colour.
        named: Whether an item is ``(image, class, name)`` rather than ``(image, class)``.
        root: Folder that the names are relative to.
    """

    def __init__(
        self, files: list[Path], targets: Tensor, size: int, channels: int, named: bool = False, root: Path = Path()
    ) -> None:
        self.files, self.targets = files, targets
        self.size, self.channels, self.named, self.root = size, channels, named, root

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        file = self.files[index]
        image = read_image(file, self.size, self.channels)
        if self.named:
            return image, self.targets[index], file.relative_to(self.root).as_posix()
        return image, self.targets[index]


class ImageFolder(ClassificationData):
    """Images in one folder per class, with Pillow's formats.

    Either ``path/<class>/*.png``, split by seed, or ``path/train/<class>/*.png`` beside ``path/test/<class>`` and
    perhaps ``path/val/<class>``. A part without a folder is split off ``train``. ``path/predict/*.png`` are images to
    predict; if there are none, ``predict`` goes through the test images.

    Args:
        path: The folder.
        size: Pixels of a side of the square images that the network sees, at least 1.
        channels: 1 reads grey, 3 reads colour.
        split: Shares of train, val and test, stratified by class; they sum to 1. Of parts with a folder of their own
            the share has no effect.
        batch_size: Images per batch, at least 1.
        seed: Seed of the split.
        num_workers: Processes that decode images.

    Attributes:
        inputs: ``channels * size * size``.
        classes: Number of classes (lists the folder when first asked).
        class_names: Names of the folders, sorted.

    Raises:
        ValueError: If an argument is out of range; when the data are first needed, for classes that differ between the
            parts, fewer than two classes, or a folder without images.
        FileNotFoundError: When the data are first needed, if there is no such folder.
    """

    persistent_workers = True

    def __init__(
        self,
        path: str,
        size: int = 32,
        channels: int = 3,
        split: tuple[float, float, float] = (0.7, 0.15, 0.15),
        batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_shares(split)
        for field, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        self.save_hyperparameters()
        self.root = Path(path).expanduser()
        self.inputs = channels * size * size

    @cached_property
    def listing(self) -> Listing:
        """The files and their classes; the folder is listed once, when first needed."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"path is not a folder: {self.root}")
        given = {part: self.root / part for part in PARTS if (self.root / part).is_dir()}
        if given and "train" not in given:
            raise ValueError(f"path has {' and '.join(given)} but no train folder: {self.root}")
        source = given.get("train", self.root)
        names = sorted(folder.name for folder in _folders(source) if given or folder.name != "predict")
        if len(names) < 2:
            raise ValueError(f"path must hold at least 2 folders of classes, got {names} in {source}")
        parts = {part: _labelled(folder, names) for part, folder in (given or {"train": self.root}).items()}
        parts = self._complete(parts)
        files = {part: content[0] for part, content in parts.items()}
        targets = {part: content[1] for part, content in parts.items()}
        files["predict"], targets["predict"] = files["test"], targets["test"]
        if (self.root / "predict").is_dir():
            files["predict"] = _images(self.root / "predict")
            targets["predict"] = torch.full((len(files["predict"]),), -1)
        return Listing(names, files, targets)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.listing.class_names)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return self.listing.class_names

    def setup(self, stage: str | None = None) -> None:
        self.train, self.val, self.test = (self._data(part) for part in PARTS)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self._data("predict", named=True))

    def _complete(self, parts: dict[str, tuple[list[Path], Tensor]]) -> dict[str, tuple[list[Path], Tensor]]:
        """Split the parts that have no folder off the training images."""
        wanted = [part for part in PARTS if part == "train" or part not in parts]
        if len(wanted) == 1:
            return parts
        files, targets = parts["train"]
        shares = dict(zip(PARTS, self.hparams["split"]))
        total = sum(shares[part] for part in wanted)
        pieces = split_indices(len(files), [shares[part] / total for part in wanted], self.hparams["seed"], targets)
        return parts | {part: ([files[i] for i in piece], targets[piece]) for part, piece in zip(wanted, pieces)}

    def _data(self, part: str, named: bool = False) -> ImageFiles:
        listing, p = self.listing, self.hparams
        return ImageFiles(listing.files[part], listing.targets[part], p["size"], p["channels"], named, self.root)


def read_image(file: Path, size: int, channels: int) -> Tensor:
    """Decode an image: shorter side scaled to ``size``, the middle square cut out.

    Args:
        file: The image file.
        size: Pixels of a side.
        channels: 1 for grey, 3 for colour.

    Returns:
        Shape ``(channels, size, size)``, float32 in [-1, 1].

    Raises:
        ValueError: If the file cannot be decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            # A photograph that was taken upright may be stored lying down, with a note that says so.
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be decoded as an image: {error}") from error
    image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32).reshape(size, size, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 127.5 - 1


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    files = sorted(
        entry
        for entry in folder.rglob("*")
        if entry.suffix.lower() in SUFFIXES and entry.is_file() and not entry.name.startswith(".")
    )
    if not files:
        raise ValueError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    return files


def _labelled(folder: Path, names: list[str]) -> tuple[list[Path], Tensor]:
    """Files of the class folders in ``folder`` and their classes."""
    known = [entry.name for entry in _folders(folder)]
    odd = sorted(set(known) - set(names) - {"predict"})
    absent = sorted(set(names) - set(known))
    if odd or absent:
        problem = f"has folders of unknown classes: {', '.join(odd)}" if odd else f"lacks classes: {', '.join(absent)}"
        raise ValueError(f"{folder} {problem}; the classes are the folders of train: {', '.join(names)}")
    files: list[Path] = []
    targets: list[int] = []
    for k, name in enumerate(names):
        images = _images(folder / name)
        files += images
        targets += [k] * len(images)
    return files, torch.tensor(targets)
