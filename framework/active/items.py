"""What labelling asks of a data set (show an item, take a label, say what is labelled), and defaults for it."""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from framework.errors import near
from framework.loaders.labels import LABEL_NAMES, labels_of
from framework.loaders.reindexing import kind

UNLABELLED = -1
SHOWN = 1024
"""The most numbers of a tensor that are written out for a person."""


@runtime_checkable
class Describable(Protocol):
    """A data set that says what a person who labels an item has to see."""

    def describe(self, index: int) -> Mapping[str, Any]:
        """Plain JSON values by name, never the label. A list under ``tokens`` asks for one tag per token."""
        ...


@runtime_checkable
class Labelable(Protocol):
    """A data set whose labels can be filled in later."""

    def set_labels(self, labels: Mapping[int, Any]) -> None:
        """Take labels by index; ``ValueError`` that names item and value for a bad one, before any is taken."""
        ...

    def is_labelled(self) -> Tensor:
        """Which items have a label, bool of shape ``(items,)``."""
        ...


def describe(dataset: Any, index: int) -> dict[str, Any]:
    """What a person who labels an item gets to see.

    The data set's own ``describe``; else the file's name, where it has ``files``, ``paths`` or ``samples``; else the
    item without its label, as far as that can be written down. Looks through ``Subset`` and ``ConcatDataset``.

    Args:
        dataset: A map-style data set.
        index: The item, in ``[0, len(dataset))``.

    Returns:
        Plain JSON values by name.

    Raises:
        TypeError: If the data set's own description cannot be written as JSON.
    """
    dataset, index = _home(dataset, index, "describe")
    if isinstance(dataset, Describable):
        shown = dict(dataset.describe(index))
        try:
            json.dumps(shown)
        except TypeError as error:
            raise TypeError(f"{kind(dataset)}.describe({index}) must give plain JSON values: {error}") from None
        return shown
    file = _file(dataset, index)
    if file is not None:
        return {"file": file}
    content = _content(dataset, index)
    if isinstance(content, Mapping):
        return {str(name): _shown(value) for name, value in content.items()}
    return {"text" if isinstance(content, str) else "x": _shown(content)}


def fingerprint(dataset: Any, index: int) -> str:
    """Sixteen hexadecimal digits that change with an item's content, never with its label.

    Made from the data set's own ``describe``, the file's name, the tensors of a ``TensorDataset`` or a text. What else
    ``__getitem__`` gives may be augmented at random; such data are known by their class and number of items only.

    Args:
        dataset: A map-style data set.
        index: The item, in ``[0, len(dataset))``.

    Returns:
        The fingerprint.
    """
    length = len(dataset)
    dataset, index = _home(dataset, index, "describe")
    file = None if isinstance(dataset, Describable) else _file(dataset, index)
    data = f"{kind(dataset)} {length} {index}".encode()
    if isinstance(dataset, Describable):
        data = json.dumps(dict(dataset.describe(index)), sort_keys=True).encode()
    elif file is not None:
        data = file.encode()
    elif isinstance(dataset, TensorDataset):
        parts = [part[index].detach().cpu().contiguous() for part in _inputs(dataset)]
        data = b"".join(str(part.dtype).encode() + part.flatten().view(torch.uint8).numpy().tobytes() for part in parts)
    elif isinstance(content := _content(dataset, index), str):
        data = content.encode()
    return hashlib.sha256(data).hexdigest()[:16]


def is_labelled(dataset: Any) -> Tensor:
    """Which items have a label.

    The data set's own ``is_labelled``; else the items whose class is not negative, for everything in which
    :func:`framework.loaders.labels.labels_of` finds classes. Looks through ``Subset`` and ``ConcatDataset``.

    Args:
        dataset: A map-style data set.

    Returns:
        Bool, shape ``(items,)``.

    Raises:
        TypeError: If the data set has neither ``is_labelled`` nor labels that can be found.
    """
    if hasattr(dataset, "is_labelled"):
        found = torch.as_tensor(dataset.is_labelled())
        if found.dtype != torch.bool or found.shape != (len(dataset),):
            raise TypeError(
                f"{kind(dataset)}.is_labelled() must give bool of shape ({len(dataset)},), "
                f"got {found.dtype} of shape {tuple(found.shape)}"
            )
        return found
    if isinstance(dataset, Subset):
        return is_labelled(dataset.dataset)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([is_labelled(part) for part in dataset.datasets])
    return labels_of(dataset) != UNLABELLED


