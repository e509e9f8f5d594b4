"""What privacy is spent, and how much noise a budget needs.

Every step of DP-SGD is a Poisson-subsampled Gaussian mechanism, (noise multiplier, sampling rate); an accountant keeps
their history and says what epsilon they have spent together at a delta. Examples are added or removed: two data sets
are neighbours if one has one example more.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from opacus.accountants import IAccountant, PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp as analysis

ACCOUNTANTS = ("prv", "rdp", "classic_rdp")
"""How spent privacy can be counted: from the tightest to the loosest."""

MAX_NOISE = 1e6
"""Noise multiplier above which a budget counts as one that nothing can keep."""
NEAR = 6
"""Orders of Rényi divergence on both sides of the last best one among which the next is looked for."""
MAX_STEPS = 10**7
"""Number of steps above which a budget counts as one that nothing uses up."""


@functools.lru_cache(maxsize=1024)
def _rdp_of_a_step(noise: float, rate: float, orders: tuple[float, ...]) -> Any:
    """Rényi divergence of one step at each order. It takes milliseconds, and is asked for again and again."""
    found = np.asarray(analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders))
    found.flags.writeable = False
    return found


def _rdp(history: Sequence[tuple[float, float, int]], orders: Sequence[float]) -> Any:
    """Rényi divergence of a history at each order."""
    return sum(steps * _rdp_of_a_step(noise, rate, tuple(orders)) for noise, rate, steps in history)


class CachedRDPAccountant(RDPAccountant):  # type: ignore[misc,unused-ignore]
    """Opacus' RDP accountant, which remembers what a step of each kind costs."""

    def get_privacy_spent(self, *, delta: float, alphas: list[float] | None = None) -> tuple[float, float]:
        if not self.history:
            return 0.0, 0.0
        orders = list(self.DEFAULT_ALPHAS if alphas is None else alphas)
        epsilon, best = analysis.get_privacy_spent(orders=orders, rdp=_rdp(self.history, orders), delta=delta)
        return float(epsilon), float(best)


class ClassicRDPAccountant(RDPAccountant):  # type: ignore[misc,unused-ignore]
    """RDP with the classic conversion ``epsilon = rdp - log(delta) / (order - 1)`` at integer orders up to 64.

    The conversion of Mironov (2017), and of code from before 2020: looser than that of ``rdp``, so the same budget
    takes more noise. For comparison with results that were reached with it.
    """

    DEFAULT_ALPHAS = list(range(2, 65))

    def get_privacy_spent(self, *, delta: float, alphas: list[float] | None = None) -> tuple[float, float]:
        if not self.history:
            return 0.0, 0.0
        orders = np.asarray(self.DEFAULT_ALPHAS if alphas is None else alphas, dtype=float)
        spent = _rdp(self.history, orders.tolist()) - math.log(delta) / (orders - 1)
        best = int(np.argmin(spent))
        return float(spent[best]), float(orders[best])

    @classmethod
    def mechanism(cls) -> str:
        return "classic_rdp"


_KINDS: dict[str, Callable[[], IAccountant]] = {
    "prv": PRVAccountant,
    "rdp": CachedRDPAccountant,
    "classic_rdp": ClassicRDPAccountant,
}


def make_accountant(kind: str = "prv") -> IAccountant:
    """A new accountant with an empty history.

    Args:
        kind: ``prv`` (numerical composition; tight), ``rdp`` (Rényi DP; quick) or ``classic_rdp`` (Rényi DP with the
            conversion of earlier years).

    Returns:
        An accountant of Opacus. Its ``get_epsilon`` may fail on an empty history: use :func:`epsilon_spent`.

    Raises:
        ValueError: If there is no such accountant.
    """
    if kind not in _KINDS:
        raise ValueError(f"accountant must be one of {', '.join(ACCOUNTANTS)}, got {kind!r}")
    return _KINDS[kind]()


def epsilon_spent(accountant: IAccountant, delta: float) -> float:
    """What an accountant's history has spent.

    Args:
        accountant: The accountant.
        delta: Probability with which the guarantee may fail, in (0, 1).

    Returns:
        Epsilon: 0 for an empty history, infinite if a step had no noise.

    Raises:
        ValueError: If delta is out of range, or the accountant cannot count so little noise.
    """
    check_delta(delta)
    if not accountant.history:
        return 0.0
    if any(noise == 0 for noise, _, _ in accountant.history):
        return math.inf
    try:
        with warnings.catch_warnings():
            # A bound from the last order is looser than it might be, and right.
            warnings.filterwarnings("ignore", message="Optimal order is the")
            return float(accountant.get_epsilon(delta))
    except (RuntimeError, ArithmeticError) as cause:  # the discretisation of prv fails where there is next to no noise
        raise ValueError(
            f"the accountant {accountant.mechanism()} cannot count {history_to_lists(accountant)}: {cause}; "
            "use accountant rdp, or more noise"
        ) from cause


