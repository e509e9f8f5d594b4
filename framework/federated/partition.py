"""Which client of a federation has which items of a labelled or unlabelled training set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framework.seeding import derive

Ints = NDArray[np.int64]


class Partitioner(ABC):
    """A rule that gives every item of a data set to one client.

    Attributes:
        needs_labels: Whether ``split`` needs the class of every item.
        needs_attributes: Whether ``split`` needs an attribute of every item.
        min_items: The fewest items that a client may get.
    """

    needs_labels: ClassVar[bool] = False
    needs_attributes: ClassVar[bool] = False
    min_items: int = 1

    def split(
        self,
        items: int,
        labels: Tensor | None,
        clients: int,
        seed: int,
        attributes: Tensor | Sequence[Any] | None = None,
    ) -> list[Tensor]:
        """Divide ``range(items)`` among the clients; global generators are neither read nor moved.

        Args:
            items: Number of items, at least ``clients``.
            labels: Class of each item, integers of shape ``(items,)``; -1 (no label) counts as one more class. None
                where there are none.
            clients: Number of clients, at least 1.
            seed: Seed of what is drawn, not negative; equal arguments give equal parts on every machine.
            attributes: Attribute of each item, integers or strings, for those that need one.

        Returns:
            One sorted int64 tensor of indices per client; together they hold each item once.

        Raises:
            ValueError: If something that is needed is missing, of another length or out of range, or if a client would
                get fewer than ``min_items``.
        """
        for field, value, low in (("items", items, 1), ("clients", clients, 1), ("seed", seed, 0)):
            check_whole(field, value, low)
        if clients > items:
            raise ValueError(f"more clients ({clients}) than items ({items}): clients must be at most {items}")
        if clients * self.min_items > items:
            raise ValueError(
                f"min_items={self.min_items} for {clients} clients needs {clients * self.min_items} items, "
                f"but there are {items}: lower min_items or clients"
            )
        values: Any = None
        if self.needs_labels:
            if labels is None:
                raise ValueError(
                    f"{type(self).__name__} divides by labels, but the data have none; IID and Quantity need none"
                )
            values = per_item(labels, items, "labels")
        elif self.needs_attributes:
            if attributes is None:
                raise ValueError(f"{type(self).__name__} needs attributes: give those of attributes_of(dataset, field)")
            values = per_item(attributes, items, "attributes")
        owners = self._owners(items, values, clients, np.random.default_rng(derive(seed, "partition")))
        sizes = np.bincount(owners, minlength=clients)
        if sizes.min() < self.min_items:
            raise ValueError(
                f"{type(self).__name__} gives client {sizes.argmin()} of {clients} only {sizes.min()} of {items} "
                f"items, but each needs {self.min_items}: lower clients"
            )
        return list(torch.from_numpy(owners.argsort(kind="stable").astype(np.int64)).split(sizes.tolist()))

    @abstractmethod
    def _owners(self, items: int, values: Any, clients: int, rng: np.random.Generator) -> Ints:
        """The client of each item, given its labels or attributes if they are needed."""

    def held_out(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
        """What clients keep for their own evaluation, where the partition itself says so.

        Args:
            parts: What ``split`` returned: all items.

        Returns:
            Parts to train on and parts kept, one sorted tensor per client each; None where the partition says nothing
            about it, and :func:`hold_out` is to draw them.
        """
        return None


class IID(Partitioner):
    """Equal sizes, up to one item, and items drawn at random: clients that do not differ.

    Args:
        min_items: The fewest items that a client may get, at least 1.
    """

    def __init__(self, min_items: int = 1) -> None:
        check_whole("min_items", min_items, 1)
        self.min_items = min_items

    def _owners(self, items: int, values: Any, clients: int, rng: np.random.Generator) -> Ints:
        return _dealt(np.zeros(items, np.int64), even(items, clients)[None], rng)


class _Drawn(Partitioner):
    """Sizes that are drawn, and drawn again until every client has its minimum."""

    def __init__(self, alpha: float, min_items: int = 1, max_retries: int = 100) -> None:
        if not (isinstance(alpha, (int, float)) and 0 < alpha < math.inf):
            raise ValueError(f"alpha must be a positive, finite number, got {alpha!r}")
        check_whole("min_items", min_items, 1)
        check_whole("max_retries", max_retries, 1)
        self.alpha, self.min_items, self.max_retries = alpha, min_items, max_retries

    @abstractmethod
    def _draw(self, sizes: Ints, clients: int, rng: np.random.Generator) -> Ints:
        """Items by class and client, shape ``(classes, clients)``, from the sizes of the classes."""

    def _owners(self, items: int, values: Any, clients: int, rng: np.random.Generator) -> Ints:
        if values is None:
            values = np.zeros(items, np.int64)
        _, classes, sizes = np.unique(values, return_inverse=True, return_counts=True)
        best = 0
        for _ in range(self.max_retries):
            counts = self._draw(sizes, clients, rng)
            best = max(best, int(counts.sum(0).min()))
            if best >= self.min_items:
                return _dealt(classes, counts, rng)
        raise ValueError(
            f"{type(self).__name__} with alpha={self.alpha:g} found no split of {items} items in which each of "
            f"{clients} clients has min_items={self.min_items}; in the best of {self.max_retries} draws the smallest "
            f"client had {best}: raise alpha or max_retries, or lower clients or min_items"
        )

    def _shares(self, count: int, clients: int, rng: np.random.Generator) -> NDArray[np.float64]:
        return rng.dirichlet(np.full(clients, self._concentration), count)

    @property
    def _concentration(self) -> float:
        return min(max(self.alpha, 1e-100), 1e100)  # beyond, the law stays the same and numpy's sums over- or underflow


class Dirichlet(_Drawn):
    """Label skew: who has how much of a class is drawn from a Dirichlet distribution.

    "Dirichlet" names several laws, which give different splits for one ``alpha``; a result should say which it used:

    * as it stands: each class is divided by shares ~ Dir(alpha, ..., alpha) over the clients; sizes differ, too.
    * ``capped``: the same, but a client that already has ``items / clients`` items gets nothing of the next classes.
      This is what the code of NIID-Bench (Li et al., ICDE 2022, arXiv 2102.02079; there with ``min_items=10``) and
      of PFLlib does.
    * ``balanced``: clients of equal size, up to one item, each of which draws its own law of labels (Hsu et al. 2019,
      arXiv 1909.06335) from Dir(alpha * classes * p), where p are the shares of the classes in the data; for classes
      of equal size that is Dir(alpha, ..., alpha). Hsu et al. write Dir(alpha p): their alpha is ours times the number
      of classes. Where more is asked of a class than there is, chance decides who gets it, and the others draw again
      from the classes that are left.

    Args:
        alpha: Concentration, positive: few classes per client for small values, IID for large ones.
        min_items: The fewest items that a client may get, at least 1.
        max_retries: How often to draw before giving up, at least 1.
        balanced: Clients of equal size.
        capped: Clients beyond their equal share get nothing more.

    Raises:
        ValueError: If an argument is out of range, or both ``balanced`` and ``capped`` are on.
    """

    needs_labels = True

    def __init__(
        self,
        alpha: float,
        min_items: int = 1,
        max_retries: int = 100,
        balanced: bool = False,
        capped: bool = False,
    ) -> None:
        super().__init__(alpha, min_items, max_retries)
        if balanced and capped:
            raise ValueError("balanced and capped are different laws: at most one of them can be true")
        self.balanced, self.capped = balanced, capped

    def _draw(self, sizes: Ints, clients: int, rng: np.random.Generator) -> Ints:
        if self.balanced:
            return self._draw_balanced(sizes, clients, rng)
        shares = self._shares(len(sizes), clients, rng)
        if self.capped:
            held = np.zeros(clients, np.int64)
            for share, size in zip(shares, sizes):
                below = held < sizes.sum() / clients  # somebody always is, since not all items are given yet
                share *= below
                share[:] = share / share.sum() if share.sum() > 0 else below / below.sum()
                held += _cut(share[None], size[None])[0]
        return _cut(shares, sizes)

    def _draw_balanced(self, sizes: Ints, clients: int, rng: np.random.Generator) -> Ints:
        laws = rng.dirichlet(self._concentration * len(sizes) * sizes / sizes.sum(), clients)
        counts, left = np.zeros((clients, len(sizes)), np.int64), sizes.copy()
        targets = even(int(sizes.sum()), clients)
        while left.any():  # each turn ends it or uses up a class
            possible = laws * (left > 0) + 1e-100 * left / left.sum()  # what is left, where the law has nothing else
            asked = rng.multinomial(targets - counts.sum(1), possible / possible.sum(1, keepdims=True))
            for one in np.flatnonzero(asked.sum(0) > left):
                asked[:, one] = rng.multivariate_hypergeometric(asked[:, one], left[one])
            counts += asked
            left -= asked.sum(0)
        return counts.T


class Quantity(_Drawn):
    """Quantity skew: sizes ~ Dir(alpha, ..., alpha), labels as in the whole (NIID-Bench, Li et al. 2022).

    Args:
        alpha: Concentration, positive: a few large clients for small values, equal sizes for large ones.
        min_items: The fewest items that a client may get, at least 1.
        max_retries: How often to draw before giving up, at least 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def _draw(self, sizes: Ints, clients: int, rng: np.random.Generator) -> Ints:
        return _cut(self._shares(1, clients, rng), sizes)


