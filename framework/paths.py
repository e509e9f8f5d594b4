"""Where data sets lie, and what to say when they do not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def data_root(sub: str | os.PathLike[str] = "") -> Path:
    """Folder that holds the data sets: the environment variable ``FULGURITE_DATA``, else ``data`` here.

    Args:
        sub: Folder inside it, such as ``planetoid``.

    Returns:
        The path, whether or not it exists. ``~`` is expanded.
    """
    root = os.environ.get("FULGURITE_DATA") or "data"  # an empty variable counts as unset
    return Path(root).expanduser() / sub


def missing_files(
    what: str,
    files: Iterable[str | os.PathLike[str]],
    source_url: str,
    directory: str | os.PathLike[str],
    can_download: bool = False,
) -> FileNotFoundError:
    """The error for files that are not there: which, from where, to where, on one line.

    Args:
        what: What the files are, such as ``Cora``.
        files: Names of the missing files.
        source_url: Official place to download them from.
        directory: Folder to put them into.
        can_download: Whether an argument ``download`` of the data module, now off, would fetch them.

    Returns:
        The error, to be raised by the caller.
    """
    names = ", ".join(os.fspath(name) for name in files)
    itself = " (--data.download true does it)" if can_download else ""
    return FileNotFoundError(
        f"{what} needs files that are not in {os.fspath(directory)}: {names}; "
        f"download them from {source_url} into that folder{itself}, or point data_dir or FULGURITE_DATA elsewhere"
    )