def epsilons(accountant: IAccountant, deltas: Sequence[float]) -> list[float]:
    """What has been spent, at several deltas at once; for ``prv`` hardly more work than at one.

    Args:
        accountant: The accountant.
        deltas: Each in (0, 1).

    Returns:
        Epsilon for each.
    """
    simple = type(accountant) is not PRVAccountant or not accountant.history or not deltas
    if simple or any(noise == 0 for noise, _, _ in accountant.history):
        return [epsilon_spent(accountant, delta) for delta in deltas]
    error = min(deltas) / 1000
    distribution = accountant._get_dprv(eps_error=0.01, delta_error=error)
    return [float(distribution.compute_epsilon(delta, error, 0.01)[2]) for delta in deltas]


def epsilon_after(accountant: IAccountant, noise: float, rate: float, steps: int, delta: float) -> float:
    """What would be spent after more steps; the accountant is left as it is.

    Args:
        accountant: The accountant, with what has been spent.
        noise: Noise multiplier of the steps, at least 0.
        rate: Their sampling rate, in (0, 1].
        steps: Their number, at least 0.
        delta: In (0, 1).

    Returns:
        Epsilon of the history and the steps together.
    """
    return epsilon_spent(_extended(accountant, noise, rate, steps), delta)


def steps_within(
    accountant: IAccountant, noise: float, rate: float, epsilon: float, delta: float, most: int | None = None
) -> int:
    """How many more steps a budget allows.

    Args:
        accountant: The accountant, with what has been spent.
        noise: Noise multiplier of the steps.
        rate: Their sampling rate, in (0, 1].
        epsilon: The budget.
        delta: In (0, 1).
        most: More are not asked for, at least 0; None for all that the budget allows.

    Returns:
        The largest number in ``[0, most]`` after which at most ``epsilon`` has been spent.
    """

    def within(steps: int) -> bool:
        return epsilon_after(accountant, noise, rate, steps, delta) <= epsilon

    low, high = 0, 64 if most is None else most  # low steps are within the budget (none are taken), high may be
    if high <= 0 or not within(1):
        return 0
    while within(high):
        if most is not None or high > MAX_STEPS:
            return high
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if within(middle):
            low = middle
        else:
            high = middle
    return low


def noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "prv", tolerance: float = 1e-3
) -> float:
    """The least noise with which so many steps keep a budget.

    Args:
        epsilon: The budget, positive.
        delta: In (0, 1).
        sample_rate: Probability with which each example is in a batch, in (0, 1].
        steps: Number of steps, at least 1.
        accountant: One of :data:`ACCOUNTANTS`. ``prv`` takes seconds.
        tolerance: Relative precision of the noise multiplier, positive.

    Returns:
        A noise multiplier that spends at most ``epsilon``: at most ``tolerance`` (relative) more than the least one.

    Raises:
        ValueError: If an argument is out of range, or no noise keeps the budget.
    """
    check_budget(epsilon, delta)
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must be in (0, 1], got {sample_rate}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    spent = _spender(accountant, sample_rate, steps, delta)

    high = _gaussian_noise(epsilon, delta, sample_rate, steps)
    if accountant == "prv":  # is slow, and needs no more noise than the quick one, so it begins there
        with suppress(ValueError):  # of which the orders end at 63: the least budgets are out of its reach
            high = noise_multiplier(epsilon, delta, sample_rate, steps, "rdp", tolerance)
    low, at_low, factor = 0.0, math.inf, 1.2
    while (at_high := spent(high)) > epsilon:
        low, at_low = high, at_high
        high, factor = high * factor, factor * factor
        if high > MAX_NOISE:
            raise ValueError(
                f"no noise keeps epsilon={epsilon} at delta={delta} over {steps} steps with accountant {accountant}: "
                "allow a larger epsilon or delta" + ("" if accountant == "prv" else ", or use accountant prv")
            )
    while not low:
        if high < 1e-3:
            return high
        try:
            at_less = spent(high / factor)
        except ValueError:  # too little noise for this accountant to count: it spends more
            at_less = math.inf
        if at_less > epsilon:
            low, at_low = high / factor, at_less
        else:
            high, at_high, factor = high / factor, at_less, factor * factor
    # Epsilon is about a power of the noise: a few guesses by it, and each time a look whether a little less would do.
    while high > low * (1 + tolerance):
        share = math.log(at_low / epsilon) / math.log(at_low / at_high) if math.isfinite(at_low) else 0.5
        guess = low * (high / low) ** min(max(share, 0.02), 0.98) * (1 + tolerance / 4)
        for middle in (guess, None):
            middle = high / (1 + tolerance) if middle is None else middle
            if not low < middle < high:
                continue
            at_middle = spent(middle)
            if at_middle > epsilon:
                low, at_low = middle, at_middle
            else:
                high, at_high = middle, at_middle
    return high


