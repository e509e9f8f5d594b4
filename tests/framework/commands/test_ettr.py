"""``fulgurite ettr``: what it prints and writes, its one-line errors, and how soon it answers."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import fails

from framework.cli import main

ROOT = Path(__file__).resolve().parents[3]
JOB = ("--gpus", "16384", "--failure-rate", "6.5e-3", "--checkpoint-interval", "60min")
PNG = b"\x89PNG"
PAGE = ROOT / "docs/methods/reliability.md"


def printed(capsys, *args):
    capsys.readouterr()
    main(["ettr", *args])
    out, err = capsys.readouterr()
    assert not err
    return out


def given_json(capsys, *args):
    return json.loads(printed(capsys, *args, "--json", "-"))


@pytest.mark.parametrize(
    ("args", "seconds"),
    [
        (["--help"], 0.5),
        (["estimate", "--help"], 0.5),
        (["estimate", *JOB], 0.5),
        (["estimate", "--table"], 0.5),
        (["optimum", *JOB[:4], "--checkpoint-write", "5min"], 0.5),
        (["simulate", *JOB, "--runs", "10"], 2.0),
        (["fit", "--failures", "419", "--nodes", "2048", "--days", "54"], 4.0),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_answers_come_soon_and_without_torch(args, seconds):
    code = (
        "import sys\nfrom framework.cli import main\n"
        f"try: main({['ettr', *args]!r})\n"
        "except SystemExit as error: assert not error.code\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'torch', 'lightning', 'pandas', 'numpy'}))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ("['numpy']" if args[0] in ("simulate", "fit") else "[]")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds


@pytest.mark.parametrize("command", ["estimate", "optimum", "simulate", "fit"])
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main(["ettr", command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fulgurite ettr {command}")
    assert all(option in out for option in ("--json", "--csv", "--picture"))
    assert command in printed(capsys)


# -- estimate ----------------------------------------------------------------------------------------------------------


def test_estimate(capsys):
    out = printed(capsys, "estimate", *JOB)
    heading, row, *_ = out.splitlines()
    assert heading.split()[:4] == ["GPUs", "MTTF", "interval", "write"]
    assert row.split()[:5] == ["16,384", "1.803", "h", "60", "min"]
    found = given_json(capsys, "estimate", *JOB)["rows"][0]
    assert found["mttf_min"] == pytest.approx(108.17, abs=0.01)
    assert found["failures_per_node_day"] == pytest.approx(6.5e-3)
    assert found["ettr"] == pytest.approx(0.7145, abs=5e-4)
    assert found["first_order"] / found["ettr"] - 1 == pytest.approx(found["first_order_error"])
    assert found["first_order_valid"] is False
    parts = ("productive", "write", "lost", "restart", "queue")
    assert sum(found[f"{part}_share"] for part in parts) == pytest.approx(1, abs=1e-9)
    assert found["productive_share"] == pytest.approx(found["ettr"])


def test_units_of_every_option(capsys):
    costs = ("--checkpoint-write", "10s", "--restart", "0.1h", "--queue", "1d", "--write-latency", "1min")
    row = given_json(capsys, "estimate", "--gpus", "8", "--mttf", "30d", "--checkpoint-interval", "2h", *costs)["rows"][
        0
    ]
    minutes = {"write": 1 / 6, "restart": 6, "queue": 1440, "latency": 1, "interval": 120, "mttf": 43200}
    assert {name: row[f"{name}_min"] for name in minutes} == pytest.approx(minutes)
    assert row["failures_per_node_day"] == pytest.approx(1 / 30)


def test_rows_for_several_sizes_go_to_a_csv_file_and_a_picture(capsys, tmp_path):
    sizes = ("--gpus", "1024", "131072", *JOB[2:])
    files = ("--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png"))
    out = printed(capsys, "estimate", *sizes, "--checkpoint-write", "5min", *files)
    with (tmp_path / "a.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["gpus"] for row in rows] == ["1024", "131072"]
    assert rows[1]["first_order"] == ""  # the pressure is above 1
    assert "at 1 and beyond it has no value" in out
    assert json.loads((tmp_path / "a.json").read_text())["rows"][1]["first_order"] is None
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert [row["gpus"] for row in csv.DictReader(io.StringIO(printed(capsys, "estimate", *sizes, "--csv", "-")))] == [
        "1024",
        "131072",
    ]


def test_hopeless_jobs_have_an_answer_too(capsys):
    out = printed(capsys, "estimate", "--gpus", "100000000", *JOB[2:4], "--checkpoint-interval", "30d")
    assert out.splitlines()[1].split()[-1] == "-"
    assert "nan" not in out


def test_rules_for_the_interval(capsys):
    job = ("--gpus", "12000", *JOB[2:4], "--checkpoint-write", "5min", "--checkpoint-interval")
    young, best = (given_json(capsys, "estimate", *job, rule)["rows"][0] for rule in ("young", "optimal"))
    assert (young["interval_min"], best["interval_min"]) == pytest.approx((38.43, 35.17), abs=6e-3)
    assert young["first_order"] == pytest.approx(0.740, abs=5e-4)
    assert young["ettr"] < best["ettr"]


def test_finite_runs(capsys):
    job = ("--gpus", "8", "--mttf", "200min", "--checkpoint-interval", "60min", "--checkpoint-write", "5min")
    found = given_json(capsys, "estimate", *job, "--queue", "10min", "--run-length", "3h")["rows"][0]
    assert found["ettr"] == pytest.approx(0.7035, abs=5e-4)
    assert found["run_length_min"] == 180
    assert "Runs of 3 h" in printed(capsys, "estimate", *job, "--run-length", "3h")


def test_what_it_takes_to_reach_a_ratio(capsys):
    job = ("--gpus", "12000", *JOB[2:4], "--checkpoint-write", "5min", "--checkpoint-interval", "young")
    (found,) = given_json(capsys, "estimate", *job, "--reach", "0.9")["reach"]
    assert found["failures_per_node_day_to"] == pytest.approx(0.94e-3, abs=1e-5)
    assert found["interval_from_min"] is None
    assert 60 * found["write_to_min"] == pytest.approx(22, abs=0.5)  # with the interval that goes with it
    back = ("--failure-rate", str(found["failures_per_node_day_to"]))
    job = ("--gpus", "12000", *back, "--checkpoint-write", "5min", "--checkpoint-interval", "young")
    assert given_json(capsys, "estimate", *job)["rows"][0]["ettr"] == pytest.approx(0.9, abs=1e-5)
    assert "For an ETTR of 0.9" in printed(capsys, "estimate", *job, "--reach", "0.9")


def test_reported_figures_are_reproduced_or_marked(capsys):
    out = printed(capsys, "estimate", "--table")
    marked = [line for line in out.splitlines() if " NO " in f"{line} "]
    assert len(marked) == 5
    assert any("7.9 h" in line and "28.85 h" in line and "implies 23.7" in line for line in marked)
    assert any("21 min" in line and "0.6852" in line for line in marked)
    rows = given_json(capsys, "estimate", "--table")["rows"]
    assert {row["reported"] for row in rows if row["figure"] == "MTTF" and row["follows"]} == {108.0, 13.8}


def test_the_page_shows_the_table_as_it_is_printed(capsys):
    assert printed(capsys, "estimate", "--table") in PAGE.read_text()


@pytest.mark.parametrize(
    "line", re.findall(r"^fulgurite ettr ((?:estimate|optimum|simulate) .*)$", PAGE.read_text(), re.M)
)
def test_commands_of_the_page_run(capsys, line):
    assert "GPUs" in printed(capsys, *shlex.split(line))


# -- optimum -----------------------------------------------------------------------------------------------------------


def test_optimum(capsys, tmp_path):
    job = ("--gpus", "16384", *JOB[2:4], "--checkpoint-write", "5min")
    files = ("--picture", str(tmp_path / "a.png"))
    rows = {row["rule"]: row for row in given_json(capsys, "optimum", *job, "--step-time", "2s", *files)["rows"]}
    assert {rule: row["interval_min"] for rule, row in rows.items()} == pytest.approx(
        {"Daly-Young": 32.89, "exact": 29.64, "first order": 27.51}, abs=6e-3
    )
    assert rows["exact"]["steps"] == 889
    assert rows["exact"]["ettr"] == max(row["ettr"] for row in rows.values()) == pytest.approx(0.6932, abs=5e-5)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    moved = given_json(capsys, "optimum", *job, "--restart", "20min", "--queue", "1h")["rows"][1]
    assert moved["interval_min"] == rows["exact"]["interval_min"]


def test_optimum_without_a_first_order_answer(capsys):
    out = printed(capsys, "optimum", "--gpus", "131072", *JOB[2:4], "--checkpoint-write", "5min", "--restart", "20min")
    assert out.splitlines()[3].split()[-2:] == ["-", "-"]
    assert "no first-order interval where rate x restart is 1 or more" in " ".join(out.split())


# -- simulate ----------------------------------------------------------------------------------------------------------


def test_simulate_agrees_with_the_closed_form_and_repeats(capsys, tmp_path):
    args = ("simulate", *JOB, "--checkpoint-write", "5min", "--runs", "50")
    found = given_json(capsys, *args, "--picture", str(tmp_path / "a.png"))
    (row,) = found["rows"]
    assert row["ettr"] == pytest.approx(row["exact"], abs=4 * row["standard_error"])
    assert (found["gaps"], found["runs"], found["seed"]) == ("exponential", 50, 0)
    assert given_json(capsys, *args)["rows"][0]["ettr"] == row["ettr"]
    assert given_json(capsys, *args, "--seed", "1")["rows"][0]["ettr"] != row["ettr"]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    bursts = given_json(capsys, *args, "--gaps", "weibull", "--shape", "0.6")
    assert bursts["rows"][0]["ettr"] > row["ettr"] + 0.03
    assert "constant rate of the same mean" in " ".join(bursts["notes"])


def test_simulate_by_a_trace_at_its_own_rate_or_another(capsys, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("start\n" + "".join(f"{day}\n" for day in (0, 1, 1.5, 4, 4.2, 9, 10)) + "x\n")
    args = ("simulate", "--gpus", "64", "--checkpoint-interval", "1h", "--gaps", "trace", "--trace", str(file))
    found = given_json(capsys, *args, "--nodes", "8", "--runs", "5")
    assert found["rows"][0]["mttf_min"] == pytest.approx(10 * 1440 / 7)
    assert found["notes"][-2:] == [
        "1 row could not be read:",
        f"{file}:9: start is 'x', neither a time nor a number of days",
    ]
    scaled = given_json(capsys, *args, "--nodes", "8", "--mttf", "2h")["rows"][0]
    assert scaled["mttf_min"] == pytest.approx(120)
    assert scaled["ettr"] < found["rows"][0]["ettr"] - 0.1


# -- fit ---------------------------------------------------------------------------------------------------------------


def test_fit_of_public_records(capsys, tmp_path, data_root_or_skip):
    trace = ("--trace", str(data_root_or_skip / "lanl_failures/lanl_failures.csv.gz"), "--system", "18")
    found = given_json(capsys, "fit", *trace, "--picture", str(tmp_path / "a.png"), "--csv", str(tmp_path / "a.csv"))
    rate = found["rate"][0]
    assert 1000 * rate["failures_per_node_day"] == pytest.approx(3.20, abs=0.05)
    assert rate["low"] < rate["failures_per_node_day"] < rate["high"]
    assert rate["median_repair_min"] == 58
    fits = {fit["family"]: fit for fit in found["fits"]}
    assert fits["weibull"]["shape"] == pytest.approx(0.817, abs=0.01)
    assert found["mttf"][-1]["gpus"] == 131072
    assert found["mttf"][-1]["mttf_min"] == pytest.approx(27.5, abs=0.1)
    assert found["unreadable"] == []
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + len(found["mttf"])
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert "79 failures at the minute of the one before" in printed(capsys, "fit", *trace)


def test_fit_of_counts(capsys):
    counts = ("--failures", "419", "--nodes", "2048", "--days", "54", "--gpus", "16384")
    found = given_json(capsys, "fit", *counts)
    assert 1000 * found["rate"][0]["failures_per_node_day"] == pytest.approx(3.79, abs=5e-3)
    assert found["mttf"][0]["mttf_min"] / 60 == pytest.approx(3.09, abs=5e-3)
    none = given_json(capsys, "fit", "--failures", "0", "--nodes", "8", "--days", "10")
    assert none["mttf"][0]["mttf_min"] is None  # no failure, no upper limit
    assert none["mttf"][0]["low_min"] > 0


def test_fit_with_rows_that_cannot_be_read_or_too_few(capsys, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("start,node\n0,a\n1,b\n" + "soon,a\n" * 7)
    found = given_json(capsys, "fit", "--trace", str(file), "--nodes", "2")
    assert len(found["unreadable"]) == 7
    assert found["unreadable"][0].startswith(f"{file}:4: start is 'soon'")
    out = printed(capsys, "fit", "--trace", str(file), "--nodes", "2")
    assert "7 rows could not be read:" in out
    assert "... and 2 more" in out
    assert "No distribution: a fit needs at least three gaps" in out


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = {
    "estimates": "no such command estimates; did you mean estimate",
    "plan": "no such command plan; there are estimate, optimum, simulate, fit",
    "estimate": "--gpus is needed",
    "estimate --gpus 8": "--checkpoint-interval is needed",
    "estimate --gpus 8 --checkpoint-interval 1h": "--failure-rate or --mttf is needed",
    "estimate --gpus 8 --checkpoint-interval 60": "--checkpoint-interval: '60' is no time: a number of zero or more",
    "estimate --gpus 8 --checkpoint-interval 0": "--checkpoint-interval: expected a time above 0, got 0; or young",
    "estimate --gpus 8 --restart -3min": "--restart: '-3min' is no time",
    "estimate --gpus eight": "--gpus: expected a whole number from 1 to 1,000,000,000, got eight",
    "estimate --gpus 0": "--gpus: expected a whole number from 1 to 1,000,000,000, got 0",
    "estimate --failure-rate -1": "--failure-rate: expected a number of failures per node-day, zero or more, got -1",
    "estimate --failure-rate nan": "--failure-rate: expected a number of failures per node-day, zero or more, got nan",
    "estimate --failure-rate 1 --mttf 1h": "--mttf: not allowed with argument --failure-rate",
    "estimate --gpus 8 16 --mttf 1h --checkpoint-interval 1h": "--mttf is that of one size",
    "estimate --interval 1h": "no such option --interval; did you mean --checkpoint-interval?",
    "estimate --reach 1": "--reach: expected a number between 0 and 1, both excluded, got 1",
    "estimate --picture a.pdf": "--picture: expected a file name that ends in .png, got a.pdf",
    "estimate --table --gpus 8": "--table shows fixed cases, so it goes without --gpus",
    "estimate --table --picture a.png": "there is no picture of this",
    "estimate --gpus 8 --failure-rate 0 --checkpoint-interval young": "--checkpoint-interval young needs a",
    "estimate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --write-latency 2h": "--write-latency must be at most",
    "estimate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --write-latency 1s --run-length 1h": "no closed form",
    "estimate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --json - --csv -": "only one of --json and --csv",
    "estimate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --json no/a.json": "--json no/a.json cannot be",
    "optimum --gpus 8 --failure-rate 1": "optimum needs a --failure-rate and a --checkpoint-write above 0",
    "optimum --failure-rate 1": "--gpus is needed",
    "simulate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --gaps weibull": "--gaps weibull needs --shape",
    "simulate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --shape 2": "--shape is for weibull and gamma gaps",
    "simulate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --gaps trace": "--gaps trace and --trace FILE go",
    "simulate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --gaps poisson": "--gaps: invalid choice: 'poisson'",
    "simulate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --runs 0": "--runs: expected a whole number from 1 to",
    "simulate --gpus 8 --failure-rate 1 --checkpoint-interval 1h --system 3": "--system goes with --trace",
    "simulate --gpus 8 --failure-rate 0 --checkpoint-interval 1h": "--failure-rate must be above 0",
    "fit": "fit needs --trace FILE, or --failures with --nodes and --days",
    "fit --trace none.csv": "none.csv cannot be read: No such file or directory",
    "fit --failures 3 --nodes 8": "--days is needed",
    "fit --failures -3 --nodes 8": "--failures: expected a whole number from 0 to 1,000,000,000, got -3",
    "fit --failures 3 --nodes 8 --days 1 --confidence 95": "--confidence: expected a number between 0 and 1",
    "fit --failures 3 --nodes 8 --days 1 --system 3": "--system goes with --trace",
}


@pytest.mark.parametrize("args", MISTAKES)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[args] in fails(capsys, "ettr", *args.split())
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_cannot_get_on_says_so(capsys, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("start\n0\n0.01\n0.03\n0.04\n")
    args = ("--gpus", "8", "--checkpoint-interval", "10h", "--gaps", "trace", "--trace", str(file), "--nodes", "1")
    said = fails(capsys, "ettr", "simulate", *args)
    assert "8 GPUs, MTTF 14.4 min: the longest time without a failure, " in said
