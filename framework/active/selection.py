"""Which items to buy under a budget. Results are positions in what was given; ties go to the lower position.

Costs are positive, and a budget is in their unit. Ranking, BADGE and core-set buy until the budget is reached, so the
last item may overshoot it (as in active NER, section 3); facility location stays within it.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


def ranked(scores: Tensor) -> Tensor:
    """Positions from the largest score to the smallest, equal ones in the order given, shape ``(items,)``."""
    return torch.sort(scores, descending=True, stable=True).indices


def within_budget(order: Tensor, costs: Tensor, budget: float) -> Tensor:
    """The head of an order: items are taken until the budget is reached.

    Args:
        order: Positions, those to buy first at the front, shape ``(m,)``.
        costs: Positive costs of all items, shape ``(items,)``.
        budget: Positive, in the unit of ``costs``. May be infinite.

    Returns:
        The first so many entries of ``order``; all but the last cost less than the budget together.
    """
    bought = costs[order].double().cumsum(0)
    return order[: int((bought < budget).sum()) + 1]


@torch.no_grad()
def facility_location(similarity: Tensor, costs: Tensor, budget: float, weights: Tensor | None = None) -> Tensor:
    """Items that stand for all the others: maximises ``f(S) = sum_i weights_i * max_{j in S} similarity_ij``.

    Lazy greedy by gain per cost (Minoux 1978), and from the best single item if that alone is worth more: at least
    1 - 1/sqrt(e) of the optimum within the budget (Lin and Bilmes 2010). Time grows with items squared at worst, memory
    is that of ``similarity``.

    Args:
        similarity: Symmetric and not negative, shape ``(items, items)``.
        costs: Positive costs, shape ``(items,)``.
        budget: Positive, in the unit of ``costs``.
        weights: How much each item wants to be stood for, not negative, shape ``(items,)``; None for 1 each.

    Returns:
        Positions in the order bought. They cost at most the budget; only where no item does, the one of most gain per
        cost is bought alone.
    """
    weights = torch.ones(len(costs)) if weights is None else weights
    weights, prices = weights.to(similarity), [float(cost) for cost in costs]
    # Each as a dot product, as gains are below: two ways of adding up would break ties by their rounding.
    singles = [float(torch.dot(row, weights)) for row in similarity]
    affordable = [j for j, price in enumerate(prices) if price <= budget]
    if not affordable:
        return torch.tensor(
            [max(range(len(prices)), key=lambda j: singles[j] / prices[j])] if prices else [], dtype=torch.int64
        )

    def greedy(chosen: list[int]) -> tuple[list[int], float]:
        covered = similarity[chosen].amax(dim=0) if chosen else torch.zeros_like(weights)
        left = budget - sum(prices[j] for j in chosen)
        # Gains only fall as more is bought, so an old gain is a bound: only who leads by the bounds is computed anew.
        heap = [(-singles[j] / prices[j], j) for j in affordable if j not in chosen]
        heapq.heapify(heap)
        while heap:
            _, j = heapq.heappop(heap)
            if prices[j] > left:
                continue  # nor will it fit later
            gain = float(torch.dot((similarity[j] - covered).clamp_(min=0), weights))
            entry = (-gain / prices[j], j)
            if heap and entry > heap[0]:
                heapq.heappush(heap, entry)
                continue
            chosen.append(j)
            left -= prices[j]
            torch.maximum(covered, similarity[j], out=covered)
        return chosen, float(torch.dot(covered, weights))

    chosen, value = greedy([])
    best = max(affordable, key=lambda j: singles[j])
    return torch.tensor(greedy([best])[0] if singles[best] > value else chosen, dtype=torch.int64)


@torch.no_grad()
def badge(errors: Tensor, embeddings: Tensor, costs: Tensor, budget: float, generator: torch.Generator) -> Tensor:
    """Items whose gradient embeddings are long and differ: k-means++ seeding (BADGE, Ash et al. 2020, algorithm 1).

    The gradient embedding of item i is the outer product of ``errors_i`` and ``embeddings_i``. Inner products of outer
    products are products of inner products, so none is ever formed: time is
    O(items * (classes + dim)) for each item bought, memory that of the two factors.

    Args:
        errors: Derivative of the loss by the logits, shape ``(items, classes)``.
        embeddings: Inputs of the last layer, shape ``(items, dim)``.
        costs: Positive costs, shape ``(items,)``.
        budget: Positive, in the unit of ``costs``.
        generator: Of the CPU; gives one number for each item bought after the first.

    Returns:
        Positions in the order bought, the longest gradient first; by position once all that is left is equal to
        something bought.
    """
    square = errors.square().sum(1).double() * embeddings.square().sum(1).double()
    distance = torch.full_like(square, torch.inf)
    chosen: list[int] = []
    left, prices = float(budget), costs.tolist()
    free = torch.ones_like(square, dtype=torch.bool)
    while left > 0 and len(chosen) < len(prices):
        if not chosen:
            pick = int(square.argmax())
        else:
            cumulative = distance.cumsum(0)
            draw = torch.rand((), generator=generator, dtype=torch.float64) * float(cumulative[-1])
            pick = int(torch.searchsorted(cumulative, draw.to(cumulative.device), right=True))
            if float(cumulative[-1]) == 0 or pick == len(prices):
                pick = int(free.int().argmax())
        chosen.append(pick)
        left -= prices[pick]
        free[pick] = False
        inner = (errors @ errors[pick]).double() * (embeddings @ embeddings[pick]).double()
        distance = torch.minimum(distance, _squared_distance(square, square[pick], inner))
        distance[pick] = 0
    return torch.tensor(chosen, dtype=torch.int64)


@torch.no_grad()
def core_set(embeddings: Tensor, labelled: Tensor, costs: Tensor, budget: float, generator: torch.Generator) -> Tensor:
    """Items that leave none far from a labelled one: k-centre greedy (Sener and Savarese 2018, algorithm 1).

    With equal costs the largest distance to the nearest labelled or bought item is at most twice the least possible.
    Time is O(items * dim) for each item labelled or bought, memory that of the embeddings and a few times 4 MB.

    Args:
        embeddings: Vectors of the items to choose from, shape ``(items, dim)``.
        labelled: Vectors of what is labelled already, shape ``(m, dim)``. If there are none, the first item is drawn.
        costs: Positive costs, shape ``(items,)``.
        budget: Positive, in the unit of ``costs``.
        generator: Of the CPU; used only if nothing is labelled.

    Returns:
        Positions in the order bought: each time what is farthest from all that is labelled or bought.
    """
    square = embeddings.square().sum(1)
    distance = torch.full_like(square, torch.inf)  # squared: the order is the same
    chunk = max(2**20 // max(len(embeddings), 1), 1)
    for part in labelled.to(embeddings).split(chunk) if len(labelled) else ():
        between = _squared_distance(square[:, None], part.square().sum(1), embeddings @ part.T)
        distance = torch.minimum(distance, between.amin(dim=1))
    chosen: list[int] = []
    left, prices = float(budget), costs.tolist()
    while left > 0 and len(chosen) < len(prices):
        if not chosen and not len(labelled):
            pick = int(torch.randint(len(prices), (), generator=generator))
        else:
            pick = int(distance.argmax())  # the first of equals
        chosen.append(pick)
        left -= prices[pick]
        distance = torch.minimum(distance, _squared_distance(square, square[pick], embeddings @ embeddings[pick]))
        distance[pick] = -1
    return torch.tensor(chosen, dtype=torch.int64)


def _squared_distance(square_a: Tensor, square_b: Tensor, inner: Tensor) -> Tensor:
    """|a - b|^2 from |a|^2, |b|^2 and a·b; 0 where it cannot be told from the rounding of equal vectors."""
    size = square_a + square_b
    new = size - 2 * inner
    return torch.where(new > 1e-6 * size, new, 0)
