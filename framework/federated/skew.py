"""Feature skew and label noise: the same items look different to different clients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, Subset

from framework.seeding import derive

LABELS = ("targets", "labels", "label", "y")
"""Attributes in which data sets keep their labels (those of ``framework.loaders.labels``, which imports lightning)."""

Kind = Literal["none", "transpose", "invert", "mirror", "flip"]
"""Ways to change an image (see :class:`Transform`)."""


class Skew(ABC):
    """How the clients see the data, of which an item is a tuple or list ``(x, y, ...)``."""

    @abstractmethod
    def of(self, dataset: Any, client: int, clients: int, seed: int) -> Dataset[Any]:
        """The data set as a client sees it.

        Args:
            dataset: Any map-style data set.
            client: Number of the client, in ``[0, clients)``.
            clients: Number of clients.
            seed: Seed of what is drawn, not negative.

        Returns:
            A data set of the same length, see :class:`Skewed`.
        """

    def of_inputs(self) -> Skew | None:
        """The part that changes inputs, with which a client evaluates: it has no use for wrong labels."""
        return self


class FeatureSkew(Skew):
    """Changes the inputs x, which are tensors of floats."""

    def of(self, dataset: Any, client: int, clients: int, seed: int) -> Dataset[Any]:
        return Skewed(dataset, self, client, clients, seed)

    @abstractmethod
    def change(self, x: Tensor, client: int, clients: int, seed: int) -> Tensor:
        """An input as a client sees it; the one given stays as it is.

        Args:
            x: The input, of a floating dtype.
            client: Number of the client.
            clients: Number of clients.
            seed: Seed that belongs to this item of this client, in [0, 2^64).

        Returns:
            The input as seen, of the same shape.
        """


class Several(Skew):
    """Several skews, one after another.

    Args:
        skews: First to last, at least one.
    """

    def __init__(self, skews: list[Skew]) -> None:
        if not skews:
            raise ValueError("skews must name at least one skew, got []")
        self.skews = list(skews)

    def of(self, dataset: Any, client: int, clients: int, seed: int) -> Dataset[Any]:
        for skew in self.skews:
            dataset = skew.of(dataset, client, clients, seed)
        return dataset

    def of_inputs(self) -> Skew | None:
        kept = [part for part in (skew.of_inputs() for skew in self.skews) if part is not None]
        return Several(kept) if kept else None


class Noise(FeatureSkew):
    """Gaussian noise whose level grows with the number of the client (NIID-Bench, Li et al., arXiv 2102.02079).

    Client ``k`` of ``n`` gets noise of standard deviation ``std * k / n``; the first client has clean data. The paper
    calls the level a variance, while its code takes ``std * k / (n - 1)`` for the standard deviation.

    Args:
        std: Level that the last client comes near to, in units of x; not negative.
    """

    def __init__(self, std: float) -> None:
        if not 0 <= std < math.inf:
            raise ValueError(f"std must be a finite number of at least 0, got {std}")
        self.std = std

    def level(self, client: int, clients: int) -> float:
        """Standard deviation of a client's noise."""
        return self.std * client / clients

    def change(self, x: Tensor, client: int, clients: int, seed: int) -> Tensor:
        level = self.level(client, clients)
        if level == 0:
            return x
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        return x + (level * noise).to(x)


class _ImageSkew(FeatureSkew):
    """One change of images per group of clients; client ``k`` is in group ``k`` modulo the number of groups."""

    def __init__(self, groups: int, shape: Sequence[int] | None) -> None:
        if shape is not None and (len(shape) != 2 or min(shape) < 1):
            raise ValueError(f"shape must be a height and a width, both at least 1, got {tuple(shape)}")
        self.groups, self.shape = groups, None if shape is None else tuple(shape)

    def group(self, client: int) -> int:
        """The group of a client."""
        return client % self.groups

    def change(self, x: Tensor, client: int, clients: int, seed: int) -> Tensor:
        image = x
        if self.shape is not None:
            if not x.ndim or x.shape[-1] != math.prod(self.shape):
                raise ValueError(f"shape={self.shape} does not fit an x of shape {tuple(x.shape)}")
            image = x.reshape(*x.shape[:-1], *self.shape)
        elif x.ndim < 2:
            raise ValueError(
                f"{_name(self)} needs images of shape (..., height, width), got an x of shape {tuple(x.shape)}: "
                "say by shape what a flattened image is"
            )
        changed = self._changed(image, self.group(client))
        if changed.shape != image.shape:
            raise ValueError(
                f"{_name(self)} would turn images of {image.shape[-2]} x {image.shape[-1]} "
                f"into {changed.shape[-2]} x {changed.shape[-1]}: it needs square images"
            )
        return changed.reshape(x.shape)

    @abstractmethod
    def _changed(self, image: Tensor, group: int) -> Tensor:
        """The image as the group sees it."""


