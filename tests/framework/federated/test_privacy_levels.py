"""The nine distributions and the batch sizes as they stand in the paper's code."""

from __future__ import annotations

import numpy as np
import pytest

from framework.federated.privacy_levels import CLIENTS, NAMES, batch_sizes, epsilons

MEANS = [1.93, 1.44, 1.96, 1.06, 0.86, 0.38, 0.58, 0.29, 0.31]  # of the lists for 20 clients


@pytest.mark.parametrize(("name", "mean"), [*zip(NAMES, MEANS, strict=True)])
def test_lists_have_their_lengths_and_means(name, mean):
    for clients in CLIENTS:
        found = epsilons(name, clients)
        assert len(found) == clients
        assert 0.15 <= min(found) <= max(found) <= 6
    assert round(float(np.mean(epsilons(name, 20))), 2) == mean
    assert epsilons(name, 40) == epsilons(name, 60)[:40]
    assert (epsilons(name, 20) == epsilons(name, 60)[:20]) == (name in ("Dist1", "Dist2", "Dist6", "Dist8"))


def test_batches_are_powers_of_two():
    assert [len(batch_sizes("paper", clients)) for clients in CLIENTS] == list(CLIENTS)
    assert set(batch_sizes("paper", 60)) == {16, 32, 64, 128}
    assert batch_sizes("paper", 20)[:6] == (32, 64, 16, 32, 16, 16)
    assert sum(batch_sizes("paper", 20)) == 768


def test_ideal_weights_are_as_uneven_as_the_lists():
    """Noise energy goes with 1 / (epsilon b)^2: five and a half clients' worth in Dist1, four and a half in Dist4."""
    for name, expected in (("Dist1", 5.5), ("Dist4", 4.4)):
        ideal = np.square(np.multiply(epsilons(name, 20), batch_sizes("paper", 20)))
        assert ideal.sum() ** 2 / np.square(ideal).sum() == pytest.approx(expected, abs=0.06)


def test_own_lists_and_single_numbers():
    assert epsilons(2.0, 3) == (2.0, 2.0, 2.0)
    assert epsilons([1.0, 2.0], 2) == (1.0, 2.0)
    assert batch_sizes(8, 2) == (8, 8)
    for call, words in (
        (lambda: epsilons("Dist10", 20), "did you mean Dist1"),
        (lambda: epsilons("Dist1", 21), "Dist1 is for 20, 40 or 60 clients, got 21"),
        (lambda: epsilons([1.0], 2), "one epsilon for each of the 2 clients, got 1"),
        (lambda: epsilons([1.0, -1.0], 2), "the epsilon of client 1 must be positive and finite, got -1.0"),
        (lambda: batch_sizes("papers", 20), "a number for each client, or paper, got 'papers'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
