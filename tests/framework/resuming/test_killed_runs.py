"""Runs of the real command line, killed for good wherever it hurts, against the same runs that were not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import forks
import killable
import pytest
import torch
import yaml

pytestmark = [pytest.mark.process, pytest.mark.slow]

CONFIGURATION = {
    "model": {"class_path": "killable.Net"},
    "data": {"class_path": "killable.Data"},
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "log_every_n_steps": 5,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "killable.Kill"},
            {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 9}},
        ],
    },
}


def saving(**when):
    return {
        "class_path": "ModelCheckpoint",
        "init_args": {"filename": "last-step", "enable_version_counter": False, **when},
    }


STEPS = saving(every_n_train_steps=7)
#: What differs from the configuration; the checkpoints besides those of epoch ends; where each attempt is killed, by
#: the number of the batch (an epoch has 20).
CASES = {
    "mid epoch 0": ({}, STEPS, ["step:12"]),
    "mid epoch 1": ({}, STEPS, ["step:33"]),
    "last batch, every 20": ({}, saving(every_n_train_steps=20), ["epoch:19"]),
    "last batch, every 10": ({}, saving(every_n_train_steps=10), ["epoch:19", "start:45"]),
    "last batch, no validation": ({"trainer.check_val_every_n_epoch": 2}, saving(every_n_train_steps=20), ["epoch:19"]),
    "epoch end": ({}, None, ["step:27"]),
    "validation end": ({}, saving(every_n_epochs=1, save_on_train_epoch_end=False), ["epoch:39"]),
    "two workers": ({"data.workers": 2}, STEPS, ["step:33"]),
    "two workers, last batch": (
        {"data.workers": 2, "data.persistent": True}, saving(every_n_train_steps=20), ["epoch:19"]
    ),
    "accumulate": ({"trainer.accumulate_grad_batches": 2}, STEPS, ["step:33"]),
    "in validation": ({}, saving(every_n_train_steps=20), ["validation:19"]),
    "while writing": ({}, STEPS, ["write:27"]),
    "twice in an epoch": ({}, STEPS, ["step:25", "step:31"]),
    "last batch, then again": ({}, saving(every_n_train_steps=20), ["epoch:19", "step:25"]),
    "before the first checkpoint": ({}, STEPS, ["step:3"]),
    "two validations an epoch": (
        {"trainer.val_check_interval": 0.5}, saving(every_n_train_steps=10), ["start:10", "start:30"]
    ),
    "plateau": ({"model.plateau": True}, STEPS, ["step:12", "step:22"]),
    "estimated steps": ({"model.estimate": True}, STEPS, ["step:33"]),
    "max_steps": ({"trainer.max_epochs": -1, "trainer.max_steps": 60}, None, ["step:27"]),
    "two ranks": ({"ranks": 2}, STEPS, ["step:12"]),
}  # fmt: skip
#: What the uninterrupted run does without, because it must not matter.
HARMLESS = ("data.workers", "data.persistent", "model.estimate")


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Run everything in children of one process; for each case the folders of the whole and of the killed run."""
    root = tmp_path_factory.mktemp("killed")
    attempts, expected, wholes, homes = [], [], {}, {}

    def add(folder, options, saved, kills):
        folder.mkdir()
        shutil.copy(killable.__file__, folder)
        callbacks = [*CONFIGURATION["trainer"]["callbacks"], *([saved] if saved else [])]
        values = CONFIGURATION | {"trainer": CONFIGURATION["trainer"] | {"callbacks": callbacks}}
        (folder / "base.yaml").write_text(yaml.safe_dump(values))
        given = [word for key, value in options.items() if key != "ranks" for word in (f"--{key}", str(value))]
        ranks = options.get("ranks", 1)
        given += ["-c", "overlays/ddp"] if ranks > 1 else []
        for number, kill in enumerate([*kills, None]):
            resume = ["--ckpt_path", "last"] if number else []
            args = ["fit", "-c", "base.yaml", *given, *resume]
            attempts.append({"folder": str(folder), "args": args, "env": {"KILL": kill or "no:0"}, "ranks": ranks})
            expected.append(0 if kill is None else -9)

    for name, (options, saved, kills) in CASES.items():
        must = {option: value for option, value in options.items() if option not in HARMLESS}
        best = saved if saved is not None and "every_n_epochs" in saved["init_args"] else None  # what is tested then
        key = json.dumps([must, best])
        if key not in wholes:
            wholes[key] = root / f"whole{len(wholes)}"
            add(wholes[key], must, best, [])
        homes[name] = wholes[key], root / name.replace(" ", "-")
        add(homes[name][1], options, saved, kills)
    for (code, text), wanted, attempt in zip(forks.run(attempts), expected, attempts, strict=True):
        assert code == wanted, f"{attempt}\n{text}"
    return homes


def seen(folder):
    """Items and loss of each batch of each rank; of what was trained twice, the last."""
    found = {}
    for file in sorted(folder.glob("seen*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[file.name, row["batch"]] = row["ids"], row["loss"]
    return found


def differences(a, b, at=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            yield from differences(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from differences(left, right, f"{at}[{i}]")
    elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        yield at


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_as_if_it_had_not_been(homes, name):
    whole, killed = homes[name]
    assert seen(killed) == seen(whole)
    directories = [sorted((folder / "runs/base").iterdir())[-1] for folder in (whole, killed)]
    ours, theirs = (torch.load(each / "checkpoints/last.ckpt", weights_only=True) for each in directories)
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert list(differences(ours[part], theirs[part], part)) == []
    (stopping,) = [key for key in ours["callbacks"] if key.startswith("EarlyStopping")]
    assert list(differences(ours["callbacks"][stopping], theirs["callbacks"][stopping])) == []
    ours, theirs = ((each / "metrics.csv").read_text() for each in directories)
    assert ours == theirs
    kinds = [(row[0], *map(bool, row)) for row in (line.split(",") for line in ours.splitlines())]
    assert len(set(kinds)) == len(kinds)  # no step twice
    ours, theirs = (json.loads((each / "results.json").read_text())["metrics"] for each in directories)
    assert ours == theirs


def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(homes):
    _, killed = homes["while writing"]
    logs = [path.read_text() for path in killed.glob("attempt*.log")]
    (log,) = [text for text in logs if "resuming" in text]
    assert "last-step.ckpt" in log
    assert "skipping" not in log  # the half-written file never had the name of a checkpoint
    assert list(Path(killed).glob("runs/base/*/checkpoints/*previous*")) == []  # gone, once the run is complete