class Rotate(_ImageSkew):
    """Images rotated by an angle per group of clients, as in IFCA (Ghosh et al. 2020, arXiv 2006.04088).

    Multiples of 90 degrees are exact; between them values are interpolated bilinearly, and what lies beyond
    the border takes the border's values.

    Args:
        degrees: Angles, one per group, counter-clockwise; client ``k`` takes the ``k``-th modulo their number.
        shape: Height and width of images that come flattened, as the last dimension of x.
    """

    def __init__(self, degrees: list[float], shape: tuple[int, int] | None = None) -> None:
        if not isinstance(degrees, Sequence) or not degrees or not all(math.isfinite(angle) for angle in degrees):
            raise ValueError(f"degrees must be a list of finite angles, one per group of clients, got {degrees!r}")
        super().__init__(len(degrees), shape)
        self.degrees = list(degrees)

    def _changed(self, image: Tensor, group: int) -> Tensor:
        return rotated(image, self.degrees[group])


class Transform(_ImageSkew):
    """Images changed in a way of its own for each group of clients.

    Args:
        kinds: Ways, one per group: ``none``, ``transpose`` (rows become columns), ``invert`` (dark becomes bright,
            within the item's own range), ``mirror`` (left becomes right), ``flip`` (top becomes bottom). Client ``k``
            takes the ``k``-th modulo their number.
        shape: Height and width of images that come flattened, as the last dimension of x.
    """

    def __init__(self, kinds: list[Kind], shape: tuple[int, int] | None = None) -> None:
        unknown = [name for name in kinds if name not in get_args(Kind)]
        if not kinds or unknown:
            raise ValueError(f"kinds must be a list of {', '.join(get_args(Kind))}, one per group, got {kinds!r}")
        super().__init__(len(kinds), shape)
        self.kinds = list(kinds)

    def _changed(self, image: Tensor, group: int) -> Tensor:
        match self.kinds[group]:
            case "transpose":
                return image.transpose(-2, -1)
            case "invert":
                return image.amin() + image.amax() - image
            case "mirror":
                return image.flip(-1)
            case "flip":
                return image.flip(-2)
            case _:
                return image


class LabelNoise(Skew):
    """Symmetric label noise: a share of each client's labels is replaced by one of the other classes, all alike.

    Each item is drawn by itself, so that the share holds on average. Items without a label (-1) stay so.

    Args:
        share: Probability that a label is replaced, in [0, 1].
        classes: Number of classes, at least 2; None to take it from the labels of the data.
    """

    def __init__(self, share: float, classes: int | None = None) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share}")
        if classes is not None and classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        self.share, self.classes = share, classes

    def of_inputs(self) -> Skew | None:
        return None

    def of(self, dataset: Any, client: int, clients: int, seed: int) -> Dataset[Any]:
        return Skewed(dataset, self, client, clients, seed)

    def shifts(self, items: int, classes: int, seed: int) -> Tensor:
        """What is added to each label, modulo the number of classes; that of an item depends on its number alone.

        Args:
            items: Number of items.
            classes: Number of classes.
            seed: Seed of the client.

        Returns:
            int64 numbers in ``[0, classes)``, 0 for a label that stays, shape ``(items,)``.
        """
        hit = np.random.default_rng(derive(seed, "hit")).random(items) < self.share
        by = 1 + (np.random.default_rng(derive(seed, "by")).random(items) * (classes - 1)).astype(np.int64)
        return torch.from_numpy(np.where(hit, by, 0))


