"""The ``about`` section of a configuration: which method, which paper, which number to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from framework.errors import ConfigurationError, near


@dataclass(frozen=True)
class Reference:
    """A published number.

    Attributes:
        metric: Name under which we log the same quantity, such as ``test/accuracy``.
        value: The published value, in the unit we log (accuracy in [0, 1]).
        std: Its standard deviation, in the same unit.
        source: Where the number stands.
        verified: Whether the number was read in the paper itself.
    """

    metric: str
    value: float
    std: float | None = None
    source: str = ""
    verified: bool = False


@dataclass(frozen=True)
class About:
    """What a configuration is about.

    Attributes:
        method: Short name of the method.
        summary: One line, shown by ``fulgurite methods``.
        paper: Authors, venue and year.
        reference: Published numbers, shown beside ours after ``fit``.
    """

    method: str
    summary: str = ""
    paper: str = ""
    reference: tuple[Reference, ...] = ()

    @classmethod
    def read(cls, values: object, where: str = "about") -> About:
        """Check the section and make it an object.

        Args:
            values: What the YAML holds under ``about``.
            where: How to call the section in an error.

        Raises:
            ConfigurationError: If a key is unknown or missing, or a value has another type.
        """
        if isinstance(values, Mapping) and isinstance(values.get("reference"), list | tuple):
            entries = [_checked(Reference, item, f"{where}.reference") for item in values["reference"]]
            values = {**values, "reference": tuple(entries)}
        return _checked(cls, values, where)


def shown(metric: str, value: float, std: float | None = None) -> str:
    """A number as tables show it: shares named accuracy or F1 in percent, others with four digits."""
    name = metric.lower()
    share = 0 <= value <= 1 and any(word in name for word in ("accuracy", "f1"))
    text = f"{100 * value:.1f}" if share else f"{value:.4g}"
    if std is not None:
        text += f" ± {100 * std:.1f}" if share else f" ± {std:.2g}"
    return f"{text} %" if share else text


def cited(reference: Reference) -> str:
    """A published number with the mark of one that nobody checked against the paper."""
    text = shown(reference.metric, reference.value, reference.std)
    return text if reference.verified else f"{text} (unverified)"


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float, type(None)), "a number"),
    "bool": ((bool,), "true or false"),
    "tuple[Reference, ...]": ((tuple,), "a list"),
}


def _checked(kind: Any, values: object, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where}: expected a mapping, got {values!r}")
    known = {field.name: field for field in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise ConfigurationError(f"{where}.{key}: no such key{near(str(key), known)} It takes {', '.join(known)}.")
        types, words = _TYPES[str(known[key].type)]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ConfigurationError(f"{where}.{key}: expected {words}, got {value!r}")
    try:
        return kind(**values)
    except TypeError:
        missing = [name for name in ("method", "metric", "value") if name in known and name not in values]
        raise ConfigurationError(f"{where}: missing {', '.join(missing)}") from None
