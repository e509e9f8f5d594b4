"""The command line as a user meets it: runs, layers, links, errors, resuming."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from framework.cli import main, run
from framework.metrics_log import MetricsLog
from framework.rundir import reserve, run_directory


def rows(run_dir, file="metrics.csv"):
    with open(Path(run_dir) / file, newline="") as lines:
        return list(csv.DictReader(lines))


def fails(capsys, *args, code=2):
    """Run a failing command and return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    assert exit_.value.code == code
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("fulgurite: error: ")
    return lines[0]


# -- a run ------------------------------------------------------------------------------------------------------------


def test_fit_fills_one_directory_and_prints_ours_beside_the_published_number(project, capsys):
    assert main(["fit", "-c", "base.yaml"]) is None
    out = capsys.readouterr().out
    home = Path("runs/base/0")
    assert {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()} == {
        "config.yaml", "metrics.csv", "results.json", "checkpoints/last.ckpt", "checkpoints/best-epoch=1.ckpt"
    }  # fmt: skip
    assert project.files() == {"runs", "runs/base", "runs/base/0"} | {str(p) for p in home.rglob("*")}
    row = next(line for line in out.splitlines() if line.startswith("test/loss"))
    assert "0.5 ± 0.1 (unverified)" in row
    assert "a colleague" in row
    record = json.loads((home / "results.json").read_text())
    assert record["metrics"]["test/loss"] == pytest.approx(float(row.split()[1]), rel=1e-3)
    assert record["checkpoint"] == "checkpoints/best-epoch=1.ckpt"
    assert record["reference"][0]["source"] == "a colleague"
    assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0] or "torch" in str(record)


def test_saved_configuration_is_complete_and_runs_again_under_the_same_name(project):
    first = run(["fit", "-c", "base.yaml", "--model.lr", "0.02", "--seed_everything", "3"])
    saved = yaml.safe_load((first.directory / "config.yaml").read_text())
    assert saved["model"]["init_args"] == {"inputs": 4, "lr": 0.02, "fail": ""}
    assert saved["about"]["reference"][0]["verified"] is False
    assert saved["seed_everything"] == 3
    assert saved["name"] == "base"
    assert "ckpt_path" not in saved
    second = run(["fit", "-c", str(first.directory / "config.yaml")])
    assert second.directory == Path("runs/base/1")
    assert second.results == first.results
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


