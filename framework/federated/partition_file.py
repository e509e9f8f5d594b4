"""Partitions that were saved: a peer's, or one's own."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framework.errors import near
from framework.federated.partition import Ints, Partitioner
from framework.paths import data_root

TRAIN, HELD_OUT = "train_client", "train_is_test"
"""Arrays of a saved partition: the client of each item, and whether the client keeps it for its own evaluation."""


class FromFile(Partitioner):
    """A saved partition, such as a peer's or one written by :func:`save`. Nothing is drawn.

    ``.npz``: an integer client per item, and a bool per item that says whether its client keeps it for its own
    evaluation (PFLlib's train and test parts). ``.json``: lists of indices by client, ``{"0": [3, 5], "1": [...]}``.

    Args:
        path: The file. A relative path that does not exist here is looked for in the folder of the data sets
            (``FULGURITE_DATA``, else ``data``).
        train: Name of the array of clients in an ``.npz`` file.
        held_out: Name of the array of kept items; None to take all items for training.

    Raises:
        ValueError: If the name of the file ends otherwise, or the name of an array is empty.
    """

    def __init__(self, path: str, train: str = TRAIN, held_out: str | None = HELD_OUT) -> None:
        if Path(path).suffix not in (".npz", ".json"):
            raise ValueError(f"path must be a file .npz or .json, got {path!r}")
        for field, name in (("train", train), ("held_out", held_out)):
            if name == "":
                raise ValueError(f"{field} must be the name of an array, got ''")
        self.path, self.train, self.kept = path, train, held_out

    def items(self) -> int:
        """Number of items that the file divides."""
        file = self._file()
        return len(_listed(file, None) if file.suffix == ".json" else _array(file, "train", self.train, None))

    def held_out(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
        file = self._file()
        if self.kept is None or file.suffix == ".json":
            return None
        mask = torch.from_numpy(_array(file, "held_out", self.kept, sum(map(len, parts))))
        train = [part[~mask[part]] for part in parts]
        for client, part in enumerate(train):
            if not len(part):
                raise ValueError(f"array {self.kept!r} of {file} leaves client {client} no item to train on")
        return train, [part[mask[part]] for part in parts]

    def _file(self) -> Path:
        file = Path(self.path).expanduser()
        return file if file.is_absolute() or file.exists() else data_root(file)

    def _owners(self, items: int, values: Any, clients: int, rng: np.random.Generator) -> Ints:
        file = self._file()
        if file.suffix == ".json":
            owners, where = _listed(file, items), f"{file}"
        else:
            owners, where = _array(file, "train", self.train, items), f"array {self.train!r} of {file}"
        if owners.min() < 0:
            raise ValueError(f"{where} has the client {owners.min()} at item {owners.argmin()}; the first client is 0")
        if owners.max() + 1 != clients:
            raise ValueError(f"{where} has clients 0 to {owners.max()}, but clients={clients}")
        missing = np.flatnonzero(np.bincount(owners, minlength=clients) == 0)
        if len(missing):
            raise ValueError(f"{where} has no item of client {missing[0]}; clients are 0 to {clients - 1}")
        return owners


def save(path: str | Path, parts: Sequence[Tensor], held_out: Sequence[Tensor] | None = None) -> None:
    """Write a partition in the form that :class:`FromFile` reads, which is PFLlib's.

    Args:
        path: The file, ``.npz``; its folder is made.
        parts: Indices to train on by client, as :func:`hold_out` or ``split`` returns them.
        held_out: Indices that the client keeps for its own evaluation, disjoint from ``parts``; None for none.

    Raises:
        ValueError: If parts and held-out parts together do not hold each of their items once, or do not match.
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"path must be a file .npz, got {str(path)!r}")
    if held_out is not None and len(held_out) != len(parts):
        raise ValueError(f"held_out must have one part per client: {len(held_out)} parts for {len(parts)} clients")
    pieces = [np.asarray(part, np.int64) for part in (*parts, *(held_out or ()))]
    every = np.concatenate(pieces)
    if not np.array_equal(np.sort(every), np.arange(len(every))):
        raise ValueError(f"parts and held_out must together hold each of 0 to {len(every) - 1} once")
    number = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])[every.argsort()]
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {TRAIN: (number % len(parts)).astype(np.int32), HELD_OUT: number >= len(parts)}
    np.savez_compressed(path, **arrays)


def _array(file: Path, field: Literal["train", "held_out"], name: str, items: int | None) -> NDArray[Any]:
    """An array of an .npz file, checked: integers for ``train``, bools for ``held_out``."""
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array without a name")
        with loaded as arrays:
            names = list(arrays)
            found = arrays[name] if name in names else None
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no partition file {file}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} cannot be read as an .npz file with an array {name!r}: {error}") from error
    if found is None:
        hint = near(name, names) if field == "train" else "; held_out: null takes all items for training"
        raise ValueError(f"{field}: {file} has no array {name!r}, it has {', '.join(names) or 'none'}{hint}")
    kinds, one = ("iu", "an integer") if field == "train" else ("b", "a bool")
    items = len(found) if items is None and found.ndim else items
    if found.shape != (items,) or found.dtype.kind not in kinds:
        raise ValueError(
            f"{field}: array {name!r} of {file} must hold {one} for each of {items} items, "
            f"got {found.dtype} of shape {found.shape}"
        )
    return found if field == "held_out" else found.astype(np.int64)


def _listed(file: Path, items: int | None) -> Ints:
    """The client of each item from a .json file ``{client: [indices]}``, checked."""
    try:
        lists = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no partition file {file}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(lists, dict) or set(lists) != {str(client) for client in range(len(lists))} or not lists:
        raise ValueError(f'{file} must hold lists of indices by client, {{"0": [...], "1": [...]}} without a gap')
    if items is None:
        items = sum(len(indices) for indices in lists.values() if isinstance(indices, list))
    owners = np.full(items, -1, np.int64)
    for client, indices in ((int(name), lists[name]) for name in lists):
        if not isinstance(indices, list) or any(type(index) is not int for index in indices):
            raise ValueError(f"client {client} of {file} must have a list of whole numbers")
        for index in indices:
            if not 0 <= index < items:
                raise ValueError(f"client {client} of {file} has the item {index}; items are 0 to {items - 1}")
            if owners[index] >= 0:
                raise ValueError(f"item {index} of {file} belongs to clients {owners[index]} and {client}")
            owners[index] = client
    if owners.min() < 0:
        raise ValueError(f"{file} gives item {owners.argmin()} of {items} to no client")
    return owners
