import pytest

from framework.evaluation.records import Commit, Environment, Record
from framework.evaluation.robust_tables import iqm_table
from framework.evaluation.statistics import probability_of_improvement, stratified_iqm_interval


def record(row, seed, value):
    return Record(
        row=row, data="robot", seed=seed, metrics={"last/success": value}, command="", experiment="", seconds=1.0,
        peak_mb=1.0, date="2026-01-01", commit=Commit("0", False), environment=Environment("", "", "", 1),
    )  # fmt: skip


OURS, OTHER = [0.9, 0.7, 0.8, 0.1, 0.85], [0.5, 0.4, 0.8, 0.45, 0.3]
RECORDS = [record("ours", seed, value) for seed, value in enumerate(OURS)]
RECORDS += [record("other", seed, value) for seed, value in enumerate(OTHER)]


def test_a_row_has_its_interquartile_mean_and_how_often_it_is_better():
    cells, caption = iqm_table(
        RECORDS,
        ["other", {"row": "ours", "label": "Ours"}, "never"],
        ["robot"],
        "last/success",
        percent=True,
        against="other",
    )
    mean, better = stratified_iqm_interval({"robot": OURS}), probability_of_improvement({"a": OURS}, {"a": OTHER})
    assert cells[0] == ["", "robot", "better than other"]
    assert cells[1][2] == "—"
    assert cells[2] == [
        "Ours",
        f"{100 * mean.estimate:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]",
        f"{better.estimate:.2f} [{better.low:.2f}, {better.high:.2f}]",
    ]
    assert cells[3] == ["never", "—", "—"]
    assert "`last/success` in %" in caption
    assert "5 seeds" in caption


def test_less_is_better_where_a_column_says_so():
    shown = [
        iqm_table(RECORDS, ["ours"], [{"data": "robot", "mode": mode}], "last/success", against="other")[0][1][2]
        for mode in ("max", "min")
    ]
    assert float(shown[0].split()[0]) == pytest.approx(1 - float(shown[1].split()[0]), abs=0.011)
    assert iqm_table(RECORDS, ["ours"], ["robot"], "last/success")[0][0] == ["", "robot"]
