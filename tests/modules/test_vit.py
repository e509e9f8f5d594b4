"""The vision transformer against transformers' own classifier, and what it takes over from an earlier run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from framework.federated.layer_groups import LayerGroups
from modules import vit
from modules.classifier import Classifier
from modules.vit import VisionTransformer

transformers = pytest.importorskip("transformers")

SMALL = {"classes": 5, "side": 12, "channels": 3, "patch": 4, "width": 16, "depth": 3, "heads": 2, "mlp_ratio": 2.0}
GREY = {**SMALL, "classes": 3, "side": 8, "channels": 1, "depth": 2}


def quiet(**kwargs) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(off, False), **kwargs})


def make(seed: int = 0, **options) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(**{**SMALL, **options})


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Quadrants(LightningDataModule):
    """A bright spot in one of three corners of a grey image: where it is, is the class."""

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(120) % 3
        x = 0.5 * torch.randn(120, 1, 8, 8, generator=generator)
        for k, (top, left) in enumerate([(0, 0), (0, 4), (4, 0)]):
            x[y == k, :, top : top + 4, left : left + 4] += 1
        self.items = TensorDataset(x, y)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.items, batch_size=20, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.items, batch_size=120)


@pytest.fixture(autouse=True)
def _seed():
    seed_everything(0, verbose=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """What a run leaves, and the module that it trained."""
    file = tmp_path_factory.mktemp("run") / "last.ckpt"
    module, trainer = Classifier(64, 3, network=VisionTransformer(**GREY), lr=0.01), quiet(max_steps=2)
    trainer.fit(module, Quadrants())
    trainer.save_checkpoint(file)
    return file


def state_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}


# -- What it computes


def oracle(network: VisionTransformer) -> nn.Module:
    """The classifier of transformers with the same weights, its attention written out."""
    config = transformers.ViTConfig(
        image_size=12, patch_size=4, num_channels=3, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, num_labels=5, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.vit.load_state_dict(network.vit.state_dict())
    theirs.classifier.load_state_dict(network.head.state_dict())
    return theirs


def test_logits_are_those_of_transformers():
    network, x = make().eval(), images()
    nn.init.normal_(network.head.bias)
    with torch.no_grad():
        torch.testing.assert_close(network(x), oracle(network)(x).logits, atol=1e-5, rtol=1e-5)
    assert network.vit.config._attn_implementation == "sdpa"


def test_the_mean_is_that_of_the_patches():
    network, x = make(pool="mean").eval(), images()
    theirs = oracle(network)
    with torch.no_grad():
        tokens = theirs.vit(x).last_hidden_state
        assert tokens.shape[1] == 1 + 9
        torch.testing.assert_close(network(x), theirs.classifier(tokens[:, 1:].mean(1)), atol=1e-5, rtol=1e-5)


def test_images_come_flat_or_not():
    network, x = make().eval(), images()
    assert torch.equal(network(x), network(x.flatten(1)))
    assert network(x[:1]).shape == (1, 5)


@pytest.mark.parametrize("shape", [(2, 12, 12, 3), (2, 3, 24, 24), (2, 1, 12, 12), (2, 431), (432,)], ids=str)
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must have the shape \(3, 12, 12\) or \(432,\), got \("):
        make()(torch.zeros(shape))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_only_positions_tell_patches_apart(pool):
    """Attention does not see an order: without positions the patches of an image may be shuffled."""
    network, x = make(pool=pool).eval(), images()
    blocks = x.reshape(4, 3, 3, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, torch.randperm(9)]
    shuffled = blocks.unflatten(1, (3, 3)).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    with torch.no_grad():
        assert not torch.allclose(network(x), network(shuffled), atol=1e-5)
        network.vit.embeddings.position_embeddings.zero_()
        torch.testing.assert_close(network(x), network(shuffled), atol=1e-5, rtol=1e-4)


def test_the_seed_decides_the_weights():
    first, again, other = make(seed=3).state_dict(), make(seed=3).state_dict(), make(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not torch.equal(first["vit.layernorm.weight"] * 0, first["head.weight"][0])


def test_dropout_is_for_training():
    network, x = make(dropout=0.5), images()
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))
    assert torch.equal(network(x), make(dropout=0.0).eval()(x))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_no_parameter_is_idle(pool):
    """One without a gradient would hang or fail distributed training."""
    network = make(pool=pool)
    network(images()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_it_learns_where_things_are():
    module, data = Classifier(64, 3, network=VisionTransformer(**GREY, pool="mean"), lr=1e-2), Quadrants()
    trainer = quiet(max_epochs=14)
    trainer.fit(module, data)
    assert trainer.test(module, data, verbose=False)[0]["test/accuracy"] >= 0.95


def test_transformers_is_imported_only_when_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails from here on
    spec = importlib.util.spec_from_file_location("vit_again", vit.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    with pytest.raises(ValueError, match="patch must divide side=12, got 5"):
        again.VisionTransformer(**{**SMALL, "patch": 5})


# -- Layer groups


def test_layer_groups_are_the_blocks():
    module = Classifier(432, 5, network=make())
    groups = LayerGroups.of(module)
    (path,) = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part) == 3]
    assert groups.names == tuple(f"{path}.{k}" for k in range(3))
    assert set(groups.parameters("common")) == {
        "network.vit.layernorm.weight", "network.vit.layernorm.bias", "network.head.weight", "network.head.bias",
    }  # fmt: skip
    assert set(groups.parameters("frozen")) == {
        f"network.vit.embeddings.{name}" for name, _ in module.network.vit.embeddings.named_parameters()
    }
    assert len({groups.sizes[name] for name in groups.names}) == 1
    assert sum(groups.sizes.values()) == sum(parameter.numel() for parameter in module.parameters())


# -- Weights of an earlier run


def test_weights_are_taken_over_and_the_head_is_fresh(checkpoint):
    torch.manual_seed(7)
    fresh = VisionTransformer(**GREY)
    torch.manual_seed(7)
    network = VisionTransformer(**GREY, weights=str(checkpoint))
    trained = state_in(checkpoint)
    for name, value in network.state_dict().items():
        expected = fresh.state_dict() if name.startswith("head.") else trained
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(fresh.vit.layernorm.weight, network.vit.layernorm.weight)


def test_the_head_is_kept_if_asked(checkpoint):
    network, trained = VisionTransformer(**GREY, weights=str(checkpoint), keep_head=True), state_in(checkpoint)
    assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())


def test_another_number_of_classes_takes_a_fresh_head(checkpoint):
    assert VisionTransformer(**{**GREY, "classes": 7}, weights=str(checkpoint)).head.out_features == 7
    with pytest.raises(ValueError, match=r"network.head.weight has the shape \(3, 16\) in .*ckpt, but \(7, 16\) in"):
        VisionTransformer(**{**GREY, "classes": 7}, weights=str(checkpoint), keep_head=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 8},
            r"network\.vit\.embeddings\.cls_token has the shape \(1, 1, 16\) in .*, but \(1, 1, 8\) in this",
        ),
        ({"depth": 3}, r"has no network\.vit\.\S*2\.\S+, which has the shape \(.*\) in this network"),
        ({"depth": 1}, r"network\.vit\.\S*1\.\S+ of shape \(.*\) in .* is not part of this network"),
        ({"side": 16}, r"position_embeddings has the shape \(1, 5, 16\) in .*, but \(1, 17, 16\) in this network"),
    ],
    ids=["width", "depth", "shallow", "side"],
)
def test_weights_of_another_network_are_refused(checkpoint, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        VisionTransformer(**{**GREY, **options}, weights=str(checkpoint))
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights is not a file: .*none\.ckpt"):
        make(weights=str(tmp_path / "none.ckpt"))
    file = tmp_path / "a.ckpt"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            make(weights=str(file))
        assert "\n" not in str(caught.value)

    for content in (b"", b"no checkpoint at all"):
        file.write_bytes(content)
        refused("is not a checkpoint that loads with weights_only=True")
    torch.save({"path": tmp_path}, file)  # an object, which might run code
    refused("is not a checkpoint that loads with weights_only=True")
    torch.save({"weights": torch.zeros(1)}, file)
    refused("it has no state_dict")
    torch.save({"state_dict": {"encoder.weight": torch.zeros(1)}}, file)
    refused("has no key that begins with network.")
    torch.save({"state_dict": Classifier(432, 5).state_dict()}, file)
    refused(r"has no network\.vit\.embeddings\.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"side": 0}, "side must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"patch": 5}, "patch must divide side=12, got 5"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"heads": 3}, "heads must divide width=16, got 3"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must give at least 1 hidden unit at width=16, got 0.0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must .* got nan"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio must .* got inf"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"pool": "max"}, "pool must be one of cls, mean, got 'max'"),
        ({"keep_head": True}, "keep_head=true needs weights"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
