"""Clipped and noisy gradients, against loops over single examples."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from framework.privacy.gradients import PrivateGradients


class Text(nn.Module):
    """A small transformer with an embedding for words, one for positions looked up once, and a convolution."""

    def __init__(self, words=11, length=5, dim=8):
        super().__init__()
        self.words, self.places = nn.Embedding(words, dim), nn.Embedding(length, dim)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.norm, self.conv = nn.LayerNorm(dim), nn.Conv1d(dim, dim, 3, padding=1)
        self.heads = nn.Linear(dim // 2, dim // 2)  # on four dimensions
        self.out = nn.Linear(dim, 3)

    def forward(self, x):
        x = self.words(x) + self.places(torch.arange(x.shape[1])[None])
        attention = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(2)
        x = self.norm(x + attention @ self.value(x))
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.heads(x.unflatten(2, (2, -1))).flatten(2)
        return self.out(x.mean(1))


class LoRA(nn.Module):
    """A linear layer that stays as it is, and what is learned beside it (Hu et al. 2021)."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Tuned(nn.Module):
    """A pretrained encoder, of which LoRA weights in the attention and a head are trained."""

    def __init__(self):
        from transformers import BertConfig, BertModel

        super().__init__()
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        self.encoder = BertModel(BertConfig(vocab_size=11, **sizes), add_pooling_layer=False).requires_grad_(False)
        for block in self.encoder.encoder.layer:
            block.attention.self.query = LoRA(block.attention.self.query)
            block.attention.self.value = LoRA(block.attention.self.value)
        self.head = nn.Linear(16, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0

    def forward(self, x):
        return self.head(self.encoder(x).last_hidden_state[:, 0])


class Image(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        )


class Deeper(nn.Sequential):
    """Convolutions that meet many places with few weights, few places with many, and one place."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 32, 3, stride=4, padding=1),
            nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 3, padding=1),
            nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip


def case(kind, items=7):
    torch.manual_seed(0)
    if kind == "tuned":
        return Tuned(), torch.randint(0, 11, (items, 5)), torch.randint(0, 3, (items,))
    if kind == "text":
        return Text(), torch.randint(0, 11, (items, 5)), torch.randint(0, 3, (items,))
    if kind == "channels last":
        x = torch.randn(items, 3, 8, 8).to(memory_format=torch.channels_last)
        return Deeper().to(memory_format=torch.channels_last), x, torch.randint(0, 3, (items,))
    return Image(), torch.randn(items, 1, 8, 8), torch.randint(0, 3, (items,))


def clipped_sum(net, x, y, norm):
    """The loop that stands for the definition: one example at a time, by plain autograd."""
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    total = [torch.zeros_like(weight) for weight in trained]
    clipped = 0
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, trained)
        length = torch.cat([g.flatten() for g in grads]).norm()
        clipped += bool(length > norm)
        for t, g in zip(total, grads, strict=True):
            t += g * min(1.0, float(norm / length))
    return total, clipped


def private(net, **options):
    given = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "batch_size": 10, **options}
    return PrivateGradients(net, torch.optim.SGD(net.parameters(), lr=0.1), **given)


def run(gradients, net, x, y, pieces=1):
    gradients.begin()
    for a, b in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
        gradients.expect(len(a))
        nn.functional.cross_entropy(net(a), b).backward()
        gradients.accumulate(len(a))
    gradients.finish()
    return [weight.grad.clone() for weight in net.parameters() if weight.requires_grad]


@pytest.mark.parametrize("kind", ["text", "image", "tuned", "channels last"])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_without_noise_it_is_the_mean_of_clipped_gradients(kind, mode, pieces):
    net, x, y = case(kind)
    norms = [clipped_sum(net, x[i : i + 1], y[i : i + 1], 1e9)[0] for i in range(len(x))]
    middle = float(torch.stack([torch.cat([g.flatten() for g in n]).norm() for n in norms]).median())
    expected, clipped = clipped_sum(net, x, y, middle)
    assert 0 < clipped < len(x)
    gradients = private(net.train(), mode=mode, max_grad_norm=middle)
    for _ in range(2):  # nothing is left of the first time
        for got, total in zip(run(gradients, net, x, y, pieces), expected, strict=True):
            assert torch.allclose(got, total / 10, atol=1e-5 * middle, rtol=1e-4)


def test_ghost_clipping_is_hooks_to_the_fifth_digit():
    net, x, y = case("text")
    results = []
    for mode in ("hooks", "ghost"):
        twin = copy.deepcopy(net)
        results.append(torch.cat([g.flatten() for g in run(private(twin, mode=mode, max_grad_norm=0.3), twin, x, y)]))
    assert (results[0] - results[1]).norm() <= 1e-5 * results[0].norm()


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e38])
@pytest.mark.parametrize(("mode", "clipping"), [("hooks", "flat"), ("hooks", "adaptive"), ("ghost", "flat")])
@pytest.mark.parametrize("pieces", [1, 2])
def test_an_example_without_a_finite_gradient_counts_for_nothing(mode, clipping, pieces, bad):
    net, x, y = case("image", items=8)
    results = []
    for rows in (slice(0, 8), slice(0, 7)):
        twin, images = copy.deepcopy(net), x.clone()
        images[7] = bad
        gradients = private(twin, mode=mode, clipping=clipping, max_grad_norm=0.3)
        results.append(run(gradients, twin, images[rows], y[rows], pieces if rows.stop == 8 else 1))
    if clipping == "flat":
        for got, without in zip(*results, strict=True):
            assert torch.allclose(got, without, atol=1e-6)
    assert all(grad.isfinite().all() for grad in results[0])


@pytest.mark.parametrize(("width", "rows"), [(16, 64), (64, 16)])  # by gradients, and by products of rows
def test_norms_of_rows_that_cancel_keep_their_digits(width, rows):
    """Tokens that are nearly equal, with opposite gradients: sums of products of rows are rounding and nothing else."""
    torch.manual_seed(0)
    x = torch.randn(2, 1, width).repeat(1, rows, 1) + 1e-4 * torch.randn(2, rows, width)
    signs = torch.ones(rows)
    signs[::2] = -1
    for scale in (1e3, 1e4, 1e5):
        net = nn.Sequential(nn.Linear(width, width))
        norms = []
        for each in (slice(0, 1), slice(1, 2)):
            loss = (net(x[each]).mean(-1) * signs * scale).sum(1).mean()
            norms.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]).norm())
        gradients = private(net, mode="ghost")
        gradients.begin()
        gradients.expect(2)
        (net(x).mean(-1) * signs * scale).sum(1).mean().backward()
        assert gradients.ghost is not None
        found = torch.stack(gradients.ghost.norms(2)).norm(dim=0)
        assert torch.allclose(found, torch.stack(norms), rtol=1e-3)
        gradients.detach()


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("tied", [False, True])
def test_padding_stays_what_it_is(mode, tied):
    """Autograd leaves its row out; so do clipped gradients, and the noise, unless another layer uses the row."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 6 if tied else 3, bias=False)
            if tied:
                self.out.weight = self.words.weight

        def forward(self, x):
            return self.out(self.words(x).mean(1))

    torch.manual_seed(0)
    net, x, y = Padded(), torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 1]]), torch.tensor([0, 1, 2])
    if tied and mode == "ghost":
        with pytest.raises(ValueError, match="ghost cannot serve weights that are used twice"):
            run(private(net, mode=mode), net, x, y)
        return
    expected, _ = clipped_sum(net, x, y, 0.05)
    gradients = private(net, mode=mode, max_grad_norm=0.05)
    for got, total in zip(run(gradients, net, x, y), expected, strict=True):
        assert torch.allclose(got, total / 10, atol=1e-6)
    gradients.noise_multiplier = 1.0
    noisy = run(gradients, net, x, y)[0]
    assert bool(noisy[0].any()) == tied
    assert noisy[1:].all()


