"""Every method, plain and federated, under real kills: restarted by the supervisor it ends in the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import make_tiny
import pytest
import torch
import yaml
from every_config import CONFIGS, FEDERATIONS, OWN_FILES, one_of_each

from framework.configuration import read, shipped
from framework.reliability import failures, ledger

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]

#: What ``fulgurite supervise`` does, many times in one process, which imports torch and Lightning once.
DRIVER = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open("driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
from framework.commands.supervise import supervise
from framework.reliability.supervisor import Settings
for line in sys.stdin:
    folder, args, settings = json.loads(line)
    os.chdir(folder)
    outcome = supervise(args, Settings(backoff=0.0, max_restarts=12, **settings))
    answers.write(json.dumps([outcome.code, [each.code for each in outcome.attempts], outcome.summary()]) + "\\n")
"""

#: Two epochs of four steps, with validation.
SMALL = [
    part
    for key, value in {
        "max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 2, "num_sanity_val_steps": 0,
        "log_every_n_steps": 1, "enable_progress_bar": "false", "enable_model_summary": "false", "accelerator": "cpu",
    }.items()
    for part in (f"--trainer.{key}", str(value))
] + ["--threads", "1", "--test_after_fit", "false"]  # fmt: skip

#: What the overlay is told to do, and more of the same in other places, with checkpoints in the middle of epochs, too.
KILLS = ["--trainer.callbacks.mttf", "null", "--trainer.callbacks.during", "optimizer"]
OFTEN = {
    "class_path": "ModelCheckpoint",
    "init_args": {"filename": "last-often", "every_n_train_steps": 3, "enable_version_counter": False},
}
MORE = [
    {"class_path": "FailureInjection", "init_args": {"kind": "sigkill", "at_steps": [5], "during": place}}
    for place in ("validation", "checkpoint")
]


#: A run that meets everything that does not change its weights.
ALL_KINDS = [OFTEN] + [
    {"class_path": "FailureInjection", "init_args": arguments}
    for arguments in (
        {"kind": "exception", "at_steps": [1]},
        {"kind": "cuda_error", "at_steps": [4], "during": "optimizer"},
        {"kind": "disk_full", "at_steps": [3]},
        {"kind": "slow", "at_steps": [4], "slow_by": "1ms"},
        {"kind": "sigterm", "at_steps": [5]},
        {"kind": "hang", "at_steps": [6], "during": "validation"},
        {"kind": "sigstop", "at_steps": [7], "during": "optimizer"},
        {"kind": "corrupt_checkpoint", "at_steps": [7]},
        {"kind": "sigkill", "mttf": "1ms", "during": "anywhere", "max_failures": 1},
    )
]