def set_labels(dataset: Any, labels: Mapping[int, Any]) -> None:
    """Fill in labels.

    By the data set's own ``set_labels``; else into the second tensor of a ``TensorDataset`` or an attribute
    ``targets``, ``labels``, ``label`` or ``y``, where labels are class numbers. Looks through ``Subset`` and
    ``ConcatDataset``.

    Args:
        dataset: A map-style data set; it is changed.
        labels: Labels by index.

    Raises:
        TypeError: If the data set keeps its labels where they cannot be changed.
        ValueError: If an index is out of range, or the data set refuses a label.
    """
    for index in labels:
        if not 0 <= index < len(dataset):
            raise ValueError(f"labels: item {index} does not exist, the data have {len(dataset)} items")
    homes: dict[int, tuple[Any, dict[int, Any]]] = {}
    for index, label in labels.items():
        home, position = _home(dataset, index, "set_labels")
        homes.setdefault(id(home), (home, {}))[1][position] = label
    for home, own in homes.values():
        if hasattr(home, "set_labels"):
            home.set_labels(own)
        else:
            _store(home, own)


def takes_own_labels(dataset: Any) -> bool:
    """Whether a data set, or what it is made of, has a ``set_labels`` of its own, which then validates."""
    return len(dataset) > 0 and hasattr(_home(dataset, 0, "set_labels")[0], "set_labels")


def as_class(value: Any, class_names: Sequence[str] | None = None, classes: int | None = None) -> int:
    """A class as a person wrote it.

    Args:
        value: The name of a class, or its number. Where a name looks like a number, names alone count: 1 among the
            classes "1", "2", "3" is the first.
        class_names: Names of the classes, where known.
        classes: Number of classes, where known.

    Returns:
        The number of the class, at least 0.

    Raises:
        ValueError: If there is no such class.
    """
    names = [str(name) for name in class_names or ()]
    text = str(value).strip()
    if text not in names:
        text = re.sub(r"^(\d+)\.0+$", r"\1", text)  # a spreadsheet's 3.0
    if text in names:
        return names.index(text)
    limit = len(names) or classes
    numbers = re.fullmatch(r"\d+", text) and not any(re.fullmatch(r"-?\d+", name) for name in names)
    if numbers and (limit is None or int(text) < limit):
        return int(text)
    if names:
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise ValueError(f"no such class {value!r}{near(text, names)}; classes are {listed}")
    allowed = "of 0 or more" if limit is None else f"in [0, {limit})"
    raise ValueError(f"a class must be an integer {allowed}, got {value!r}")


def _home(dataset: Any, index: int, method: str) -> tuple[Any, int]:
    """The innermost data set that holds an item, or the first on the way that has the method."""
    while not hasattr(dataset, method):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        elif isinstance(dataset, ConcatDataset):
            part = bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
        else:
            break
    return dataset, index


def _file(dataset: Any, index: int) -> str | None:
    for name in ("files", "paths", "samples"):
        files = getattr(dataset, name, None)
        if isinstance(files, Sequence) and len(files) == len(dataset):
            file = files[index]
            file = file[0] if name == "samples" and isinstance(file, tuple) and file else file  # torchvision's
            if isinstance(file, str | Path):
                return str(file)
    return None


def _inputs(dataset: TensorDataset) -> list[Tensor]:
    return [part for i, part in enumerate(dataset.tensors) if i != 1 or len(dataset.tensors) != 2]


def _content(dataset: Any, index: int) -> Any:
    """An item without its label."""
    item = dataset[index]
    if isinstance(item, Mapping):
        return {name: value for name, value in item.items() if name not in LABEL_NAMES}
    return item[0] if isinstance(item, tuple | list) and item else item


def _shown(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() > SHOWN:
            return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        return value.detach().cpu().tolist()
    try:
        json.dumps(value)
    except TypeError:
        return kind(value)
    return value


def _store(dataset: Any, labels: Mapping[int, Any]) -> None:
    """Put class numbers where a data set keeps its labels."""
    for index, label in labels.items():
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise ValueError(f"labels: item {index}: a class must be an integer of 0 or more, got {label!r}")
    store: Any = None
    if isinstance(dataset, TensorDataset):
        store = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        names = [name for name in LABEL_NAMES if not callable(getattr(dataset, name, None))]
        store = next((getattr(dataset, name) for name in names if getattr(dataset, name, None) is not None), None)
    if not isinstance(store, Tensor | MutableSequence) and not hasattr(store, "__array__"):
        raise TypeError(
            f"{kind(dataset)} has no set_labels, which filling in labels needs: it keeps them in no tensor, array or "
            f"list named {', '.join(LABEL_NAMES)}"
        )
    for index, label in labels.items():
        store[index] = label
    for index, label in labels.items():  # one item: does it come with the new label?
        item = dataset[index]
        given = item[1] if isinstance(item, tuple | list) and len(item) > 1 else label
        if isinstance(given, int | Tensor) and torch.as_tensor(given).numel() == 1 and int(given) != label:
            raise TypeError(
                f"{kind(dataset)} has no set_labels, which filling in labels needs: its items do not take their label "
                "from what it offers as labels"
            )
        break
