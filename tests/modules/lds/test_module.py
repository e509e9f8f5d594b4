"""LDS under Lightning: training, checkpoints, baselines, predictions, and what it refuses."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from datamodules.nodes.bundled import SklearnNodes
from datamodules.nodes.sbm import SBM
from framework.bilevel.hypergradient import Unroll
from framework.graphs.batch import NodeBatch
from framework.graphs.sources import GraphOptions
from modules.lds.edges import CandidateEdges, DenseEdges
from modules.lds.figures import graph_figure
from modules.lds.gcn import Features
from modules.lds.module import LDS, TRAIN
from modules.lds.statistics import edge_statistics, pairs_among

ROOT = Path(__file__).parents[3]
SIZES = {"inputs": 4, "classes": 2, "nodes": 40}
SMALL = {**SIZES, "hidden": 4, "tau": 2, "inner_steps": 6, "samples": 3}


def blocks(steps=4, **graph):
    options = GraphOptions(**{"source": "given", **graph})
    return SBM(40, 2, 4, p_in=0.3, p_out=0.05, graph=options, split=(6, 6, 6), steps_per_epoch=steps, seed=0)


def trainer(path, epochs, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=path, max_epochs=epochs, **{**quiet, "enable_checkpointing": False, **options})


def fitted(path, data=None, epochs=3, **options):
    torch.manual_seed(0)
    module = LDS(**{**SMALL, **options})
    run = trainer(path, epochs)
    run.fit(module, data or blocks())
    return module, run


def test_training_learns_valid_probabilities_and_counts_outer_steps(tmp_path):
    data = blocks()
    module, run = fitted(tmp_path, data)
    theta = module.theta.detach()
    start = DenseEdges.initial(40, data.graph.edge_index, data.graph.edge_weight)
    assert ((theta >= 0) & (theta <= 1)).all()
    assert torch.equal(theta, theta.triu(1))
    assert (theta != start).sum() > 100
    assert run.global_step == 3 * 3  # 6 inner steps an epoch by 2 are 3 rounds; the fourth batch does nothing
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1 / (1 + 1e-3 * 9))
    assert set(run.callback_metrics) >= {"train/loss", "stop/accuracy", "stop/score", "val/loss", "graph/inner_lr"}


@pytest.mark.parametrize(("part", "matters"), [("train", True), ("val", True), ("stop", False), ("test", False)])
def test_labels_reach_what_is_learned_by_the_two_losses_alone(tmp_path, part, matters):
    data, other = blocks(), blocks()
    for each in (data, other):
        each.setup()
    mask = getattr(other.graph, part)
    other.graph = other.graph._replace(y=torch.where(mask, 1 - other.graph.y, other.graph.y))
    one, two = (fitted(tmp_path, each, epochs=1)[0] for each in (data, other))
    assert torch.equal(one.theta, two.theta) != matters


def test_every_metric_is_over_its_own_nodes(tmp_path):
    data = blocks()
    module, run = fitted(tmp_path, data, epochs=1)
    found = {**run.validate(module, data, verbose=False)[0], **run.test(module, data, verbose=False)[0]}
    logits, batch = module(data.graph), data.graph
    for part in ("stop", "val", "test"):
        nodes = getattr(batch, part)
        assert found[f"{part}/loss"] == pytest.approx(cross_entropy(logits[nodes], batch.y[nodes]).item(), rel=1e-5)
        correct = (logits[nodes].argmax(1) == batch.y[nodes]).float().mean()
        assert found[f"{part}/accuracy"] == pytest.approx(correct.item())
    losses = [found[f"{part}/loss"] for part in ("stop", "val", "test")]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-4  # the parts can be told apart


def test_an_epoch_ends_after_patience_steps_without_progress(tmp_path):
    _, run = fitted(tmp_path, blocks(20), epochs=1, inner_steps=1000, patience=3, tolerance=0.99)
    assert run.global_step == 2  # the first loss is accepted, the next three in a row are not: four steps, two rounds


@pytest.mark.parametrize("restart", ["epoch", "never"])
@pytest.mark.parametrize("support", ["dense", "knn"])
def test_resume_is_bit_identical(tmp_path, restart, support):
    options = {"support": support, "candidates": 5}
    whole, _ = fitted(tmp_path, blocks(**options), epochs=4, restart=restart)

    torch.manual_seed(0)
    first = LDS(**SMALL, restart=restart)
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True)
    trainer(tmp_path, 2, enable_checkpointing=True, callbacks=[keep]).fit(first, blocks(**options))
    torch.manual_seed(99)  # another process would have another state
    second = LDS(**SMALL, restart=restart)
    trainer(tmp_path, 4).fit(second, blocks(**options), ckpt_path=tmp_path / "kept/last.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(first.theta, second.theta)


def test_resume_within_an_epoch_is_bit_identical(tmp_path):
    whole, _ = fitted(tmp_path, blocks(6), epochs=2, inner_steps=100)
    torch.manual_seed(0)
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=8, save_top_k=-1)
    first = LDS(**{**SMALL, "inner_steps": 100})
    trainer(tmp_path, 2, enable_checkpointing=True, callbacks=[keep], max_steps=8).fit(first, blocks(6))
    (path,) = (tmp_path / "kept").glob("*.ckpt")
    second = LDS(**{**SMALL, "inner_steps": 100})
    trainer(tmp_path, 2).fit(second, blocks(6), ckpt_path=path, weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_checkpoint_loads_without_data_and_predicts_the_same(tmp_path):
    data = blocks(support="knn", candidates=5)
    _, run = fitted(tmp_path, data)
    run.save_checkpoint(tmp_path / "m.ckpt")
    loaded = LDS.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert isinstance(loaded.edges(), CandidateEdges)
    assert torch.equal(loaded.candidates, data.graph.candidates)
    assert_close(loaded(data.graph), loaded(data.graph))  # every call draws the same graphs
    assert loaded(data.graph).shape == (40, 2)


def test_a_second_fit_goes_on_from_what_was_learned(tmp_path):
    data = blocks()
    module, _ = fitted(tmp_path, data)
    learned = module.theta.detach().clone()
    trainer(tmp_path, 1, limit_train_batches=0).fit(module, data)
    assert torch.equal(module.theta, learned)


def test_the_number_of_rounds_per_step_does_not_matter(tmp_path):
    one, run = fitted(tmp_path, blocks(3))
    many, other = fitted(tmp_path, blocks(1), rounds_per_step=5)
    assert run.global_step == other.global_step == 9
    assert torch.equal(one.theta, many.theta)
    assert torch.equal(one.weights, many.weights)


def test_the_seed_decides_and_the_global_generator_does_not(tmp_path):
    first, _ = fitted(tmp_path, epochs=1)
    again, _ = fitted(tmp_path, epochs=1)
    torch.manual_seed(1)
    other = LDS(**SMALL)
    trainer(tmp_path, 1).fit(other, blocks())
    assert torch.equal(first.theta, again.theta)
    assert not torch.equal(first.theta, other.theta)


def test_outer_rate_zero_leaves_graph_and_inner_rate(tmp_path):
    data = blocks()
    module, _ = fitted(tmp_path, data, outer_lr=0.0)
    assert torch.equal(module.theta, DenseEdges.initial(40, data.graph.edge_index, data.graph.edge_weight))
    assert module.inner_lr().item() == pytest.approx(0.02)


def test_the_inner_rate_moves_only_if_it_is_learned(tmp_path):
    learned, _ = fitted(tmp_path)
    fixed, _ = fitted(tmp_path, learn_inner_lr=False)
    assert learned.inner_lr().item() != pytest.approx(0.02, abs=1e-6)
    assert 1e-4 < learned.inner_lr().item() < 0.05
    assert fixed.inner_lr().item() == pytest.approx(0.02)


@pytest.mark.parametrize("quirk", [{"edge_gradient": "upper"}, {"reuse_graphs": False}, {"skip_first": True}])
def test_quirks_of_the_official_code_change_what_is_learned(tmp_path, quirk):
    plain, _ = fitted(tmp_path, epochs=1)
    other, _ = fitted(tmp_path, epochs=1, **quirk)
    assert not torch.equal(plain.theta, other.theta)


def test_learns_wine(tmp_path):
    """Real data: far better than the largest class, and links between test nodes of one class grow likelier."""
    torch.manual_seed(1)
    data = SklearnNodes("wine", GraphOptions(source="knn", k=20), steps_per_epoch=40)
    module = LDS(data.inputs, data.classes, data.nodes)
    run = trainer(tmp_path, 4)
    run.fit(module, data)
    (results,) = run.test(module, data, verbose=False)
    assert results["test/accuracy"] > 0.85
    assert results["test/edge_ratio"] > 1.5


# --- baselines ---


def test_a_fixed_graph_stays_and_the_weights_learn(tmp_path):
    data = blocks(20, source="knn", k=5)
    torch.manual_seed(0)
    module = LDS(**SMALL, learn_graph=False, inner_lr=0.05)
    run = trainer(tmp_path, 5)
    run.fit(module, data)
    assert run.global_step == 100
    assert torch.equal(module.theta, torch.ones(data.graph.edge_index.shape[1]))
    (results,) = run.test(module, data, verbose=False)
    assert results["test/accuracy"] > 0.7
    assert "test/edge_auc" not in results


def test_an_empty_graph_is_a_plain_network(tmp_path):
    data = blocks(source="empty")
    _, run = fitted(tmp_path, data, learn_graph=False)
    run.save_checkpoint(tmp_path / "m.ckpt")
    module = LDS.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    w0, w1 = module.network.weights(module.weights.detach())
    assert_close(module(data.graph), (data.graph.x @ w0).relu() @ w1)


def test_weighted_graph_is_used_with_its_weights(tmp_path):
    data = blocks(source="rbf")
    module, _ = fitted(tmp_path, data, learn_graph=False)
    graph = data.graph
    adjacency = torch.eye(40)
    adjacency[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight
    adjacency[graph.edge_index[1], graph.edge_index[0]] = graph.edge_weight
    r = adjacency.sum(1).rsqrt()
    propagation = r[:, None] * adjacency * r
    w0, w1 = module.network.weights(module.weights.detach())
    assert_close(module(graph), propagation @ (propagation @ graph.x @ w0).relu() @ w1, rtol=1e-4, atol=1e-5)


def test_random_edges_change_training_and_not_the_prediction_graph(tmp_path):
    data = blocks()
    plain, _ = fitted(tmp_path, data, learn_graph=False)
    noisy, _ = fitted(tmp_path, data, learn_graph=False, random_edges=1.0)
    assert not torch.equal(plain.weights, noisy.weights)
    assert torch.equal(plain.theta, noisy.theta)


# --- what comes out ---


def test_edge_statistics_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(12, 12, generator=generator).triu(1)
    y = torch.randint(0, 3, (12,), generator=generator)
    nodes = torch.rand(12, generator=generator) < 0.7
    found = edge_statistics(DenseEdges(theta), y, nodes)
    among = [(i, j) for i in range(12) for j in range(i + 1, 12) if nodes[i] and nodes[j]]
    same = [theta[i, j].item() for i, j in among if y[i] == y[j]]
    other = [theta[i, j].item() for i, j in among if y[i] != y[j]]
    assert found["same"].item() == pytest.approx(sum(same) / len(same))
    assert found["ratio"].item() == pytest.approx((sum(same) / len(same)) / (sum(other) / len(other)))
    wins = sum((s > o) + 0.5 * (s == o) for s in same for o in other)
    assert found["auc"].item() == pytest.approx(wins / (len(same) * len(other)))
    candidates = torch.tensor(among[:5]).T
    pairs, probability = pairs_among(CandidateEdges(theta[candidates[0], candidates[1]], candidates), nodes)
    assert torch.equal(pairs, candidates)
    assert torch.equal(probability, theta[candidates[0], candidates[1]])


def test_predictions_cover_all_nodes_and_list_the_edges(tmp_path):
    data = blocks()
    module, run = fitted(tmp_path, data)
    (columns,) = run.predict(module, data)
    assert columns["node"] == [str(node) for node in range(40)]
    assert_close(columns["probability"].sum(1), torch.ones(40))
    assert torch.equal(columns["prediction"], columns["probability"].argmax(1))
    assert torch.equal(columns["target"], data.graph.y)
    edges = module.prediction_tables()["edges"]
    assert (edges["probability"].diff() <= 0).all()
    assert (edges["probability"] > 0.01).all()
    source, target = ([int(name) for name in edges[column]] for column in ("source", "target"))
    assert torch.equal(module.theta[source, target], edges["probability"])


def test_figures(tmp_path):
    module, _ = fitted(tmp_path)
    figures = module.figures()
    assert set(figures) == {"edge_probabilities", "graph"}
    labels = [text.get_text() for text in figures["edge_probabilities"].axes[0].get_legend().get_texts()]
    assert [label.split(" (")[0] for label in labels] == ["same class", "different classes"]
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_picture_of_a_graph_needs_one_feature_and_no_random_numbers_of_the_run():
    x, y = torch.randn(6, 1), torch.tensor([0, 1, 0, 1, 0, 1])
    masks = torch.eye(6, dtype=torch.bool)[:4]
    batch = NodeBatch(x, y, torch.tensor([[0], [1]]), torch.ones(1), None, *masks)
    before = torch.get_rng_state()
    figure = graph_figure(DenseEdges(DenseEdges.initial(6, batch.edge_index, batch.edge_weight)), batch)
    assert torch.equal(torch.get_rng_state(), before)
    places = torch.tensor(figure.axes[0].collections[-2].get_offsets().tolist())
    assert places[:, 1].tolist() == [0.0] * 6
    assert_close(places[:, 0].abs(), (x - x.mean())[:, 0].abs())


# --- two ranks ---

RANK = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_module import LDS, SMALL, blocks, trainer
torch.manual_seed(0)
module = LDS(**SMALL)
run = trainer({path!r}, 1, strategy="ddp", devices=2, limit_train_batches={batches})
run.fit(module, blocks())
torch.save(module.state_dict(), os.path.join({path!r}, f"{{run.global_rank}}.pt"))
"""


