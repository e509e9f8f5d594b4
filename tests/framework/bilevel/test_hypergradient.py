"""Truncated hypergradients against closed forms, a full unroll and finite differences; nothing here knows of graphs."""

import pytest
import torch
from torch.testing import assert_close

from framework.bilevel.hypergradient import Unroll, hypergradient
from framework.bilevel.objectives import AutogradObjective
from framework.bilevel.optimizers import SGD, Adam

DOUBLE = torch.float64


def problem(seed=0, size=4):
    """A non-quadratic inner loss with a sample per step, coupled to outer variables of another size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, 3, generator=generator, dtype=DOUBLE)
    outer = torch.randn(3, generator=generator, dtype=DOUBLE, requires_grad=True)
    samples = list(torch.randn(30, size, generator=generator, dtype=DOUBLE))

    def inner(w, sample):
        return ((w - mix @ outer + sample).square().sum() + (w * sample).sin().sum()) / 2

    def loss(w, sample):
        return (w * sample).tanh().sum() + w.square().sum() / 2 + outer.square().sum() / 5

    return inner, loss, outer, samples, torch.randn(size, generator=generator, dtype=DOUBLE)


def full_unroll(optimizer, inner, loss, outer, samples, w, lr, steps):
    state = optimizer.init(w.clone().requires_grad_())
    for count in range(1, steps + 1):
        (grad,) = torch.autograd.grad(inner(state[0], samples[count]), state[0], create_graph=True)
        state = optimizer.step(state, grad, lr, count)
    return torch.autograd.grad(loss(state[0], samples[0]), (outer, lr))


def ours(optimizer, inner, loss, outer, samples, w, lr, steps, remember=None):
    gradient = torch.zeros_like(outer)
    unroll = Unroll(optimizer, AutogradObjective(inner, outer, gradient), optimizer.init(w))
    for count in range(1, steps + 1):
        if remember is not None and count == steps - remember + 1:
            unroll.forget()
        unroll.step(samples[count], lr.detach())
    value, d_lr = hypergradient(unroll, AutogradObjective(loss, outer, gradient), samples[0], lr.detach())
    assert value == loss(unroll.state[0], samples[0])
    return gradient, d_lr, unroll


def again(unroll, loss, samples, lr, **options):
    """The hypergradient of an unroll once more."""
    accumulator = unroll.objective.accumulator
    accumulator.zero_()
    hypergradient(unroll, AutogradObjective(loss, unroll.objective.outer, accumulator), samples[0], lr, **options)
    return accumulator.clone()


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("optimizer", [SGD(), SGD(0.9), Adam()], ids=["sgd", "momentum", "adam"])
def test_equals_a_full_unroll(optimizer, steps):
    inner, loss, outer, samples, w = problem()
    lr = torch.tensor(0.05, dtype=DOUBLE, requires_grad=True)
    expected, expected_lr = full_unroll(optimizer, inner, loss, outer, samples, w, lr, steps)
    gradient, d_lr, _ = ours(optimizer, inner, loss, outer, samples, w, lr, steps)
    assert (gradient - expected).norm() / expected.norm() < 1e-12
    assert_close(d_lr, expected_lr, rtol=1e-10, atol=0)


def test_truncation_is_a_full_unroll_from_the_state_where_it_starts():
    inner, loss, outer, samples, w = problem(3)
    lr = torch.tensor(0.05, dtype=DOUBLE, requires_grad=True)
    optimizer = SGD(0.5)
    gradient, _, unroll = ours(optimizer, inner, loss, outer, samples, w, lr, 12, remember=4)
    assert len(unroll.steps) == 4
    state = tuple(entry.clone().requires_grad_() for entry in unroll.steps[0].state)
    for count in range(9, 13):
        (grad,) = torch.autograd.grad(inner(state[0], samples[count]), state[0], create_graph=True)
        state = optimizer.step(state, grad, lr, count)
    (expected,) = torch.autograd.grad(loss(state[0], samples[0]), outer)
    assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_skip_leaves_out_the_oldest_steps():
    inner, loss, outer, samples, w = problem(1)
    lr = torch.tensor(0.05, dtype=DOUBLE)
    _, _, unroll = ours(Adam(), inner, loss, outer, samples, w, lr, 5)
    skipped = again(unroll, loss, samples, lr, skip=2)
    del unroll.steps[:2]
    assert torch.equal(skipped, again(unroll, loss, samples, lr))


def test_finite_differences():
    inner, loss, outer, samples, w = problem(2)
    lr = torch.tensor(0.05, dtype=DOUBLE)
    gradient, _, _ = ours(Adam(), inner, loss, outer, samples, w, lr, 6)

    def value(at):
        with torch.no_grad():
            outer.copy_(at)
        _, _, unroll = ours(Adam(), inner, loss, outer, samples, w, lr, 6)
        return loss(unroll.state[0], samples[0]).item()

    start, step = outer.detach().clone(), 1e-6
    for k, unit in enumerate(torch.eye(3, dtype=DOUBLE)):
        difference = (value(start + step * unit) - value(start - step * unit)) / (2 * step)
        assert gradient[k].item() == pytest.approx(difference, rel=1e-6)


def test_quadratic_closed_form():
    """L = (w - x)^2 / 2 by T plain steps: w_T = x + (1 - lr)^T (w_0 - x), so that dF/dx = w_T (1 - (1 - lr)^T)."""
    outer = torch.tensor([0.7], dtype=DOUBLE, requires_grad=True)
    lr, w = torch.tensor(0.1, dtype=DOUBLE), torch.tensor([2.0], dtype=DOUBLE)

    def inner(w, _):
        return (w - outer).square().sum() / 2

    gradient = torch.zeros_like(outer)
    unroll = Unroll(SGD(), AutogradObjective(inner, outer, gradient), SGD().init(w))
    for _ in range(8):
        unroll.step(None, lr)
    half_square = AutogradObjective(lambda w, _: w.square().sum() / 2, outer, gradient)
    hypergradient(unroll, half_square, None, lr)
    shrink = 0.9**8
    last = 0.7 + shrink * 1.3
    assert unroll.state[0].item() == pytest.approx(last)
    assert gradient.item() == pytest.approx(last * (1 - shrink))


def test_resampled_reverse_pass_uses_the_new_samples():
    inner, loss, outer, samples, w = problem(4)
    lr = torch.tensor(0.05, dtype=DOUBLE)
    _, _, unroll = ours(SGD(), inner, loss, outer, samples, w, lr, 3)
    asked = []

    def resample(step):
        asked.append(step.number)
        return samples[20 + step.number]

    fresh = again(unroll, loss, samples, lr, resample=resample)
    same = again(unroll, loss, samples, lr)
    assert asked == [3, 2, 1]
    assert (fresh - same).abs().max() > 1e-3


@pytest.mark.parametrize("theta", [0.0, 0.2, 0.5, 0.9])
def test_straight_through_mean(theta):
    """h(z) = (a z - b)^2 / 2: the estimator's mean is theta a^2 - a b (the true gradient is a^2 / 2 - a b)."""
    a, b, draws = 1.7, 0.6, 20_000
    generator = torch.Generator().manual_seed(5)
    z = (torch.rand(draws, generator=generator, dtype=DOUBLE) < theta).to(DOUBLE).requires_grad_()
    (estimates,) = torch.autograd.grad(((a * z - b).square() / 2).sum(), z)  # dz / dtheta taken as 1
    error = estimates.std() / draws**0.5
    assert abs(estimates.mean().item() - (theta * a**2 - a * b)) <= 3 * error.item() + 1e-12


def test_a_linear_inner_loss_has_a_constant_gradient():
    outer, gradient = torch.tensor([2.0], dtype=DOUBLE, requires_grad=True), torch.zeros(1, dtype=DOUBLE)
    slope = AutogradObjective(lambda w, _: 3 * w.sum(), outer, gradient)
    product = AutogradObjective(lambda w, _: (outer * w).sum(), outer, gradient)
    lr = torch.tensor(0.1, dtype=DOUBLE)
    unroll = Unroll(SGD(), slope, SGD().init(torch.ones(1, dtype=DOUBLE)))
    for _ in range(2):
        unroll.step(None, lr)
    loss, d_lr = hypergradient(unroll, product, None, lr)
    assert unroll.state[0].item() == pytest.approx(1 - 2 * 0.1 * 3)
    assert (loss.item(), d_lr.item()) == pytest.approx((2 * 0.4, -2 * 2 * 3))
    assert gradient.item() == pytest.approx(0.4)  # w alone: the slope does not depend on the outer variable