@pytest.mark.parametrize("logger", ["csv", "off", "tensorboard", "lightning_csv", "wandb"])
def test_run_directory_is_the_same_with_every_logger(project, logger, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    extra = {
        "csv": [],
        "off": ["--trainer.logger", "false"],
        "tensorboard": ["--trainer.logger", "TensorBoardLogger"],
        "lightning_csv": ["--trainer.logger", "CSVLogger"],
        "wandb": ["--trainer.logger", "WandbLogger"],
    }[logger]
    done = run(["fit", "-c", "base.yaml", "--name", "here/there", *extra])
    home = Path("runs/here/there/0")
    assert done.directory == home
    assert Path(done.trainer.log_dir).resolve() == home.resolve()
    assert run_directory(done.trainer) == home
    assert Path(done.trainer.checkpoint_callback.dirpath) == (home / "checkpoints").resolve()
    assert (home / "config.yaml").is_file()
    assert (home / "metrics.csv").is_file() == (logger != "off")
    assert {path.name for path in project.folder.iterdir()} == {project.package, "base.yaml", "runs"}
    assert [path.name for path in Path("runs/here/there").iterdir()] == ["0"]


def test_metrics_hold_every_logged_step(project):
    done = run(["fit", "-c", "base.yaml"])
    found = rows(done.directory)
    assert [row["step"] for row in found if row["train/loss"]] == [str(step) for step in range(8)]
    assert [row["step"] for row in found if row["val/loss"]] == ["3", "7"]
    assert [row["step"] for row in found if row["test/loss"]] == ["8"]
    assert list(found[0])[:2] == ["step", "epoch"]


def test_fast_dev_run_leaves_nothing_and_still_tests(project):
    done = run(["fit", "-c", "base.yaml", "--trainer.fast_dev_run", "2"])
    assert set(done.results) == {"test/loss"}
    assert project.files() == set()


def test_best_checkpoint_is_tested_not_the_last(project):
    diverging = ["--trainer.max_epochs", "6", "--model.lr", "0.4"]
    done = run(["fit", "-c", "base.yaml", *diverging])
    best = torch.load(done.trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert best["epoch"] < 5  # the case would prove nothing otherwise
    losses = [float(row["val/loss"]) for row in rows(done.directory) if row["val/loss"]]
    assert done.results["test/loss"] == pytest.approx(min(losses), rel=1e-5)


def test_test_after_fit_can_be_switched_off(project):
    assert run(["fit", "-c", "base.yaml", "--test_after_fit", "false"]).results == {}


def test_own_model_checkpoint_replaces_the_default_one(project):
    extra = [
        "--trainer.callbacks+",
        "ModelCheckpoint",
        "--trainer.callbacks.filename",
        "mine",
        "--trainer.callbacks.monitor",
        "val/loss",
    ]
    done = run(["fit", "-c", "base.yaml", *extra])
    assert {path.name for path in (done.directory / "checkpoints").iterdir()} == {"mine.ckpt", "last.ckpt"}
    assert sum(isinstance(callback, ModelCheckpoint) for callback in done.trainer.callbacks) == 2


def test_evaluation_uses_the_best_checkpoint_and_writes_beside_it(project, capsys):
    fitted = run(["fit", "-c", "base.yaml"])
    config = (fitted.directory / "config.yaml").read_bytes()
    metrics = (fitted.directory / "metrics.csv").read_bytes()
    tested = run(["test", "-c", "base.yaml"])
    assert tested.directory == fitted.directory
    assert tested.results == fitted.results
    assert run(["validate", "-c", "base.yaml", "--ckpt_path", "last"]).results.keys() == {"val/loss"}
    run(["predict", "-c", "base.yaml"])
    assert (fitted.directory / "config.yaml").read_bytes() == config
    assert (fitted.directory / "metrics.csv").read_bytes() == metrics
    assert json.loads((fitted.directory / "results-test.json").read_text())["metrics"] == tested.results
    assert len(rows(fitted.directory, "metrics-test.csv")) == 1
    assert run(["test", "-c", str(fitted.directory / "config.yaml")]).results == fitted.results
    fresh = run(["test", "-c", "base.yaml", "--ckpt_path", "none"])
    assert fresh.results != tested.results
    assert fresh.directory == Path("runs/base/1")


def test_threads_are_set_for_the_run_only(project, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda n: seen.append(n))
    run(["fit", "-c", "base.yaml", "--threads", "1", "--trainer.fast_dev_run", "1"])
    assert seen == [1, before]


def test_two_reservations_never_share_a_directory(tmp_path):
    assert [reserve(tmp_path, "a/b").name for _ in range(12)] == [str(n) for n in range(12)]


# -- layers -----------------------------------------------------------------------------------------------------------


def resolved(capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *args, "--print_config"])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_later_layers_win_and_keys_apply_in_order(project, capsys):
    project.write("a.yaml", "trainer: {max_epochs: 5}\nmodel: {init_args: {lr: 0.5}}\n")
    config = resolved(capsys, "-c", "base.yaml", "--trainer.max_epochs", "9", "-c", "a.yaml", "--model.lr=0.25")
    assert config["trainer"]["max_epochs"] == 5
    assert config["model"]["init_args"]["lr"] == 0.25


def test_lists_are_replaced_unless_appended(project, capsys):
    stop = "{class_path: EarlyStopping, init_args: {monitor: %s}}"
    project.write("one.yaml", f"trainer: {{callbacks: [{stop % 'a'}, {stop % 'b'}]}}\n")
    project.write("two.yaml", f"trainer: {{callbacks: [{stop % 'c'}]}}\n")
    project.write("add.yaml", f"trainer:\n  callbacks+:\n    - {stop % 'd'}\n")
    project.write("more.yaml", f"trainer:\n  callbacks+: {stop % 'e'}\n")

    def monitors(*files):
        layers = [part for file in ("base.yaml", *files) for part in ("-c", file)]
        return [each["init_args"]["monitor"] for each in resolved(capsys, *layers)["trainer"].get("callbacks", [])]

    assert monitors("one.yaml", "two.yaml") == ["c"]
    assert monitors("one.yaml", "add.yaml", "more.yaml") == ["a", "b", "d", "e"]
    assert monitors("add.yaml", "more.yaml", "add.yaml") == ["d", "e", "d"]
    assert monitors() == []


def test_interpolation_sees_every_layer(project, capsys):
    project.write(
        "inter.yaml",
        "model: {init_args: {lr: '${oc.decode:${oc.env:MY_LR,0.5}}'}}\n"
        "trainer: {min_epochs: '${trainer.max_epochs}'}\n",
    )
    config = resolved(capsys, "-c", "inter.yaml", "-c", "base.yaml", "--trainer.max_epochs", "7")
    assert config["trainer"]["min_epochs"] == 7
    assert resolved(capsys, "-c", "base.yaml", "-c", "inter.yaml")["model"]["init_args"]["lr"] == 0.5


def test_switch_of_class_drops_the_arguments_of_the_replaced_one(project, capsys):
    project.write("sized.yaml", "data: {init_args: {features: 7, rows: 16}}\n")
    project.write("other.yaml", f"data: {{class_path: {project.package}.net.Other}}\n")
    config = resolved(capsys, "-c", "base.yaml", "-c", "sized.yaml", "-c", "other.yaml")
    assert config["data"]["init_args"] == {"columns": 4}
    again = resolved(capsys, "-c", "base.yaml", "-c", "sized.yaml", "--data.class_path", f"{project.package}.net.Data")
    assert again["data"]["init_args"]["features"] == 7  # the same class: nothing was replaced


def test_shipped_configurations_are_found_by_name_from_anywhere(project, capsys):
    by_name = resolved(capsys, "-c", "classifier/digits")
    assert by_name == resolved(capsys, "-c", "configs/classifier/digits.yaml")
    assert by_name["name"] == "classifier/digits"
    assert by_name["model"]["class_path"] == "modules.classifier.Classifier"
    assert (by_name["model"]["init_args"]["inputs"], by_name["model"]["init_args"]["classes"]) == (64, 10)


def test_a_file_of_the_user_comes_before_a_shipped_name(project, capsys):
    project.write("configs/classifier/digits.yaml", (project.folder / "base.yaml").read_text())
    config = resolved(capsys, "-c", "configs/classifier/digits.yaml")
    assert config["model"]["class_path"].endswith("net.Net")
    assert config["name"] == "classifier/digits"


def test_numbers_like_1e_3_are_numbers(project, capsys):
    project.write("n.yaml", "model: {init_args: {lr: 1e-3}}\n")
    assert resolved(capsys, "-c", "base.yaml", "-c", "n.yaml")["model"]["init_args"]["lr"] == 0.001


def test_callbacks_of_lightning_by_short_name(project):
    done = run(
        ["fit", "-c", "base.yaml", "--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    )
    assert any(isinstance(callback, EarlyStopping) for callback in done.trainer.callbacks)


# -- derived values ---------------------------------------------------------------------------------------------------


def test_derived_value_follows_the_data(project, capsys):
    assert resolved(capsys, "-c", "base.yaml", "--data.features", "9")["model"]["init_args"]["inputs"] == 9
    assert resolved(capsys, "-c", "base.yaml", "--model.inputs", "4")["model"]["init_args"]["inputs"] == 4


def test_conflicting_derived_value_is_refused_naming_both(project, capsys):
    line = fails(capsys, "fit", "-c", "base.yaml", "--model.inputs", "7")
    assert "model.init_args.inputs is 7" in line
    assert "Data.inputs is 4" in line


def test_without_the_attribute_the_users_value_counts(project, capsys):
    silent = ["-c", "base.yaml", "--data", f"{project.package}.net.Silent"]
    assert resolved(capsys, *silent, "--model.inputs", "4")["model"]["init_args"]["inputs"] == 4
    line = fails(capsys, "fit", *silent)
    assert "model.init_args.inputs" in line
    assert "Silent" in line


# -- errors -----------------------------------------------------------------------------------------------------------

BAD_LAYERS = {
    "empty unknown key": ("modle: {}", "b.yaml: no such key modle; did you mean model?"),
    "broken yaml": ("trainer:\n  max_epochs: [1\nmodel: 3\n", "b.yaml:3: "),
    "not a mapping": ("- 1\n", "b.yaml: expected a mapping"),
    "key twice": ("trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n", "b.yaml:2: key trainer given twice"),
    "missing interpolation": ("trainer: {max_epochs: '${trainer.max_epoch}'}", "${trainer.max_epoch} refers to a key"),
    "about": ("about: {metod: x}", "about.metod: no such key; did you mean method?"),
    "about type": ("about: {reference: [{metric: a, value: b}]}", "about.reference.value: expected a number, got 'b'"),
    "argument beside init_args": ("model: {lr: 3}", "model.lr: no such key; arguments of a class belong under"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_bad_file_is_one_line(project, capsys, case):
    text, expected = BAD_LAYERS[case]
    project.write("b.yaml", text)
    assert expected in fails(capsys, "fit", "-c", "base.yaml", "-c", "b.yaml")
    assert project.files() == {"b.yaml"}


BAD_ARGUMENTS = {
    ("-c", "classifier/digit"): "did you mean classifier/digits",
    ("-c", "classifier"): "it holds classifier/digits",
    ("-c", "nowhere.yaml"): "no such file",
    ("-c",): "needs a file",
    ("stray",): "unexpected stray",
    ("--trainer.max_epochs", "-3"): "trainer.max_epochs must be at least 0, or -1 for no limit, got -3",
    ("--trainer.max_epochs", "many"): "trainer.max_epochs: expected int, got many",
    ("--trainer.max_epoch", "3"): "did you mean max_epochs",
    ("--trainer.accumulate_grad_batches", "0"): "at least 1, got 0",
    ("--trainer.check_val_every_n_epoch", "0"): "at least 1, got 0",
    ("--trainer.limit_train_batches", "-1"): "limit_train_batches",
    ("--trainer.precision", "bf17"): "trainer.precision: expected",
    ("--trainer.strategy", "dpp"): "dpp",
    ("--trainer.max_time", "soon"): "soon",
    ("--trainr.max_epochs", "3"): "did you mean trainer?",
    ("--model.lrr", "3"): "model.init_args.lrr: Net takes no such argument; did you mean lr?",
    ("--model.lr", "fast"): "model.init_args.lr: expected float, got fast",
    ("--model.lr", "-1"): "error: lr must be positive, got -1.0",
    ("--model", "Clasifier"): "no class Clasifier; did you mean Classifier?",
    ("--model", "modules.classifer.Classifier"): "did you mean modules.classifier.Classifier",
    ("--model", "no_such_package.Net"): "no module no_such_package",
    ("--model", "{package}.net.Nett"): "has no class Nett",
    ("--model.fail", "configure"): "no such schedule",
    ("--data.missing", "true"): "data/rows.csv is missing: get it from the office",
    ("--trainer.callbacks+", "EarlyStoping"): "no class EarlyStoping; did you mean EarlyStopping?",
    ("--trainer.callbacks+", "EarlyStopping"): "EarlyStopping needs monitor",
    ("--trainer.callbacks.patience", "3"): "trainer.callbacks",
    ("--trainer.accelerator", "gpu"): "gpu",
    ("--ckpt_path", "nothing.ckpt"): "ckpt_path nothing.ckpt: no such file",
    ("--ckpt_path", "best"): "holds no run with a checkpoint",
    ("--seed_everything", "lucky"): "seed_everything: expected an integer, got 'lucky'",
    ("--threads", "0"): "threads must be at least 1, got 0",
    ("--name", "../up"): "name must be",
    ("--nmae", "x"): "no such option; did you mean name?",
}  # fmt: skip


@pytest.mark.parametrize("args", BAD_ARGUMENTS, ids=" ".join)
def test_bad_argument_is_one_line_and_writes_nothing(project, capsys, args):
    if args == ("--trainer.accelerator", "gpu") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    given = [each.format(package=project.package) for each in args]
    assert BAD_ARGUMENTS[args] in fails(capsys, "fit", "-c", "base.yaml", *given)
    assert project.files() == set()


def test_other_commands_and_nothing_to_do(project, capsys):
    assert "did you mean fit?" in fails(capsys, "fti")
    assert "model.class_path is not set" in fails(capsys, "fit")
    assert "holds no trained run" in fails(capsys, "test", "-c", "base.yaml")
    assert project.files() == set()


def test_ambiguous_short_name_names_both(project, capsys, monkeypatch):
    from framework import registry

    monkeypatch.setattr(registry, "classes", lambda room: {"Twin": ["modules.a.Twin", "modules.b.Twin"]})
    line = fails(capsys, "fit", "-c", "base.yaml", "--model", "Twin")
    assert "modules.a.Twin or modules.b.Twin" in line


def test_debug_shows_the_exception_itself(project):
    with pytest.raises(ValueError, match="lr must be positive"):
        main(["--debug", "fit", "-c", "base.yaml", "--model.lr", "-1"])


def test_true_bugs_end_in_a_traceback_and_code_1(project, capsys):
    for where in ("init", "step"):
        with pytest.raises(SystemExit) as exit_:
            main(["fit", "-c", "base.yaml", "--model.fail", where])
        assert exit_.value.code == 1
        assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130(project, monkeypatch):
    monkeypatch.setenv("INTERRUPT_AT", "2")
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "-c", "base.yaml"])
    assert exit_.value.code == 130


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_resumed_run_equals_an_uninterrupted_one(project, capsys):
    whole = run(["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--name", "whole"])
    run(["fit", "-c", "base.yaml"])
    capsys.readouterr()
    rest = run(["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--ckpt_path", "last"])
    assert "resuming runs/base/0/checkpoints/last.ckpt" in capsys.readouterr().out
    assert rest.directory == Path("runs/base/0")
    assert not Path("runs/base/1").exists()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name])
    keep = [row for row in rows(rest.directory) if not (row["step"] == "8" and row["test/loss"])]
    assert keep == rows(whole.directory)
    assert yaml.safe_load((rest.directory / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_resume_without_a_run_starts_afresh_and_says_so(project, capsys):
    done = run(["fit", "-c", "base.yaml", "--ckpt_path", "last"])
    assert "starts afresh" in capsys.readouterr().out
    assert done.directory == Path("runs/base/0")


def test_resume_of_a_complete_run_says_so_and_tests_again(project, capsys):
    first = run(["fit", "-c", "base.yaml"])
    history = rows(first.directory)
    again = run(["fit", "-c", "base.yaml", "--ckpt_path", "last"])
    assert "nothing left to train" in capsys.readouterr().out
    assert again.results == first.results
    assert rows(again.directory) == history


def test_values_of_the_yaml_are_never_replaced_by_the_checkpoint(project, capsys):
    fitted = run(["fit", "-c", "base.yaml"])
    file = str(next(fitted.directory.glob("checkpoints/best*")))
    assert run(["test", "-c", "base.yaml", "--model.lr", "0.5", "--ckpt_path", file]).model.hparams.lr == 0.5
    line = fails(capsys, "fit", "-c", "base.yaml", "--model.lr", "0.5", "--ckpt_path", "last")
    assert "model.init_args.lr is 0.5" in line
    assert "0.01" in line
    assert not Path("runs/base/1").exists()


@pytest.mark.process
def test_killed_run_resumes_with_its_history(project):
    whole = run(["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--name", "whole"])
    args = ["fit", "-c", "base.yaml", "--trainer.max_epochs", "4", "--ckpt_path", "last"]
    assert project.process(*args, DIE_AT="10").returncode == -9
    killed = rows("runs/base/0")
    assert killed[-1]["step"] == "9"  # rows are on disk at once: two of them lie after the checkpoint of step 8
    done = project.process(*args)
    assert done.returncode == 0, done.stderr
    assert rows("runs/base/0") == rows(whole.directory)
    weights = [
        torch.load(f"{home}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for home in ("runs/base/0", "runs/whole/0")
    ]
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name])


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_ranks_share_one_directory(project, launcher):
    start = (
        ("-m", "framework.cli")
        if launcher == "lightning"
        else ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29641", "-m", "framework.cli")
    )
    done = project.process("fit", "-c", "base.yaml", "-c", "overlays/ddp", launcher=start)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in Path("runs/base").iterdir()] == ["0"]
    assert done.stdout.count("run directory:") == 1
    found = rows("runs/base/0")
    assert [row["step"] for row in found if row["train/loss"]] == [
        "0",
        "1",
        "2",
        "3",
    ]  # 32 rows, 8 a batch, 2 ranks, 2 epochs
    assert Path("runs/base/0/checkpoints/last.ckpt").is_file()
    more = project.process(
        "fit",
        "-c",
        "base.yaml",
        "-c",
        "overlays/ddp",
        "--trainer.max_epochs",
        "3",
        "--ckpt_path",
        "last",
        launcher=start,
    )
    assert more.returncode == 0, more.stderr
    assert [row["step"] for row in rows("runs/base/0") if row["train/loss"]] == ["0", "1", "2", "3", "4", "5"]


# -- the metrics log --------------------------------------------------------------------------------------------------


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
