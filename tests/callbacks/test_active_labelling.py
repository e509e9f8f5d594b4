"""Real labelling by the command line: a table with few labels, people who fill in files, runs that stop and go on."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framework.cli import main, run

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 60
FIT = shlex.split(
    "fit -c classifier/table --data.path rows.csv --data.label kind --data.unlabelled train --data.split_column part "
    "-c overlays/active_learning --trainer.callbacks.oracle labels --trainer.callbacks.budget 6 "
    "--trainer.callbacks.initial 0.1 --trainer.callbacks.max_cost 18 --trainer.callbacks.epochs_per_round 2 "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.accelerator cpu --threads 1"
)


@pytest.fixture
def truth(tmp_path, monkeypatch):
    """Right answers by row; in the table, only one row of the training part has its own, and the folder is current."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2 * ITEMS) % 2
    x = torch.randn(2 * ITEMS, 2, generator=generator) + 3 * y[:, None]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "a", "b", "part", "kind"])
        for k in range(2 * ITEMS):
            part = "train" if k < ITEMS else ("val", "test")[k % 4 // 2]
            kind = ("no", "yes")[y[k]] if k >= ITEMS or k == 3 else ""
            rows.writerow([f"patient {k}", *x[k].tolist(), part, kind])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return [("no", "yes")[k] for k in y]


def asked(file):
    with Path(file).open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def fill(file, truth, count=None):
    records = asked(file)
    for record in records[:count]:
        record["label"] = truth[int(record["row"])]
    with Path(file).open("w", newline="") as lines:
        rows = csv.DictWriter(lines, list(records[0]))
        rows.writeheader()
        rows.writerows(records)


def files():
    return sorted(path.name for path in Path("labels").glob("round_*"))


FIT_CSV = [*FIT, "--trainer.callbacks.oracle_format", "csv", "--data.id_column", "id", "--ckpt_path", "last"]


def test_a_run_asks_waits_and_goes_on_until_its_money_is_spent(truth, capsys):
    main(FIT_CSV)
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("waiting for labels: 6 of 6 items in labels/round_001.csv have none")
    first = asked("labels/round_001.csv")
    assert {record["data.id"] for record in first} == {f"patient {record['row']}" for record in first}
    assert all(record["suggestion"] in {"no", "yes"} and float(record["score"]) > 0 for record in first)

    fill("labels/round_001.csv", truth, count=4)
    main(FIT_CSV)
    assert "waiting for labels: 2 of 6 items" in capsys.readouterr().out
    assert files() == ["round_001.csv"]

    fill("labels/round_001.csv", truth)
    assert run(FIT_CSV).paused is not None
    assert files() == ["round_001.csv", "round_002.csv"]
    rows = [record["row"] for file in files() for record in asked(f"labels/{file}")]
    assert len(set(rows)) == 12
    assert "3" not in rows  # it had a label in the table

    fill("labels/round_002.csv", truth)
    run(FIT_CSV)
    fill("labels/round_003.csv", truth)
    done = run([*FIT_CSV, "--test_after_fit", "false"])  # the test would set the data up anew
    assert done.paused is None
    assert done.directory == Path("runs/classifier/table/0")
    with (done.directory / "active_learning.csv").open() as lines:
        assert [(row["round"], row["items"]) for row in csv.DictReader(lines)] == [
            ("0", "1"), ("1", "7"), ("2", "13"), ("3", "18")
        ]  # fmt: skip
    labels = done.datamodule.train.tensors[1]
    named = {int(row): done.datamodule.class_names[y] for row, y in enumerate(labels) if y >= 0}
    assert len(named) == 18
    assert all(truth[row] == name for row, name in named.items())


def test_a_run_waits_for_the_initial_set_where_nothing_is_labelled(truth, capsys, monkeypatch):
    from datamodules.table import Table

    setup = Table.setup
    monkeypatch.setattr(Table, "setup", lambda self, stage=None: (setup(self, stage), forget(self)))

    def forget(data):
        data.train.tensors[1].fill_(-1)

    main(FIT_CSV)
    assert "waiting for labels: 6 of 6 items in labels/round_000.csv" in capsys.readouterr().out
    assert not Path("runs").exists()
    fill("labels/round_000.csv", truth)
    main(FIT_CSV)
    assert "waiting for labels: 6 of 6 items in labels/round_001.csv" in capsys.readouterr().out
    assert not {r["id"] for r in asked("labels/round_000.csv")} & {r["id"] for r in asked("labels/round_001.csv")}


def test_another_run_begins_with_the_labels_of_the_folder(truth, capsys):
    main(FIT_CSV)
    fill("labels/round_001.csv", truth)
    other = run([*FIT_CSV, "--name", "other", "--model.hidden", "[4]"])
    assert other.paused is not None
    with (other.directory / "active_learning.csv").open() as lines:
        assert [row["items"] for row in csv.DictReader(lines)] == ["7"]
    assert files() == ["round_001.csv", "round_002.csv"]


def test_a_run_without_its_labels_stops_in_one_line(truth, capsys):
    main(FIT_CSV)
    fill("labels/round_001.csv", truth)
    Path("labels").rename("elsewhere")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(FIT_CSV)
    assert exit_.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "oracle: 6 of the 7 items that the run has asked for have no label in labels or in the data" in line
    Path("elsewhere").rename("labels")
    text = Path("labels/round_001.csv").read_text().replace("no\n", "nein\n", 1)
    Path("labels/round_001.csv").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        main(FIT_CSV)
    assert exit_.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("fulgurite: error: labels/round_001.csv:")
    assert "no such class 'nein'" in line


@pytest.mark.process
def test_two_ranks_ask_once_and_go_on_together(truth):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def two():
        command = [sys.executable, "-m", "framework.cli", *FIT_CSV, "-c", "overlays/ddp"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert two().count("waiting for labels: 6 of 6 items in labels/round_001.csv") == 1
    fill("labels/round_001.csv", truth)
    assert two().count("waiting for labels: 6 of 6 items in labels/round_002.csv") == 1
    assert [path.name for path in Path("runs/classifier/table").iterdir()] == ["0"]
