"""Loggers of the user: what lies in the run directory, what is honoured, what is refused by name."""

from __future__ import annotations

import pytest
from command_line import fails, resolved, rows

from framework.cli import run


def logger(project, **arguments):
    lines = [f"        {key}: {value}" for key, value in arguments.items()]
    text = "\n".join(["trainer:", "  logger:", "    - class_path: CSVLogger", "      init_args:", *lines])
    return ["-c", "base.yaml", "-c", project.write("logger.yaml", text)]


def test_a_csv_logger_of_the_user_names_its_metrics_and_leaves_those_of_fit_alone(project):
    layers = logger(project, prefix="mine")
    done = run(["fit", *layers])
    before = rows(done.directory)
    assert {"step", "mine-epoch", "mine-train/loss", "mine-test/loss"} <= set(before[0])
    again = run(["test", *layers])
    assert again.directory == done.directory
    assert rows(done.directory) == before
    assert [set(row) for row in rows(done.directory, "metrics-test.csv")] == [{"step", "mine-epoch", "mine-test/loss"}]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("flush_logs_every_n_steps", 7, "each row of metrics.csv is written at once"),
        ("name", "mine", "the log lies in the run directory"),
        ("version", 3, "the log lies in the run directory"),
    ],
)
def test_what_the_run_directory_decides_is_refused_by_name(project, capsys, name, value, reason):
    said = fails(capsys, "fit", *logger(project, **{name: value}))
    assert f"trainer.logger[0].init_args.{name} is {value}, but {reason}" in said
    assert project.files() == {"logger.yaml"}


def test_tensorboard_too_has_its_name_from_the_run(project, capsys):
    given = ["fit", "-c", "base.yaml", "--trainer.logger", "TensorBoardLogger", "--trainer.logger.version", "3"]
    assert "init_args.version is 3, but the log lies in the run directory" in fails(capsys, *given)


def test_with_a_folder_of_its_own_the_logger_decides(project):
    run(["fit", *logger(project, save_dir="mine", name="n", version="v", flush_logs_every_n_steps=7)])
    assert rows("mine/n/v")


def test_a_resolved_configuration_is_no_conflict(project, capsys):
    values = resolved(capsys, *logger(project))
    assert values["trainer"]["logger"][0]["init_args"]["flush_logs_every_n_steps"] == 100
    done = run(["fit", *logger(project, **values["trainer"]["logger"][0]["init_args"])])
    assert rows(done.directory)


def test_arguments_that_are_no_mapping_are_named(project, capsys):
    config = project.write("wrong.yaml", "trainer: {logger: {class_path: CSVLogger, init_args: 3}}")
    assert "trainer.logger[0].init_args: expected a mapping, got 3" in fails(
        capsys, "fit", "-c", "base.yaml", "-c", config
    )
