from pathlib import Path

import pytest

from framework.paths import data_root, missing_files


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, Path("data/planetoid")), ("", Path("data/planetoid")), ("/sets", Path("/sets/planetoid"))],
)
def test_data_root_follows_the_environment(monkeypatch, variable, expected):
    if variable is None:
        monkeypatch.delenv("FULGURITE_DATA", raising=False)
    else:
        monkeypatch.setenv("FULGURITE_DATA", variable)
    assert data_root("planetoid") == expected


def test_data_root_expands_the_home_folder(monkeypatch):
    monkeypatch.setenv("FULGURITE_DATA", "~/sets")
    assert data_root() == Path.home() / "sets"


def test_missing_files_says_which_whence_and_where_to_on_one_line():
    message = str(
        missing_files("Cora", ["ind.cora.x", "ind.cora.y"], "https://example.org/data", Path("/sets/planetoid"))
    )
    assert "\n" not in message
    for part in ("Cora", "ind.cora.x, ind.cora.y", "https://example.org/data", "/sets/planetoid"):
        assert part in message
    assert "--data.download" not in message


def test_missing_files_says_when_an_argument_would_fetch_them():
    message = str(missing_files("Cora", ["ind.cora.x"], "https://example.org/data", "/sets", can_download=True))
    assert "https://example.org/data into that folder (--data.download true does it), or point" in message
