"""Whole runs on a GPU, through the command line. Skipped where there is none."""

import json

import pytest
import torch

from framework import cli

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_wine_trains_and_resumes_bit_identically(tmp_path):
    def fit(place, epochs, *more):
        options = ["--trainer.max_epochs", str(epochs), "--trainer.default_root_dir", str(tmp_path / place), *more]
        return cli.run(["fit", "-c", "lds/wine", "-c", "overlays/gpu", *options])

    whole = fit("whole", 4)
    fit("parts", 2)
    parts = fit("parts", 4, "--ckpt_path", "last")
    last = [
        torch.load(done.directory / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for done in (whole, parts)
    ]
    for name, value in last[0].items():
        assert torch.equal(value, last[1][name]), name
    assert whole.results["test/accuracy"] > 0.85


@pytest.mark.parametrize("overlays", [[], ["overlays/bf16"]])
def test_the_classifier_learns_in_each_precision(tmp_path, overlays):
    layers = [part for name in ["classifier/digits", "overlays/gpu", *overlays] for part in ("-c", name)]
    done = cli.run(["fit", *layers, "--trainer.max_epochs", "10", "--trainer.default_root_dir", str(tmp_path)])
    assert done.results["test/accuracy"] > 0.93


@pytest.mark.process
def test_ddp_over_nccl(tmp_path):
    layers = ["-c", "classifier/digits", "-c", "overlays/ddp", "--trainer.devices", "1"]
    done = cli.run(["fit", *layers, "--trainer.max_epochs", "5", "--trainer.default_root_dir", str(tmp_path)])
    assert torch.device(done.trainer.strategy.root_device).type == "cuda"
    assert done.results["test/accuracy"] > 0.9


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_updates_replayed_as_a_cuda_graph_are_the_same(tmp_path, method):
    """Weights, counts and what is logged; also after a switch to updates of the critics alone, and a resume."""
    size = {"data.total_env_steps": 700, "data.learning_starts": 100, "data.buffer_device": "module"}
    every = {"trainer.log_every_n_steps": 50, "data.eval_every": 300, "data.eval_episodes": 2}

    def fit(place, *more, **keys):
        keys = {**size, **every, **keys, "trainer.default_root_dir": str(tmp_path / place)}
        options = [f"--{key}={value}" for key, value in keys.items()]
        return cli.run(["fit", "-c", f"rl/pendulum_{method}", "-c", "overlays/gpu", *options, *more])

    def state(done):
        held = torch.load(done.directory / "checkpoints/last.ckpt", weights_only=True)
        return held["state_dict"], held["global_step"]

    replayed, plain = fit("replayed"), fit("plain", **{"model.cuda_graph": "false"})
    assert replayed.trainer.global_step == plain.trainer.global_step == 600
    for (name, value), other in zip(state(replayed)[0].items(), state(plain)[0].values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=name)
    logs = [(done.directory / "metrics.csv").read_text().splitlines() for done in (replayed, plain)]
    assert len(logs[0]) == len(logs[1]) > 12

    fit("parts", **{"trainer.max_steps": 290})
    parts = fit("parts", "--ckpt_path", "last")
    assert state(parts)[1] == 600
    for (name, value), other in zip(state(parts)[0].items(), state(replayed)[0].values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=name)


def test_private_training_and_what_it_spends(tmp_path):
    """The noise is drawn on the GPU; the accountant counts the same steps as on a CPU."""

    def fit(accelerator):
        layers = [part for name in ("classifier/digits", "overlays/differential_privacy") for part in ("-c", name)]
        options = ["--trainer.accelerator", accelerator, "--trainer.devices", "1", "--trainer.max_epochs", "5"]
        return cli.run(["fit", *layers, *options, "--trainer.default_root_dir", str(tmp_path / accelerator)])

    done, other = fit("gpu"), fit("cpu")
    told = [json.loads((each.directory / "privacy.json").read_text()) for each in (done, other)]
    assert told[0]["epsilon"] == pytest.approx(told[1]["epsilon"], rel=1e-6)
    assert told[0]["history"] == told[1]["history"]
    assert abs(done.results["test/loss"] - other.results["test/loss"]) < 0.2


def test_a_federation_of_clients_on_a_gpu(tmp_path):
    def federate(accelerator):
        layers = [part for name in ("classifier/digits", "federation/iid") for part in ("-c", name)]
        options = ["--trainer.accelerator", accelerator, "--trainer.devices", "1", "--federation.rounds", "4"]
        return cli.run(["federate", *layers, *options, "--trainer.default_root_dir", str(tmp_path / accelerator)])

    accuracy = [federate(each).results["test/accuracy"] for each in ("gpu", "cpu")]
    assert accuracy[0] > 0.3
    assert abs(accuracy[0] - accuracy[1]) < 0.05
