"""Figures reported for the study: which follow from the formulas, and which do not."""

from __future__ import annotations

import math

import pytest

from framework.reliability.published import compared
from framework.reliability.units import minutes, readable


def found(what, gpus, **fields):
    (one,) = [
        each
        for each in compared()
        if (each.case.what, each.case.gpus) == (what, gpus)
        and all(getattr(each.case, name) == value for name, value in fields.items())
    ]
    return one


def test_what_follows_from_the_formulas():
    assert found("mttf", 16384).follows
    assert found("mttf", 131072).follows
    for gpus, interval, value in ((16000, 60, 0.684), (16000, 5, 0.932), (100_000, 7, 0.520)):
        each = found("ettr", gpus, interval=interval)
        assert each.follows
        assert each.value == pytest.approx(value, abs=5e-4)
    assert found("ettr", 100_000, interval=7).exact == pytest.approx(0.615, abs=5e-4)
    assert not found("ettr", 100_000, interval=7).valid
    assert [round(each.value, 4) for each in compared() if each.case.rule == "young"] == [0.7398, 0.8979, 0.9205]


def test_a_case_without_a_figure_is_neither():
    base = found("ettr", 12_000, reported=None)
    assert base.follows is None
    assert base.value == pytest.approx(0.740, abs=5e-4)


def test_what_does_not_is_marked():
    observed = found("mttf", 1024)
    assert not observed.follows
    assert observed.value / 60 == pytest.approx(28.8, abs=0.05)
    assert observed.implied * 1000 == pytest.approx(23.7, abs=0.05)
    assert found("mttf", 8).implied * 1000 == pytest.approx(21.0, abs=0.05)
    twenty_one = found("ettr", 100_000, interval=21)
    assert not twenty_one.follows
    assert twenty_one.value == pytest.approx(0.685, abs=5e-4)
    assert {each.case.gpus for each in compared() if each.follows is False} == {8, 1024, 4096, 100_000}


@pytest.mark.parametrize(
    ("text", "value"),
    [("60min", 60), ("1.5h", 90), (" 90 s ", 1.5), ("2d", 2880), ("1e3s", 1000 / 60), ("1e-3 d", 1.44), ("0", 0)],
)
def test_times(text, value):
    assert minutes(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["60", "5m", "-3min", "nan min", "inf h", "", "min", "1 2 s", "5 minutes"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"is no time: .* one of ms, s, min, h, d, such as 60min"):
        minutes(text)


def test_times_are_shown_in_the_unit_that_suits_them():
    shown = [readable(time) for time in (0, 1e-3, 0.5, 1, 60, 108.1731, 2000, 68688, math.inf)]
    assert shown == ["0", "60 ms", "30 s", "1 min", "60 min", "1.803 h", "33.33 h", "47.7 d", "no limit"]