def test_weights_that_the_optimizer_does_not_train_are_left_out():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y, got = torch.randn(6, 4), torch.randint(0, 3, (6,)), []
    for mode in ("hooks", "ghost"):
        optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
        gradients = PrivateGradients(net, optimizer, noise_multiplier=0.0, max_grad_norm=0.3, batch_size=6, mode=mode)
        run(gradients, net, x, y)
        got.append([weight.grad.clone() for weight in net[2].parameters()])
        gradients.detach()
    features = net[:2](x).detach()
    expected, clipped = clipped_sum(net[2], features, y, 0.3)
    assert clipped
    for grads in got:
        for grad, total in zip(grads, expected, strict=True):
            assert torch.allclose(grad, total / 6, atol=1e-6)


def test_norms_that_do_not_fit_leave_nothing_behind():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="max_grad_norm must be one number or 4, one for each tensor, got 2"):
        private(net, clipping="per_layer", max_grad_norm=[1.0, 1.0])
    net.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"scale is a single number .* give it the shape \(1,\)"):
        private(net, clipping="per_layer")
    private(net).detach()
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in net.modules())


def test_layers_in_evaluation_mode_are_named():
    net, x, y = case("image")
    net[0].eval()
    with pytest.raises(ValueError, match=r"0 \(Conv2d\) of Image is in evaluation mode while it is trained"):
        run(private(net), net, x, y)


