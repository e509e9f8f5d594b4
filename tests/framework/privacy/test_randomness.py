"""Generators from secrets: all of their state, and never the same twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framework.privacy import randomness
from framework.privacy.randomness import SEEDS, generator, secret
from framework.seeding import derive, seed_sequence


def normals(made):
    return torch.normal(0.0, 1.0, (50,), generator=made)


def test_a_secret_fills_the_whole_state_of_the_generator():
    """What torch then draws is what numpy's generator of the same kind draws from the same 624 words."""
    key = secret()
    twister = np.random.MT19937()
    words = seed_sequence(key, "noise", 3, words=8).generate_state(624)
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.randint(0, 2**24, (2000,), generator=generator(key, "noise", 3))
    assert drawn.tolist() == [int(raw) % 2**24 for raw in twister.random_raw(2000)]


def test_secrets_that_agree_in_32_bits_have_nothing_in_common():
    key = secret()
    assert torch.equal(normals(generator(key, "noise", 0)), normals(generator(key, "noise", 0)))
    others = [(key + 2**32, "noise", 0), (key + 2**200, "noise", 0), (key, "noise", 1), (key, "poisson", 0)]
    for other in others:
        assert float((normals(generator(*other)) - normals(generator(key, "noise", 0))).abs().min()) > 0
    plain = [torch.Generator().manual_seed(key % 2**32 + more) for more in (0, 2**33)]
    assert torch.equal(*[normals(each) for each in plain])  # what is wrong with torch's own seeds
    assert len({secret() for _ in range(100)}) == 100
    assert all(SEEDS <= secret() < SEEDS + 2**256 for _ in range(100))


def test_a_seed_that_a_user_gives_draws_what_it_always_did():
    made = generator(7, "noise", 2)
    assert torch.equal(normals(made), normals(torch.Generator().manual_seed(derive(7, "noise", 2))))


def test_another_layout_of_torchs_state_is_noticed(monkeypatch):
    monkeypatch.setattr(randomness, "_FIRST", 32)
    with pytest.raises(RuntimeError, match="torch's generator keeps its state in another way"):
        generator(secret(), "noise")
