"""``fulgurite methods``: what there is, read from the configurations themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from framework.about import About, cited
from framework.configuration import names
from framework.errors import ConfigurationError


def listing() -> str:
    """One line per configuration under its method and paper, then one line per overlay and per federation."""
    known = names()
    methods: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    overlays: list[tuple[str, str]] = []
    federations: list[tuple[str, str]] = []
    for name, file in known.items():
        block = _about(file)
        if block is None:
            (federations if name.startswith("federation/") else overlays).append((name, _comment(file)))
            continue
        try:
            about = About.read(block)
        except ConfigurationError as error:
            raise ConfigurationError(f"{file}: {error}") from error
        number = "; ".join(f"{each.metric} {cited(each)}" for each in about.reference)
        methods.setdefault((about.method, about.paper), []).append((name, about.summary, number))
    left = max((len(name) for name in known), default=0)
    middle = max((len(row[1]) for rows in methods.values() for row in rows), default=0)
    lines = []
    for (method, paper), rows in sorted(methods.items(), key=lambda item: item[0][0].lower()):
        lines.append(f"{method}  ({paper})" if paper else method)
        lines += [f"  {name.ljust(left)}  {summary.ljust(middle)}  {number}".rstrip() for name, summary, number in rows]
    for heading, layers in (
        ("Overlays, for any of them (add another -c)", overlays),
        ("Federations, for fulgurite federate (add another -c)", federations),
    ):
        if layers:
            lines += ["", heading, *(f"  {name.ljust(left)}  {summary}".rstrip() for name, summary in layers)]
    return "\n".join(lines) + "\n"


def _about(file: Path) -> Any:
    """The ``about`` block alone: parsing whole files would take most of the time."""
    lines = file.read_text(encoding="utf-8").splitlines()
    if "about:" not in [line.split("#")[0].rstrip() for line in lines]:
        return None
    start = next(i for i, line in enumerate(lines) if line.split("#")[0].rstrip() == "about:")
    end = next((i for i in range(start + 1, len(lines)) if lines[i][:1] not in ("", " ", "#")), len(lines))
    block = yaml.load("\n".join(lines[start:end]), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return block["about"]


def _comment(file: Path) -> str:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
