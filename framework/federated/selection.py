"""Which layers each client trains: strategies on importance scores, budgets, and what theory says of a choice.

From selective layer fine-tuning in federated learning (Sun et al. 2024, arXiv 2408.15600; official code
hiyuchang/fed_sel_tune). Arrays have shape ``(clients, layers)``, layers from input to output; pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from framework.errors import near
from framework.federated import agreement
from framework.seeding import derive

STRATEGIES = ("full", "head_only", "top", "bottom", "both", "top_scores", "p1")
SCALES = ("max", "mean", "none")
ROUNDING = 1e-9  # of a budget: 0.1 + 0.2 is within 0.3


@dataclass(frozen=True)
class Selection:
    """Layers of each client.

    Attributes:
        masks: True where a client trains a layer, bool of shape ``(clients, layers)``.
        objective: Value of problem P1 (see ``solve_p1``) before budgets were filled up; NaN without scores.
        filled_objective: Value of ``masks``; at ``lam > 0`` filling up may lower it.
        optimal: Whether ``objective`` is proven to be the largest possible. False for all strategies but ``p1``.
        bound: No choice within the budgets has a larger objective; infinite for all strategies but ``p1``.
        filled: Layers that filling up added, bool of shape ``(clients, layers)``.
    """

    masks: np.ndarray
    objective: float
    filled_objective: float
    optimal: bool
    bound: float
    filled: np.ndarray


def solve_p1(
    scores: ArrayLike,
    budgets: ArrayLike,
    lam: float,
    costs: ArrayLike | None = None,
    fill_budget: bool = True,
    time_limit: float = 10.0,
) -> Selection:
    """Choose layers of large scores on which clients agree: problem P1 of the paper, solved exactly.

    It maximises ``sum_i sum_l scores_il m_il - lam * sum_{i<j} sum_l (m_il - m_jl)^2`` subject to
    ``sum_l costs_l m_il <= budgets_i``; each pair of clients counts once, as in the official code. At ``lam`` 0 each
    client takes its own best layers; a large one makes all take the same, as many as the smallest budget allows.

    Results are deterministic. Where clients can exchange a layer for another at no loss they take the lower index, and
    a layer that gains nothing is left to filling up.

    Args:
        scores: Importance of each layer to each client, finite, shape ``(clients, layers)``. ``normalise`` makes
            ``lam`` free of their unit.
        budgets: What each client can train, shape ``(clients,)``: without ``costs`` whole numbers of layers from 0 to
            ``layers``, otherwise not negative and in the unit of ``costs``.
        lam: Weight of disagreement, not negative. The official default is 0.
        costs: Positive costs of a layer, shape ``(layers,)`` or ``(clients, layers)``; None for 1 each.
        fill_budget: Afterwards let each client add layers that still fit, the largest of its own scores first.
        time_limit: Seconds for the exact solver. After that the best choice found is returned, with ``optimal`` False
            and a ``bound``.

    Raises:
        ValueError: If an argument is out of range; the message names client and layer, counted from 0.
    """
    gains = _scores(scores)
    prices, limits = _budgets(budgets, costs, gains.shape[0], gains.shape[1])
    if not 0 <= lam < math.inf:
        raise ValueError(f"lam must be finite and not negative, got {lam}")
    if not time_limit > 0:
        raise ValueError(f"time_limit must be a positive number of seconds, got {time_limit}")
    found = agreement.maximise(gains, prices, limits, float(lam), time_limit)
    masks = found.masks
    if fill_budget:
        masks = agreement.affordable(agreement.best_first(gains), prices, limits, taken=masks)
    return Selection(
        masks=masks,
        objective=found.objective,
        filled_objective=agreement.objective(gains, masks, lam),
        optimal=found.bound == found.objective,
        bound=found.bound,
        filled=masks & ~found.masks,
    )


def select(
    strategy: str,
    budgets: ArrayLike,
    layers: int | None = None,
    scores: ArrayLike | None = None,
    *,
    lam: float = 0.0,
    costs: ArrayLike | None = None,
    fill_budget: bool = True,
    time_limit: float = 10.0,
) -> Selection:
    """Choose layers by the name of a strategy.

    * ``full``: all layers for every client, whatever its budget; ``head_only``: none (the common group alone).
    * ``top``: closest to the output; ``bottom``: closest to the input; ``both``: first, last, second, last but one ...
    * ``top_scores``: each client's largest scores, the lower layer first among equals.
    * ``p1``: ``solve_p1``.

    With unequal costs all but ``p1`` go through the layers in their order and take each that still fits.

    Args:
        strategy: One of ``STRATEGIES``.
        budgets: As in ``solve_p1``; one for each client.
        layers: Number of layers; may be left out with ``scores``.
        scores: As in ``solve_p1``; needed by ``top_scores`` and ``p1``. The others only report their objective on it.
        lam: As in ``solve_p1``; strategies other than ``p1`` only report the objective with it.
        costs: As in ``solve_p1``.
        fill_budget: For ``p1``.
        time_limit: For ``p1``.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"unknown selection strategy {strategy!r}{near(str(strategy), STRATEGIES) or ';'} "
            f"there are {', '.join(STRATEGIES)}"
        )
    gains = None if scores is None else _scores(scores)
    if gains is None and strategy in ("top_scores", "p1"):
        raise ValueError(f"strategy {strategy} needs scores of shape (clients, layers), got none")
    if gains is not None:
        if layers not in (None, gains.shape[1]):
            raise ValueError(f"layers must be the number of columns of scores, {gains.shape[1]}, got {layers}")
        layers = gains.shape[1]
    if layers is None or layers < 1:
        raise ValueError(f"layers must be a positive number where no scores are given, got {layers}")
    if strategy == "p1":
        assert gains is not None
        return solve_p1(gains, budgets, lam, costs, fill_budget, time_limit)
    if not 0 <= lam < math.inf:
        raise ValueError(f"lam must be finite and not negative, got {lam}")
    prices, limits = _budgets(budgets, costs, None if gains is None else len(gains), layers)
    index = np.arange(layers)
    ends = np.stack([index, layers - 1 - index], axis=1).ravel()[:layers]
    orders = {"top": index[::-1], "bottom": index, "both": ends}
    if strategy in ("full", "head_only"):
        masks = np.full(prices.shape, strategy == "full")
    else:
        order = agreement.best_first(gains) if gains is not None and strategy == "top_scores" else orders[strategy]
        masks = agreement.affordable(np.broadcast_to(order, prices.shape), prices, limits)
    value = math.nan if gains is None else agreement.objective(gains, masks, lam)
    return Selection(masks, value, value, optimal=False, bound=math.inf, filled=np.zeros_like(masks))


