"""The history: a row a round, as CSV and as curves over the cost."""

from __future__ import annotations

import csv
import io

from framework.active.history import History


def filled() -> History:
    history = History()
    history.record(0, 2, 10, 100, 0.1, {"val/f1": 0.5, "val/loss": 2.0})
    history.record(1, 4, 15, 150, 0.15, {"val/f1": 0.6, "val/loss": 1.0, "test/f1": 0.55})
    return history


def test_csv_has_all_metrics_and_empty_cells():
    rows = list(csv.DictReader(io.StringIO(filled().csv())))
    assert rows[0] == {
        **{"round": "0", "epochs": "2", "items": "10", "cost": "100", "share": "0.1"},
        **{"val/f1": "0.5", "val/loss": "2.0", "test/f1": ""},
    }
    assert rows[1]["test/f1"] == "0.55"


def test_a_round_that_is_trained_again_replaces_what_came_of_it_before():
    history = filled()
    history.record(2, 6, 20, 200, 0.2, {})
    history.record(1, 4, 15, 150, 0.15, {"val/f1": 0.7})
    assert [row["round"] for row in history.rows] == [0, 1]
    assert history.rows[1]["val/f1"] == 0.7


def test_curves_over_cost_with_namesakes_on_one_panel():
    figure = filled().figure("words")
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panels) == ["f1", "loss"]
    assert [line.get_label() for line in panels["f1"].lines] == ["val/f1", "test/f1"]
    assert list(panels["f1"].lines[0].get_xdata()) == [100, 150]
    assert list(panels["f1"].lines[1].get_xdata()) == [150]
    assert panels["f1"].get_xlabel() == "labelled words"
    two = History()
    two.record(0, 1, 1, 1, 0.1, {"val/f1/dataloader_idx_0": 0.1, "val/f1/dataloader_idx_1": 0.2})
    assert [axes.get_ylabel() for axes in two.figure().axes] == ["f1"]
    assert History().figure() is None


def test_state_is_a_copy():
    history = filled()
    again = History()
    again.load_state_dict(history.state_dict())
    again.record(2, 6, 20, 200, 0.2, {})
    again.rows[0]["cost"] = 0
    assert len(history.rows) == 2
    assert history.rows[0]["cost"] == 100