def _gaussian_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """About the noise that keeps a budget: that of one Gaussian mechanism to which so many steps come close.

    Its signal-to-noise ratio is ``mu = rate sqrt(steps (exp(1 / z^2) - 1))`` (Dong, Roth, Su, 2019, corollary 5.4), and
    it spends about ``mu^2 / 2 + mu sqrt(2 log(1 / delta))``.
    """
    tail = math.sqrt(2 * math.log(1 / delta))
    mu = 2 * epsilon / (math.hypot(tail, math.sqrt(2 * epsilon)) + tail)
    ratio = min(mu / (rate * math.sqrt(steps)), 1e50)
    return max(1 / math.sqrt(math.log1p(max(ratio, 1e-5) ** 2)), 0.01)


def _spender(kind: str, rate: float, steps: int, delta: float) -> Callable[[float], float]:
    """What so many steps spend, by their noise multiplier.

    Rényi accountants spend nearly all their time on orders that are not the best one. Epsilon falls towards that from
    both sides, so it is looked for from where it was in the call before. Fewer orders give a bound in any case.
    """
    empty = make_accountant(kind)
    if not isinstance(empty, RDPAccountant):
        return lambda noise: epsilon_after(empty, noise, rate, steps, delta)
    orders = list(type(empty).DEFAULT_ALPHAS)
    place = len(orders) // 2

    def spent(noise: float) -> float:
        nonlocal place
        accountant = _extended(empty, noise, rate, steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is the")
            while True:
                near = range(max(place - NEAR, 0), min(place + NEAR + 1, len(orders)))
                epsilon, best = accountant.get_privacy_spent(delta=delta, alphas=[orders[k] for k in near])
                before, place = place, orders.index(best)
                if place == before or place not in (near[0], near[-1]) or place in (0, len(orders) - 1):
                    return float(epsilon)

    return spent


def history_to_lists(accountant: IAccountant) -> dict[str, Any]:
    """The history in plain types, for a checkpoint or a client's state.

    Args:
        accountant: The accountant.

    Returns:
        ``mechanism`` (str) and three lists of equal length: ``noise`` (float), ``rate`` (float), ``steps`` (int).
    """
    history = [(float(noise), float(rate), int(steps)) for noise, rate, steps in accountant.history]
    return {
        "mechanism": accountant.mechanism(),
        "noise": [noise for noise, _, _ in history],
        "rate": [rate for _, rate, _ in history],
        "steps": [steps for _, _, steps in history],
    }


def load_history(accountant: IAccountant, lists: Mapping[str, Any]) -> IAccountant:
    """Give an accountant a history that :func:`history_to_lists` has written; it replaces what was there.

    Args:
        accountant: The accountant.
        lists: As written.

    Returns:
        The accountant.

    Raises:
        ValueError: If another mechanism has written it, or the lists do not fit together.
    """
    if lists["mechanism"] != accountant.mechanism():
        raise ValueError(
            f"accountant {accountant.mechanism()} cannot go on from a history of accountant {lists['mechanism']}: "
            f"set accountant to {lists['mechanism']}"
        )
    noise, rate, steps = ([float(z) for z in lists["noise"]], [float(q) for q in lists["rate"]], list(lists["steps"]))
    if not len(noise) == len(rate) == len(steps):
        raise ValueError(f"a history has as many noise, rate and steps, got {len(noise)}, {len(rate)}, {len(steps)}")
    accountant.history = [(z, q, int(k)) for z, q, k in zip(noise, rate, steps)]
    return accountant


def steps_taken(accountant: IAccountant) -> int:
    """Number of steps in an accountant's history; its ``len`` counts runs of equal steps."""
    return sum(int(steps) for _, _, steps in accountant.history)


def check_budget(epsilon: float, delta: float) -> None:
    """Refuse a budget that is none.

    Raises:
        ValueError: If epsilon is not a positive number, or delta not in (0, 1).
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be a positive number, got {epsilon}")
    check_delta(delta)


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1).

    Raises:
        ValueError: If it is.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")


def _extended(accountant: IAccountant, noise: float, rate: float, steps: int) -> IAccountant:
    """A copy with more steps, of which equal neighbours are one entry as an accountant's own."""
    longer = type(accountant)()
    history = list(accountant.history)
    if steps > 0:
        if history and history[-1][:2] == (noise, rate):
            steps += history.pop()[2]
        history.append((noise, rate, steps))
    longer.history = history
    return longer
