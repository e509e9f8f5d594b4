"""Fixtures for all rooms."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root_or_skip() -> Path:
    """Folder of the real data sets: ``FULGURITE_DATA``, else ``../shared/data`` from the checkout; skips without."""
    told = os.environ.get("FULGURITE_DATA")
    if told:
        root = Path(told).expanduser()
        assert root.is_dir(), f"FULGURITE_DATA names {root}, which is no folder"
        return root
    root = Path(__file__).parents[2] / "shared/data"
    if not root.is_dir():
        pytest.skip(f"real data are not at {root}: set FULGURITE_DATA to their folder")
    return root


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names bytes by their number: content may hold a time (gzip's does), and workers must collect equal names."""
    return f"{len(val)}bytes" if isinstance(val, bytes) else None
