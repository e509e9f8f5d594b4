"""Curves: where a level is reached, the area under one, and records that hold them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.evaluation.curves import height_by_seed, mean_height, reach_by_seed, reached_at
from framework.evaluation.records import Record, merge_records, read_records


def test_a_level_is_reached_at_the_first_point_beyond_it():
    x, y = [0.1, 0.2, 0.3, 0.4], [0.5, 0.8, 0.7, 0.9]
    assert reached_at(x, y, 0.8) == 0.2
    assert reached_at(x, y, 0.85) == 0.4
    assert reached_at(x, y, 0.95) is None
    assert reached_at(x, y, 0.6, mode="min") == 0.1


def test_the_mean_height_of_a_ramp_and_of_a_part_of_it():
    assert mean_height([0, 1], [0, 1], 0, 1) == pytest.approx(0.5)
    assert mean_height([0, 1, 3], [2, 4, 0], 0, 3) == pytest.approx((3 + 4) / 3)
    assert mean_height([0, 1, 3], [2, 4, 0], 0.5, 2) == pytest.approx((0.5 * 3.5 + 1 * 3) / 1.5)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(-3, 3))
def test_the_mean_height_moves_with_the_curve(y, shift):
    x = list(range(len(y)))
    moved = mean_height(x, [value + shift for value in y], 0, x[-1])
    assert moved == pytest.approx(mean_height(x, y, 0, x[-1]) + shift, abs=1e-9)


@pytest.mark.parametrize(
    ("x", "start", "end", "words"),
    [([0, 1], 0, 2, "from 0 to 2"), ([1, 2], 0, 2, "from 0 to 2"), ([0, 0], 0, 0.5, "ascending"), ([0], 0, 1, "two")],
)
def test_a_curve_that_does_not_cover_the_range_is_refused(x, start, end, words):
    with pytest.raises(ValueError, match=words):
        mean_height(x, [1.0] * len(x), start, end)


def record(seed, curves, row="MNLP"):
    return Record(row=row, data="btc", seed=seed, metrics={"test/f1": 0.5}, curves=curves)


def test_each_seed_is_held_to_its_own_level():
    records = [record(seed, {"share": [0.1, 0.2], "f1": [0.4, 0.6]}) for seed in (1, 2, 3)]
    found = reach_by_seed(records, "MNLP", "btc", "share", "f1", {1: 0.3, 2: 0.6, 4: 0.1})
    assert found == {1: 0.1, 2: 0.2}
    assert reach_by_seed(records, "MNLP", "btc", "share", "f1", {3: 0.7}) == {3: None}
    with pytest.raises(ValueError, match=r"no curve 'loss'; it has f1, share"):
        reach_by_seed(records, "MNLP", "btc", "share", "loss", {1: 0})


def test_heights_are_read_at_a_point_that_was_run():
    records = [
        record(1, {"share": [0.1, 0.5, 0.8], "f1": [0.4, 0.6, 0.7]}),
        record(2, {"share": [0.1, 0.3], "f1": [0.5, 0.6]}),
    ]
    assert height_by_seed(records, "MNLP", "btc", "share", "f1", 0.5) == {1: 0.6}
    assert height_by_seed(records, "MNLP", "btc", "share", "f1", 0.2) == {1: 0.6, 2: 0.6}


def test_curves_come_back_from_a_results_file(tmp_path):
    path = tmp_path / "results.json"
    merge_records(path, [record(1, {"share": [0.1, 0.2], "f1": [0.4, 0.6]}), record(2, {}, "other")])
    first, second = read_records(path)
    assert first.curves == {"share": [0.1, 0.2], "f1": [0.4, 0.6]}
    assert second.curves == {}


@pytest.mark.parametrize(
    ("curves", "words"),
    [({"a": [1.0], "b": [1.0, 2.0]}, "equally long"), ({"a": [1.0, float("nan")]}, "finite")],
)
def test_bad_curves_are_refused(curves, words):
    with pytest.raises(ValueError, match=words):
        record(1, curves)
