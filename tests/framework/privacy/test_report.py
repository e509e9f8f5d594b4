"""What a report says."""

from __future__ import annotations

import json

import pytest

from framework.figures import png
from framework.privacy.accounting import epsilon_spent, make_accountant
from framework.privacy.report import COVERS, DOES_NOT_COVER, epsilon_curve, epsilon_figure, privacy_report


def report(accountant, **changes):
    given = {
        "epsilon": 3.0,
        "max_grad_norm": 1.0,
        "clipping": "flat",
        "grad_sample_mode": "hooks",
        "items": 600,
        "batch_size": 60,
        "seeded": False,
        "curve": epsilon_curve(accountant, 1e-5),
    }
    return json.loads(json.dumps(privacy_report(accountant, 1e-5, **{**given, **changes}), allow_nan=False))


def accountant(noise=2.0, steps=10):
    made = make_accountant("classic_rdp")
    for _ in range(steps):
        made.step(noise_multiplier=noise, sample_rate=0.1)
    return made


def test_a_report_says_what_holds_and_what_does_not():
    made = accountant()
    told = report(made)
    assert told["epsilon"] == pytest.approx(epsilon_spent(made, 1e-5))
    assert told["sampling"]["rate"] == 0.1
    assert told["steps"] == 10
    assert told["accountant"] == "classic_rdp"
    assert told["history"] == {"noise": [2.0], "rate": [0.1], "steps": [10]}
    assert told["covers"] == COVERS
    assert told["does_not_cover"] == DOES_NOT_COVER
    assert told["warnings"] == []
    deltas, epsilons = told["curve"]["delta"], told["curve"]["epsilon"]
    assert deltas == sorted(deltas)
    assert epsilons == sorted(epsilons, reverse=True)
    assert epsilons[deltas.index(1e-5)] == told["epsilon"]


def test_a_report_warns_of_what_voids_the_guarantee():
    assert "a seed that was given" in report(accountant(), seeded=True)["warnings"][0]
    assert "delta is not below 1 / 600" in privacy_report(
        accountant(), 0.01, epsilon=None, max_grad_norm=[1.0], clipping="per_layer", grad_sample_mode="hooks",
        items=600, batch_size=60, seeded=False, curve=[],
    )["warnings"][0]  # fmt: skip
    silent = report(accountant(noise=0.0))
    assert silent["epsilon"] is None
    assert "steps without noise" in silent["warnings"][0]


def test_the_curve_is_drawn():
    curve = epsilon_curve(accountant(), 1e-5)
    assert png(epsilon_figure(curve, 1e-5, "rdp"))[:4] == b"\x89PNG"
    assert epsilon_figure(epsilon_curve(make_accountant("prv"), 1e-5), 1e-5) is None
