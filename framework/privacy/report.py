"""What was guaranteed, in words, numbers and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opacus.accountants import IAccountant

from framework.privacy.accounting import epsilon_spent, epsilons, history_to_lists, steps_taken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COVERS = [
    "one example of the train data, added or removed: whoever sees the weights after any number of steps can tell "
    "hardly better than by epsilon and delta whether it was there"
]
"""What the guarantee is about."""
DOES_NOT_COVER = [
    "train metrics and losses, which are logged without noise, and what is chosen by them",
    "validation and test data, their metrics, and what is chosen by them: the best checkpoint, early stopping",
    "hyper-parameters that were chosen by other runs on the same data: each run spends privacy of its own",
    "what a data module takes from the train data before training, such as a vocabulary, a normalisation or classes",
    "several examples of one person, who is protected less the more there are",
    "the file with the checkpoint, which holds the state that noise and batches are drawn from: publish weights alone",
    "attacks on the floating-point numbers of the noise, or on its generator, which is no cryptographic one",
]
"""What it is often mistaken to be about."""


def privacy_report(
    accountant: IAccountant,
    delta: float,
    *,
    epsilon: float | None,
    max_grad_norm: float | Sequence[float],
    clipping: str,
    grad_sample_mode: str,
    items: int,
    batch_size: int,
    seeded: bool,
    curve: Sequence[tuple[float, float]],
    unchecked: str = "",
) -> dict[str, Any]:
    """What a run has guaranteed.

    Args:
        accountant: What has been spent.
        delta: Probability with which the guarantee may fail.
        epsilon: The budget; None if there was none.
        max_grad_norm: Norm, or norms, to which gradients of examples were clipped.
        clipping: How.
        grad_sample_mode: How they were taken.
        items: Number of train examples.
        batch_size: Expected size of a batch.
        seeded: Whether batches and noise came from a seed that was given.
        curve: Points ``(delta, epsilon)``.
        unchecked: Why it was not tried that the loss treats examples apart; empty if it was.

    Returns:
        Plain JSON values.
    """
    history = history_to_lists(accountant)
    mechanism = history.pop("mechanism")
    warnings = []
    if unchecked:
        warnings.append(f"that the loss treats examples apart was not checked: {unchecked}")
    if seeded:
        warnings.append("batches and noise came from a seed that was given: nothing is guaranteed against who knows it")
    if delta >= 1 / items:
        warnings.append(f"delta is not below 1 / {items}, one over the number of train examples")
    if 0 in history["noise"]:
        warnings.append("there were steps without noise, which guarantee nothing")
    return {
        "epsilon": _finite(epsilon_spent(accountant, delta)),
        "delta": delta,
        "budget": epsilon,
        "neighbours": "data sets that differ by one example, added or removed",
        "mechanism": "DP-SGD: Gaussian noise on the sum of clipped gradients of a Poisson sample",
        "accountant": mechanism,
        "steps": steps_taken(accountant),
        "sampling": {
            "scheme": "Poisson: each example is in each batch with the same probability, independently",
            "examples": items,
            "expected_batch_size": batch_size,
            "rate": batch_size / items,
        },
        "history": history,
        "clipping": clipping,
        "max_grad_norm": max_grad_norm if isinstance(max_grad_norm, (int, float)) else list(max_grad_norm),
        "grad_sample_mode": grad_sample_mode,
        "covers": COVERS,
        "does_not_cover": DOES_NOT_COVER,
        "warnings": warnings,
        "curve": {"delta": [d for d, _ in curve], "epsilon": [_finite(e) for _, e in curve]},
    }


def epsilon_curve(accountant: IAccountant, delta: float) -> list[tuple[float, float]]:
    """What has been spent at other deltas.

    Args:
        accountant: What has been spent.
        delta: The delta of the guarantee, which is among them.

    Returns:
        Points ``(delta, epsilon)``, by rising delta; none where nothing was spent or a step had no noise.
    """
    if not accountant.history or not math.isfinite(epsilon_spent(accountant, delta)):
        return []
    deltas = sorted({delta, *(10.0**-k for k in range(3, 9))})
    return list(zip(deltas, epsilons(accountant, deltas)))


def epsilon_figure(curve: Sequence[tuple[float, float]], delta: float, label: str = "") -> Figure | None:
    """The curve of epsilon over delta, with the point of the guarantee.

    Args:
        curve: Points ``(delta, epsilon)``.
        delta: The delta of the guarantee.
        label: Title.

    Returns:
        The figure, not registered with pyplot; None without points.
    """
    if not curve:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([d for d, _ in curve], [e for _, e in curve])
    at = dict(curve).get(delta)
    if at is not None:
        axes.plot([delta], [at], "o", color="C3")
        axes.annotate(f"({at:.3g}, {delta:.1g})", (delta, at), xytext=(6, 6), textcoords="offset points")
    axes.set(xscale="log", xlabel="delta", ylabel="epsilon", title=label, ylim=(0, None))
    axes.grid(alpha=0.3)
    return figure


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
