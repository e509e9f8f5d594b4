"""What a simulation knows of its clients' privacy and no server would: true noise, weights, epsilon spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flwr.app import ConfigRecord

from framework.federated.privacy_ledger import spent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float | int | None]


def clients_privacy(states: Mapping[int, ConfigRecord], records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each client that has trained.

    Args:
        states: What ``Ledger.close`` left with each client.
        records: Lines of ``rounds.jsonl``.

    Returns:
        ``client``, its budget ``epsilon`` and ``delta``, the epsilon ``spent``, ``noise_multiplier``, ``rate``,
        ``steps`` so far, ``energy`` (true, of a round), and as last seen: ``estimated`` energy and ``weight`` (``None``
        where the strategy has none).
    """
    last: dict[int, Mapping[str, Any]] = {}
    for record in records:
        last |= {client["client"]: client for client in record["clients"] if client["outcome"] == "used"}
    rows: list[Row] = []
    for number, state in sorted(states.items()):
        seen = last.get(number, {})
        rows.append({
            "client": number,
            **{key: float(cast(float, state[key])) for key in ("epsilon", "delta", "noise_multiplier", "energy")},
            "rate": cast(list[float], state["rate"])[-1], "steps": sum(cast(list[int], state["steps"])),
            "spent": spent(state), "estimated": seen.get("noise"), "weight": seen.get("weight"),
        })  # fmt: skip
    return rows


def privacy_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw estimated against true noise energy, weights beside the ideal ones, and epsilon spent of each budget.

    Args:
        rows: From ``clients_privacy``.

    Returns:
        A figure of its own, not registered with pyplot.
    """
    from matplotlib.figure import Figure

    numbers = [row["client"] for row in rows]
    true = np.array([row["energy"] for row in rows], dtype=np.float64)
    least = np.maximum(true, np.finfo(np.float64).tiny)  # a rate of 0 makes no noise
    ideal = (least.min() / least) / (least.min() / least).sum()
    guesses = [(row["energy"], row["estimated"]) for row in rows if row["estimated"] is not None]
    weighed = [(row["client"], row["weight"]) for row in rows if row["weight"] is not None]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    energy, weights, budget = figure.subplots(1, 3)
    if guesses:
        both = np.array(guesses)
        energy.plot(both[:, 0], both[:, 1], "o", color="C0")
        ends = [both.min(), both.max()]
        energy.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
        energy.set(xscale="log", yscale="log", ylabel="estimated noise energy", xlabel="true noise energy")
    else:
        energy.bar(numbers, true, color="C0")
        energy.set(yscale="log", xlabel="client", ylabel="true noise energy")
    if weighed:
        weights.bar([each[0] for each in weighed], [each[1] for each in weighed], color="C0", label="last weight")
    weights.plot(numbers, ideal, "_", color="C3", markersize=10, label="1 / true noise energy")
    weights.set(xlabel="client", ylabel="weight")
    weights.legend(frameon=False, fontsize="small")
    budget.bar(numbers, [row["epsilon"] for row in rows], color="0.85", label="budget")
    budget.bar(numbers, [row["spent"] for row in rows], color="C0", width=0.5, label="spent")
    budget.set(xlabel="client", ylabel="epsilon")
    budget.legend(frameon=False, fontsize="small")
    for axes in (weights, budget):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
