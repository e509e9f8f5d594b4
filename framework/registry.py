"""Short class names: a table made from the sources of the rooms, without importing them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from framework.errors import ConfigurationError

#: Which package serves which section of a configuration.
ROOMS = {"model": "modules", "data": "datamodules", "callbacks": "callbacks"}


def _root() -> Path:
    return Path(__file__).resolve().parent.parent


@cache
def classes(room: str) -> dict[str, list[str]]:
    """Public top-level classes of a package; files whose name begins with an underscore hold no choices.

    Args:
        room: Name of a package beside ``framework``, such as ``"modules"``.

    Returns:
        Dotted paths by short name; more than one where two files define the same name.
    """
    root = _root()
    table: dict[str, list[str]] = {}
    for file in sorted((root / room).rglob("*.py")):
        if file.name.startswith("_") and file.name != "__init__.py":
            continue
        parts = file.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.parse(file.read_bytes(), filename=str(file)).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                table.setdefault(node.name, []).append(f"{module}.{node.name}")
    return table


def resolve(name: str, section: str | None = None) -> str:
    """Dotted path of a short class name.

    Args:
        name: A class path; only names without a dot are looked up.
        section: ``"model"``, ``"data"`` or ``"callbacks"`` to look in one package, ``None`` for all of them.

    Returns:
        The dotted path, or ``name`` unchanged when it has a dot or is not ours (it may be Lightning's).

    Raises:
        ConfigurationError: If two files define the name.
    """
    if "." in name:
        return name
    rooms = [ROOMS[section]] if section in ROOMS else list(ROOMS.values())
    found = [path for room in rooms for path in classes(room).get(name, [])]
    if len(found) > 1:
        raise ConfigurationError(f"class_path {name} is ambiguous: write {' or '.join(found)}")
    return found[0] if found else name