#: Methods that the matrix leaves out.
EXCLUDED: dict[str, str] = {}
#: Configurations that are made for federations, which fit does not run.
FEDERATED = [name for name in CONFIGS if "federation" in read(shipped() / f"{name}.yaml")]
#: What a federation needs to be told about ``classifier/mnist``.
TOLD = {
    "federation/selective": [
        "--federation.strategy.groups", "{first: [network.features.0], second: [network.features.3]}",
        "--federation.strategy.common", "[network.head]",
    ],
    "federation/robust_hdp": [
        "--federation.privacy.epsilon", "[0.5, 1, 2, 4]", "--federation.privacy.batch_size", "8",
        "--federation.privacy.accountant", "classic_rdp",
    ],
}  # fmt: skip
#: Three rounds of two clients, six steps each.
FOUR = [
    part
    for key, value in {"clients": 4, "rounds": 3, "fraction": 0.5, "local_steps": 3}.items()
    for part in (f"--federation.{key}", str(value))
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny.everything(folder)
    return folder


@pytest.fixture(scope="module")
def supervised(tiny):
    """Runs ``fulgurite supervise`` in a folder; a function that returns the exit codes of all attempts."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    }
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FULGURITE_DATA": str(tiny)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=tiny, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def run(folder, *args, **settings):
        driver.stdin.write(json.dumps([str(folder), args, settings]) + "\n")
        driver.stdin.flush()
        code, codes, summary = json.loads(driver.stdout.readline())
        assert code == 0, summary
        return codes

    yield run
    driver.stdin.close()
    driver.wait(60)


@pytest.fixture
def folder(tiny, tmp_path):
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name, callbacks in (("more", MORE), ("often", [OFTEN]), ("all_kinds", ALL_KINDS)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": callbacks}}))
    return tmp_path


def differences(a, b, at=""):
    """Where two states differ, to the bit."""
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


def states(folder, file):
    """What the runs without and with failures left."""
    found = [path for root in ("whole", "killed") for path in sorted((folder / root).rglob(file))]
    assert len(found) == 2, found
    return [torch.load(path, weights_only=True) for path in found]


def told(folder):
    """The failures that both records of the killed run hold."""
    (record,) = (folder / "killed").rglob(failures.FILE)
    (events,) = (folder / "killed").rglob(ledger.FILE)
    written = failures.read(record)
    noted = [event for event in ledger.read(events) if event["event"] == "failure"]
    assert [each["step"] for each in noted] == [each["step"] for each in written]
    assert [each["attempt"] for each in noted] == [each["attempt"] for each in written]
    return noted


def test_what_the_matrix_leaves_out_exists():
    assert {*EXCLUDED, *TOLD} <= {*CONFIGS, *FEDERATIONS}
    assert all(EXCLUDED.values())


@pytest.mark.parametrize("name", [name for name in one_of_each(0) if name not in (*EXCLUDED, *FEDERATED)])
def test_a_method_under_kills_ends_in_the_same_weights(supervised, folder, name):
    command = ["fit", "-c", name, *OWN_FILES.get(name, []), *SMALL]
    assert supervised(folder, *command, "--trainer.default_root_dir", "whole") == [0]
    steps = states_of_one(folder)["global_step"]
    kills = [*KILLS, "--trainer.callbacks.at_steps", f"[{steps // 4}]"]
    overlays = ["-c", "overlays/failure_injection", *kills, "-c", "more.yaml", "-c", "often.yaml"]
    codes = supervised(folder, *command, "--trainer.default_root_dir", "killed", *overlays)
    assert codes == [-9] * 3 + [0]
    assert sorted(each["during"] for each in told(folder)) == ["checkpoint", "optimizer", "validation"]
    same(folder)


def test_a_run_comes_through_every_kind_of_failure(supervised, folder):
    command = ["fit", "-c", "classifier/digits", *SMALL]
    assert supervised(folder, *command, "--trainer.default_root_dir", "whole") == [0]
    command += ["-c", "all_kinds.yaml", "--trainer.default_root_dir", "killed"]
    codes = supervised(folder, *command, hang_timeout=5.0)
    kinds = {each["kind"] for each in told(folder)}
    assert kinds == {each["init_args"]["kind"] for each in ALL_KINDS[1:]}
    # Exceptions of three kinds, SIGTERM, and SIGKILL: injected twice, and sent by the supervisor to what hangs. Two
    # kinds do, and so may a step that takes five seconds on a busy machine.
    assert (codes.count(1), codes.count(143), codes[-1]) == (3, 1, 0)
    assert codes.count(-9) == len(codes) - 5 >= 4
    same(folder)


def test_all_ranks_begin_again_when_one_dies(supervised, folder):
    command = ["fit", "-c", "classifier/digits", "-c", "overlays/ddp", *SMALL]
    assert supervised(folder, *command, "--trainer.default_root_dir", "whole", processes=2) == [0]
    kills = [*KILLS, "--trainer.callbacks.at_steps", "[2, 6]", "--trainer.callbacks.rank", "1"]
    command += ["-c", "overlays/failure_injection", *kills, "--trainer.default_root_dir", "killed"]
    codes = supervised(folder, *command, processes=2)
    assert len(codes) == 3
    assert [(each["rank"], each["step"], each["attempt"]) for each in told(folder)] == [(1, 2, 0), (1, 6, 1)]
    same(folder)


def states_of_one(folder):
    (file,) = (folder / "whole").rglob("last.ckpt")
    return torch.load(file, weights_only=True)


def same(folder):
    """Both runs ended alike, to the bit."""
    whole, killed = states(folder, "last.ckpt")
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert list(differences(killed[part], whole[part], part)) == []


RUNS = [
    *[pytest.param("classifier/mnist", ["-c", federation, *TOLD.get(federation, [])], id=federation.partition("/")[2])
      for federation in FEDERATIONS if federation not in EXCLUDED],
    *[name for name in one_of_each(0) if name in FEDERATED and name not in EXCLUDED],
]  # fmt: skip


@pytest.mark.parametrize(("name", "more"), [each if hasattr(each, "id") else pytest.param(each, []) for each in RUNS])
def test_a_federation_under_kills_ends_in_the_same_weights(supervised, folder, name, more):
    command = ["federate", "-c", name, *more, *OWN_FILES.get(name, []), *SMALL, *FOUR]
    assert supervised(folder, *command, "--trainer.default_root_dir", "whole") == [0]
    # Steps of all clients of a process: the first kill is in the second round, the other after a restart in the third.
    kills = [*KILLS, "--trainer.callbacks.at_steps", "[2, 8, 9]"]
    overlays = ["-c", "overlays/failure_injection", *kills]
    codes = supervised(folder, *command, "--trainer.default_root_dir", "killed", *overlays)
    assert codes == [-9] * 3 + [0]
    assert [each["step"] for each in told(folder)] == [2, 8, 9]
    whole, killed = states(folder, "last.ckpt")
    assert list(differences(killed["state_dict"], whole["state_dict"])) == []
    rows = [[json.loads(line)["round"] for line in path.open()] for path in sorted(folder.rglob("rounds.jsonl"))]
    assert rows == [[0, 1, 2, 3]] * 2