def test_per_layer_clipping_bounds_every_tensor_and_the_whole():
    net, x, y = case("image", items=1)
    count = len(list(net.parameters()))
    grads = run(private(net, clipping="per_layer", max_grad_norm=0.01, batch_size=1), net, x, y)
    for grad in grads:
        assert grad.norm() <= 0.01 / math.sqrt(count) * 1.001
    assert torch.cat([g.flatten() for g in grads]).norm() <= 0.01 * 1.001
    net, x, y = case("image", items=1)
    grads = run(
        private(net, clipping="per_layer", max_grad_norm=[1e-3] * (count - 1) + [1e-9], batch_size=1), net, x, y
    )
    assert grads[-1].norm() < 1e-8


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
def test_noise_has_the_energy_that_is_accounted_for(clipping):
    net = nn.Linear(300, 100)
    g = torch.Generator().manual_seed(1)
    gradients = private(net, noise_multiplier=2.0, max_grad_norm=3.0, batch_size=20, clipping=clipping, generator=g)
    gradients.begin()
    gradients.finish()  # an empty batch: noise and nothing else
    energy = sum(float(weight.grad.square().sum()) for weight in net.parameters())
    expected = (2 * 3 / 20) ** 2 * (300 * 100 + 100)
    if clipping == "adaptive":  # some of the budget pays for the count: theorem 1 of the paper
        expected *= 1 / (1 - (2.0 / (2 * 2.0)) ** 2)
    assert energy == pytest.approx(expected, rel=0.05)


def test_adaptive_clipping_follows_the_quantile_and_survives_empty_batches():
    net, x, y = case("image", items=40)
    gradients = private(net, clipping="adaptive", batch_size=40, max_grad_norm=100.0, clip_learning_rate=0.5)
    gradients.private.unclipped_num_std = 1e-3  # to see the rule without its noise
    for _ in range(60):
        run(gradients, net, x, y)
    length = torch.stack([
        torch.cat([g.flatten() for g in clipped_sum(net, x[i : i + 1], y[i : i + 1], 1e9)[0]]).norm() for i in range(40)
    ])  # fmt: skip
    assert gradients.max_grad_norm == pytest.approx(float(length.median()), rel=0.15)
    before = gradients.max_grad_norm
    gradients.begin()
    gradients.finish()
    assert gradients.max_grad_norm == pytest.approx(before, rel=1e-3)  # nobody voted


def test_what_stands_in_for_an_empty_batch_counts_for_nothing():
    net, x, y = case("image", items=1)
    gradients = private(net)
    gradients.begin()
    nn.functional.cross_entropy(net(x), y).backward()
    gradients.accumulate(1, counts=False)
    gradients.finish()
    assert all(not weight.grad.any() for weight in net.parameters())


def test_nothing_is_left_on_the_module():
    for mode in ("hooks", "ghost"):
        net, x, y = case("text")
        before = set(net.__dict__), {name: set(layer.__dict__) for name, layer in net.named_modules()}
        gradients = private(net, mode=mode)
        run(gradients, net, x, y)
        net(x)  # a pass that nobody takes back
        gradients.detach()
        assert (set(net.__dict__), {name: set(layer.__dict__) for name, layer in net.named_modules()}) == before
        assert all(not weight.__dict__ for weight in net.parameters())
        assert not any(layer._forward_hooks or layer._backward_hooks for layer in net.modules())
        copy.deepcopy(net)


class Flattened(nn.Module):
    """Words of all examples in one row, as taggers have them."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class Unused(nn.Module):
    def __init__(self, twice=False):
        super().__init__()
        self.out, self.other, self.twice = nn.Linear(4, 3), nn.Linear(4, 3), twice

    def forward(self, x):
        self.out(x) if self.twice else self.other(x)
        return self.out(x)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_gradients_that_are_not_of_examples_are_refused(mode):
    net = Flattened()
    gradients = private(net, mode=mode)
    with pytest.raises(ValueError, match=r"out.weight has gradients of 10 examples in a batch of 2"):
        run(gradients, net, torch.randn(2, 5, 4), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_weights_without_a_part_in_the_loss_get_noise_alone(mode):
    net = Unused()
    grads = run(private(net, mode=mode), net, torch.randn(4, 4), torch.zeros(4, dtype=torch.long))
    assert [bool(g.any()) for g in grads] == [True, True, False, False]


def test_weights_that_are_used_twice():
    net = Unused(twice=True)
    with pytest.raises(ValueError, match=r"out.weight was used more often in a step than the loss depends on it"):
        run(private(net), net, torch.randn(4, 4), torch.zeros(4, dtype=torch.long))
    net = Unused(twice=True)
    with pytest.raises(ValueError, match="grad_sample_mode: ghost cannot serve weights that are used twice"):
        run(private(net, mode="ghost"), net, torch.randn(4, 4), torch.zeros(4, dtype=torch.long))


def test_buffers_beside_weights_are_refused_by_name():
    net = nn.Sequential(nn.Linear(4, 3))
    net[0].register_buffer("count", torch.zeros(1))
    with pytest.raises(ValueError, match=r"0 \(Linear\) of Sequential keeps buffers beside trainable weights"):
        private(net)
