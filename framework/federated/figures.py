"""Pictures of federations, from the records of rounds: which layers were trained, and what was reached at what cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from framework.errors import near
from framework.evaluation.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
"""Lines of a ``rounds.jsonl``: ``RoundReport.record()`` of each round."""

COSTS = {
    "up": ("sent by clients", "B"), "flops": ("backward passes of clients", "FLOP"), "seconds": ("simulated time", "s"),
}  # fmt: skip
"""Label and unit of what a federation spends."""

MAX_NAMES = 48
"""With more layers than this their names would overlap, and they are numbered instead."""


class LayerShares(NamedTuple):
    """How often layers were trained; NaN where nobody had a choice of layers.

    Attributes:
        layers: Names, from input to output.
        rounds: Numbers of consecutive rounds.
        clients: Numbers of consecutive clients.
        by_round: Of the clients of a round, the share that trained a layer, shape ``(layers, rounds)``.
        by_client: Of the rounds of a client, the share in which it trained a layer, shape ``(layers, clients)``.
    """

    layers: tuple[str, ...]
    rounds: np.ndarray
    clients: np.ndarray
    by_round: np.ndarray
    by_client: np.ndarray


def layer_shares(records: Records, layers: Sequence[str] | None = None) -> LayerShares:
    """Count which layers were trained, in updates that were used.

    Args:
        records: Of the rounds of one federation.
        layers: Names of all layers, from input to output; ``None`` takes those that somebody trained, in the order of
            their names, numbers by their value.

    Raises:
        ValueError: If in no round layers were chosen, a layer was trained that ``layers`` lacks, or there is none.
    """
    used = [
        (int(record["round"]), int(client["client"]), client["layers"])
        for record in records
        for client in record["clients"]
        if client["outcome"] == "used" and client.get("layers") is not None
    ]
    if not used:
        raise ValueError("records must hold layers that were chosen for clients, but no client of any round has any")
    trained = {layer for _, _, chosen in used for layer in chosen}
    names = tuple(sorted(trained, key=_by_number) if layers is None else layers)
    unknown = sorted(trained - set(names))
    if unknown:
        raise ValueError(f"layers must name every layer that was trained, but {unknown[0]!r} is not among them")
    if not names:
        raise ValueError("layers must name the layers where no client trained any, got none")
    everyone = [int(client["client"]) for record in records for client in record["clients"]]
    held = [int(record["round"]) for record in records if record["clients"]]
    rounds, clients = np.arange(min(held), max(held) + 1), np.arange(max(everyone) + 1)
    place = {name: position for position, name in enumerate(names)}
    by_round, of_round = np.zeros((len(names), len(rounds))), np.zeros(len(rounds))
    by_client, of_client = np.zeros((len(names), len(clients))), np.zeros(len(clients))
    for number, client, chosen in used:
        of_round[number - rounds[0]] += 1
        of_client[client] += 1
        for layer in chosen:
            by_round[place[layer], number - rounds[0]] += 1
            by_client[place[layer], client] += 1
    return LayerShares(names, rounds, clients, _divided(by_round, of_round), _divided(by_client, of_client))


def selection_heatmap(records: Records, layers: Sequence[str] | None = None) -> Figure:
    """Draw which layers were trained: beside one another over the rounds, and by each client.

    Cells are grey where there was no choice: in rounds that trained everything, and for clients that never took part.

    Args:
        records: Of the rounds of one federation.
        layers: Names of all layers, from input to output, as ``LayerGroups.names``; see ``layer_shares``.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        ValueError: If in no round layers were chosen, or a layer was trained that ``layers`` lacks.
    """
    shares = layer_shares(records, layers)

    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    widths = [min(max(2.5, 0.16 * len(each)), 8.0) for each in (shares.rounds, shares.clients)]
    height = min(max(2.6, 0.24 * len(shares.layers) + 1.2), 12.0)
    figure = Figure(figsize=(sum(widths) + 3, height), layout="constrained")
    over_rounds, over_clients = figure.subplots(1, 2, sharey=True, width_ratios=widths)
    _map(over_rounds, shares.by_round, shares.rounds)
    over_rounds.set(xlabel="round", title="share of clients", ylabel="layer, input at the bottom")
    image = _map(over_clients, shares.by_client, shares.clients)
    over_clients.set(xlabel="client", title="share of its rounds")
    for axes in (over_rounds, over_clients):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(shares.layers) <= MAX_NAMES:
        over_rounds.set_yticks(range(len(shares.layers)), shares.layers, fontsize="small")
    else:
        over_rounds.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=[over_rounds, over_clients], label="trained")
    return figure


def curves(records: Records, metric: str) -> dict[str, np.ndarray]:
    """What a federation had spent when it was evaluated, and what the evaluation gave.

    Args:
        records: Of the rounds of one federation, in their order from the first.
        metric: A name in the rounds' metrics, such as ``val/accuracy``.

    Returns:
        ``round``, ``value`` of the metric, and, summed over the rounds so far, ``up`` (bytes from clients), ``flops``
        (operations of their backward passes) and ``seconds`` (of the simulated clock). All have one entry for each
        round in which the metric was logged and finite; costs that no round recorded are left out.
    """
    spent = {
        "up": np.cumsum([sum(client["up"] for client in record["clients"]) for record in records]),
        "flops": np.cumsum([sum(client.get("flops", 0.0) for client in record["clients"]) for record in records]),
        "seconds": np.array([record.get("clock", 0.0) for record in records]),  # a sum already
    }
    values = np.array([record["metrics"].get(metric, math.nan) for record in records], dtype=np.float64)
    there = np.flatnonzero(np.isfinite(values))
    found = {"round": np.array([record["round"] for record in records], dtype=np.int64)[there], "value": values[there]}
    return found | {
        name: total.astype(np.float64)[there] for name, total in spent.items() if len(total) and total[-1] > 0
    }


def progress_figure(runs: Mapping[str, Sequence[Records]], metric: str, percent: bool = False) -> Figure:
    """Draw a metric against what was spent for it: bytes sent by clients, backward operations, simulated seconds.

    There is a panel for each cost that some run recorded. An arm of several runs (seeds) is drawn as their mean, with
    the 95 % t-interval as a band, over the costs that all of them have reached.

    Args:
        runs: Records of the runs of each arm, by the arm's name in the legend.
        metric: A name in the rounds' metrics, such as ``val/accuracy``.
        percent: Whether the metric is a share, to be shown in percent.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        ValueError: If a run has not logged the metric, or no run recorded a cost.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for arm, made in runs.items():
        found[arm] = [curves(records, metric) for records in made]
        for records, curve in zip(made, found[arm], strict=True):
            if not len(curve["value"]):
                logged = {name for record in records for name in record["metrics"]}
                raise ValueError(f"a run of {arm} has no metric {metric!r}{near(metric, logged)}")
    costs = [name for name in COSTS if any(name in each for several in found.values() for each in several)]
    if not costs:
        raise ValueError(f"runs must have recorded a cost, {', '.join(COSTS)}, but none has")

    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(4.2 * len(costs) + 1.5, 3.8), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    scale = 100 if percent else 1
    for axes, cost in zip(panels, costs, strict=True):
        label, unit = COSTS[cost]
        for number, (arm, several) in enumerate(found.items()):
            known = [(curve[cost], scale * curve["value"]) for curve in several if cost in curve]
            if known:
                _draw_mean(axes, known, f"C{number}", arm)
        axes.set(xlabel=f"{label} ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=f"{metric} (%)" if percent else metric)
    lines = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", frameon=False)
    return figure


def _draw_mean(axes: Axes, known: Sequence[tuple[np.ndarray, np.ndarray]], colour: str, label: str) -> None:
    start, end = max(x[0] for x, _ in known), min(x[-1] for x, _ in known)
    grid = np.unique(np.concatenate([x for x, _ in known]))
    grid = grid[(start <= grid) & (grid <= end)]
    heights = np.array([np.interp(grid, x, y) for x, y in known])
    axes.plot(grid, heights.mean(0), color=colour, label=label, marker="o" if len(grid) < 2 else None)
    if len(known) > 1:
        intervals = [mean_interval(column) for column in heights.T]
        lows, highs = [each.low for each in intervals], [each.high for each in intervals]
        axes.fill_between(grid, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _map(axes: Axes, values: np.ndarray, columns: np.ndarray) -> Any:
    from matplotlib import colormaps

    return axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", origin="lower", interpolation="nearest", vmin=0, vmax=1,
        cmap=colormaps["Blues"].with_extremes(bad="0.85"),
        extent=(columns[0] - 0.5, columns[-1] + 0.5, -0.5, len(values) - 0.5),
    )  # fmt: skip


def _divided(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(counts, total, out=np.full_like(counts, math.nan), where=total > 0)


def _by_number(name: str) -> list[tuple[bool, int, str]]:
    """Orders ``blocks.2`` before ``blocks.10``."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
