"""Acquisition functions by name: what each needs of the module, and which items of a pool it buys.

How whoever runs over the pool uses one::

    how = acquisition("submodular")
    pool = PoolScores(indices, costs)
    if how.passes:        # 1: dropout off; more: dropout on, each pass drawn anew. Scores of how.score for each batch.
        pool = replace(pool, scores=...)
    pool = pool.take(how.shortlist(pool, budget, generator))
    if how.embedding:     # of the items of the shortlist alone, dropout off
        pool = replace(pool, embeddings=..., errors=..., labelled=...)
    bought = pool.indices[how.select(pool, budget, generator)]

The same pool, budget and state of the generator give the same items, on any rank.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from framework.active import scores, selection
from framework.active.decisions import Decisions
from framework.errors import near

ACQUISITIONS: dict[str, str] = {
    "random": "a random order",
    "longest": "most decisions (tokens) first",
    "lc": "least confidence: lowest probability of the whole decoded item; prefers long ones",
    "mnlp": "lowest log-probability per decision",
    "margin": "smallest lead of the likeliest class over the second",
    "entropy": "highest entropy per decision",
    "bald": "dropout passes that disagree with the majority (variation ratio, as in active NER)",
    "bald_mi": "mutual information of decisions and dropout masks",
    "submodular": "facility location over the most uncertain by mnlp, within the budget",
    "badge": "long and diverse gradients of the last layer; for classifiers",
    "coreset": "farthest from everything labelled, by embeddings",
}
"""Names of the acquisition functions and what each buys first."""


@dataclass(frozen=True)
class PoolScores:
    """What is known of the items that can be bought. On the CPU, and the same on all ranks.

    Attributes:
        indices: Global indices of the items, ascending, int64 of shape ``(items,)``.
        costs: Positive costs, shape ``(items,)``.
        scores: Larger for what to buy first, shape ``(items,)``; None if the function needs none.
        embeddings: Vectors of the items, shape ``(items, dim)``; None if the function needs none.
        errors: :func:`framework.active.scores.gradient_errors` of the items, shape ``(items, classes)``, for badge.
        labelled: Vectors of all labelled items, shape ``(m, dim)``, for coreset.

    Raises:
        ValueError: If lengths differ, indices do not ascend, costs are not positive, a score is NaN, or another number
            is not finite.
    """

    indices: Tensor
    costs: Tensor
    scores: Tensor | None = None
    embeddings: Tensor | None = None
    errors: Tensor | None = None
    labelled: Tensor | None = None

    def __post_init__(self) -> None:
        for name in self._per_item():
            found = getattr(self, name)
            if len(found) != len(self.indices):
                raise ValueError(f"{name} must have one entry an item, got {len(found)} for {len(self.indices)} items")
        if bool((self.indices.diff() <= 0).any()):
            raise ValueError("indices must ascend: equal scores are bought in their order")
        if not bool((self.costs > 0).all()):
            where = int((~(self.costs > 0)).int().argmax())
            raise ValueError(f"costs must be positive, got {self.costs[where].item()} for item {self.indices[where]}")
        if self.scores is not None and bool((nan := self.scores.isnan()).any()):
            raise ValueError(f"the score of item {self.indices[nan][0]} is NaN: has training diverged?")
        for name in ("embeddings", "errors", "labelled"):
            found = getattr(self, name)
            if found is not None and not bool(found.isfinite().all()):
                raise ValueError(f"{name} of the acquisition function are not finite: has training diverged?")

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: Tensor) -> PoolScores:
        """Some of the items, at ascending positions."""
        return replace(self, **{name: getattr(self, name)[positions] for name in self._per_item()})

    def _per_item(self) -> list[str]:
        names = [field.name for field in fields(self) if field.name != "labelled"]
        return [name for name in names if getattr(self, name) is not None]


class Acquisition:
    """Decides which items of a pool to buy. The base orders at random, and other functions override what differs.

    Attributes:
        name: What it is called in the configuration.
        passes: Scoring passes over the pool: 0 for none, 1 with dropout off, more with dropout on.
        embedding: What else is needed of the items of the shortlist: nothing, their ``embedding``, or the factors of
            their ``gradient`` embedding (``embeddings`` and ``errors``).
        needs_labelled: Whether the embeddings of all labelled items are needed.
    """

    passes: int = 0
    embedding: Literal["embedding", "gradient"] | None = None
    needs_labelled: bool = False

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def needs_model(self) -> bool:
        """Whether the module has to run over the pool at all."""
        return self.passes > 0 or self.embedding is not None

    def score(self, passes: Iterable[Decisions]) -> Tensor:
        """Scores of one batch, larger for what to buy first.

        Args:
            passes: ``self.passes`` decisions about the batch. May be a generator: Monte-Carlo passes are then not all
                in memory at once.

        Returns:
            Shape ``(batch,)``.
        """
        raise NotImplementedError(f"acquisition {self.name!r} needs no scores")

    def shortlist(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        """The items among which :meth:`select` will choose, so that others need no embedding.

        Args:
            pool: The items, with scores if the function needs them.
            budget: Positive, in the unit of the costs.
            generator: Of the CPU, in the same state on all ranks.

        Returns:
            Ascending positions in the pool; all of them unless a subclass says otherwise.
        """
        return torch.arange(len(pool))

    def select(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        """The items to buy.

        Args:
            pool: The items of the shortlist, with what the function needs of them.
            budget: Positive, in the unit of the costs. May be infinite.
            generator: Of the CPU, in the same state on all ranks.

        Returns:
            Positions in the pool, in the order bought. They cost at least the budget unless the pool is used up, and
            without the last one less; ``submodular`` stays within the budget.
        """
        return selection.within_budget(torch.randperm(len(pool), generator=generator), pool.costs, budget)

    def _given(self, pool: PoolScores, name: str) -> Tensor:
        found: Tensor | None = getattr(pool, name)
        if found is None:
            raise ValueError(f"acquisition {self.name!r} needs {name} of the pool, got None")
        return found


class Ranked(Acquisition):
    """Buys what scores most.

    Args:
        name: What it is called.
        function: From decisions to scores, larger for what to buy first, shape ``(batch,)``. It is given the decisions
            of the only pass, or an iterable of those of all passes if there are several.
        passes: 1 with dropout off, or the number of dropout masks, at least 2.
    """

    def __init__(self, name: str, function: Callable[..., Tensor], passes: int = 1) -> None:
        super().__init__(name)
        self.function, self.passes = function, passes

    def score(self, passes: Iterable[Decisions]) -> Tensor:
        found = self.function(passes) if self.passes > 1 else self.function(*passes)
        if not isinstance(found, Tensor) or found.ndim != 1:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"acquisition {self.name!r} must return a tensor of shape (batch,), got {got}")
        return found

    def select(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        return selection.within_budget(selection.ranked(self._given(pool, "scores")), pool.costs, budget)


class Submodular(Ranked):
    """Buys what stands for the rest of the most uncertain items: facility location over the top by MNLP.

    Similarity is the cosine of embeddings, 0 where it is negative; what is stood for counts by its uncertainty. The
    matrix of similarities takes ``4 * candidates ** 2`` bytes.

    Args:
        name: What it is called.
        candidates: The most items to compare.
        breadth: The shortlist holds the most uncertain items worth so many budgets, at least 1.
    """

    embedding = "embedding"

    def __init__(self, name: str = "submodular", candidates: int = 4096, breadth: float = 5.0) -> None:
        super().__init__(name, scores.mnlp)
        self.candidates, self.breadth = candidates, breadth

    def shortlist(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        order = selection.ranked(self._given(pool, "scores"))
        top = selection.within_budget(order, pool.costs, self.breadth * budget)[: self.candidates]
        return _enough(top, pool, budget, self.candidates).sort().values

    def select(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        unit = torch.nn.functional.normalize(self._given(pool, "embeddings").float(), dim=1)
        similarity = (unit @ unit.T).clamp_(min=0)
        return selection.facility_location(similarity, pool.costs, budget, self._given(pool, "scores"))


class _Embedded(Acquisition):
    """Chooses by embeddings of the whole pool, or of ``candidates`` random items of it."""

    def __init__(self, name: str, candidates: int | None = None) -> None:
        super().__init__(name)
        self.candidates = candidates

    def shortlist(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        if self.candidates is None or self.candidates >= len(pool):
            return torch.arange(len(pool))
        drawn = torch.randperm(len(pool), generator=generator)[: self.candidates]
        return _enough(drawn, pool, budget, self.candidates).sort().values


class Badge(_Embedded):
    """Buys items whose gradients of the last layer are long and differ (Ash et al. 2020).

    Args:
        name: What it is called.
        candidates: Random items of the pool to choose from; None for all. Memory is that of their embeddings.
    """

    embedding = "gradient"

    def select(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        errors, embeddings = self._given(pool, "errors"), self._given(pool, "embeddings")
        return selection.badge(errors, embeddings, pool.costs, budget, generator)


class CoreSet(_Embedded):
    """Buys what is farthest from everything labelled (Sener and Savarese 2018).

    Args:
        name: What it is called.
        candidates: Random items of the pool to choose from; None for all. Memory is that of their embeddings.
    """

    embedding = "embedding"
    needs_labelled = True

    def select(self, pool: PoolScores, budget: float, generator: torch.Generator) -> Tensor:
        embeddings, labelled = self._given(pool, "embeddings"), self._given(pool, "labelled")
        return selection.core_set(embeddings, labelled, pool.costs, budget, generator)


def acquisition(name: str, mc_samples: int = 10, candidates: int | None = None, breadth: float = 5.0) -> Acquisition:
    """The acquisition function of a name.

    Args:
        name: One of :data:`ACQUISITIONS`, or the dotted path of a function of the user's from :class:`Decisions` to
            scores of shape ``(batch,)``, larger for what to buy first, or of an :class:`Acquisition`.
        mc_samples: Dropout passes of ``bald`` and ``bald_mi``, at least 2 (active NER: 100).
        candidates: The most items whose embeddings are compared: for ``submodular`` the most uncertain (None: 4096),
            for ``badge`` and ``coreset`` random ones (None: all).
        breadth: ``submodular`` chooses among the most uncertain items worth so many budgets, at least 1.

    Returns:
        The function.

    Raises:
        ValueError: If the name is unknown or cannot be imported, or a number is out of range.
    """
    if candidates is not None and candidates < 1:
        raise ValueError(f"candidates must be at least 1 or null, got {candidates}")
    if not breadth >= 1:
        raise ValueError(f"breadth must be at least 1, got {breadth}")
    if name in ("bald", "bald_mi") and mc_samples < 2:
        raise ValueError(f"mc_samples must be at least 2 for acquisition {name!r}, got {mc_samples}")
    match name:
        case "random":
            return Acquisition(name)
        case "longest":
            return Ranked(name, scores.length)
        case "lc":
            return Ranked(name, scores.least_confidence)
        case "mnlp":
            return Ranked(name, scores.mnlp)
        case "margin":
            return Ranked(name, scores.margin)
        case "entropy":
            return Ranked(name, scores.entropy)
        case "bald":
            return Ranked(name, scores.variation_ratio, mc_samples)
        case "bald_mi":
            return Ranked(name, scores.mutual_information, mc_samples)
        case "submodular":
            return Submodular(name, 4096 if candidates is None else candidates, breadth)
        case "badge":
            return Badge(name, candidates)
        case "coreset":
            return CoreSet(name, candidates)
    return _imported(name)


def _imported(path: str) -> Acquisition:
    """What a user's dotted path leads to."""
    if "." not in path.strip("."):
        raise ValueError(
            f"acquisition must be one of {', '.join(ACQUISITIONS)}, or the dotted path of a function, got {path!r}"
            f"{near(path, ACQUISITIONS)}"
        )
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"acquisition {path!r} cannot be imported: {' '.join(str(error).split())}") from error
    if isinstance(found, Acquisition):
        return found
    if not callable(found) or isinstance(found, type):
        got = "a class" if isinstance(found, type) else type(found).__name__
        raise ValueError(
            f"acquisition {path!r} must be a function from Decisions to scores, or an Acquisition, got {got}"
        )
    return Ranked(path, found)


def _enough(positions: Tensor, pool: PoolScores, budget: float, candidates: int) -> Tensor:
    """The shortlist, unless it would leave money over that the pool could take."""
    if len(positions) < len(pool) and float(pool.costs[positions].sum()) < budget:
        raise ValueError(
            f"candidates={candidates} items cost {pool.costs[positions].sum():g} together, less than the budget of "
            f"{budget:g}: allow more candidates, or a smaller budget"
        )
    return positions