def scale_of(scores: ArrayLike, how: str = "max") -> float:
    """The number that ``normalise`` divides by: worth a log entry beside ``lam``."""
    values = _scores(scores)
    if how not in SCALES:
        raise ValueError(f"unknown normalisation {how!r}{near(str(how), SCALES) or ';'} there are {', '.join(SCALES)}")
    scale = {"max": values.max(), "mean": values.mean(), "none": 1.0}[how]
    return float(scale) if scale > 0 else 1.0


def normalise(scores: ArrayLike, how: str = "max") -> np.ndarray:
    """Divide all scores by one number, so that ``lam`` has no unit.

    Args:
        scores: Finite, shape ``(clients, layers)``.
        how: ``max`` or ``mean`` of all scores of all clients, or ``none``. Scores that are all zero stay so.

    Returns:
        Shape ``(clients, layers)``.
    """
    return _scores(scores) / scale_of(scores, how)


def equal_budgets(budget: int, clients: int) -> np.ndarray:
    """The same number of layers for every client, shape ``(clients,)``."""
    if budget < 0 or budget != int(budget):
        raise ValueError(f"budget must be a whole number of layers and not negative, got {budget}")
    return np.full(_count(clients), int(budget), dtype=np.int64)


def truncated_normal_budgets(low: int, high: int, clients: int, seed: int) -> np.ndarray:
    """Numbers of layers that differ between clients: the official code's draw, kept within its stated range.

    ``round(1 + z)`` with ``z`` standard normal, given that it lies in ``[low - 1, high + 1]``. For (1, 4) about 38 % of
    clients get 1, 48 % get 2, 12 % get 3. The official draw reaches up to ``high + 2``, for (1, 4) in one of 2,000
    clients; here what exceeds ``high`` becomes ``high``. Most lie near ``low``: the range is not filled evenly.

    Args:
        low: Least number of layers, at least 0.
        high: Largest number of layers, at least ``low``.
        clients: How many to draw, at least 1.
        seed: Not negative. Equal arguments give equal budgets, and no global random state is read or moved.

    Returns:
        Whole numbers from ``low`` to ``high``, shape ``(clients,)``.
    """
    if low < 0 or low != int(low) or high < low or high != int(high):
        raise ValueError(f"low and high must be whole numbers with 0 <= low <= high, got {low} and {high}")
    from scipy.special import ndtr, ndtri

    rng = np.random.default_rng(derive(seed, "layer budgets"))
    # From the upper tail, where probabilities do not round to 1.
    start, end = ndtr(1 - low), ndtr(-(high + 1))
    z = -ndtri(start + (end - start) * rng.random(_count(clients)))
    return np.clip(np.rint(1 + z), low, high).astype(np.int64)


def layer_weights(masks: ArrayLike, sizes: ArrayLike) -> np.ndarray:
    """Weights of clients in the average of each layer: ``w_il = m_il d_i / sum_j m_jl d_j``.

    Args:
        masks: True where a client trains a layer, shape ``(clients, layers)``.
        sizes: Positive numbers of examples, or weights in proportion to them, shape ``(clients,)``.

    Returns:
        Shape ``(clients, layers)``; the columns sum to 1, but to 0 for a layer that nobody trains: it stays as it is.
    """
    chosen, share = _choice(masks, sizes)
    weighted = chosen * share[:, None]
    total = weighted.sum(axis=0)
    return np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)


