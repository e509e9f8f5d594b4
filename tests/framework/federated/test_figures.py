"""Pictures of federations: what is drawn, on records made by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from framework.federated.figures import curves, layer_shares, progress_figure, selection_heatmap
from framework.federated.rounds import ClientReport, RoundReport

LAYERS = ("blocks.0", "blocks.2", "blocks.10")


def record(number, clients=(), clock=0.0, flops=None, **metrics):
    """A round as it lies in ``rounds.jsonl``."""
    made = RoundReport(number, list(clients), dict(metrics), clock=clock).record()
    for client, spent in zip(made["clients"], flops or (), strict=False):
        client["flops"] = spent
    return made


def chosen(client, *layers, outcome="used"):
    return ClientReport(client, outcome, layers=list(layers))


@pytest.fixture
def rounds():
    return [
        record(0),
        record(1, [chosen(0, LAYERS[0]), chosen(1, LAYERS[0], LAYERS[2])]),
        record(2, [ClientReport(0), ClientReport(1)]),  # without a choice
        record(3, [chosen(0, LAYERS[2]), chosen(3, LAYERS[1], outcome="dropped out"), chosen(4)]),
        # round 4 is not among the records
        record(5, [chosen(1, LAYERS[2]), chosen(4, LAYERS[1])]),
    ]


def test_shares_of_layers_by_round_and_by_client(rounds):
    found = layer_shares(rounds)
    none = math.nan
    assert found.layers == LAYERS  # 2 before 10
    assert found.rounds.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(
        found.by_round, [[1, none, 0, none, 0], [0, none, 0, none, 0.5], [0.5, none, 0.5, none, 0.5]]
    )
    assert found.clients.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(
        found.by_client, [[0.5, 0.5, none, none, 0], [0, 0, none, none, 0.5], [0.5, 1, none, none, 0]]
    )


def test_layers_keep_the_order_they_are_given_in_and_those_nobody_trained_are_shown(rounds):
    names = ("stem", *LAYERS[::-1], "top")
    found = layer_shares(rounds, names)
    assert found.layers == names
    np.testing.assert_array_equal(found.by_round[1:4], layer_shares(rounds).by_round[::-1])
    assert np.nansum(found.by_round[[0, -1]]) == 0
    nobody = layer_shares([record(1, [chosen(0), chosen(1)])], names)
    assert nobody.by_round.tolist() == [[0.0]] * 5


def test_the_heatmap_shows_the_shares(rounds):
    figure = selection_heatmap(rounds, LAYERS)
    over_rounds, over_clients = figure.axes[:2]
    shares = layer_shares(rounds, LAYERS)
    for axes, values, columns in (
        (over_rounds, shares.by_round, shares.rounds),
        (over_clients, shares.by_client, shares.clients),
    ):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
        assert image.get_array().mask.tolist() == np.isnan(values).tolist()
        assert image.get_clim() == (0, 1)
        assert image.get_extent()[:2] == [columns[0] - 0.5, columns[-1] + 0.5]
        assert image.origin == "lower"
    assert [text.get_text() for text in over_rounds.get_yticklabels()] == list(LAYERS)
    assert over_rounds.get_yticks().tolist() == [0, 1, 2]
    assert "input at the bottom" in over_rounds.get_ylabel()
    assert (over_rounds.get_xlabel(), over_clients.get_xlabel()) == ("round", "client")
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("records", "layers", "message"),
    [
        ([], None, "no client of any round has any"),
        ([record(0), record(1, [ClientReport(0)])], None, "no client of any round has any"),
        ([record(1, [chosen(0, "a", outcome="failed")])], None, "no client of any round has any"),
        ([record(1, [chosen(0, "a")])], ["b"], "every layer that was trained, but 'a' is not among them"),
        ([record(1, [chosen(0)])], None, "must name the layers where no client trained any"),
    ],
)
def test_records_that_give_no_heatmap_are_refused(records, layers, message):
    with pytest.raises(ValueError, match=message):
        selection_heatmap(records, layers)


def run(accuracies, sizes=(10, 20, 30), flops=(1.0, 2.0, 4.0), clock=(0.5, 0.75, 2.0)):
    """Rounds 0 to 3; each has two clients, one of them late; nothing is evaluated after round 2."""
    made = [record(0, **{"val/accuracy": accuracies[0]})]
    for number, (size, spent, now) in enumerate(zip(sizes, flops, clock, strict=True), start=1):
        metrics = {} if number == 2 else {"val/accuracy": accuracies[number]}
        clients = [ClientReport(0, up=size), ClientReport(1, "late", up=1)]
        made.append(record(number, clients, now, (spent, 10 * spent), **metrics))
    return made


def test_curves_sum_costs_up_to_each_evaluation():
    found = curves(run([0.1, 0.4, None, 0.9]), "val/accuracy")
    assert {name: values.tolist() for name, values in found.items()} == {
        "round": [0, 1, 3],
        "value": [0.1, 0.4, 0.9],
        "up": [0, 11, 63],
        "flops": [0, 11, 77],
        "seconds": [0, 0.5, 2],
    }


def test_curves_leave_out_what_was_not_recorded():
    plain = [record(0, loss=3.0), record(1, [ClientReport(0, up=5)], loss=2.0)]
    for client in plain[1]["clients"]:
        client.pop("flops", None)  # of a version that did not count
    assert set(curves(plain, "loss")) == {"round", "value", "up"}
    assert curves(plain, "accuracy")["value"].size == 0
    assert curves([], "loss")["value"].size == 0
    broken = [*plain, record(2, [ClientReport(0, up=5)], loss=math.nan)]
    assert curves(broken, "loss")["round"].tolist() == [0, 1]


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_progress_of_one_run_is_its_curve_in_a_panel_for_each_cost():
    figure = progress_figure({"ours": [run([0.1, 0.4, None, 0.9])]}, "val/accuracy", percent=True)
    found = curves(run([0.1, 0.4, None, 0.9]), "val/accuracy")
    assert len(figure.axes) == 3
    for axes, cost in zip(figure.axes, ("up", "flops", "seconds"), strict=True):
        line = lines(axes)["ours"]
        assert line.get_xdata().tolist() == found[cost].tolist()
        assert line.get_ydata() == pytest.approx([10, 40, 90])
        assert not axes.collections
    assert figure.axes[0].get_ylabel() == "val/accuracy (%)"
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "sent by clients (B)",
        "backward passes of clients (FLOP)",
        "simulated time (s)",
    ]
    figure.canvas.draw()


def test_several_runs_are_drawn_as_mean_and_interval():
    several = [run([0.1, 0.4, None, 0.8]), run([0.3, 0.4, None, 0.6])]
    axes = progress_figure({"ours": several}, "val/accuracy").axes[0]
    line = lines(axes)["ours"]
    assert line.get_xdata().tolist() == [0, 11, 63]
    assert line.get_ydata() == pytest.approx([0.2, 0.4, 0.7])
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.3], ddof=1) / 2**0.5
    at_start = corners[corners[:, 0] == 0, 1]
    assert (at_start.min(), at_start.max()) == pytest.approx((0.2 - half, 0.2 + half))


def test_runs_of_other_costs_are_compared_where_all_have_been():
    cheap, dear = run([0.0, 0.5, None, 1.0], (9, 9, 9)), run([0.0, 0.5, None, 1.0], (19, 19, 19))
    line = lines(progress_figure({"ours": [cheap, dear]}, "val/accuracy").axes[0])["ours"]
    assert line.get_xdata().tolist() == [0, 10, 20, 30]  # evaluations at 10 and 30, at 20 and 60
    assert line.get_ydata() == pytest.approx([0, (0.5 + 0.25) / 2, (0.75 + 0.5) / 2, (1 + 0.625) / 2])


def test_panels_and_lines_are_only_those_of_recorded_costs():
    uncounted = run([0.1, 0.4, None, 0.9], flops=(0, 0, 0), clock=(0, 0, 0))
    assert len(progress_figure({"a": [uncounted]}, "val/accuracy").axes) == 1
    figure = progress_figure({"a": [uncounted], "b": [run([0.1, 0.4, None, 0.9])]}, "val/accuracy")
    assert [set(lines(axes)) for axes in figure.axes] == [{"a", "b"}, {"b"}, {"b"}]
    colours = {lines(axes)["b"].get_color() for axes in figure.axes}
    assert len(colours) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"a run of ours has no metric 'val/acuracy'; did you mean val/accuracy\?"):
        progress_figure({"ours": [run([0.1, 0.4, None, 0.9])]}, "val/acuracy")
    with pytest.raises(ValueError, match="must have recorded a cost, up, flops, seconds"):
        progress_figure({"ours": [[record(0, loss=1.0)]]}, "loss")
    with pytest.raises(ValueError, match="must have recorded a cost"):
        progress_figure({}, "loss")


def test_the_module_loads_neither_matplotlib_nor_torch():
    code = "import sys, framework.federated.figures; print({'matplotlib', 'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
