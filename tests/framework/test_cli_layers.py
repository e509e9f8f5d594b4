"""From files and keys to one configuration: layers, names, values derived from the data."""

from __future__ import annotations

from command_line import fails, resolved
from lightning.pytorch.callbacks import EarlyStopping

from framework.cli import run


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


def test_derived_value_follows_the_data(project, capsys):
    assert resolved(capsys, "-c", "base.yaml", "--data.features", "9")["model"]["init_args"]["inputs"] == 9
    assert resolved(capsys, "-c", "base.yaml", "--model.inputs", "4")["model"]["init_args"]["inputs"] == 4


def test_names_are_derived_like_sizes_and_other_values_are_not(project, capsys):
    project.write(
        f"{project.package}/tagging.py",
        f"from {project.package}.net import Data, Net\n\n\n"
        "class Tagger(Net):\n"
        "    def __init__(self, inputs: int, tags: list[str], words: int = 3):\n"
        "        super().__init__(inputs)\n\n\n"
        "class Tagged(Data):\n"
        "    tags = ('O', 'S-PER')\n"
        "    words = {'a': 1}\n",
    )
    home = f"{project.package}.tagging"
    project.write("tagger.yaml", f"model: {{class_path: {home}.Tagger}}\ndata: {{class_path: {home}.Tagged}}\n")
    arguments = resolved(capsys, "-c", "tagger.yaml")["model"]["init_args"]
    assert arguments == {"inputs": 4, "tags": ["O", "S-PER"], "words": 3}
    line = fails(capsys, "fit", "-c", "tagger.yaml", "--model.tags", "[O]")
    assert "model.init_args.tags is ['O'], but Tagged.tags is ['O', 'S-PER']" in line


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


def test_derived_value_reaches_a_model_whose_arguments_are_all_commented_out(project, capsys):
    net = f"{project.package}.net"
    project.write("bare.yaml", f"model:\n  class_path: {net}.Net\n  init_args:\ndata: {{class_path: {net}.Data}}\n")
    assert resolved(capsys, "-c", "bare.yaml")["model"]["init_args"]["inputs"] == 4
