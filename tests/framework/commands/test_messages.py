"""What jsonargparse complains of in a dozen lines arrives as one sentence that names the argument."""

from __future__ import annotations

import pytest

from framework.cli import main

CNN = "{class_path: modules.classifier.CNN, init_args: {inputs: 3, classes: 2}}"
STOPPING = "{class_path: EarlyStopping, init_args: {monitor: a, mode: up}}"

CASES = {
    ("lds/wine", "--data.graph.k", "0"): "graph.k must be at least 1, got 0",
    ("lds/wine", "--data.graph.k", "few"): "data.init_args.graph.k: expected int, got few",
    ("lds/wine", "--data.graph.kk", "3"): "data.init_args.graph.kk: SklearnNodes takes no such argument",
    ("lds/wine", "--data.graph", "knn"): "data.init_args.graph: expected a mapping, got knn",
    ("lds/wine", "--model.restart", "no"): "model.init_args.restart: expected one of 'epoch', 'never', got no",
    ("lds/wine", "--model.inner_lr_range", "[1]"): (
        "model.init_args.inner_lr_range: expected tuple with 2 elements, got [1]"
    ),
    ("classifier/digits", "--model.network", "torch.nn.Linear"): (
        "model.init_args.network: Linear needs in_features, out_features"
    ),
    ("classifier/digits", "--model.network", "mlpp"): (
        "model.init_args.network: expected one of 'mlp', 'cnn' or the path of a class, got mlpp"
    ),
    ("classifier/digits", "--model.optimizer", "SGDD"): (
        "model.init_args.optimizer: expected the path of a class, got SGDD"
    ),
    # A constructor's own sentence, where its class is one of several types that the argument may have.
    ("classifier/digits", "--model.network", CNN): (
        "network 'cnn' needs inputs = channels * side * side with a side of at least 4, got inputs=3 and channels=1"
    ),
    ("classifier/digits", "--trainer.callbacks+", STOPPING): "`mode` can be min, max, got up",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_sentence_stands_alone(case, capsys):
    config, *given = case
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "-c", config, "--trainer.fast_dev_run", "1", *given])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"fulgurite: error: {CASES[case]}\n"


def test_no_call_of_ours_is_deprecated(monkeypatch, recwarn, capsys):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    with pytest.raises(SystemExit):
        main(["fit", "-c", "classifier/digits", "--print_config"])
    assert "class_path: modules.classifier.Classifier" in capsys.readouterr().out
    assert [str(each.message) for each in recwarn if "framework/commands" in each.filename] == []
