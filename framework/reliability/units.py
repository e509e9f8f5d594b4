"""Times with a unit, as people write and read them."""

from __future__ import annotations

import math
import re

UNITS = {"ms": 1 / 60_000, "s": 1 / 60, "min": 1.0, "h": 60.0, "d": 1440.0}
"""Minutes per unit."""


def minutes(text: str) -> float:
    """Minutes of a time such as ``90s``, ``5 min``, ``1.5h`` or ``30d``; a bare ``0`` needs no unit.

    Args:
        text: What was written.

    Raises:
        ValueError: If it is no such time, or negative.
    """
    match = re.fullmatch(r"\s*([^\sa-z]+(?:[eE][-+]?\d+)?)\s*([a-z]*)\s*", text)
    number = math.nan
    if match:
        try:
            number = float(match[1])
        except ValueError:
            number = math.nan
    zero = number == 0 and not (match and match[2])
    if not (match and math.isfinite(number) and number >= 0 and (zero or match[2] in UNITS)):
        raise ValueError(f"{text!r} is no time: a number of zero or more and one of {', '.join(UNITS)}, such as 60min")
    return number * UNITS.get(match[2], 1.0)


def readable(time: float) -> str:
    """Minutes in the unit that suits them, such as ``7.9 h``.

    Args:
        time: Minutes; may be infinite.
    """
    if math.isinf(time):
        return "no limit"
    if time == 0:
        return "0"
    unit = next((unit for unit, least in _LEAST.items() if time >= least), "ms")
    return f"{time / UNITS[unit]:.4g} {unit}"


_LEAST = {"d": 2880.0, "h": 100.0, "min": 1.0, "s": 1 / 60}  # 60 min and 36 h are what people say
