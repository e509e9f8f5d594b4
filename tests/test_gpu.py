"""Whole runs on a GPU, through the command line. Skipped where there is none."""

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