class ErrorTerms(NamedTuple):
    """What a choice of layers costs in the paper's bound.

    Attributes:
        left_out: ``E_1``, the squared norm of the gradient in the layers that no client trains.
        chi2: ``chi2(w_l || alpha)`` of each layer, 0 where nobody trains it, shape ``(layers,)``.
        disagreement: ``E_2``, the sum of ``kappa_l^2 chi2_l`` over the layers that somebody trains.
    """

    left_out: float
    chi2: np.ndarray
    disagreement: float


def error_terms(
    squared_norms: ArrayLike, masks: ArrayLike, alpha: ArrayLike, kappa: ArrayLike | None = None
) -> ErrorTerms:
    """The two error terms of a round (theorem 4.7): what is left out, and how clients disagree.

    Both vanish if every client trains every layer.

    Args:
        squared_norms: ``||grad_l f||^2`` of the objective over all clients, not negative, shape ``(layers,)``.
        masks: True where a client trains a layer, shape ``(clients, layers)``.
        alpha: Weights of the clients in the objective, positive; they are divided by their sum. Shape ``(clients,)``.
        kappa: Gradient diversity of each layer, not negative, shape ``(layers,)``; None for 1 each.
    """
    chosen, share = _choice(masks, alpha)
    layers = chosen.shape[1]
    norms = _per_layer("squared_norms", squared_norms, layers)
    spread = np.ones(layers) if kappa is None else _per_layer("kappa", kappa, layers)
    trained = chosen.any(axis=0)
    difference = layer_weights(chosen, share) - share[:, None]
    chi2 = np.where(trained, (difference**2 / share[:, None]).sum(axis=0), 0.0)
    return ErrorTerms(float(norms[~trained].sum()), chi2, float((spread**2 * chi2).sum()))


def _scores(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"scores must have shape (clients, layers) with at least one of each, got {values.shape}")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        client, layer = wrong[0]
        raise ValueError(f"score of client {client}, layer {layer} must be finite, got {values[client, layer]}")
    return values


def _budgets(
    budgets: ArrayLike, costs: ArrayLike | None, clients: int | None, layers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Costs of shape ``(clients, layers)`` and budgets in their unit, with room for rounding."""
    limits = np.asarray(budgets, dtype=np.float64)
    if limits.ndim != 1 or len(limits) != (len(limits) if clients is None else clients) or not len(limits):
        wanted = "(clients,)" if clients is None else f"({clients},), one for each client"
        raise ValueError(f"budgets must have shape {wanted}, got {limits.shape}")
    if costs is None:
        wrong = np.flatnonzero(~((limits >= 0) & (limits <= layers) & (limits == np.floor(limits))))
        allowed = f"a whole number from 0 to {layers}, the number of layers"
        prices = np.ones((len(limits), layers))
    else:
        wrong, allowed = np.flatnonzero(~((limits >= 0) & (limits < np.inf))), "finite and not negative"
        prices = np.asarray(costs, dtype=np.float64)
        if prices.shape not in ((layers,), (len(limits), layers)):
            raise ValueError(f"costs must have shape ({layers},) or ({len(limits)}, {layers}), got {prices.shape}")
        if not ((prices > 0) & (prices < np.inf)).all():
            bad = prices[~((prices > 0) & (prices < np.inf))][0]
            raise ValueError(f"costs must be positive and finite, got {bad}")
        prices = np.broadcast_to(prices, (len(limits), layers))
    if len(wrong):
        raise ValueError(f"budget of client {wrong[0]} must be {allowed}, got {limits[wrong[0]]:g}")
    return prices, limits * (1 + ROUNDING)


def _choice(masks: ArrayLike, sizes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Masks as bool, and the share of each client."""
    chosen, weights = np.asarray(masks), np.asarray(sizes, dtype=np.float64)
    if chosen.ndim != 2 or not np.isin(chosen, (0, 1)).all():
        raise ValueError(f"masks must be true or false and of shape (clients, layers), got shape {chosen.shape}")
    if weights.shape != (len(chosen),):
        raise ValueError(f"weights of clients must have shape ({len(chosen)},), got {weights.shape}")
    wrong = np.flatnonzero(~((weights > 0) & (weights < np.inf)))
    if len(wrong):
        raise ValueError(f"weight of client {wrong[0]} must be positive and finite, got {weights[wrong[0]]}")
    return chosen.astype(bool), weights / weights.sum()


def _per_layer(name: str, values: ArrayLike, layers: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (layers,) or not ((array >= 0) & (array < np.inf)).all():
        raise ValueError(
            f"{name} must be {layers} finite numbers, one for each layer and none negative, got {array.tolist()}"
        )
    return array


def _count(clients: int) -> int:
    if clients < 1 or clients != int(clients):
        raise ValueError(f"clients must be a whole number of at least 1, got {clients}")
    return int(clients)
