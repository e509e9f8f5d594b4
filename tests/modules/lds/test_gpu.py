"""What differs on a GPU: dense operators, another generator, another way of sampling. Skipped where there is none."""

import pytest
import torch
from test_engine import NODES, make, replay, run
from torch.testing import assert_close

from framework import cli
from framework.bilevel.hypergradient import Unroll
from framework.bilevel.optimizers import Adam
from modules.lds.edges import DenseEdges
from modules.lds.engine import LDSProblem
from modules.lds.gcn import Features, GCNSample
from modules.lds.propagation import Graph

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("sparse", [False, True])
def test_hypergradient_equals_the_cpus_on_the_same_graphs(sparse):
    problem, x, w, lr = make(sparse=sparse)
    expected = run(problem, w, lr, 5)[0]
    adjacencies, masks = replay(problem, 5)
    samples = [
        GCNSample(Graph(NODES, a.triu(1).nonzero().T.cuda(), dtype=torch.float64, dense=not sparse), m)
        for a, m in zip(adjacencies, [*(mask.cuda() for mask in masks), None], strict=True)
    ]
    features = Features((x.to_sparse_csr() if sparse else x).cuda())
    indices = problem.train.cuda(), problem.val.cuda()
    there = LDSProblem(problem.network, DenseEdges(problem.edges.theta.cuda()), features, problem.y.cuda(), *indices)
    given = iter(samples)
    there.draw = lambda generator, dropout: next(given)
    optimizer = Adam()
    unroll = Unroll(optimizer, there.inner_loss, optimizer.init(w.cuda()))
    result = there.round(unroll, lr.cuda(), 5, torch.Generator("cuda"))
    assert_close(result.d_theta.cpu(), expected.d_theta, rtol=1e-8, atol=1e-12)
    assert_close(result.d_lr.cpu(), expected.d_lr, rtol=1e-8, atol=1e-12)


def test_sampling_frequencies_match_theta():
    generator = torch.Generator("cuda").manual_seed(0)
    theta = torch.rand(24, 24, generator=generator, device="cuda").triu(1)
    edges, count, draws = DenseEdges(theta), torch.zeros(24, 24, device="cuda"), 4000
    for _ in range(draws):
        pairs = edges.sample(generator)
        count[pairs[0], pairs[1]] += 1
    assert ((count / draws - theta).abs() <= 4.5 * (theta * (1 - theta) / draws).sqrt()).all()


def test_wine_trains_and_resumes_bit_identically(tmp_path):
    def fit(place, epochs, *more):
        options = ["--trainer.max_epochs", str(epochs), "--trainer.default_root_dir", str(tmp_path / place), *more]
        return cli.run(["fit", "-c", "lds/wine", "-c", "overlays/gpu", *options])

    whole = fit("whole", 4)
    fit("parts", 2)
    parts = fit("parts", 4, "--ckpt_path", "last")
    last = [
        torch.load(done.directory / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for done in (whole, parts)
    ]
    for name, value in last[0].items():
        assert torch.equal(value, last[1][name]), name
    assert whole.results["test/accuracy"] > 0.85


@pytest.mark.parametrize("overlays", [[], ["overlays/bf16"]])
def test_the_classifier_learns_in_each_precision(tmp_path, overlays):
    layers = [part for name in ["classifier/digits", "overlays/gpu", *overlays] for part in ("-c", name)]
    done = cli.run(["fit", *layers, "--trainer.max_epochs", "10", "--trainer.default_root_dir", str(tmp_path)])
    assert done.results["test/accuracy"] > 0.93


@pytest.mark.process
def test_ddp_over_nccl(tmp_path):
    layers = ["-c", "classifier/digits", "-c", "overlays/ddp", "--trainer.devices", "1"]
    done = cli.run(["fit", *layers, "--trainer.max_epochs", "5", "--trainer.default_root_dir", str(tmp_path)])
    assert torch.device(done.trainer.strategy.root_device).type == "cuda"
    assert done.results["test/accuracy"] > 0.9