@pytest.mark.process
def test_two_ranks_average_the_hypergradients_of_their_graphs(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(tests=str(Path(__file__).parent), path=str(tmp_path), batches=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name  # weights too: the first rank's, at validation

    # The same first round by hand, once with each rank's generator.
    data = blocks()
    data.setup()
    torch.manual_seed(0)
    module = LDS(**SMALL)
    single = trainer(tmp_path, 1, limit_train_batches=0)
    single.fit(module, data)
    gradients, rates = [], []
    for rank in range(2):
        problem, _ = module._problem_of(data.graph)
        assert isinstance(problem.x, Features)
        unroll = Unroll(module.optimizer, problem.inner, module.optimizer.init(module.weights.detach()))
        generator = module._generator(TRAIN, rank, 0, 0)
        result = problem.round(unroll, module.inner_lr().detach(), 2, generator)
        gradients.append(result.d_theta)
        rates.append(result.d_lr)
    start = DenseEdges.initial(40, data.graph.edge_index, data.graph.edge_weight)
    expected = (start - (gradients[0] + gradients[1]) / 2).clamp(0, 1)
    assert not torch.allclose(gradients[0], gradients[1])
    assert_close(states[0]["theta"], expected, rtol=1e-5, atol=1e-7)


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 0}, "tau must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"outer_lr": -1.0}, "outer_lr must be at least 0, got -1.0"),
        ({"inner_lr": 0.3}, r"inner_lr must lie inside inner_lr_range \(0.0001, 0.05\) to be learned, got 0.3"),
        ({"inner_lr_range": (0.1, 0.01)}, "inner_lr_range must be two positive rates, the lower first"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\), got 1.0"),
        ({"random_edges": 0.5}, "random_edges is the GCN-RND baseline: it needs learn_graph: false"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, got -0.0001"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LDS(**{**SIZES, **arguments})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"nodes": 41}, "nodes is 41, but the data have 40"),
        ({"inputs": 5}, "inputs is 5, but the data have 4"),
    ],
)
def test_sizes_that_do_not_fit_the_data(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, 1).fit(LDS(**{**SMALL, **sizes}), blocks())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_is_refused(tmp_path, precision):
    with pytest.raises(
        ValueError, match=f"precision must be 32-true or 64-true or bf16-mixed for LDS, got {precision}"
    ):
        trainer(tmp_path, 1, precision=precision).fit(LDS(**SMALL), blocks())


