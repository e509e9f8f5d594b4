"""Every configuration, alone and under every overlay, on tiny data: a new YAML is under test by existing."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path

import make_tiny
import pytest
import torch
import yaml
from command_line import fails, rows
from every_config import CONFIGS, FEDERATIONS, FILES, OVERLAYS, OWN_FILES, kind, one_of_each

from framework.about import About
from framework.cli import run
from framework.commands.methods import listing
from framework.configuration import read

#: One of everything.
SMALL = [
    part
    for key, value in {
        **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"), 1),
        **{"max_epochs": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
        **dict.fromkeys(("enable_progress_bar", "enable_model_summary"), "false"),
    }.items()
    for part in (f"--trainer.{key}", str(value))
]

#: Overlays that the matrix leaves out.
EXCLUDED = {
    "overlays/ddp": "takes two processes: tests/test_processes.py",
    "overlays/failure_injection": "kills its process: tests/test_failure_matrix.py",
    "overlays/debug/fast": "is what test_every_configuration_fits_and_tests runs",
}
#: Modules, or configurations, with which an overlay cannot go, and the line that says so.
REFUSED = {
    # Bilevel, by optimisers of its own.
    ("LDS", "overlays/differential_privacy"): r"LDS optimises by hand \(automatic_optimization=False\)",
    # Words that sentences share are read once for the whole batch, and the LSTM decoder is not one of Opacus.
    ("Tagger", "overlays/differential_privacy"): r"Tagger(\.training_step depends| has no gradient per example)",
    # Long sentences are read in parts.
    ("TransformerTagger", "overlays/differential_privacy"): "TransformerTagger",
    # With dropout beside the class token; classifier/vit_mnist has none.
    ("classifier/tinyimagenet", "overlays/differential_privacy"): r"ViTEmbeddings\) of Classifier .* set dropout to 0",
    ("LDS", "overlays/active_learning"): r"ActiveLearning (chooses among items|puts items of WholeGraph together)",
    ("LDS", "overlays/conll"): "LDS has no prediction_order",
    ("Classifier", "overlays/conll"): "Classifier has no prediction_order",
    ("TextClassifier", "overlays/conll"): "TextClassifier has no prediction_order",
    # Their batches are drawn from a replay buffer, and have no fixed number of items behind them.
    **{
        (module, f"overlays/{overlay}"): reason
        for module in ("SAC", "TD3")
        for overlay, reason in {
            "differential_privacy": f"{module} optimises by hand",
            "active_learning": "OnlineReplay.train_dataloader gave a Batches",
            "conll": f"{module} has no prediction_order",
        }.items()
    },
}
#: Overlays that take seconds each, tried on one configuration of each method, module and data.
SLOW = ("overlays/differential_privacy", "overlays/figures", "overlays/wandb")
#: What an overlay leaves in the run directory.
LEAVES = {
    "overlays/active_learning": "active_learning.*",
    "overlays/conll": "predictions/*.conll",
    "overlays/differential_privacy": "privacy.*",
    "overlays/figures": "figures/*.png",
    "overlays/predictions": "predictions/*.csv",
    "overlays/tensorboard": "events.out.tfevents.*",
    "overlays/wandb": "wandb/offline-run-*/run-*.wandb",
}
#: Overlays that act on another command than ``fit``.
COMMANDS = {f"overlays/{name}": ["predict", "--ckpt_path", "none"] for name in ("conll", "predictions")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny.everything(folder)
    return folder


@pytest.fixture(autouse=True)
def _place(tiny, tmp_path, monkeypatch):
    """Tiny files in the place of real ones, a fresh folder to write to, nothing of a launcher's or of W&B's."""
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("FULGURITE_DATA", str(tiny))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)


def start(command: str, name: str, *args: str):
    """Run a command of a configuration on tiny files."""
    try:
        return run([command, "-c", name, *OWN_FILES.get(name, []), *args])
    except FileNotFoundError as error:
        pytest.fail(
            f"configs/{name}.yaml asks for files: write tiny ones in tests/data/make_tiny.py, where FULGURITE_DATA "
            f"leads, or name them in OWN_FILES of tests/support/every_config.py ({error})"
        )


def finite(metrics) -> bool:
    return bool(metrics) and all(math.isfinite(float(value)) for value in metrics.values())


def test_what_the_test_leaves_out_exists():
    assert {*EXCLUDED, *SLOW, *LEAVES, *COMMANDS, *(overlay for _, overlay in REFUSED)} <= set(OVERLAYS)
    assert {module for module, _ in REFUSED} <= {*CONFIGS, *(kind(name)[1] for name in CONFIGS)}
    assert set(OWN_FILES) <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_says_what_it_is_and_is_listed(name):
    about = About.read(read(FILES[name]).get("about"), f"configs/{name}.yaml: about")
    assert about.method
    assert about.summary
    assert not about.reference or (about.paper and all(each.source for each in about.reference))
    line = next(line for line in listing().splitlines() if line.split()[:1] == [name])
    assert about.summary in line


@pytest.mark.parametrize("name", [*OVERLAYS, *FEDERATIONS])
def test_every_overlay_says_what_it_does_and_is_listed(name):
    summary = FILES[name].read_text().partition("\n")[0]
    assert summary.startswith("# ")
    assert any(line.split()[:1] == [name] and summary[2:] in line for line in listing().splitlines())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_fits_and_tests(name, tmp_path):
    before = set(tmp_path.iterdir())
    done = start("fit", name, "-c", "overlays/debug/fast")
    assert finite(done.results)
    assert all(key.startswith("test/") for key in done.results)
    for reference in done.about.reference:
        assert reference.metric in done.results  # or nothing would stand beside the published number
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", one_of_each(1))
def test_every_module_validates_tests_and_predicts_its_checkpoint(name):
    fitted = start("fit", name, *SMALL)
    assert fitted.trainer.checkpoint_callback.best_model_score is not None  # `monitor` is logged
    assert finite(start("validate", name, *SMALL).results)
    assert start("test", name, *SMALL).results == fitted.results
    predicted = start("predict", name, "-c", "overlays/predictions", *SMALL)
    (file,) = predicted.directory.glob("predictions/predictions*.csv")
    row = rows(file.parent, file.name)[0]
    shares = [float(value) for key, value in row.items() if key.startswith("probability")]
    if "confidence" in row:
        assert 0 < float(row["confidence"]) <= 1
    elif shares:
        assert sum(shares) == pytest.approx(1, 1e-4)
    else:  # not of classes
        assert finite({key: value for key, value in row.items() if key not in ("item", "file")})
    assert predicted.directory == fitted.directory


PAIRS = [
    pytest.param(name, overlay, id=f"{name} {overlay.removeprefix('overlays/')}")
    for overlay in OVERLAYS
    if overlay not in EXCLUDED
    for name in (one_of_each(0, 1, 2) if overlay in SLOW else CONFIGS)
]


@pytest.mark.parametrize(("name", "overlay"), PAIRS)
def test_every_configuration_goes_with_every_overlay(name, overlay, capsys):
    command, *more = COMMANDS.get(overlay, ["fit"])
    if read(FILES[overlay]).get("trainer", {}).get("accelerator") == "gpu" and not torch.cuda.is_available():
        line = fails(capsys, command, "-c", name, *OWN_FILES.get(name, []), "-c", overlay)
        assert "gpu" in line.lower() or "cuda" in line.lower()
        assert not Path("runs").exists()
        return
    reason = REFUSED.get((name, overlay)) or REFUSED.get((kind(name)[1], overlay))
    if reason:
        line = fails(capsys, command, "-c", name, *OWN_FILES.get(name, []), *more, "-c", overlay)
        assert re.search(reason, line)
        assert not Path("runs").exists()
        return
    done = start(command, name, *more, "-c", overlay, *SMALL)
    if command == "fit":
        assert finite(done.results or done.trainer.callback_metrics)
    saved = yaml.safe_load((done.directory / done.named("config.yaml")).read_text())
    assert saved["model"]["class_path"].endswith(f".{kind(name)[1]}")
    if overlay in LEAVES:
        assert all(file.stat().st_size for file in done.directory.glob(LEAVES[overlay]))
        assert list(done.directory.glob(LEAVES[overlay]))


# -- federations ------------------------------------------------------------------------------------------------------

TWO = ["--federation.clients", "2", "--federation.rounds", "2", "--federation.fraction", "1", *SMALL]


@pytest.mark.parametrize("name", one_of_each(0, 1, 2))
def test_every_configuration_can_be_federated_or_says_why_not(name, capsys):
    reason = {
        "LDS": "WholeGraph cannot be divided among 2 clients: each of its items is the whole graph",
        "SAC": "OnlineReplay.train_dataloader gave a Batches",
        "TD3": "OnlineReplay.train_dataloader gave a Batches",
    }.get(kind(name)[1])
    if reason:
        line = fails(capsys, "federate", "-c", name, *OWN_FILES.get(name, []), "-c", "federation/iid", *TWO)
        assert re.search(reason, line)
        assert not Path("runs").exists()
        return
    done = start("federate", name, "-c", "federation/iid", *TWO)
    assert finite(done.results)
    assert all(len(report.used) == 2 for report in done.run.history[1:])


#: What a federation needs to be told about ``classifier/mnist``.
TOLD = {
    "federation/selective": [
        "--federation.strategy.groups", "{first: [network.features.0], second: [network.features.3]}",
        "--federation.strategy.common", "[network.head]",
    ],
    "federation/robust_hdp": [
        "--federation.clients", "4", "--federation.privacy.epsilon", "[0.5, 1, 2, 4]",
        "--federation.privacy.batch_size", "8", "--federation.privacy.accountant", "classic_rdp",
    ],
}  # fmt: skip


@pytest.mark.parametrize("federation", FEDERATIONS)
def test_every_federation_runs(federation):
    told = TOLD.get(federation, [])
    done = start("federate", "classifier/mnist", "-c", federation, *told, "--federation.rounds", "1", *SMALL)
    assert finite(done.results)


@pytest.mark.parametrize("name", ["classifier/digits", "active_ner/btc"])
def test_clients_buy_labels(name):
    """Active learning inside clients: each has its own pool, and goes on with it from round to round."""
    more = ["--trainer.callbacks.initial", "0.3", "--trainer.callbacks.epochs_per_round", "1"]
    done = start(
        "federate", name, "-c", "overlays/active_learning", *more, "-c", "federation/iid", *TWO, "--federation.rounds",
        "3", "--federation.keep", "everything",
    )  # fmt: skip
    assert finite(done.results)
    for context in done.run.grid.contexts:
        assert 0 < done.run.history[-1].clients[0].examples < len(done.run.client.shares.train[0])  # what it has bought
        (record,) = context.state.config_records.values()
        state = torch.load(io.BytesIO(record["state"]), weights_only=True)["callbacks"]
        (pool,) = [value for key, value in state.items() if key.startswith("ActiveLearning")]
        assert pool["round"] >= 1, pool.keys()
