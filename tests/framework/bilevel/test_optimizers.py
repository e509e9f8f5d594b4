import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.bilevel.optimizers import SGD, Adam

OPTIMIZERS = {"sgd": SGD(), "momentum": SGD(0.9), "adam": Adam(), "adam-fast": Adam((0.5, 0.7), eps=1e-2)}


def random_state(optimizer, size, seed):
    generator = torch.Generator().manual_seed(seed)
    entries = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(4)]
    count = len(optimizer.init(entries[0]))
    state = entries[:count]
    if count == 3:
        state[2] = state[2].square()  # a second moment is not negative
    return tuple(state), entries[3], generator


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_adjoint_is_the_vector_jacobian_product_of_step(name, seed, count):
    optimizer = OPTIMIZERS[name]
    state, grad, generator = random_state(optimizer, 5, seed)
    lr = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
    leaves = [entry.clone().requires_grad_() for entry in (*state, grad)]
    after = optimizer.step(tuple(leaves[:-1]), leaves[-1], lr, count)
    adjoint = tuple(torch.randn(5, generator=generator, dtype=torch.float64) for _ in after)
    scalar = sum((a * b).sum() for a, b in zip(adjoint, after, strict=True))
    *d_state, d_grad, d_lr = torch.autograd.grad(scalar, (*leaves, lr))
    ours = optimizer.adjoint(state, grad, lr.detach(), count, adjoint)
    for expected, got in zip((*d_state, d_grad, d_lr), (*ours.state, ours.grad, ours.lr), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_adam_is_torchs_where_epsilon_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, generator=generator, dtype=torch.float64)
    theirs = torch.nn.Parameter(w.clone())
    reference = torch.optim.Adam([theirs], lr=0.05, eps=1e-12)
    ours = Adam(eps=1e-12)
    state = ours.init(w)
    for count in range(1, 8):
        grad = torch.randn(6, generator=generator, dtype=torch.float64)
        theirs.grad = grad.clone()
        reference.step()
        state = ours.step(state, grad, torch.tensor(0.05, dtype=torch.float64), count)
    torch.testing.assert_close(state[0], theirs.detach(), rtol=1e-9, atol=0)


def test_adam_has_epsilon_squared_inside_the_root():
    state = Adam((0.0, 0.0), eps=0.5).step(Adam().init(torch.zeros(1)), torch.tensor([2.0]), torch.tensor(1.0), 1)
    assert state[0].item() == pytest.approx(-2 / (4 + 0.25) ** 0.5)


def test_sgd_is_torchs_momentum():
    w = torch.randn(4, generator=torch.Generator().manual_seed(1))
    theirs = torch.nn.Parameter(w.clone())
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.8)
    ours = SGD(0.8)
    state = ours.init(w)
    for count in range(1, 5):
        theirs.grad = state[0].cos()
        state = ours.step(state, state[0].cos(), torch.tensor(0.1), count)
        reference.step()
    torch.testing.assert_close(state[0], theirs.detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: Adam((0.9, 1.0)), r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        (lambda: Adam(eps=0), "eps must be positive, got 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
