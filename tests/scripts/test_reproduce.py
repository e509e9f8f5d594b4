import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from framework.evaluation.records import read_records
from scripts._reproduce.experiments import Experiments, load
from scripts._reproduce.jobs import Run, Select
from scripts._reproduce.main import main
from scripts._reproduce.workers import best_row, finished, outcome, run_all

ROOT = Path(__file__).resolve().parents[2]

CLASSIFIER = {
    "seeds": 2,
    "overrides": {"trainer.max_epochs": 2, "model.hidden": [8]},
    "data": {"digits": "classifier/digits"},
    "rows": [
        {
            "name": "MLP, tuned",
            "grid": {"model.lr": [1e-5, 0.01]},
            "select": {"metric": "val/accuracy", "ties": [{"metric": "val/loss", "mode": "min"}]},
        },
        {"name": "by loss", "runs": "MLP, tuned", "select": {"metric": "val/loss", "mode": "min"}},
    ],
}


def experiments(tmp_path, **changes):
    return Experiments("classifier", {**CLASSIFIER, **changes}, tmp_path / "runs")


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "scripts" / "experiments").mkdir(parents=True)
    (tmp_path / "docs" / "results").mkdir(parents=True)

    def declare(name, content):
        (tmp_path / "scripts" / "experiments" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return tmp_path

    return declare


# Declarations


def test_a_grid_becomes_runs_with_the_last_key_fastest(tmp_path):
    rows = [{"name": "a", "grid": {"model.lr": [1, 2], "model.hidden": [[8], [16]]}, "select": {"metric": "val/loss"}}]
    (cell,) = experiments(tmp_path, rows=rows).cells(seeds=1)
    assert [list(run.point.values()) for run in cell.jobs] == [[1, [8]], [1, [16]], [2, [8]], [2, [16]]]
    first = cell.jobs[0]
    assert first.command == (
        "scripts/fulgurite fit -c classifier/digits --trainer.max_epochs=2 '--model.hidden=[8]' --model.lr=1 "
        "--seed_everything=1 --data.seed=1"
    )
    assert len({run.directory for run in cell.jobs}) == len({run.hash for run in cell.jobs}) == 4


def test_seeds_rows_and_data_can_be_narrowed_and_seeds_extended(tmp_path):
    e = experiments(tmp_path, seeds=[3, 7], data={"a": "classifier/digits", "b": "classifier/digits"})
    assert [(c.rows[0], c.data, c.seed) for c in e.cells(rows=["by loss"], data=["b"])] == [
        ("by loss", "b", 3),
        ("by loss", "b", 7),
    ]
    assert [cell.seed for cell in e.cells(["by loss"], ["a"], 4)] == [3, 7, 8, 9]
    assert [cell.seed for cell in e.cells(["by loss"], ["a"], 1)] == [3]
    assert [cell.seed for cell in e.cells(["by loss"], ["a"], [5])] == [5]


def test_runs_that_start_from_another_say_so_and_change_with_it(tmp_path):
    start = {"config": "classifier/mnist", "overrides": {"model.lr": 0.5}, "key": "model.weights"}
    data = {"a": {"config": ["classifier/digits", "federation/iid"], "start": start}}
    rows = [{"name": "x", "command": "federate"}, {"name": "y", "command": "federate"}]
    first, second = (cell.jobs[0] for cell in experiments(tmp_path, data=data, rows=rows).cells(seeds=1))
    assert first.start == second.start
    assert first.arguments[0] == "federate"
    assert first.arguments[-1] == f"--model.weights={tmp_path}/runs/classifier/start/{first.start.hash}/best.ckpt"
    fit, best, own = first.command.split(" && ")
    assert fit == (
        "scripts/fulgurite fit -c classifier/mnist --model.lr=0.5 --seed_everything=1 --data.seed=1 --name=start"
    )
    assert best == "START=$(ls -t runs/start/*/checkpoints/best*.ckpt | head -n 1)"
    assert own.startswith("scripts/fulgurite federate -c classifier/digits -c federation/iid --trainer")
    assert own.endswith(' "--model.weights=$START"')
    other = {"a": {**data["a"], "start": {**start, "overrides": {"model.lr": 0.6}}}}
    (changed,) = experiments(tmp_path, data=other, rows=rows[:1]).cells(seeds=1)
    assert changed.jobs[0].hash != first.hash


@pytest.mark.parametrize("start", ["classifier/mnist", {"config": "classifier/mnist"}, {"key": "model.weights"}])
def test_a_start_needs_a_configuration_and_a_key(tmp_path, start):
    with pytest.raises(ValueError, match="data a: start needs `config`, and `key`"):
        experiments(tmp_path, data={"a": {"config": "classifier/digits", "start": start}})


def test_a_command_is_fit_or_federate(tmp_path):
    with pytest.raises(ValueError, match="row x: command must be fit or federate, got 'test'"):
        experiments(tmp_path, rows=[{"name": "x", "command": "test"}])


def test_federations_start_from_one_fit_for_all_of_a_seed(tmp_path):
    """The fit is run once; the federations are given its checkpoint, and record what the last round tested."""
    start = {"config": "classifier/digits", "key": "about.summary", "overrides": {"trainer.max_epochs": 1}}
    data = {"a": {"config": ["classifier/digits", "federation/iid"], "start": start}}
    rows = [
        {"name": name, "command": "federate", "overrides": {"model.lr": lr}} for name, lr in (("x", 0.1), ("y", 0.2))
    ]
    keys = {"federation.clients": 2, "federation.rounds": 1, "model.hidden": [8]}
    e = experiments(tmp_path, data=data, rows=rows, overrides=keys, seeds=1)
    jobs = [cell.jobs[0] for cell in e.cells()]
    for done in run_all(jobs, 2, keep=True):
        assert done.code == 0, done.last_lines(20)
    checkpoint = jobs[0].start.checkpoint
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    for job in jobs:
        saved = yaml.safe_load((job.directory / "run" / "0" / "config.yaml").read_text())
        assert saved["about"]["summary"] == str(checkpoint)
        assert outcome(job)["monitor"] == "val/accuracy"
        assert {"test/accuracy", "test/loss"} <= set(outcome(job)["metrics"])
        assert "val/accuracy" in outcome(job)["monitored"]


def test_a_row_may_have_overrides_of_its_own_for_a_data_set(tmp_path):
    rows = [{"name": "a", "overrides": {"model.lr": 0.1}, "data": {"a": {"model.lr": 0.2}, "b": {}}}]
    data = dict.fromkeys("abc", "classifier/digits")
    cells = experiments(tmp_path, data=data, rows=rows).cells(seeds=1)
    assert [(cell.data, cell.jobs[0].keys["model.lr"]) for cell in cells] == [("a", 0.2), ("b", 0.1)]


@pytest.mark.parametrize("file", sorted((ROOT / "scripts" / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_is_declared_is_found_from_any_folder(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = load(file, tmp_path / "runs").cells(seeds=1)
    assert cells
    for run in (job for cell in cells for job in cell.jobs if isinstance(job, Run)):
        assert str(ROOT) not in run.command  # records hold commands that can be typed elsewhere
        places = [Path(word) for flag, word in zip(run.arguments, run.arguments[1:]) if flag == "-c"]
        assert places
        assert all(place.is_absolute() and place.is_file() for place in places)


def test_rows_of_the_same_runs_share_them(tmp_path):
    tuned, by_loss = experiments(tmp_path).cells(seeds=1)
    assert tuned.jobs == by_loss.jobs
    assert tuned.experiment != by_loss.experiment


def test_the_hash_follows_the_resolved_configuration_and_not_its_wording(tmp_path):
    config = tmp_path / "mine.yaml"
    text = (ROOT / "configs" / "classifier" / "digits.yaml").read_text()

    def digest(content):
        config.write_text(content)
        return experiments(tmp_path, data={"digits": str(config)}).cells(seeds=1)[0].experiment

    before = digest(text)
    assert digest(text + "\n# a remark\n") == before
    assert digest(text.replace("summary: ", "summary: Really, ")) == before
    assert digest(text.replace("class_path: Digits", "class_path: Digits\n  init_args: {batch_size: 7}")) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "experiments need `data` and `rows`"),
        ({"colour": 1}, "experiments has unknown keys colour; it takes command, data, overrides"),
        ({"rows": [{"nam": "a"}]}, "row 1 has unknown keys nam"),
        ({"rows": [{"grid": {}}]}, "row 1 needs `name`"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "row a is declared twice"),
        ({"rows": [{"name": "a", "data": ["iris"]}]}, "row a: data 'iris' is not declared; there are digits"),
        ({"rows": [{"name": "a", "grid": {"model.lr": 3}}]}, "every key of the grid needs a list of values"),
        ({"rows": [{"name": "a", "grid": {"model.lr": [1, 2]}}]}, "row a: a grid needs `select`"),
        (
            {"rows": [{"name": "a", "select": {"metric": "test/accuracy"}}]},
            "a validation metric, got 'test/a",
        ),
        ({"rows": [{"name": "a", "select": {"metric": "val/a", "mode": "up"}}]}, "mode of val/a must be max or min"),
        ({"rows": [{"name": "a", "runs": "b", "select": {"metric": "val/a"}}]}, "runs must name a row with runs"),
        ({"rows": [{"rows": ["a"], "callable": "f"}]}, "callable must read package.module:function, got 'f'"),
        ({"rows": [{"callable": "a:b"}]}, "row 1 needs `rows`"),
        ({"rows": [{"name": "a", "collect": "f"}]}, "collect must read package.module:function, got 'f'"),
    ],
)
def test_bad_declarations_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        experiments(tmp_path, **changes)


def test_unknown_rows_data_and_methods_are_named(tmp_path, checkout, capsys):
    with pytest.raises(ValueError, match="no row 'x' is declared for classifier; there are MLP, tuned, by loss"):
        experiments(tmp_path).cells(rows=["x"])
    with pytest.raises(ValueError, match="no data set 'x' is declared"):
        experiments(tmp_path).cells(data=["x"])
    assert main(["lds"], checkout("classifier", CLASSIFIER)) == 2
    assert "no experiments for lds: " in (line := capsys.readouterr().err)
    assert "(there are: classifier)" in line
    assert main(["classifier", "--seeds", "0"], tmp_path) == 2
    assert main(["classifier", "--jobs", "0"], tmp_path) == 2


# Choosing


def test_the_grid_point_is_picked_by_validation_then_ties_then_order():
    points = [
        {"stop/accuracy": 1.0, "stop/loss": 0.3},
        {"stop/accuracy": 0.9, "stop/loss": 0.1},
        {"stop/accuracy": 1.0, "stop/loss": 0.2},
        {"stop/accuracy": 1.0, "stop/loss": 0.2},
    ]
    assert Select("stop/accuracy").pick(points)[0] == 0
    assert Select("stop/accuracy", last=True).pick(points)[0] == 3
    assert Select("stop/loss", "min").pick(points)[0] == 1
    index, record = Select("stop/accuracy", ties=(("stop/loss", "min"),)).pick(points)
    assert index == 2
    assert record == {
        "metric": "stop/accuracy",
        "mode": "max",
        "points": 4,
        "tied": 3,
        "ties": "stop/loss min, then first",
    }
    with pytest.raises(ValueError, match="select needs stop/f1, and the run logged stop/accuracy, stop/loss"):
        Select("stop/f1").pick(points)


def test_best_row_is_the_first_of_the_best_and_never_holds_test_metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,val/accuracy,val/loss,train/loss,test/accuracy\n"
        "1,,,0.9,\n1,0.5,0.7,,\n2,0.8,0.6,,\n3,0.8,0.5,,\n3,,,,0.4\n"
    )
    assert best_row(path, "val/accuracy", "max") == {"step": 2, "val/accuracy": 0.8, "val/loss": 0.6}
    assert best_row(path, "val/loss", "min")["step"] == 3
    assert best_row(path, None, "min") == {"step": 3, "val/accuracy": 0.8, "val/loss": 0.5, "train/loss": 0.9}
    with pytest.raises(ValueError, match="no value of the monitored val/f1"):
        best_row(path, "val/f1", "max")


def test_seeds_of_their_own_pick_a_point_once_for_all(tmp_path):
    row = CLASSIFIER["rows"][0]
    rows = [{**row, "select": {**row["select"], "seeds": [101, 102]}}]
    cells = experiments(tmp_path, rows=rows).cells()
    assert [cell.seed for cell in cells] == [1, 2]
    assert len({run.directory for cell in cells for run in cell.first}) == 4  # two seeds, two points
    for cell in cells:
        assert [[run.seed for run in point] for point in cell.tuning] == [[101, 102], [101, 102]]
        assert [{run.point["model.lr"] for run in point} for point in cell.tuning] == [{1e-5}, {0.01}]
    # An earlier declaration without such seeds keeps its hash.
    alone = experiments(tmp_path).cells(rows=["MLP, tuned"])[0]
    assert alone.experiment != cells[0].experiment
    assert "seeds" not in alone.select.declared


# Real runs


@pytest.mark.process
@pytest.mark.slow
def test_reported_seeds_run_with_what_others_picked(checkout, capsys):
    row = CLASSIFIER["rows"][0]
    content = {**CLASSIFIER, "rows": [{**row, "select": {**row["select"], "seeds": [101]}}]}
    root = checkout("classifier", content)
    assert main(["classifier", "--list"], root) == 0
    assert "2 records to make, 2 runs to do (0 finished earlier), and then 2 with what" in capsys.readouterr().out
    assert main(["classifier", "--jobs", "2"], root) == 0
    printed = capsys.readouterr().out
    assert "2 records to make, 2 runs to pick by" in printed
    assert "2 records to make, 2 runs to do" in printed
    records = read_records(root / "docs" / "results" / "classifier.json")
    assert [record.seed for record in records] == [1, 2]
    for record in records:
        assert record.choice == {"model.lr": 0.01}
        assert record.selection["seeds"] == [101]
        assert record.metrics["test/accuracy"] > 0.15
    assert main(["classifier"], root) == 0
    assert "0 records to make" in capsys.readouterr().out


@pytest.mark.process
@pytest.mark.slow
def test_records_are_made_tables_filled_and_what_is_done_is_not_done_again(checkout, capsys):
    root = checkout("classifier", CLASSIFIER)
    (root / "README.md").write_text("<!-- table: classifier/accuracy -->\n<!-- end table -->\n")
    (root / "docs" / "results" / "classifier.yaml").write_text('accuracy: {rows: ["MLP, tuned"], columns: [digits]}')
    assert main(["classifier", "--jobs", "2"], root) == 0
    assert "4 records to make, 4 runs to do" in capsys.readouterr().out
    path = root / "docs" / "results" / "classifier.json"
    records = read_records(path)
    assert [record.key for record in records] == [
        (row, "digits", s) for row in ("MLP, tuned", "by loss") for s in (1, 2)
    ]
    for record in records:
        assert record.choice == {"model.lr": 0.01}  # 1e-5 learns nothing in two epochs
        assert record.metrics["test/accuracy"] > 0.15  # of ten classes, after two epochs
        assert record.selection["points"] == 2
        assert record.environment.packages["torch"]
        assert 50 < record.peak_mb < 10_000
        assert "--model.lr=0.01" in record.command
    assert "| MLP, tuned |" in (root / "README.md").read_text()
    assert main(["--check"], root) == 0
    assert not list((root / "runs").rglob("*.ckpt"))

    # The command of a record, typed by hand, reaches the same numbers.
    command = [sys.executable, "-m", "framework.cli", *shlex.split(records[0].command)[1:]]
    command += [
        "--trainer.default_root_dir",
        str(root / "by-hand"),
        "--trainer.enable_progress_bar=false",
        "--name",
        "x",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    by_hand = json.loads((root / "by-hand" / "x" / "0" / "results.json").read_text())["metrics"]
    assert by_hand == {name: value for name, value in records[0].metrics.items() if name.startswith("test/")}

    before = path.read_bytes()
    assert main(["classifier"], root) == 0
    assert "0 records to make, 0 runs to do" in capsys.readouterr().out
    path.unlink()  # the runs are still there
    assert main(["classifier"], root) == 0
    assert "4 records to make, 0 runs to do (4 finished earlier)" in capsys.readouterr().out
    assert path.read_bytes() == before

    (root / "README.md").write_text((root / "README.md").read_text().replace(" ± ", " ± 1"))
    assert main(["--check"], root) == 1
    assert "README.md: classifier/accuracy differs" in capsys.readouterr().err
    assert main(["--tables"], root) == 0
    assert main(["--check"], root) == 0


@pytest.mark.process
@pytest.mark.slow
def test_a_forked_run_equals_one_in_a_fresh_process(tmp_path):
    (cell,) = experiments(tmp_path / "a", rows=[{"name": "a"}]).cells(seeds=1)
    (other,) = experiments(tmp_path / "b", rows=[{"name": "a"}]).cells(seeds=1)
    assert [done.code for done in run_all(cell.jobs, 1)] == [0]
    assert [done.code for done in run_all(other.jobs, 1, fresh=True)] == [0]
    forked, fresh = outcome(cell.jobs[0]), outcome(other.jobs[0])
    assert forked["metrics"] == fresh["metrics"]
    assert forked["monitored"] == fresh["monitored"]
    assert finished(cell.jobs[0])


def rows_of_python(data, seed, raises=False, killed=False):
    if raises:
        raise RuntimeError("no such luck")
    if killed:
        os.kill(os.getpid(), 9)
    return {
        "A": {"metrics": {"test/accuracy": seed / 10}, "choice": {"k": 3}},
        "B": {"metrics": {"test/accuracy": 0.5}},
    }


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """This file as a module that worker processes can import."""
    (tmp_path / "my_rows.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)


def losses_of_the_run(directory):
    """What an experiment of the next test collects: the log is there, and so are the checkpoints."""
    with (directory / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    return {
        "metrics": {"files": len(list((directory / "checkpoints").iterdir()))},
        "curves": {"epoch": [1, 2], "loss": losses},
    }


@pytest.mark.process
def test_more_is_collected_from_the_directory_of_a_run(checkout, importable, capsys):
    row = {"name": "MLP", "collect": "my_rows:losses_of_the_run"}
    root = checkout("classifier", {**CLASSIFIER, "seeds": 1, "rows": [row]})
    assert main(["classifier"], root) == 0, capsys.readouterr().err
    (record,) = read_records(root / "docs" / "results" / "classifier.json")
    assert record.metrics["files"] == 2
    assert record.metrics["test/accuracy"] > 0
    assert record.curves["epoch"] == [1, 2]
    assert record.curves["loss"][-1] == pytest.approx(record.metrics["test/loss"], rel=0.3)
    plain = checkout("classifier", {**CLASSIFIER, "seeds": 1, "rows": [{"name": "MLP"}]})
    (cell,) = Experiments("classifier", {**CLASSIFIER, "rows": [{"name": "MLP"}]}, plain / "runs").cells(seeds=1)
    assert cell.experiment != record.experiment  # what is collected belongs to what was declared


@pytest.mark.process
def test_callables_make_rows_and_failures_do_not_stop_the_rest(checkout, importable, capsys):
    def call(row, **arguments):
        return {"rows": [row, row + "2"], "callable": "my_rows:rows_of_python", "arguments": arguments}

    content = {
        "seeds": 2,
        "data": {"wine": None},
        "rows": [
            {"rows": ["A", "B"], "callable": "my_rows:rows_of_python"},
        ],
    }
    root = checkout("python", content)
    assert main(["python"], root) == 0
    records = read_records(root / "docs" / "results" / "python.json")
    assert {(r.row, r.seed): r.metrics["test/accuracy"] for r in records} == {
        ("A", 1): 0.1,
        ("A", 2): 0.2,
        ("B", 1): 0.5,
        ("B", 2): 0.5,
    }
    assert records[0].choice == {"k": 3}
    assert records[0].command == "scripts/reproduce python --rows A B --data wine --seed 1 --force"
    capsys.readouterr()

    for arguments, reason in (
        ({"raises": True}, "RuntimeError: no such luck"),
        ({"killed": True}, "killed by signal 9"),
    ):
        content["rows"] = [{**content["rows"][0], "arguments": arguments}]
        (root / "docs" / "results" / "python.json").unlink(missing_ok=True)
        root = checkout("python", content)
        assert main(["python", "--jobs", "2"], root) == 1
        errors = capsys.readouterr().err
        assert errors.count("failed: my_rows:rows_of_python on wine, seed") == 2
        assert reason in errors
        assert "2 of 2 runs failed; their records were not made" in errors
        assert read_records(root / "docs" / "results" / "python.json") == []

    content["rows"] = [call("C")]
    assert main(["python", "--seeds", "1"], checkout("python", content)) == 1
    assert "returned the rows A, B; declared are C, C2" in capsys.readouterr().err


@pytest.mark.process
def test_the_script_itself_runs_from_any_folder(tmp_path):
    script = [sys.executable, ROOT / "scripts" / "reproduce"]
    done = subprocess.run([*script, "--check"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr  # whether the tables are right is CI's question
    done = subprocess.run([*script, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert "--seeds N" in done.stdout
