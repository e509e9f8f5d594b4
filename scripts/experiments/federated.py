"""What the evidence of federated training needs besides runs of the command line: what rounds logged, and pictures.

.venv/bin/python -m scripts.experiments.federated  draws docs/images/selective-layers-*.png from docs/results
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from framework.evaluation.records import Record, read_records
from framework.federated.figures import curves, progress_figure

DOCS = Path(__file__).resolve().parents[2] / "docs"
ACCURACY = "accuracy on held-out items"
ARMS = ["Full", "P1, λ = 0.01", "Own top by norm", "RGN", "SNR", "Bottom", "Both", "Top", "Head only"]
CHOOSING = ["Own top by norm", "P1, λ = 0.01", "P1", "P1, λ = 1", "RGN", "SNR"]
LAST = 3
"""Evaluations at the end whose mean is reported: a single round of clients that differ is noise."""


def rounds(directory: Path, metric: str) -> dict[str, Any]:
    """The curve of a metric, its mean over the last evaluations, and what the federation cost.

    Args:
        directory: Directory of the run.
        metric: A logged metric.
    """
    with (directory / "rounds.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    found = curves(records, metric)
    name = metric.rpartition("/")[2]
    metrics = {
        f"last/{name}": float(np.mean(found["value"][-LAST:])),
        "up/megabytes": sum(client["up"] for record in records for client in record["clients"]) / 1e6,
    }
    flops = sum(client.get("flops", 0.0) for record in records for client in record["clients"])
    if flops:
        metrics["backward/gigaflops"] = flops / 1e9
    columns = {key: [round(float(value), 6) for value in column] for key, column in found.items()}
    return {"metrics": metrics, "curves": columns}


def clients(directory: Path) -> dict[str, Any]:
    """Of accuracy on what the clients held out."""
    return rounds(directory, "clients/val/accuracy")


def server(directory: Path) -> dict[str, Any]:
    """Of accuracy on the server's validation images."""
    return rounds(directory, "val/accuracy")


def selections(directory: Path) -> dict[str, Any]:
    """As ``clients``, and which share of the clients trained each layer, from one evaluation to the next.

    Args:
        directory: Directory of the run.
    """
    found = clients(directory)
    with (directory / "rounds.jsonl").open(encoding="utf-8") as file:
        chosen = {
            r["round"]: [each["layers"] or [] for each in r["clients"] if each["outcome"] == "used"]
            for r in map(json.loads, file)
        }
    names = sorted({name for each in chosen.values() for layers in each for name in layers}, key=_number)
    before = 0
    columns: dict[str, list[float]] = {f"layer/{_number(name)}": [] for name in names}
    for now in found["curves"]["round"]:
        taken = [layers for number in range(before + 1, int(now) + 1) for layers in chosen[number]]
        for name in names:
            columns[f"layer/{_number(name)}"].append(round(sum(name in each for each in taken) / len(taken), 6))
        before = int(now)
    found["curves"] |= columns
    return found


def records_of(record: Record, metric: str) -> list[dict[str, Any]]:
    """The curve of a record as rounds with one client, as ``progress_figure`` takes them.

    Args:
        record: Of a run that ``rounds`` collected from.
        metric: What to call its values.
    """
    columns = record.curves
    clock = columns.get("seconds", [0.0] * len(columns["round"]))
    made, before = [], {"up": 0.0, "flops": 0.0}
    for i, number in enumerate(columns["round"]):
        client = {name: columns[name][i] - before[name] for name in before if name in columns}
        before |= {name: columns[name][i] for name in before if name in columns}
        metrics, sent = {metric: columns["value"][i]}, [{"up": 0.0, **client}]
        made.append({"round": number, "metrics": metrics, "clients": sent, "clock": clock[i]})
    return made


def layers_figure(records: list[Record], rows: list[str]) -> Any:
    """Which share of the clients trained each layer as training went on, mean over seeds; a panel for each row.

    Args:
        records: Of one data set.
        rows: Rows, in the order of the panels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(rows) + 1.2, 3.0), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, rows, strict=True):
        several = [record.curves for record in records if record.row == row]
        layers = max(int(name.rpartition("/")[2]) for each in several for name in each if "/" in name) + 1
        ends = several[0]["round"]
        shares = np.zeros((len(several), layers, len(ends)))
        for seed, each in enumerate(several):
            for layer in range(layers):
                shares[seed, layer] = each.get(f"layer/{layer}", np.zeros(len(ends)))
        image = axes.imshow(shares.mean(0), aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1)
        axes.set(title=row, xlabel="round", yticks=range(layers))
        axes.set_xticks(range(len(ends)), [f"{end:g}" for end in ends], fontsize="small")
    panels[0].set(ylabel="block, input at the bottom")
    figure.colorbar(image, ax=list(panels), label="share of clients")
    return figure


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def draw(results: Path) -> None:
    """The pictures of selective layers.

    Args:
        results: The file of records.
    """
    everything = read_records(results)
    for data in sorted({record.data for record in everything}):
        records = [record for record in everything if record.data == data]
        arms = [row for row in ARMS if any(record.row == row for record in records)]
        if not arms:
            continue  # MiniLM's arms are in a table alone
        runs = {row: [records_of(each, ACCURACY) for each in records if each.row == row] for row in arms}
        name = f"selective-layers-{data}"
        progress_figure(runs, ACCURACY, percent=True).savefig(DOCS / "images" / f"{name}.png", dpi=100)
        shown = [row for row in CHOOSING if any(record.row == row for record in records)]
        layers_figure(records, shown).savefig(DOCS / "images" / f"{name}-blocks.png", dpi=110)


if __name__ == "__main__":
    draw(DOCS / "results" / "selective_layers.json")
