"""``python -m framework.rl.preferences pairs.csv components.csv``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from framework.rl.preferences.model import Fit, fit
from framework.rl.preferences.tables import read_components, read_preferences


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the weights that explain preferences.

    Args:
        arguments: Command line; ``None`` for the process's own.

    Returns:
        0; 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        "python -m framework.rl.preferences", description="Reward weights from preferences."
    )
    parser.add_argument("pairs", help="table with columns better, worse[, tie][, group], or trajectory, rank[, group]")
    parser.add_argument("components", help="table with a column trajectory and the sum of each reward component")
    parser.add_argument("--l2", type=float, default=0.0, metavar="X", help="penalty on scaled weights (default 0)")
    parser.add_argument("--nonnegative", action="store_true", help="hold weights at 0 that would be negative")
    parser.add_argument("--ties", choices=["half", "drop"], default="half", help="what a tie counts (default half)")
    parser.add_argument("--relative-to", metavar="NAME", help="divide by the weight of this component")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of the intervals (default 0.95)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        sums, names = read_components(given.components)
        found = fit(
            sums,
            read_preferences(given.pairs),
            names,
            l2=given.l2,
            nonnegative=given.nonnegative,
            ties=given.ties,
            confidence=given.confidence,
        )
        found = found if given.relative_to is None else found.relative_to(given.relative_to)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.stderr.write(f"preferences: error: {error}\n")
        return 2
    sys.stdout.write(json.dumps(found.report(), indent=1) + "\n" if given.json else _text(found))
    return 0


def _text(found: Fit) -> str:
    width = max(len("component"), *map(len, found.names))
    heading = f"{100 * found.confidence:g} % interval"
    lines = [f"{'component':<{width}}  {'weight':>10}  {'error':>9}  {heading}"]
    for name, weight, error, (low, high) in zip(found.names, found.weights, found.errors, found.intervals):
        lines.append(f"{name:<{width}}  {weight:>10.4g}  {error:>9.3g}  {low:.4g} to {high:.4g}")
    lines.append(
        f"{found.pairs} pairs, {found.ties} of them ties; {100 * found.agreement:.1f} % of the others in the right "
        f"order; log-likelihood {found.log_likelihood:.2f}"
    )
    return "\n".join([*lines, *found.notes]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
