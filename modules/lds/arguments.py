"""Ranges of the arguments of LDS."""

from __future__ import annotations

from typing import Any


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise for the first argument outside its range.

    Args:
        arguments: Arguments of ``LDS`` by name.

    Raises:
        ValueError: Naming the argument, its value and what is allowed.
    """
    low, high = arguments["inner_lr_range"]
    ranges: dict[str, tuple[bool, str]] = {
        "inputs": (arguments["inputs"] >= 1, "at least 1"),
        "classes": (arguments["classes"] >= 2, "at least 2"),
        "nodes": (arguments["nodes"] >= 2, "at least 2"),
        "hidden": (arguments["hidden"] >= 1, "at least 1"),
        "dropout": (0 <= arguments["dropout"] < 1, "in [0, 1)"),
        "weight_decay": (arguments["weight_decay"] >= 0, "at least 0"),
        "tau": (arguments["tau"] >= 1, "at least 1"),
        "inner_lr_range": (0 < low < high, "two positive rates, the lower first"),
        "inner_lr": (arguments["inner_lr"] > 0, "positive"),
        "outer_lr": (arguments["outer_lr"] >= 0, "at least 0"),
        "outer_lr_decay": (arguments["outer_lr_decay"] >= 0, "at least 0"),
        "inner_steps": (arguments["inner_steps"] >= 1, "at least 1"),
        "rounds_per_step": (arguments["rounds_per_step"] >= 1, "at least 1"),
        "patience": (arguments["patience"] >= 1, "at least 1"),
        "tolerance": (0 <= arguments["tolerance"] < 1, "in [0, 1)"),
        "samples": (arguments["samples"] >= 1, "at least 1"),
        "random_edges": (arguments["random_edges"] >= 0, "at least 0"),
    }
    for name, (holds, allowed) in ranges.items():
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {arguments[name]}")
    if arguments["learn_inner_lr"] and arguments["learn_graph"] and not low < arguments["inner_lr"] < high:
        raise ValueError(
            f"inner_lr must lie inside inner_lr_range {low, high} to be learned, got {arguments['inner_lr']}"
        )
    if arguments["learn_graph"] and arguments["random_edges"]:
        raise ValueError("random_edges is the GCN-RND baseline: it needs learn_graph: false")