@pytest.mark.parametrize("options", [{}, {"learn_graph": False, "random_edges": 0.5}])
def test_double_precision_agrees_with_single(tmp_path, options):
    single, _ = fitted(tmp_path, epochs=1, dropout=0.0, inner_lr=1e-3, outer_lr=0.0, **options)
    torch.manual_seed(0)
    double = LDS(**{**SMALL, "dropout": 0.0, "inner_lr": 1e-3, "outer_lr": 0.0, **options})
    trainer(tmp_path, 1, precision="64-true").fit(double, blocks())
    assert double.theta.dtype == double.weights.dtype == torch.float64
    assert double.network.parameters == double.weights.numel()
    if options:  # a learned graph is drawn by numbers of the type of theta: others for float64
        assert_close(double.weights.float(), single.weights, atol=1e-4, rtol=0)
    assert torch.isfinite(double.weights).all()


def test_an_epoch_too_short_for_its_inner_problem_is_said(tmp_path):
    with pytest.warns(UserWarning, match="an epoch ends after 4 of at most 6 inner steps"):
        fitted(tmp_path, blocks(steps=2), epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="an epoch ends after")
        fitted(tmp_path, blocks(steps=1), epochs=1, rounds_per_step=3)
        fitted(tmp_path, blocks(steps=1), epochs=1, learn_graph=False)


def test_data_without_a_graph(tmp_path):
    from datamodules.digits import Digits

    with pytest.raises(TypeError, match="LDS needs a LightningDataModule with an attribute `graph`"):
        trainer(tmp_path, 1).fit(LDS(**SMALL), Digits())