class Shards(Partitioner):
    """The pathological split of McMahan et al. 2017: items sorted by label, cut into shards, shards dealt to clients.

    Within a class the order is random. A client has at most ``per_client`` classes where shards end with their class.

    Args:
        per_client: Shards per client, at least 1; all shards are of equal size, up to one item.
    """

    needs_labels = True

    def __init__(self, per_client: int = 2) -> None:
        check_whole("per_client", per_client, 1)
        self.per_client = per_client

    def _owners(self, items: int, values: Any, clients: int, rng: np.random.Generator) -> Ints:
        shards = clients * self.per_client
        if shards > items:
            raise ValueError(
                f"per_client={self.per_client} for {clients} clients makes {shards} shards of {items} items: "
                "lower per_client or clients"
            )
        owners = np.empty(items, np.int64)
        dealt = rng.permutation(np.repeat(np.arange(clients), self.per_client))
        owners[_by_class(values, rng)] = np.repeat(dealt, even(items, shards))
        return owners


class Classes(Partitioner):
    """Every client has exactly k classes: "#C = k" of NIID-Bench (Li et al., ICDE 2022, arXiv 2102.02079).

    Client ``i`` has the class ``i`` modulo their number, and further ones at random; where there are fewer clients than
    classes, classes are first dealt in turn, so that each has an owner. The items of a class are divided equally, up to
    one item, among its owners.

    Args:
        per_client: Classes per client, at least 1.
    """

    needs_labels = True

    def __init__(self, per_client: int = 2) -> None:
        check_whole("per_client", per_client, 1)
        self.per_client = per_client

    def _owners(self, items: int, values: Any, clients: int, rng: np.random.Generator) -> Ints:
        _, classes, sizes = np.unique(values, return_inverse=True, return_counts=True)
        if self.per_client > len(sizes):
            raise ValueError(f"per_client={self.per_client}, but the labels have only {len(sizes)} classes")
        if clients * self.per_client < len(sizes):
            raise ValueError(
                f"per_client={self.per_client} for {clients} clients leaves some of {len(sizes)} classes without an "
                f"owner: raise per_client to {-(-len(sizes) // clients)} or clients"
            )
        owns = np.zeros((len(sizes), clients), bool)
        for turn in range(max(clients, len(sizes))):
            one = turn % len(sizes)
            owns[one, turn % clients] |= owns[one].sum() < sizes[one]
        for client in range(clients):
            more = self.per_client - owns[:, client].sum()
            free = np.flatnonzero(~owns[:, client] & (owns.sum(1) < sizes))
            if more > len(free):
                raise ValueError(
                    f"per_client={self.per_client} for {clients} clients asks for more owners than some class has "
                    f"items (the smallest of {len(sizes)} has {sizes.min()}): lower per_client or clients"
                )
            owns[rng.choice(free, more, replace=False), client] = True
        counts = np.zeros(owns.shape, np.int64)
        for row, own, size in zip(counts, owns, sizes):
            row[rng.permutation(np.flatnonzero(own))] = even(size, int(own.sum()))
        return _dealt(classes, counts, rng)


