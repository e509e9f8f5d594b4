"""MNIST in its four public IDX files, decoded with numpy."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from datamodules._classification import ClassificationData
from framework.loaders import Items
from framework.paths import data_root, missing_files
from framework.splits import check_shares, split_indices

SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
# Mean and standard deviation of the grey values of the 60,000 training images.
MEAN, STD = 0.1307, 0.3081


class GreyImages(Dataset[tuple[Any, ...]]):
    """Grey images kept as bytes, standardised as they are served.

    Args:
        images: Shape ``(items, 28, 28)``, uint8.
        targets: Classes, shape ``(items,)``, int64.
        numbered: Whether an item is ``(image, class, number)`` rather than ``(image, class)``.
    """

    def __init__(self, images: Tensor, targets: Tensor, numbered: bool = False) -> None:
        self.images, self.targets, self.numbered = images, targets, numbered

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = self._standardised(self.images[index].unsqueeze(0))
        return (image, self.targets[index], index) if self.numbered else (image, self.targets[index])

    def __getitems__(self, indices: list[int]) -> Items:
        """Several items: a DataLoader asks for a batch at once, which is several times faster."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        images, targets = self._standardised(self.images[rows].unsqueeze(1)), self.targets[rows]
        return Items(images, targets, rows) if self.numbered else Items(images, targets)

    @staticmethod
    def _standardised(images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(MEAN).div_(STD)


class MNIST(ClassificationData):
    """60,000 handwritten digits of 28 x 28 grey pixels to train and validate on, 10,000 to test on.

    The files are those that everyone uses, ``train-images-idx3-ubyte.gz`` and three more, in the folder ``mnist`` of
    ``data_dir``. Downloaded files are compared with the published MD5 sums; files that are already there may be another
    set in the same format (Fashion-MNIST, a re-ordered copy) and are checked for their form only.

    Args:
        data_dir: Folder that holds the folder ``mnist``. None means the environment variable ``FULGURITE_DATA``, else
            ``data``.
        batch_size: Images per batch, at least 1.
        val_share: Share of the training images kept for validation, in (0, 1); stratified by class.
        part: Which of the other images to train on: from where to where in one random order, as shares. With the same
            ``seed`` and ``val_share``, (0, 0.5) and (0.5, 1) have no image in common: one to pre-train on, one to go on
            with.
        seed: Seed of the split.
        download: Whether to fetch missing files from the public mirror.
        num_workers: Processes that load batches.

    Attributes:
        inputs: 784 pixels.
        classes: 10.
        class_names: The digits.

    Raises:
        FileNotFoundError: If files are missing and ``download`` is off; the message says which and where they go.
        ValueError: If an argument is out of range, a download is corrupt, or a file is not in the IDX format.
    """

    inputs, classes = 784, 10
    class_names = [str(k) for k in range(10)]
    persistent_workers = True

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 64,
        val_share: float = 0.1,
        part: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        download: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_shares((1 - val_share, val_share), "val_share and the rest")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= part[0] < part[1] <= 1:
            raise ValueError(f"part must be two shares in [0, 1], the smaller one first, got {part}")
        self.save_hyperparameters()
        self.folder = Path(data_dir).expanduser() / "mnist" if data_dir else data_root("mnist")

    def prepare_data(self) -> None:
        missing = [name for name in MD5 if not (self.folder / name).is_file()]
        if missing and not self.hparams["download"]:
            raise missing_files("MNIST", missing, SOURCE, self.folder, can_download=True)
        for name in missing:
            download(SOURCE + name, self.folder / name, MD5[name])

    def setup(self, stage: str | None = None) -> None:
        train, test = self._read("train"), self._read("t10k")
        shares = (1 - self.hparams["val_share"], self.hparams["val_share"])
        kept, held = split_indices(len(train), shares, self.hparams["seed"], train.targets)
        start, end = (round(share * len(kept)) for share in self.hparams["part"])
        if (start, end) != (0, len(kept)):
            order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(self.hparams["seed"]))
            kept = kept[order[start:end]].sort().values
        self.train, self.val = Subset(train, kept.tolist()), Subset(train, held.tolist())
        self.test, self.predict = test, GreyImages(test.images, test.targets, numbered=True)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.predict)

    def _read(self, part: str) -> GreyImages:
        images = read_idx(self.folder / f"{part}-images-idx3-ubyte.gz")
        targets = read_idx(self.folder / f"{part}-labels-idx1-ubyte.gz")
        if images.shape[1:] != (28, 28) or targets.shape != images.shape[:1]:
            raise ValueError(
                f"{part} files in {self.folder} must hold images of 28 x 28 pixels and one label each, "
                f"got shapes {images.shape} and {targets.shape}"
            )
        if len(targets) and targets.max() > 9:
            raise ValueError(f"labels in {part}-labels-idx1-ubyte.gz must be 0 to 9, got {targets.max()}")
        return GreyImages(torch.from_numpy(images), torch.from_numpy(targets.astype(np.int64)))


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a gzipped IDX file of bytes.

    Args:
        path: The file: two zero bytes, the type 8 (bytes), the number of dimensions, their sizes as big-endian 32-bit
            integers, then the values, last dimension fastest.

    Returns:
        A writable array of the shape that the file states, uint8.

    Raises:
        ValueError: If the file is not in this format or its length contradicts its header.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} must be an IDX file of bytes (00 00 08 ...), but it begins with {data[:4].hex(' ')}")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ValueError(f"{path} ends inside its header, which states {data[3]} dimensions")
    shape: Sequence[int] = np.frombuffer(data[4:header], ">u4").tolist()
    if len(data) - header != int(np.prod(shape)):
        raise ValueError(f"{path} states {tuple(shape)} values in its header but holds {len(data) - header}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def download(url: str, target: Path, md5: str) -> None:
    """Fetch a file; it appears under its name only once it is complete and right.

    Args:
        url: Where from.
        target: Where to.
        md5: Its published sum.

    Raises:
        ValueError: If what came has another sum.
    """
    from urllib.request import urlopen

    with urlopen(url, timeout=60) as reply:
        data = reply.read()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(f"{url} has the MD5 sum {found}, but {md5} is published: the download is corrupt or changed")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_bytes(data)
    partial.replace(target)
