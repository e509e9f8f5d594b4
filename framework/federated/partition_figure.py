"""How much the clients of a federation differ: their class counts, one number for all of them, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_COLOURS = 20
"""With more classes than this, colours cannot be told apart, and the picture is a map of clients by classes."""


def class_counts(parts: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
    """How many items of each class each client has.

    Args:
        parts: Indices by client.
        labels: Class of every item of the data set, shape ``(items,)``; -1 (no label) is not counted.
        classes: Number of classes, at least 1.

    Returns:
        int64 counts, shape ``(clients, classes)``.

    Raises:
        ValueError: If a label is not in ``[-1, classes)``.
    """
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
    if not parts:
        return torch.zeros(0, classes, dtype=torch.int64)
    found = labels[torch.cat(list(parts))].to(torch.int64)
    if len(found) and not -1 <= int(found.min()) <= int(found.max()) < classes:
        wrong = int(found.min()) if found.min() < -1 else int(found.max())
        raise ValueError(f"labels must be in [0, {classes}), or -1 for none, got {wrong}")
    clients = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    known = found >= 0
    cells = clients[known] * classes + found[known]
    return cells.bincount(minlength=len(parts) * classes).reshape(len(parts), classes)


def heterogeneity(counts: Tensor) -> float:
    """Mean total-variation distance of the clients' label distributions to that of all clients together.

    It is half the "earth mover's distance" of Zhao et al. 2018 (arXiv 1806.00582), the sum of the absolute differences
    of class shares. Every client counts the same, whatever its size; those without a labelled item do not count.

    Args:
        counts: Items by client and class, shape ``(clients, classes)``, not negative.

    Returns:
        A number in [0, 1]: 0 where all clients have the same shares of classes; with one class of its own for each of
        ``n`` clients of equal size it is ``1 - 1 / n``. 0 where nothing is labelled.
    """
    table = counts.double()
    table = table[table.sum(1) > 0]
    if not len(table):
        return 0.0
    laws, whole = table / table.sum(1, keepdim=True), table.sum(0) / table.sum()
    return float((laws - whole).abs().sum(1).mean() / 2)


def partition_figure(counts: Tensor, names: Sequence[str] | None = None) -> Figure:
    """Draw who has what: a bar per client, in a colour per class.

    Args:
        counts: Items by client and class, shape ``(clients, classes)``, see :func:`class_counts`; or, without labels,
            the clients' sizes, shape ``(clients,)``.
        names: Names of the classes; numbers if None.

    Returns:
        A figure of its own, not registered with pyplot.

    Raises:
        ValueError: If ``counts`` is empty or of another shape, or ``names`` are not one per class.
    """
    if counts.ndim not in (1, 2) or not counts.numel():
        raise ValueError(f"counts must have the shape (clients, classes) or (clients,), got {tuple(counts.shape)}")
    classes = counts.shape[1] if counts.ndim == 2 else 0
    if names is not None and len(names) != classes:
        raise ValueError(f"names must be one per class: {len(names)} names for {classes} classes")

    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels = [str(k) for k in range(classes)] if names is None else [str(name) for name in names]
    figure = Figure(figsize=(min(max(6.0, 0.25 * len(counts) + 2), 20.0), 4), layout="constrained")
    axes = figure.add_subplot()
    if classes > MAX_COLOURS:
        _draw_map(figure, axes, counts)
    elif classes:
        _draw_bars(figure, axes, counts, labels)
    else:
        axes.bar(range(len(counts)), counts.tolist(), width=0.85)
        axes.set(ylabel="items")
    axes.set(xlabel="client")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if classes:
        axes.set_title(f"mean total-variation distance to the whole: {heterogeneity(counts):.2f}", fontsize="medium")
    return figure


def _draw_bars(figure: Figure, axes: Axes, counts: Tensor, labels: Sequence[str]) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(labels) <= 10 else "tab20"]
    ends = counts.cumsum(1)
    for k, label in enumerate(labels):
        heights = counts[:, k].tolist()
        bottoms = (ends[:, k] - counts[:, k]).tolist()
        axes.bar(range(len(counts)), heights, width=0.85, bottom=bottoms, color=colours(k), label=label)
    axes.set(ylabel="items")
    handles, texts = axes.get_legend_handles_labels()  # the topmost class first, as in the bars
    figure.legend(handles[::-1], texts[::-1], loc="outside right upper", title="class", frameon=False, fontsize="small")


def _draw_map(figure: Figure, axes: Axes, counts: Tensor) -> None:
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(counts.T.numpy(), aspect="auto", origin="lower", cmap="Blues", interpolation="nearest", vmin=0)
    axes.set(ylabel="class")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=axes, label="items")