def hold_out(parts: Sequence[Tensor], share: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Let each client keep some of its items, drawn at random, for its own evaluation.

    Args:
        parts: Indices by client.
        share: Share to keep, in [0, 1); each client keeps ``round(share * n)`` of its ``n`` items, but at least one if
            ``share`` is positive, and never its last one.
        seed: Seed of the draw, not negative; what a client keeps depends on its own items and number alone.

    Returns:
        Parts to train on and parts kept, one sorted tensor per client each.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), got {share}")
    check_whole("seed", seed, 0)
    kept = []
    for client, part in enumerate(parts):
        size = min(max(round(share * len(part)), int(share > 0)), max(len(part) - 1, 0))
        order = np.random.default_rng(derive(seed, "hold_out", client)).permutation(len(part))
        mask = torch.zeros(len(part), dtype=torch.bool)
        mask[torch.from_numpy(order[:size])] = True
        kept.append(mask)
    return [part[~mask] for part, mask in zip(parts, kept)], [part[mask] for part, mask in zip(parts, kept)]


def per_item(values: Any, items: int, what: str) -> NDArray[Any]:
    """One integer or string per item, as an array of int64 or strings."""
    if isinstance(values, Sequence) and values and isinstance(values[0], Tensor):
        values = torch.stack(list(values))
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if not isinstance(values, (Tensor, np.ndarray)) and array.dtype.kind == "U":  # numpy turns [1, "a"] into strings
        odd = next((value for value in values if not isinstance(value, str)), None)
        if odd is not None:
            raise ValueError(f"{what} must be all integers or all strings, got strings and {odd!r}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (items,) or array.dtype.kind not in "biuU":
        raise ValueError(
            f"{what} must be one integer or string for each of {items} items, got {array.dtype} of shape {array.shape}"
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def check_whole(field: str, value: Any, low: int) -> None:
    """Refuse what is no whole number of at least ``low``, naming the field."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{field} must be a whole number of at least {low}, got {value!r}")


def even(count: int, parts: int) -> Ints:
    """Sizes of equal parts, up to one, that sum to ``count``; the larger ones come first."""
    return count // parts + (np.arange(parts) < count % parts)


def _cut(shares: NDArray[np.float64], sizes: Ints) -> Ints:
    """Whole numbers near ``shares * sizes`` that sum to ``sizes``; shares of shape ``(classes, clients)`` sum to 1."""
    ends = np.rint(shares.cumsum(axis=1) * sizes[:, None]).astype(np.int64)
    ends[:, -1] = sizes
    return np.diff(np.minimum(ends, sizes[:, None]), axis=1, prepend=0)


def _by_class(classes: Ints, rng: np.random.Generator) -> Ints:
    """Items ordered by class, at random within a class."""
    order = rng.permutation(len(classes))
    return order[classes[order].argsort(kind="stable")]


def _dealt(classes: Ints, counts: Ints, rng: np.random.Generator) -> Ints:
    """The client of each item, when clients get ``counts`` items by class and client, drawn at random."""
    owners = np.empty(len(classes), np.int64)
    owners[_by_class(classes, rng)] = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    return owners
