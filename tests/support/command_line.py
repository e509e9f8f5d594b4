"""What tests of the command line share: reading what a run wrote, and its one-line errors."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from framework.cli import main


def rows(run_dir, file="metrics.csv"):
    with open(Path(run_dir) / file, newline="") as lines:
        return list(csv.DictReader(lines))


def fails(capsys, *args, code=2):
    """Run a failing command and return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    assert exit_.value.code == code
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("fulgurite: error: ")
    return lines[0]


def resolved(capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *args, "--print_config"])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)
