"""LDS and the graph convolutional baselines that share its network, as one LightningModule."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from framework.bilevel.hypergradient import Unroll
from framework.bilevel.optimizers import Adam
from framework.graphs.batch import NodeBatch
from modules.lds.arguments import check_arguments
from modules.lds.edges import CandidateEdges, DenseEdges, EdgeGradient, add_random_edges
from modules.lds.engine import LDSProblem
from modules.lds.gcn import GCN, Features, GCNSample
from modules.lds.propagation import Graph
from modules.lds.statistics import edge_statistics

# What a random draw is for: part of its seed, next to (seed, rank, epoch, batch).
TRAIN, INIT, EVALUATE = range(3)
# Under the others, float16 gives NaN and a gradient scaler waits for a backward pass that there is not.
PRECISIONS = ("32-true", "64-true", "bf16-mixed")


class LDS(LightningModule):
    """Learn a graph's edge probabilities theta with the weights of a GCN (Franceschi, Niepert, Pontil, He, ICML 2019).

    A batch is a whole graph, a ``NodeBatch``. One training step is one round (or ``rounds_per_step``): ``tau`` steps of
    the inner problem, each on a graph sampled from theta, then one step on theta along the truncated hypergradient of
    the validation loss. An epoch starts from fresh weights and ends once the training loss has stopped to fall, or
    after ``inner_steps`` steps; the data have to serve the graph often enough for that. Early stopping and the choice
    of the best epoch read ``stop/...``, computed on nodes that no loss sees.

    With ``learn_graph=False`` the graph stays as it is given and one training step is one Adam step on the weights:
    GCN, kNN-GCN, Sparse-, Dense- and RBF-GCN by the data's graph, GCN-RND with ``random_edges``, a plain MLP by an
    empty graph.

    Args:
        inputs: Number of node features.
        classes: Number of classes, at least 2.
        nodes: Number of nodes.
        hidden: Width of the hidden layer.
        dropout: Probability of dropping a hidden unit in the training loss, in [0, 1).
        weight_decay: Factor of 1/2 ||W0||^2 in the training loss.
        tau: Inner steps per round, at least 1.
        inner_lr: Learning rate of the inner Adam; where the learning starts if ``learn_inner_lr``.
        learn_inner_lr: Learn the inner learning rate by the same hypergradient.
        inner_lr_range: Bounds of a learned rate.
        outer_lr: First learning rate of theta and of the learned inner rate; 0 leaves both as they are.
        outer_lr_decay: Decay c of the outer rate, ``outer_lr / (1 + c t)`` after t rounds.
        inner_steps: Most inner steps in one epoch.
        rounds_per_step: Rounds that one training step takes at most. The result does not depend on it; where a round
            takes milliseconds, many at once save Lightning's work per step.
        patience: The epoch ends when this many inner steps in a row have not lowered the training loss ...
        tolerance: ... by this share of the lowest accepted one.
        restart: ``epoch``: weights and inner optimiser start afresh each epoch; ``never``: they go on (warm start).
        samples: Graphs that a prediction averages over.
        learn_graph: Learn theta; False for the baselines.
        random_edges: GCN-RND: random edges added at each training step, as a share of the graph's own (baselines only).
        reuse_graphs: Evaluate the reverse pass on the forward pass' graphs (the paper) or on new ones (official code).
        edge_gradient: ``symmetric`` counts an edge in both directions, ``upper`` in one (official code).
        skip_first: From the second round of an epoch on, leave the round's first step out of the hypergradient
            (official code).
        select_by: What "best" means on the stop nodes, the highest ``stop/...``: ``accuracy`` (paper); ``likelihood``,
            the negative loss; or ``score``, which is accuracy with ties broken by the likelihood.

    Raises:
        ValueError: If an argument lies outside its range.
    """

    theta: nn.Parameter
    candidates: Tensor
    moments: Tensor
    progress: Tensor
    base_seed: Tensor

    def __init__(
        self,
        inputs: int,
        classes: int,
        nodes: int,
        hidden: int = 16,
        dropout: float = 0.5,
        weight_decay: float = 5e-4,
        tau: int = 5,
        inner_lr: float = 0.02,
        learn_inner_lr: bool = True,
        inner_lr_range: tuple[float, float] = (1e-4, 0.05),
        outer_lr: float = 1.0,
        outer_lr_decay: float = 1e-3,
        inner_steps: int = 400,
        rounds_per_step: int = 1,
        patience: int = 20,
        tolerance: float = 1e-3,
        restart: Literal["epoch", "never"] = "epoch",
        samples: int = 16,
        learn_graph: bool = True,
        random_edges: float = 0.0,
        reuse_graphs: bool = True,
        edge_gradient: EdgeGradient = "symmetric",
        skip_first: bool = False,
        select_by: Literal["accuracy", "likelihood", "score"] = "accuracy",
    ) -> None:
        super().__init__()
        check_arguments(locals())
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.monitor = f"stop/{select_by}"
        self.mode = "max"
        self.network = GCN(inputs, classes, hidden, dropout, weight_decay)
        self.optimizer = Adam()
        # The learned rate is low + sigmoid(rate) (high - low).
        low, high = inner_lr_range
        learned = learn_graph and learn_inner_lr
        start = torch.tensor((inner_lr - low) / (high - low) if learned else 0.5)
        self.rate = nn.Parameter(start.logit(), requires_grad=learned)
        self.weights = nn.Parameter(torch.zeros(self.network.parameters), requires_grad=not learn_graph)
        # What changes over time, so that a checkpoint holds it: Adam's moments, and how the epoch is going.
        self.register_buffer("moments", torch.zeros(2, self.network.parameters))
        # Inner steps of this epoch, its lowest training loss, failures in a row to lower it, and Adam's step count.
        self.register_buffer("progress", torch.tensor([0, math.inf, 0, 0], dtype=torch.float64))
        self.register_buffer("base_seed", torch.tensor(-1))
        self._allocate(None)
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "f1": MulticlassF1Score(classes, average="macro"),
            }
        )
        self.test_metrics = metrics.clone(prefix="test/")

    # --- graph and state ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the initial graph from the data, once; a checkpoint, restored later, overrides it."""
        graph = self._graph()
        nodes, inputs = graph.x.shape
        for name, found in (("nodes", nodes), ("inputs", inputs)):
            if self.hparams[name] != found:
                raise ValueError(f"{name} is {self.hparams[name]}, but the data have {found}")
        if int(graph.y.max()) >= self.hparams["classes"]:
            raise ValueError(f"classes is {self.hparams['classes']}, but the data have a class {int(graph.y.max())}")
        if self.trainer.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision must be {' or '.join(PRECISIONS)} for LDS, got {self.trainer.precision}"
            )
        if int(self.base_seed) < 0:  # a module that was fitted or loaded goes on from what it has learned
            with torch.no_grad():
                # A graph that is not learned needs no room for other pairs than its own edges.
                self._allocate(graph.candidates if self.hparams["learn_graph"] else graph.edge_index)
                self.theta.copy_(self._initial_theta(graph))
                # The same on all ranks. A resumed run gets its own back from the checkpoint.
                self.base_seed.fill_(self.trainer.strategy.broadcast(torch.initial_seed()) % 2**63)
                self.weights.copy_(self.network.init(self._generator(INIT, 0)))

    def _graph(self) -> NodeBatch:
        graph = getattr(getattr(self.trainer, "datamodule", None), "graph", None)
        if not isinstance(graph, NodeBatch):
            raise TypeError("LDS needs a LightningDataModule with an attribute `graph` (a NodeBatch) after setup")
        return graph

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the pairs that the checkpoint learns."""
        state = checkpoint["state_dict"]
        self._allocate(None if state["theta"].dim() == 2 else state["candidates"])

    def edges(self) -> DenseEdges | CandidateEdges:
        """The learned edge probabilities."""
        return self._edges_of(self.theta)

    def _edges_of(self, theta: Tensor) -> DenseEdges | CandidateEdges:
        return DenseEdges(theta) if theta.dim() == 2 else CandidateEdges(theta, self.candidates)

    def _allocate(self, candidates: Tensor | None) -> None:
        nodes = self.hparams["nodes"]
        shape = (nodes, nodes) if candidates is None else (candidates.shape[1],)
        if getattr(self, "theta", None) is None or self.theta.shape != shape:
            self.theta = nn.Parameter(torch.zeros(shape), requires_grad=self.hparams["learn_graph"])
        self.register_buffer("candidates", torch.zeros(2, 0, dtype=torch.int64) if candidates is None else candidates)
        self._problem: tuple[Any, LDSProblem, Graph | None] | None = None

    def _initial_theta(self, graph: NodeBatch) -> Tensor:
        if self.theta.dim() == 2:
            return DenseEdges.initial(graph.nodes, graph.edge_index, graph.edge_weight)
        return CandidateEdges.initial(graph.nodes, self.candidates, graph.edge_index, graph.edge_weight)

    def _generator(self, purpose: int, *keys: int) -> torch.Generator:
        """Random numbers that depend on nothing but the seed and where the run is, so that a resume repeats them."""
        seed = np.random.SeedSequence([int(self.base_seed), purpose, *keys]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(seed))

    def _problem_of(self, batch: NodeBatch) -> tuple[LDSProblem, Graph | None]:
        """The objectives on this batch and, if the graph is not learned, that graph; made once for one graph."""
        source = batch.y if self._trainer is None else self._graph().y  # batch.y may be a moved copy
        if (
            self._problem is None
            or self._problem[0] is not source
            or self._problem[1].inner.nodes.device != self.device
        ):
            edges = self.edges()
            train, val = batch.train.nonzero().squeeze(1), batch.val.nonzero().squeeze(1)
            features = Features(batch.x)
            problem = LDSProblem(self.network, edges, features, batch.y, train, val, self.hparams["edge_gradient"])
            graph = None if self.hparams["learn_graph"] else Graph(batch.nodes, *edges.pairs(), dtype=self.theta.dtype)
            self._problem = (source, problem, graph)
        return self._problem[1:]

    # --- training -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Outer SGD with inverse-time decay, or Adam on the weights of a baseline."""
        if not self.hparams["learn_graph"]:
            return torch.optim.Adam([self.weights], lr=self.hparams["inner_lr"])
        decay = self.hparams["outer_lr_decay"]
        outer = torch.optim.SGD([self.theta, self.rate], lr=self.hparams["outer_lr"])
        return [outer], [LambdaLR(outer, lambda t: 1 / (1 + decay * t))]

    def on_train_start(self) -> None:
        """Say so if an epoch would end long before its inner problem is solved."""
        steps = self.trainer.num_training_batches * self.hparams["rounds_per_step"] * self.hparams["tau"]
        cut = self.hparams["learn_graph"] and self.hparams["restart"] == "epoch" and steps < self.hparams["inner_steps"]
        if cut and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"an epoch ends after {steps:g} of at most {self.hparams['inner_steps']} inner steps, and the next one "
                "starts from fresh weights: raise rounds_per_step, or steps_per_epoch of the data"
            )

    def training_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Some rounds, or one step of a baseline; nothing once the epoch's inner problem is solved."""
        with self._full_precision():
            problem, graph = self._problem_of(batch)
            if graph is not None:
                generator = self._generator(TRAIN, self.global_rank, self.current_epoch, batch_idx)
                self._fixed_graph_step(problem, graph, generator)
                return
            if batch_idx == 0:
                self._start_epoch()
            for _ in range(self.hparams["rounds_per_step"]):
                taken, _, failures, _ = self.progress.tolist()
                # Returning -1 from on_train_batch_start would end the epoch too, but Lightning then skips validation.
                if taken >= self.hparams["inner_steps"] or failures >= self.hparams["patience"]:
                    break
                self._round(problem, int(taken) // self.hparams["tau"])

    def _full_precision(self) -> torch.autocast:
        """Mixed precision stays out: sparse products have no bfloat16 form, and the hypergradient sums small terms."""
        return torch.autocast(self.device.type, enabled=False)

    def inner_lr(self) -> Tensor:
        """The inner learning rate as it stands, a scalar."""
        if not self.hparams["learn_inner_lr"]:
            return torch.tensor(self.hparams["inner_lr"], device=self.device)
        low, high = self.hparams["inner_lr_range"]
        rate: Tensor = low + torch.sigmoid(self.rate) * (high - low)
        return rate

    def _round(self, problem: LDSProblem, number: int) -> None:
        rate = self.inner_lr()
        generator = self._generator(TRAIN, self.global_rank, self.current_epoch, number)
        unroll = Unroll(self.optimizer, problem.inner, (self.weights, *self.moments), int(self.progress[3]))
        result = problem.round(
            unroll,
            rate.detach(),
            self.hparams["tau"],
            generator,
            reuse_graphs=self.hparams["reuse_graphs"],
            skip=int(self.hparams["skip_first"] and number > 0),
            gradient=self.theta.grad,
        )
        with torch.no_grad():
            self.weights.copy_(unroll.state[0])
            self.moments.copy_(torch.stack(unroll.state[1:]))
            self.progress[3] = unroll.count
        self._watch(self._mean_over_ranks(result.inner_losses).tolist())
        self._outer_step(self._mean_over_ranks(result.d_theta), rate, self._mean_over_ranks(result.d_lr))
        self._log_epoch({"train/loss": result.inner_losses.mean(), "train/outer_loss": result.outer_loss})

    def _outer_step(self, d_theta: Tensor, rate: Tensor, d_rate: Tensor) -> None:
        """Projected SGD on the edge probabilities, and the same step on the inner learning rate."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, LRScheduler)
        self.theta.grad = d_theta
        if self.rate.requires_grad:
            (self.rate.grad,) = torch.autograd.grad(rate, self.rate, d_rate)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            self.theta.clamp_(0, 1)

    @torch.no_grad()
    def _start_epoch(self) -> None:
        count = float(self.progress[3])
        if self.hparams["restart"] == "epoch":
            self.weights.copy_(self.network.init(self._generator(INIT, self.current_epoch)))
            self.moments.zero_()
            count = 0
        self.progress.copy_(torch.tensor([0, math.inf, 0, count]))

    def _watch(self, losses: list[float]) -> None:
        """Count inner steps, and those in a row that did not lower the training loss."""
        taken, lowest, failures, count = self.progress.tolist()
        for loss in losses:
            improved = loss < lowest * (1 - self.hparams["tolerance"])
            lowest, failures = (loss, 0) if improved else (lowest, failures + 1)
        self.progress.copy_(torch.tensor([taken + len(losses), lowest, failures, count]))

    def _fixed_graph_step(self, problem: LDSProblem, graph: Graph, generator: torch.Generator) -> None:
        if self.hparams["random_edges"] > 0:
            nodes = problem.x.nodes
            pairs, weight = add_random_edges(nodes, *problem.edges.pairs(), self.hparams["random_edges"], generator)
            graph = Graph(nodes, pairs, weight, dtype=self.theta.dtype)
        mask = self.network.dropout_mask(problem.x.nodes, generator, self.theta.dtype)
        loss, grad = problem.inner.gradient(self.weights, GCNSample(graph, mask))
        self.weights.grad = self._mean_over_ranks(grad)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()
        self._log_epoch({"train/loss": loss})

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        reduced = self.trainer.strategy.reduce(value.detach(), reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def _log_epoch(self, values: dict[str, Tensor]) -> None:
        self.log_dict(values, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """All ranks evaluate, and go on with, the first rank's weights: each has fitted its own to its own graphs."""
        self._share_weights()

    def on_train_epoch_end(self) -> None:
        """The same in epochs without validation: a checkpoint holds the first rank's."""
        self._share_weights()

    def _share_weights(self) -> None:
        if self.trainer.world_size > 1:
            for tensor in (self.weights.data, self.moments, self.progress):
                torch.distributed.broadcast(tensor, 0)

    def forward(self, batch: NodeBatch) -> Tensor:
        """Mean logits over ``samples`` sampled graphs, or those of the fixed graph, shape ``(nodes, classes)``."""
        with self._full_precision():
            problem, graph = self._problem_of(batch)
            if graph is not None:
                return self.network.logits(self.weights.detach(), problem.x, GCNSample(graph))
            # Validation while fitting draws new graphs each epoch. Elsewhere a checkpoint always gives the same answer:
            # `test` on its own does not know the epoch that `fit` had reached when it tested.
            fitting = self._trainer is not None and self.trainer.state.fn == "fit"
            generator = self._generator(EVALUATE, self.current_epoch if fitting else 0)
            return problem.mean_logits(self.weights.detach(), self.hparams["samples"], generator)

    def validation_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Accuracy and loss on the nodes kept for early stopping and on those of the outer loss."""
        logits = self(batch)
        for name, nodes in (("stop", batch.stop), ("val", batch.val)):
            loss = cross_entropy(logits[nodes], batch.y[nodes])
            correct = (logits[nodes].argmax(1) == batch.y[nodes]).sum()
            values = {f"{name}/loss": loss, f"{name}/accuracy": correct / nodes.sum()}
            if name == "stop":  # the loss, squashed below one node, only breaks ties
                values["stop/score"] = (correct - loss / (1 + loss)) / nodes.sum()
                values["stop/likelihood"] = -loss
            self.log_dict(values, prog_bar=name == "stop", batch_size=1)
        if self.hparams["learn_graph"]:
            self.log_dict({"graph/expected_edges": self.theta.sum(), "graph/inner_lr": self.inner_lr()}, batch_size=1)

    def test_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Accuracy and F1 on the test nodes and, for a learned graph, what it says about pairs of test nodes."""
        logits = self(batch)
        labelled = batch.test & (batch.y >= 0)
        self.test_metrics.update(logits[labelled], batch.y[labelled])
        self.log_dict(self.test_metrics, batch_size=1)
        self.log("test/loss", cross_entropy(logits[labelled], batch.y[labelled]), batch_size=1)
        if self.hparams["learn_graph"]:
            statistics = edge_statistics(self.edges(), batch.y, labelled)
            initial = self._edges_of(self._initial_theta(batch))
            statistics["auc_initial"] = edge_statistics(initial, batch.y, labelled)["auc"]
            self.log_dict({f"test/edge_{name}": value for name, value in statistics.items()}, batch_size=1)

    def predict_step(self, batch: NodeBatch, batch_idx: int) -> dict[str, Tensor | list[str]]:
        """Columns of equal length, one row a node: name, known class, predicted class, probability of each class."""
        probability = self(batch).softmax(1)
        columns: dict[str, Tensor | list[str]] = {"node": self._node_names(torch.arange(batch.nodes))}
        return columns | {"target": batch.y, "prediction": probability.argmax(1), "probability": probability}

    def prediction_tables(self) -> dict[str, dict[str, Tensor | list[str]]]:
        """The learned graph: every pair whose edge is more likely than 1 %."""
        pairs, probability = self.edges().pairs(above=0.01)
        order = probability.argsort(descending=True, stable=True)
        source, target = (self._node_names(nodes) for nodes in pairs[:, order].cpu())
        return {"edges": {"source": source, "target": target, "probability": probability[order]}}

    def _node_names(self, nodes: Tensor) -> Tensor | list[str]:
        names = getattr(getattr(self.trainer, "datamodule", None), "node_names", None)
        return nodes if names is None else [names[node] for node in nodes.tolist()]

    def figures(self) -> dict[str, Any]:
        """Edge probabilities within and between classes, and the learned graph."""
        from modules.lds.figures import edge_probability_figure, graph_figure

        graph = self._graph()
        return {
            "edge_probabilities": edge_probability_figure(self.edges(), graph),
            "graph": graph_figure(self.edges(), graph),
        }
