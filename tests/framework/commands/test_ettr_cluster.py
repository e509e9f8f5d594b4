"""``fulgurite ettr cluster`` and ``lemons``: what they print and write, and their one-line errors."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from command_line import fails

from framework.cli import main

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/methods/reliability.md"
PNG = b"\x89PNG"
SMALL = ("cluster", "--gpus", "512", "--failure-rate", "0.05", "--duration", "5d")


def printed(capsys, *args):
    capsys.readouterr()
    main(["ettr", *args])
    out, err = capsys.readouterr()
    assert not err
    return out


def given_json(capsys, *args):
    return json.loads(printed(capsys, *args, "--json", "-"))


@pytest.mark.parametrize("command", ["cluster", "lemons"])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main(["ettr", command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fulgurite ettr {command}")
    assert all(option in out for option in ("--json", "--csv", "--picture"))


@pytest.mark.parametrize("line", re.findall(r"^fulgurite ettr ((?:cluster|lemons) .*)$", PAGE.read_text(), re.M))
def test_commands_of_the_page_run(capsys, line, data_root_or_skip):
    line = line.replace("lanl_failures.csv.gz", str(data_root_or_skip / "lanl_failures/lanl_failures.csv.gz"))
    words = shlex.split(line)
    assert printed(capsys, *[word for word in words if not word.endswith((".png", ".yaml")) and word != "--picture"])


# -- cluster -----------------------------------------------------------------------------------------------------------


def test_cluster(capsys, tmp_path):
    files = ("--picture", str(tmp_path / "a.png"), "--csv", str(tmp_path / "a.csv"))
    found = given_json(capsys, *SMALL, *files)
    whole = found["cluster"][0]
    assert whole["utilisation"] + whole["idle_share"] + whole["down_share"] == pytest.approx(1, abs=1e-9)
    assert 0.4 < whole["goodput"] < whole["utilisation"]
    sizes = found["sizes"]
    assert [row["gpus_to"] for row in sizes][:5] == [8, 16, 32, 64, 128]
    assert sum(row["failures"] for row in sizes) == whole["failures"] > 5
    parts = ("productive", "write", "start", "first_order", "second_order", "scheduling", "limit")
    for row in found["loss"]:
        assert sum(row[f"{part}_share"] for part in parts) == pytest.approx(1, abs=1e-9)
    assert sum(row["of_first_order"] for row in found["loss"][:-1]) == pytest.approx(1)
    assert "lemons" not in found
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    with (tmp_path / "a.csv").open(newline="") as lines:
        assert [row["gpus_to"] for row in csv.DictReader(lines)] == [f"{row['gpus_to']}" for row in sizes]
    assert given_json(capsys, *SMALL) == found
    assert given_json(capsys, *SMALL, "--seed", "1") != found
    assert "Synthetic jobs in the manner of RSC-1." in printed(capsys, *SMALL)


def test_cluster_with_lemons(capsys):
    found = given_json(capsys, *SMALL[:3], *SMALL[3:5], "--duration", "30d", "--lemons", "0.05", "--large", "64")
    none, by_history, all_ = found["lemons"]
    assert (none["nodes"], all_["nodes"], all_["lemons"]) == (0, 3, 3)
    assert by_history["lemons"] >= 2
    assert all_["failed_share"] < none["failed_share"]
    assert "from 14 % to 4 %" in " ".join(found["notes"])


def test_a_picture_without_failures(capsys, tmp_path):
    picture = tmp_path / "a.png"
    alone = ("--duration", "1d", "--restart", "0", "--guard", "2d")  # nothing is lost at all
    printed(capsys, *SMALL[:3], "--failure-rate", "0", *alone, "--picture", str(picture))
    assert picture.read_bytes().startswith(PNG)


def test_jobs_that_need_the_lemons_and_a_share_of_no_lemon(capsys, tmp_path):
    scenario = tmp_path / "s.yaml"
    scenario.write_text("gpus: 64\nfailure_rate: 0.01\nduration: 30d\nlemons: 0.125\njobs: [{gpus: 64, work: 3d}]\n")
    none, _, all_ = given_json(capsys, "cluster", "--scenario", str(scenario), "--large", "64")["lemons"]
    assert none["failed"] > 0
    assert (all_["nodes"], all_["lemons"], all_["failed"], all_["goodput"]) == (1, 1, None, None)
    found = given_json(capsys, "cluster", "--scenario", str(scenario), "--lemons", "0.01")
    assert "lemons" not in found
    assert "A share of 0.01 of 8 nodes is no whole lemon: there is none." in found["notes"]


def test_a_scenario_and_what_overrides_it(capsys, tmp_path):
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "gpus: 64\nfailure_rate: 0\nduration: 2d\nrestart: 10min\ncheckpoint-interval: 1h\n"
        "jobs:\n  - {gpus: 32, work: 10h, count: 3}\n  - {gpus: 60, work: 5h, submit: 1h, priority: 1}\n"
    )
    found = given_json(capsys, "cluster", "--scenario", str(scenario))
    assert [(row["gpus_to"], row["jobs"], row["done"]) for row in found["sizes"]] == [(32, 3, 3), (64, 1, 1)]
    assert found["sizes"][1]["preemptions"] == 0
    assert found["sizes"][0]["preemptions"] == 2  # after their guard time
    assert found["loss"][1]["start_share"] == pytest.approx(10 / 310)
    assert "Synthetic" not in " ".join(found["notes"])
    again = given_json(capsys, "cluster", "--scenario", str(scenario), "--restart", "0")
    assert again["loss"][1]["start_share"] == 0


def test_jobs_of_a_file(capsys, tmp_path):
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("submit,gpus,duration\n0,8,60\n1h,16,2h\n2h,9999,2h\n")
    found = given_json(capsys, *SMALL[:3], "--failure-rate", "0", "--jobs", str(jobs))
    assert [row["jobs"] for row in found["sizes"]] == [1, 1]
    assert found["notes"][-1] == f"{jobs}:4: gpus is 9999, more than the cluster has"


MISTAKES = {
    "cluster": "--gpus is needed",
    "cluster --gpus 64": "--failure-rate is needed",
    "cluster --gpus 60 --failure-rate 0.1": "--gpus must be whole nodes of 8 GPUs, got 60",
    "cluster --gpus 64 --failure-rate nan": "--failure-rate: expected a number of zero or more, got nan",
    "cluster --gpus 64 --failure-rate 0.1 --lemons 2": "--lemons: expected a number from 0 to 1, got 2",
    "cluster --gpus 64 --failure-rate 0.1 --guard 2": "--guard: '2' is no time",
    "cluster --gpus 64 --failure-rate 0.1 --checkpoint-interval young": "--checkpoint-interval young needs a",
    "cluster --gpus 64 --failure-rate 0.1 --mix x": "--mix: invalid choice: 'x'",
    "cluster --gpus 8 --failure-rate 0.1": "nodes must be at least 2 for a mix of jobs, got 1",
    "cluster --gpus 999999992 --failure-rate 0": "nodes must be at most 10,000,000, got 124,999,999",
    "cluster --gpus 64 --failure-rate 1e9": "more than 20,000,000 are too many to wait for",
    "cluster --gpus 64 --failure-rate 0.1 --jobs none.csv": "none.csv cannot be read: No such file",
    "cluster --scenario none.yaml": "none.yaml: [Errno 2] No such file",
    "cluster --scenario twice.yaml": "twice.yaml:2: key gpus given twice",
    "cluster --scenario list.yaml": "--scenario list.yaml must hold options by name",
    "cluster --scenario key.yaml": "no such option --gpu=64; did you mean --gpus",
    "cluster --scenario nested.yaml": "--scenario nested.yaml: gpus must be one option's number or text, got [64]",
    "cluster --scenario job.yaml": "job 2 of the scenario has an unknown key size",
    "cluster --scenario work.yaml": "job 1 of the scenario: '3' is no time",
    "cluster --scenario count.yaml": "job 1 of the scenario: count must be a whole number above 0, got 0",
    "cluster --scenario large.yaml": "a job asks for 9 nodes, and the cluster has 8",
    "cluster --scenario late.yaml --csv a.csv": "no job is submitted in the first 60 min",
    "cluster --scenario nothing.yaml": "--scenario nothing.yaml: jobs must list at least one",
    "cluster --scenario crowd.yaml": "job 1 of the scenario: count must be at most 2,000,000, got 999,999,999",
    "cluster --gpus 64 --failure-rate 0.1 --load 1e25": "jobs: more than 2,000,000 are too many to wait for",
    "lemons": "lemons needs --trace FILE or --synthetic",
    "lemons --synthetic --trace a.csv": "lemons needs --trace FILE or --synthetic",
    "lemons --trace none.csv": "none.csv cannot be read: No such file",
    "lemons --trace t.csv --failure-rate 1": "--failure-rate goes with --synthetic",
    "lemons --trace t.csv --nodes 2": "lemons need a trace with a column node that is never empty",
    "lemons --synthetic --system 3": "--system goes with --trace",
    "lemons --synthetic --nodes 1.5": "--nodes must be a whole number, got 1.5",
    "lemons --trace t.csv --nodes 2.5": "--nodes must be a whole number, got 2.5",
    "lemons --synthetic --failure-rate 1e-9": "--split 0.5: no failure before it, or none after it",
    "lemons --synthetic --failure-rate 1e25": "records: more than 5,000,000 are too many to wait for",
    "lemons --synthetic --split 1": "--split: expected a number between 0 and 1, both excluded, got 1",
    "lemons --synthetic --votes 7": "--votes: expected a whole number from 1 to 6, got 7",
}
FILES = {
    "list.yaml": "- 1\n",
    "twice.yaml": "gpus: 64\ngpus: 32\n",
    "key.yaml": "gpu: 64\n",
    "nested.yaml": "gpus: [64]\n",
    "job.yaml": "gpus: 64\nfailure_rate: 0\njobs: [{gpus: 8, work: 1h}, {gpus: 8, work: 1h, size: 3}]\n",
    "work.yaml": "gpus: 64\nfailure_rate: 0\njobs: [{gpus: 8, work: 3}]\n",
    "count.yaml": "gpus: 64\nfailure_rate: 0\njobs: [{gpus: 8, work: 3h, count: 0}]\n",
    "large.yaml": "gpus: 64\nfailure_rate: 0\njobs: [{gpus: 65, work: 3h}]\n",
    "late.yaml": "gpus: 64\nfailure_rate: 0\nduration: 1h\njobs: [{gpus: 8, work: 3h, submit: 1h}]\n",
    "nothing.yaml": "gpus: 64\nfailure_rate: 0\njobs: []\n",
    "crowd.yaml": "gpus: 64\nfailure_rate: 0\njobs: [{gpus: 8, work: 3h, count: 999999999}]\n",
    "t.csv": "start\n1\n2\n",
}


@pytest.mark.parametrize("args", MISTAKES)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).write_text(content)
    assert MISTAKES[args] in fails(capsys, "ettr", *args.split())


# -- lemons ------------------------------------------------------------------------------------------------------------


def test_lemons_of_made_up_data(capsys, tmp_path):
    files = ("--picture", str(tmp_path / "a.png"), "--csv", str(tmp_path / "a.csv"))
    found = given_json(capsys, "lemons", "--synthetic", *files)
    assert found["synthetic"] is True
    known = [row for row in found["evaluation"] if row["truth"] == "made a lemon"]
    assert [row["precision"] >= 0.85 for row in known[:2]] == [True, True]
    assert all(row["p_value"] < 1e-6 for row in known)
    assert len(found["nodes"]) == 2048
    assert sum(row["lemon"] for row in found["nodes"]) == 25
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    with (tmp_path / "a.csv").open(newline="") as lines:
        assert len(list(csv.DictReader(lines))) == 2048
    out = printed(capsys, "lemons", "--synthetic")
    assert "Synthetic data, made up." in out
    assert len(out.splitlines()) < 45


def test_lemons_of_public_records(capsys, data_root_or_skip):
    trace = ("--trace", str(data_root_or_skip / "lanl_failures/lanl_failures.csv.gz"), "--system", "18")
    found = given_json(capsys, "lemons", *trace)
    by_rate = found["evaluation"][-1]
    assert by_rate["lift"] > 5
    assert by_rate["p_value"] < 1e-9
    assert by_rate["low"] > by_rate["bad"] / 1024
    assert found["nodes"][0]["node"] == "0"
    window = given_json(capsys, "lemons", *trace, "--window", "28d")
    assert window["rates"][0]["days"] == pytest.approx(28)
