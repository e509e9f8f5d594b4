"""Active learning inside one ``fit``: train on few labels, ask for the most useful ones, go on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from framework.active import rounds
from framework.active.acquisition import PoolScores
from framework.active.acquisition import acquisition as acquisition_of
from framework.active.costs import ITEMS, cost_field, costs_of
from framework.active.history import History
from framework.active.labelling import LabelFolder
from framework.active.people import People
from framework.active.plan import Plan
from framework.active.pool import LabelledItems, LabelPool
from framework.active.scoring import PoolRunner, pool_loader
from framework.active.selection import within_budget
from framework.errors import Paused
from framework.figures import png
from framework.loaders import Stage, StageCallback, TrainPath
from framework.rundir import run_directory, write
from framework.seeding import derive, run_seed, seed_epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ActiveLearning(StageCallback):
    """Train in rounds; after each, label the items of the train data that an acquisition function chooses.

    The first round trains on a random share. A round ends after ``epochs_per_round`` epochs, or when an EarlyStopping
    has had enough; it then stops the round, not the training. A ModelCheckpoint with a ``monitor`` keeps the best of
    the present round. Training ends with the pool, at ``max_cost``, at ``target`` or at ``max_epochs``. Needs
    ``trainer.reload_dataloaders_every_n_epochs=1`` and data that can be chosen from by index, of any DataModule.

    ``<run dir>/active_learning.csv`` and ``.png`` show each round's metrics against what its labels cost; loggers get
    ``active/round``, ``active/items``, ``active/cost`` and ``active/share`` at the end of a round. Everything an epoch
    draws depends on (seed, rank, epoch) alone, so a killed run goes on as if it had not been.

    A classifier whose forward gives logits needs nothing more; another module says by ``acquisition_scores(batch)``
    how sure it is (:class:`framework.active.decisions.Scorable`).

    Args:
        acquisition: ``random``, ``longest``, ``lc``, ``mnlp``, ``margin``, ``entropy``, ``bald``, ``bald_mi``,
            ``submodular``, ``badge``, ``coreset``, or the dotted path of a function from ``Decisions`` to scores.
        initial: Share of the total cost that is labelled at random at the start, in (0, 1].
        budget: Cost of what a round buys: at least 1 in units, below 1 as a share of the total. The last item may
            overshoot it.
        cost: ``items`` for 1 each, or the name of an attribute of the data set, such as ``words``. None for what the
            data set names as its ``unit``, else items.
        epochs_per_round: The most epochs of a round, at least 1.
        training: ``incremental`` goes on from the present weights. ``scratch`` goes back to the state before the first
            step: weights, optimiser, scheduler, and what epochs draw; the checkpoint holds that state, too.
        restart_schedule: Whether learning-rate schedulers begin anew with every round of incremental training, so that
            one made for ``epochs_per_round`` epochs suits each. Else one made for so few has ended when most is bought.
        max_cost: Buy no more than this; units or share as ``budget``. None for everything.
        target: End once ``metric`` is as good at the end of a round.
        metric: Name of a logged metric; None for the module's ``monitor``.
        mode: ``max`` or ``min`` of ``metric``; None for the module's ``mode``.
        mc_samples: Passes with dropout of ``bald`` and ``bald_mi``; only dropout layers are in training mode then.
        candidates: The most items that ``submodular``, ``badge`` and ``coreset`` compare.
        max_pool: Random items of the pool that a round looks at; None for all.
        batch_size: Items per batch of the passes over the pool.
        keep_round_checkpoints: Keep the best checkpoint of every round, not only of the latest.
        oracle: Folder through which people are asked for labels
            (:class:`framework.active.labelling.LabelFolder`); the run stops for them. None reveals the stored labels.
        oracle_format: ``jsonl`` or ``csv``.
        seed: Seed of all choices; None for that of ``seed_everything``, else 0.

    Attributes:
        pool: What has been bought, from ``fit`` on.
        round: Number of the present round, 0 for the first.
        history: What was measured in each round.

    Raises:
        ValueError: If an argument is out of range; the message names it. Before training, if trainer or data do not go
            with it.
        TypeError: Before training, if the module cannot be scored or the data cannot be chosen from.
    """

    pool: LabelPool
    _labelled: LabelledItems
    _seed: int

    def __init__(
        self,
        acquisition: str = "mnlp",
        initial: float = 0.01,
        budget: float = 0.02,
        cost: str | None = None,
        epochs_per_round: int = 5,
        training: Literal["incremental", "scratch"] = "incremental",
        restart_schedule: bool = True,
        max_cost: float | None = None,
        target: float | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] | None = None,
        mc_samples: int = 10,
        candidates: int | None = None,
        max_pool: int | None = None,
        batch_size: int = 256,
        keep_round_checkpoints: bool = False,
        oracle: str | None = None,
        oracle_format: Literal["jsonl", "csv"] = "jsonl",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.plan = Plan(initial, budget, epochs_per_round, max_cost, target, metric, mode)
        self.how = acquisition_of(acquisition, mc_samples=mc_samples, candidates=candidates)
        for field, number, least in (("batch_size", batch_size, 1), ("max_pool", max_pool, 1), ("seed", seed, 0)):
            if number is not None and number < least:
                raise ValueError(f"{field} must be at least {least}, got {number}")
        if training not in ("incremental", "scratch"):
            raise ValueError(f"training must be incremental or scratch, got {training!r}")
        self.cost, self.scratch, self.seed = cost, training == "scratch", seed
        self.restart_schedule = restart_schedule and not self.scratch
        self.max_pool, self.batch_size, self.keep_round_checkpoints = max_pool, batch_size, keep_round_checkpoints
        self.folder = None if oracle is None else LabelFolder(oracle, oracle_format)
        self.people: People | None = None
        self.paused: Paused | None = None
        self.history = History()
        self.round = 0
        self._round_start = 0
        self._due = False  # the round is over, and what follows it has not been bought
        self._asked: Tensor | None = None  # what people have been asked to label
        self._measured: dict[str, float] = {}  # by the last validation of this round
        self._snapshot: dict[str, Any] | None = None
        self._schedule: dict[str, Any] | None = None
        self._unit = ITEMS

    # -- before training ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.paused = None
        super().setup(trainer, pl_module, stage)
        if self._path is not None and self.people is not None:
            self.people.take(self._path)

    def make_stage(self, path: TrainPath, trainer: Trainer, pl_module: LightningModule) -> Stage:
        if trainer.strategy.restore_checkpoint_after_setup:  # FSDP, DeepSpeed, model parallel
            name = type(trainer.strategy).__name__
            raise ValueError(f"ActiveLearning needs the whole module on every rank, got {name}: use ddp or one device")
        dataset = pool_loader(path).dataset
        self._unit = cost_field(dataset) if self.cost is None else self.cost
        self.pool = LabelPool(costs_of(dataset, self._unit))
        self._seed = run_seed() if self.seed is None else self.seed
        order = torch.randperm(len(self.pool), generator=self._generator("initial"))
        first = within_budget(order, self.pool.costs, self.plan.initial * self.pool.total_cost)
        if self.folder is not None:
            self.people = People(self.folder, trainer)
            first = self.people.ask_first(dataset, first)
        self.pool.label(first, 0)
        self._labelled = LabelledItems(self._trained_on())
        return self._labelled

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rounds.RoundEnd.add(trainer, self._end_epoch)
        self.plan.attach(trainer, pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.plan.warn(trainer, self.pool)
        if self.people is not None and self._path is not None:
            asked = self._asked if self._asked is not None else self.pool.bought[:0]
            self.people.check(self._path, torch.cat([self.pool.bought, asked]))
        if self.how.needs_model and len(self.pool.left):
            self._runner(trainer, pl_module).check(self.how, self.pool.left[:2])
        if self._due and self._ends(trainer):
            trainer.should_stop = True
        elif rounds.stopped_early(trainer):
            trainer.should_stop = False  # a round was to stop, and the command line took it for the training

    # -- the course of training ---------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._due:
            return
        # A run goes on whose last round was over: labels have come, or there are more epochs or money than before.
        rounds.restart_early_stopping(trainer)
        if self._asked is not None:
            self._begin(trainer, self._asked)
        else:
            self._acquire(trainer, pl_module)
        trainer.fit_loop._last_train_dl_reload_epoch = -math.inf  # the loader was made before this hook

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        begins = trainer.current_epoch == self._round_start
        if begins and self.scratch:
            if self._snapshot is None:
                self._snapshot = rounds.snapshot(trainer, pl_module)
            else:
                rounds.restore(trainer, pl_module, self._snapshot)
        if begins and self.restart_schedule:
            if self._schedule is None:
                self._schedule = rounds.schedule(trainer)
            else:
                rounds.restart_schedule(trainer, self._schedule)
        if begins and self.round > 0:
            # Not before: the last epoch of the round that ended was to be compared with its own.
            rounds.restart_checkpoints(trainer, self.keep_round_checkpoints)
        seed_epoch(trainer, self._seed, trainer.current_epoch - (self._round_start if self.scratch else 0))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._measured = _metrics(trainer)

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of every epoch, once EarlyStopping has decided and before anything is saved."""
        if self._asked is not None:  # min_epochs keeps a run alive that waits
            trainer.should_stop = True
            return
        stopped = rounds.stopped_early(trainer)
        if not (self._due or stopped or _epochs(trainer) - self._round_start >= self.plan.epochs_per_round):
            return
        self._due = True
        self._record(trainer)
        counts = {f"active/{name}": float(self.history.rows[-1][name]) for name in ("round", "items", "cost", "share")}
        pl_module.log_dict(counts, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)
        reason = self._ends(trainer)
        if reason:
            rank_zero_info(f"ActiveLearning ends after round {self.round}: {reason}")
            trainer.should_stop = True
            return
        if stopped:
            trainer.should_stop = False
        rounds.restart_early_stopping(trainer)
        if rounds.goes_on(trainer):
            self._acquire(trainer, pl_module)

    def _ends(self, trainer: Trainer) -> str:
        """Why no round follows the one that is over; empty if one does."""
        if rounds.diverged(trainer):
            return "the metric of EarlyStopping is not finite"
        return self.plan.reached(self.pool, self.history.rows[-1])

    def _acquire(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Buy what the next round trains on; people may have to label it first, and then the run stops for them."""
        pool, left, generator = self.pool, self.pool.left, self._generator("choose", self.round + 1)
        if self.max_pool is not None and len(left) > self.max_pool:
            left = left[torch.randperm(len(left), generator=generator)[: self.max_pool]].sort().values
        runner, budget = self._runner(trainer, pl_module), self.plan.next_budget(pool)
        chosen = runner.choose(self.how, PoolScores(left, pool.costs[left]), pool.bought, budget, generator)
        if self.people is not None and self._path is not None:
            self.people.ask(self.round + 1, chosen, runner, suggest=self.how.needs_model)
            try:
                self.people.take(self._path)
            except Paused as waiting:
                self.paused, self._asked, trainer.should_stop = waiting, chosen.indices, True
                return
        self._begin(trainer, chosen.indices)

    def _begin(self, trainer: Trainer, bought: Tensor) -> None:
        """Start the next round with what has been bought."""
        self.round += 1
        self.pool.label(bought, self.round)
        self._labelled.set(self._trained_on())
        self._due, self._asked, self._measured = False, None, {}
        self._round_start = _epochs(trainer)

    def _record(self, trainer: Trainer) -> None:
        """A row for the round as it stands, and the table as a whole, so that a kill leaves the old or the new one."""
        metrics = _metrics(trainer) | self._measured
        if trainer.enable_validation and not self._measured:
            metrics = {}  # what there is was measured in an earlier round
        pool, items = self.pool, len(self.pool.bought)
        self.history.record(self.round, _epochs(trainer), items, pool.cost_bought, pool.share, metrics)
        directory = run_directory(trainer)  # communicates: on all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write(directory / "active_learning.csv", self.history.csv())

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._due and _epochs(trainer) > self._round_start:
            self._record(trainer)  # a round cut short

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = run_directory(trainer) / "active_learning.png"  # communicates: on all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for figure in self.figures().values():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(figure))

    def figures(self) -> dict[str, Figure]:
        """Learning curves over the cost of labels, for the Figures callback."""
        figure = self.history.figure(self._unit)
        return {} if figure is None else {"active_learning": figure}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        rounds.RoundEnd.remove(trainer)
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        rounds.RoundEnd.remove(trainer)
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        if self.stage is None:
            return {}
        return {
            "pool": self.pool.state_dict(),
            "round": self.round,
            "round_start": self._round_start,
            "due": self._due,
            "asked": self._asked,
            "seed": self._seed,
            "measured": dict(self._measured),
            "history": self.history.state_dict(),
            "snapshot": self._snapshot,
            "schedule": self._schedule,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._path is None:
            return  # validate, test and predict restore callbacks, too
        if self.scratch and state_dict["snapshot"] is None:
            raise ValueError(
                "training: scratch goes back to the weights from before the first step, and the checkpoint, of an "
                "incremental run, does not have them"
            )
        self.pool.load_state_dict(state_dict["pool"])
        self.history.load_state_dict(state_dict["history"])
        self.round, self._round_start, self._due = (state_dict[key] for key in ("round", "round_start", "due"))
        self._asked, self._seed = state_dict["asked"], state_dict["seed"]
        self._snapshot, self._schedule = state_dict["snapshot"], state_dict["schedule"]
        self._measured = dict(state_dict["measured"])
        self._labelled.set(self._trained_on())

    def _trained_on(self) -> Tensor:
        return self.pool.bought if self.people is None else self.people.usable(self.pool.bought)

    def _runner(self, trainer: Trainer, pl_module: LightningModule) -> PoolRunner:
        seed = derive(self._seed, "score", self.round + 1)
        loader = pool_loader(TrainPath.of(trainer))
        return PoolRunner(trainer, pl_module, loader, self.pool.costs, self.batch_size, seed)

    def _generator(self, *purpose: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self._seed, *purpose))


def _metrics(trainer: Trainer) -> dict[str, float]:
    """What has been measured of validation and test data."""
    found = trainer.callback_metrics.items()
    return {name: value.item() for name, value in found if not name.startswith(("train", "active/"))}


def _epochs(trainer: Trainer) -> int:
    """Epochs trained since the start, the present one included once it is at its end."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
