"""Traces and fits: the public failure records, and files of every other kind."""

from __future__ import annotations

import gzip
import lzma
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from framework.reliability.fits import (
    Rate,
    coefficient_of_variation,
    fit_gaps,
    node_rate_of,
    observed_by_size,
    project,
    rate_interval,
)
from framework.reliability.traces import Failure, Trace, read_trace

LANL = "lanl_failures/lanl_failures.csv.gz"
ORIGINAL = "lanl_failures/LA-UR-05-7318-failure-data-1996-2005.csv.xz"
#: System: failures, days, failures per 1000 node-days, mean gap in hours, CV, shapes (gamma, Weibull),
#: KS (exponential, gamma, Weibull), median repair in minutes.
SYSTEMS = {
    "18": (3997, 1221, 3.20, 7.48, 1.71, (0.754, 0.817), (0.085, 0.030, 0.018), 58),
    "19": (3284, 1057, 3.04, 7.84, 1.52, (0.860, 0.889), (0.041, 0.025, 0.017), 57),
    "20": (2478, 1359, 3.56, 13.59, 1.99, (0.527, 0.647), (0.216, 0.077, 0.039), 75),
    "8": (475, 1590, 1.82, 84.1, 1.45, (0.599, 0.711), (0.145, 0.042, 0.021), 336),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_lanl(data_root_or_skip, system):
    count, days, rate, mean, cv, shapes, distances, repair = SYSTEMS[system]
    trace = read_trace(data_root_or_skip / LANL, system=system)
    assert (trace.count, round(trace.days), trace.unreadable) == (count, days, [])
    assert 1000 * node_rate_of(trace).value == pytest.approx(rate, abs=6e-3)
    assert statistics.median(failure.down for failure in trace.failures) == repair
    gaps, ties = trace.gaps()
    assert len(gaps) + ties == count - 1
    assert gaps.mean() / 60 == pytest.approx(mean, abs=0.06)
    assert coefficient_of_variation(gaps) == pytest.approx(cv, abs=6e-3)
    fits = {fit.family: fit for fit in fit_gaps(gaps)}
    assert next(iter(fits)) == "weibull"  # the most likely
    assert fits["gamma"].shape == pytest.approx(shapes[0], abs=2e-3)
    assert fits["weibull"].shape == pytest.approx(shapes[1], abs=2e-3)
    for family, distance in zip(("exponential", "gamma", "weibull"), distances):
        assert fits[family].ks == pytest.approx(distance, abs=1e-3)


def test_lanls_original_file_holds_the_same(data_root_or_skip):
    trim, original = (read_trace(data_root_or_skip / name, system="18") for name in (LANL, ORIGINAL))
    assert (original.nodes, original.days, original.count) == (trim.nodes, trim.days, trim.count)
    assert sorted(failure.minute for failure in original.failures) == [failure.minute for failure in trim.failures]


def test_llama3(data_root_or_skip):
    trace = read_trace(data_root_or_skip / "llama3_interruptions/llama3_table5.csv", nodes=2048, days=54)
    assert (trace.count, trace.failures) == (419, [])
    assert 1000 * node_rate_of(trace).value == pytest.approx(3.79, abs=5e-3)
    (size,) = project(node_rate_of(trace), [16384], 8)
    assert size.mttf / 60 == pytest.approx(3.09, abs=5e-3)
    assert size.low < size.mttf < size.high


def test_lanl_needs_a_system(data_root_or_skip):
    with pytest.raises(ValueError, match="has several systems: choose one of 2, 3, 4"):
        read_trace(data_root_or_skip / LANL)
    with pytest.raises(ValueError, match="has no system 999; it has 2, 3"):
        read_trace(data_root_or_skip / LANL, system="999")


# -- files -------------------------------------------------------------------------------------------------------------

PLAIN = "start,node\n2024-01-01T00:00,a\n2024-01-03,b\n1/2/2024 12:30,a\n"


@pytest.mark.parametrize("pack", [None, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_times_in_any_order_and_notation(tmp_path, pack):
    name = {None: "t.csv", gzip.compress: "t.csv.gz", lzma.compress: "t.csv.xz"}[pack]
    (tmp_path / name).write_bytes(pack(PLAIN.encode()) if pack else PLAIN.encode())
    trace = read_trace(tmp_path / name, nodes=4)
    assert [failure.node for failure in trace.failures] == ["a", "a", "b"]
    assert (trace.days, trace.node_days, trace.count) == (2, 8, 3)
    assert trace.gaps()[0].tolist() == [36.5 * 60, 11.5 * 60]


def test_days_and_zones(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("time\n0.5\n1e0\n3\n")
    assert read_trace(file, nodes=2, days=10).gaps()[0].tolist() == [720, 2880]
    file.write_text("start\n2024-01-01T00:00+00:00\n2024-01-01T02:00+01:00\n")
    assert read_trace(file, nodes=2).days == pytest.approx(1 / 24)


def test_rows_that_cannot_be_read_are_counted_with_file_and_line(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("start,nodes\n2024-01-01,8\nsoon,8\n\n2024-01-02,few\n2024-01-04,8\n,8\nnan,8\n2024-01-05\n")
    trace = read_trace(file)
    assert (trace.count, trace.nodes) == (2, 8)
    assert trace.unreadable == [
        f"{file}:3: start is 'soon', neither a time nor a number of days",
        f"{file}:5: nodes is 'few', not a positive number",
        f"{file}:7: no start time",
        f"{file}:8: start is 'nan', neither a time nor a number of days",
        f"{file}:9: nodes is None, not a positive number",
    ]


def test_counts(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("cause,count\na,3\nb,many\nc,4\n")
    trace = read_trace(file, nodes=10, days=7)
    assert (trace.count, trace.unreadable) == (7, [f"{file}:3: count is 'many', not a whole number"])
    with pytest.raises(ValueError, match="holds counts: give nodes and days"):
        read_trace(file, nodes=10)
    file.write_text("count\nx\n")
    with pytest.raises(ValueError, match=r"no readable count; .*t\.csv:2"):
        read_trace(file, nodes=10, days=7)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"", {}, "is empty: it needs a header"),
        (b"when,where\n1,2\n", {}, "neither a column start nor a column count; its columns: when, where"),
        (b"start\n", {"nodes": 1}, "has no readable failure"),
        (b"start\nx\n", {"nodes": 1}, "no readable failure; the first that could not be read: .*t.csv:2: start is 'x'"),
        (b"start\n1\n2\n", {}, "does not tell how many nodes there were: give nodes"),
        (b"start\n1\n1\n", {"nodes": 1}, "all failures in .* are at one time: give days"),
        (b"start\n1\n2\n", {"nodes": 0}, "nodes must be positive"),
        (b"start\n1\n2\n", {"nodes": 1, "days": math.nan}, "days must be positive"),
        (b"start\n1\n2\n", {"nodes": 1, "system": "x"}, "has no column system"),
        (b"\xff\xfe\x00\x01", {"nodes": 1}, "cannot be read as a CSV file"),
    ],
)
def test_files_that_are_no_trace(tmp_path, content, arguments, message):
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_trace(file, **arguments)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv cannot be read: No such file"):
        read_trace(tmp_path / "none.csv", nodes=1)
    (tmp_path / "t.csv.gz").write_text(PLAIN)
    with pytest.raises(ValueError, match=r"is not a whole .gz file"):
        read_trace(tmp_path / "t.csv.gz", nodes=1)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(PLAIN.encode())[:-12])
    with pytest.raises(ValueError, match=r"t.csv.gz"):
        read_trace(tmp_path / "t.csv.gz", nodes=1)


# -- fits --------------------------------------------------------------------------------------------------------------


def test_interval_of_a_rate():
    assert rate_interval(0, 100.0) == Rate(0.0, 0.0, pytest.approx(-math.log(0.025) / 100))
    rate = rate_interval(10, 2.0)
    assert rate.value == 5
    assert stats.poisson.sf(9, 2 * rate.low) == pytest.approx(0.025)
    assert stats.poisson.cdf(10, 2 * rate.high) == pytest.approx(0.025)
    for wrong in ((-1, 1.0), (1, 0.0), (1, 1.0, 1.0)):
        with pytest.raises(ValueError, match="must"):
            rate_interval(*wrong)


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([0.5, 0.8, 1.0, 1.5]), st.sampled_from([0.01, 1.0, 1e5]), st.integers(0, 100))
def test_fits_find_what_was_drawn_in_any_unit(shape, scale, seed):
    draws = np.random.default_rng(seed).weibull(shape, 3000) * scale
    fits = {fit.family: fit for fit in fit_gaps(draws)}
    weibull = fits["weibull"]
    assert weibull.shape == pytest.approx(shape, rel=0.08)
    assert weibull.mean == pytest.approx(draws.mean(), rel=0.05)
    expected = stats.weibull_min(weibull.shape, scale=weibull.mean / math.gamma(1 + 1 / weibull.shape)).logpdf(draws)
    assert weibull.log_likelihood == pytest.approx(expected.sum(), rel=1e-6)
    assert weibull.log_likelihood >= fits["exponential"].log_likelihood - 1e-6
    assert fits["exponential"].mean == pytest.approx(draws.mean())


@pytest.mark.parametrize("gaps", [[1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, math.inf], [3.0, 3.0, 3.0]])
def test_gaps_that_cannot_be_fitted(gaps):
    with pytest.raises(ValueError, match="a fit needs"):
        fit_gaps(gaps)


def test_groups_of_nodes():
    failures = [Failure(60.0 * i, str(i % 16), math.nan) for i in range(320)]
    observed = observed_by_size(Trace(failures, 16, 10.0, 320))
    assert [(each.nodes, each.groups) for each in observed] == [(1, 16), (2, 8)]
    assert (observed[0].low, observed[0].median, observed[0].high) == (720, 720, 720)  # 20 failures in ten days
    assert observed[1].median == 360
    assert observed_by_size(Trace([], 16, 10.0, 320)) == []
    assert observed_by_size(Trace([failure._replace(node="") for failure in failures], 16, 10.0, 320)) == []


def test_projection_falls_with_size():
    sizes = project(rate_interval(0, 10.0), [8, 80], 8)
    assert [size.nodes for size in sizes] == [1, 10]
    assert all(size.mttf == size.high == math.inf for size in sizes)
    assert sizes[0].low == pytest.approx(10 * sizes[1].low)
