"""Mistakes: one line that names the key, the value and what is near; nothing is written."""

from __future__ import annotations

import pytest
import torch
from command_line import fails

from framework.cli import main

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
    ("--model", "Clasifier"): "no class Clasifier; did you mean Classifier",
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