class Skewed(Dataset[Any]):
    """A map-style data set as one client of a federation sees it.

    How an item looks depends on the seed, the client and the item alone, not on when, how often or by which worker it
    is read. An item is known by its number in the data set under any ``Subset``, so that it does not matter
    whether the subset or the whole is wrapped. Attributes are those of the data set wrapped, but ``targets`` and
    its like hold the labels as seen.

    Args:
        dataset: A map-style data set of tuples or lists ``(x, y, ...)``.
        skew: What changes.
        client: Number of the client, in ``[0, clients)``.
        clients: Number of clients, at least 1.
        seed: Seed of what is drawn, not negative.

    Raises:
        TypeError: If the data set is not map-style, or labels are to change and their number is not known. When an item
            is read: if it is no tuple, its x no tensor of floats, or its y no class.
        ValueError: If an argument is out of range.
    """

    def __init__(self, dataset: Any, skew: FeatureSkew | LabelNoise, client: int, clients: int, seed: int) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise TypeError(f"{_name(dataset)} is not map-style: a skew of its items needs __getitem__ and __len__")
        if clients < 1 or not 0 <= client < clients:
            raise ValueError(f"client must be in [0, clients={clients}), got {client}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.dataset, self.skew, self.client, self.clients = dataset, skew, client, clients
        base, numbers, depth = dataset, torch.arange(len(dataset)), 0
        while isinstance(base, (Subset, Skewed)):
            if isinstance(base, Subset):
                numbers = torch.as_tensor(list(base.indices), dtype=torch.int64)[numbers]
            else:
                depth += 1  # so that two skews of one kind draw differently
            base = base.dataset
        self._seed, self._numbers = derive(seed, "skew", depth, client), numbers
        self._shifts: Tensor | None = None
        if isinstance(skew, LabelNoise):
            self._classes = _classes(base) if skew.classes is None else skew.classes
            self._shifts = skew.shifts(len(base), self._classes, self._seed)[numbers]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._seen(self.dataset[index], int(index))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        whole = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[index] for index in indices] if whole is None else whole(indices)
        return [self._seen(item, int(index)) for item, index in zip(items, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # while it is being copied or unpickled
            raise AttributeError(f"{_name(self)} has no attribute {name!r}")
        noisy = self._shifts is not None and name in LABELS
        if noisy or (name == LABELS[0] and not hasattr(self.dataset, name)):  # where labels_of looks first
            from framework.loaders.labels import labels_of

            try:
                labels = labels_of(self.dataset)
            except (TypeError, ValueError):  # there are none, or none that are classes
                return getattr(self.dataset, name)
            if self._shifts is None:
                return labels
            return torch.where(labels < 0, labels, (labels + self._shifts) % self._classes)
        return getattr(self.dataset, name)

    def _seen(self, item: Any, index: int) -> Any:
        if not isinstance(item, (tuple, list)) or not item:
            raise TypeError(
                f"items of {_name(self.dataset)} must be tuples (x, y, ...) to be skewed, got {_name(item)}"
            )
        x, *rest = item
        if isinstance(self.skew, LabelNoise):
            if not rest:
                raise TypeError(f"items of {_name(self.dataset)} have no y beside x: LabelNoise has nothing to change")
            rest[0] = self._label(rest[0], index)
        else:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else _name(x)
                raise TypeError(
                    f"x of {_name(self.dataset)} must be a tensor of floats for {_name(self.skew)}, got {got}"
                )
            # An odd multiplier gives every item another seed, also in the lower half of the bits, which is what counts.
            seed = (self._seed + int(self._numbers[index]) * 0x9E3779B97F4A7C15) % 2**64
            x = self.skew.change(x, self.client, self.clients, seed)
        named = hasattr(item, "_fields")
        return type(item)(x, *rest) if named else type(item)((x, *rest))

    def _label(self, y: Any, index: int) -> Any:
        assert self._shifts is not None
        one = isinstance(y, Tensor) and y.numel() == 1 and not y.is_floating_point() and not y.is_complex()
        if not one and not isinstance(y, (int, np.integer)):
            got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else _name(y)
            raise TypeError(f"y of {_name(self.dataset)} must be an integer class for LabelNoise, got {got}")
        label = int(y)
        if label >= self._classes:
            raise ValueError(f"y of {_name(self.dataset)} must be below classes={self._classes}, got {label}")
        seen = label if label < 0 else (label + int(self._shifts[index])) % self._classes
        return torch.full_like(y, seen) if isinstance(y, Tensor) else type(y)(seen)


def rotated(image: Tensor, degrees: float) -> Tensor:
    """An image rotated counter-clockwise about its centre.

    Args:
        image: Shape ``(..., height, width)``, of a floating dtype.
        degrees: The angle. Multiples of 90 are exact and may swap height and width; otherwise values are interpolated
            bilinearly, and what lies beyond the border takes the border's values.

    Returns:
        The image, of the same dtype.
    """
    turns, rest = divmod(degrees % 360, 90)
    if rest == 0:
        return image.rot90(int(turns), (-2, -1))
    height, width = image.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    inverse = torch.tensor([[[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]])
    flat = image.reshape(1, -1, height, width)
    grid = functional.affine_grid(inverse, list(flat.shape), align_corners=False).to(image.device)
    found = functional.grid_sample(flat.float(), grid, padding_mode="border", align_corners=False)
    return found.to(image.dtype).reshape(image.shape)


def _classes(dataset: Any) -> int:
    """Number of classes of a data set, from its labels."""
    from framework.loaders.labels import labels_of

    try:
        classes = int(labels_of(dataset).max()) + 1
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"LabelNoise: give it the number of classes, which the data do not tell: {error}") from error
    if classes < 2:
        raise ValueError(f"LabelNoise needs at least 2 classes, but the labels of {_name(dataset)} have {classes}")
    return classes


def _name(thing: Any) -> str:
    return type(thing).__name__
