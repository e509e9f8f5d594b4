"""Layer selection as a mixed integer programme: each ``|m_i - m_j|`` is a variable of its own."""

from __future__ import annotations

import time

import numpy as np

LARGEST = 500_000  # pairs of choices that are handed to HiGHS at most


def solve(
    gains: np.ndarray, costs: np.ndarray, budgets: np.ndarray, lam: float, fixed: np.ndarray, deadline: float
) -> tuple[np.ndarray | None, float]:
    """Maximise ``sum g m - lam * sum |m_i - m_j|`` (see ``agreement``) by HiGHS, with some choices fixed.

    Args:
        gains: At most about 1 in size, shape ``(clients, layers)``.
        costs: Positive, shape ``(clients, layers)``.
        budgets: Not negative, shape ``(clients,)``.
        lam: Not negative.
        fixed: 1 where a client must take a layer, -1 where it must not, 0 elsewhere, shape ``(clients, layers)``.
        deadline: On the monotonic clock; HiGHS may overrun it by some seconds.

    Returns:
        The best masks found, bool of shape ``(clients, layers)``, or None; and a bound on all others, which is minus
        infinity if the fixed choices leave nothing within the budgets. Budgets are kept to a relative 1e-6.
    """
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    clients, layers = gains.shape
    first, second = np.triu_indices(clients, 1)
    one = (first[:, None] * layers + np.arange(layers)).ravel()
    other = (second[:, None] * layers + np.arange(layers)).ravel()
    open_ = (fixed.ravel()[one] == 0) | (fixed.ravel()[other] == 0)
    constant = lam * float((fixed.ravel()[one] != fixed.ravel()[other])[~open_].sum())
    one, other = one[open_], other[open_]
    choices, pairs = gains.size, len(one) if lam else 0
    left = deadline - time.monotonic()
    if left <= 0 or pairs > LARGEST:
        return None, np.inf
    one, other, row = one[:pairs], other[:pairs], np.arange(pairs)
    ones, unit = np.ones(pairs), sparse.identity(pairs)
    differ = sparse.coo_matrix(
        (np.concatenate([ones, -ones]), (np.concatenate([row, row]), np.concatenate([one, other]))), (pairs, choices)
    )
    spend = sparse.block_diag([cost[None] / (budget or 1) for cost, budget in zip(costs, budgets, strict=True)])
    matrix = sparse.bmat([[differ, -unit], [-differ, -unit], [spend, None]], format="csr")
    upper = np.concatenate([np.zeros(2 * pairs), (budgets > 0).astype(float)])
    free = np.concatenate([fixed.ravel() == 0, np.ones(pairs, dtype=bool)])
    low = np.concatenate([fixed.ravel() > 0, np.zeros(pairs, dtype=bool)]).astype(float)
    size = 1e3  # HiGHS stops at an absolute gap of 1e-6, so this makes it 1e-9 of the largest gain
    result = milp(
        size * np.concatenate([-gains.ravel(), np.full(pairs, lam)]),
        integrality=np.concatenate([np.ones(choices), np.zeros(pairs)]),
        bounds=Bounds(low, np.where(free, 1, low)),
        constraints=LinearConstraint(matrix, -np.inf, upper),
        options={"time_limit": left, "mip_rel_gap": 0},
    )
    if result.status == 2:
        return None, -np.inf
    best = result.fun if result.status == 0 else result.mip_dual_bound
    bound = np.inf if best is None else -best / size - constant
    masks = None if result.x is None else result.x[:choices].reshape(gains.shape) > 0.5
    return masks, bound
