import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from framework.optimizers import fuse

MAKERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def trained(make, after=lambda optimizer: optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    optimizer = after(make(model.parameters()))
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 5, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    return optimizer, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("name", MAKERS)
def test_a_fused_step_is_the_same_step(name):
    optimizer, fused = trained(MAKERS[name], fuse)
    assert all(group["fused"] for group in optimizer.param_groups)
    _, plain = trained(MAKERS[name])
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, fused=False),
        lambda p: torch.optim.Adam(p, foreach=True),
        lambda p: torch.optim.Adam(p, differentiable=True),
        lambda p: torch.optim.RMSprop(p),
    ],
)
def test_what_was_asked_for_stays(make):
    optimizer = make([nn.Parameter(torch.zeros(2))])
    before = [{**group} for group in optimizer.param_groups]
    assert fuse(optimizer) is optimizer
    assert [{**group} for group in optimizer.param_groups] == before


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_still_clipped(precision, tmp_path):
    class Model(BoringModel):
        norms = ()

        def configure_optimizers(self):
            return fuse(torch.optim.Adam(self.parameters(), lr=0.01))

        def on_before_optimizer_step(self, optimizer):
            self.norms = (*self.norms, nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())

        def optimizer_step(self, epoch, batch_idx, optimizer, closure):
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
            after = nn.utils.get_total_norm([p.grad for p in self.parameters()]).item()
            assert after == pytest.approx(min(self.norms[-1], 1e-3), rel=1e-3)

    model = Model()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        accelerator="cpu", precision=precision, gradient_clip_val=1e-3, max_steps=3, default_root_dir=tmp_path, **quiet
    )
    trainer.fit(model)
    assert len(model.norms) == 3
