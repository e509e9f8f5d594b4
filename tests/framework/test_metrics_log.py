"""``metrics.csv``: history survives kills and restarts."""

from __future__ import annotations

import torch
from command_line import rows
from lightning.pytorch.loggers import CSVLogger

from framework.metrics_log import MetricsLog


def test_metrics_log_keeps_history_and_survives_a_torn_line(tmp_path):
    log = MetricsLog(tmp_path)
    log.log_metrics({"a": 1.0, "epoch": 0}, step=0)
    log.log_metrics({"b": torch.tensor(2.0), "epoch": 0}, step=1)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("2,0,0.12")
    log = MetricsLog(tmp_path)
    assert isinstance(log, CSVLogger)
    log.log_metrics({"a": 3.0, "c": 1, "epoch": 1}, step=2)
    assert rows(tmp_path) == [
        {"step": "0", "epoch": "0", "a": "1.0", "b": "", "c": ""},
        {"step": "1", "epoch": "0", "a": "", "b": "2.0", "c": ""},
        {"step": "2", "epoch": "1", "a": "3.0", "b": "", "c": "1"},
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv"}


def test_metrics_log_forgets_only_what_comes_after_and_only_once(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(5):
        log.log_metrics({"a": float(step)}, step=step)
    log.forget(2)  # a fresh file: nothing to forget
    assert len(rows(tmp_path)) == 5
    log = MetricsLog(tmp_path)
    log.forget(3)
    log.log_metrics({"a": 30.0}, step=3)
    log.forget(0)
    assert [row["a"] for row in rows(tmp_path)] == ["0.0", "1.0", "2.0", "30.0"]
