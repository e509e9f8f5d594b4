"""Passes over the pool: each rank runs the module over its share of the batches, and all ranks see all results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Subset, SubsetRandomSampler

from framework.active.acquisition import Acquisition, PoolScores
from framework.active.decisions import Decisions, Scorable, decisions_and_embedding_of, decisions_of, embedding_of
from framework.active.scores import gradient_errors
from framework.loaders import TrainPath, rebuild, reindex
from framework.loaders.reindexing import kind
from framework.seeding import derive, seed_all

_WITH_DROPOUT = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Layers that drop in training mode and do nothing else there. In evaluation mode the last two pass their own dropout
layers by, whatever mode those are in."""


def pool_loader(path: TrainPath) -> DataLoader[Any]:
    """What the pool may choose from: the train loader after a partition, one index for each item it lets through.

    Args:
        path: The path of the train loader.

    Returns:
        A loader whose ``dataset`` holds exactly these items.

    Raises:
        TypeError: If the data are iterable, or the loader's sampler cannot follow a choice of items.
    """
    loader = rebuild(path.build(before="pool"))  # refuses iterable data
    sampler = loader.sampler
    count = len(sampler) if isinstance(sampler, SubsetRandomSampler) else len(loader.dataset)  # type: ignore[arg-type]
    if count < 2:
        data = kind(_innermost(loader.dataset))
        raise ValueError(f"ActiveLearning chooses among items, and the train data ({data}) are {count}")
    if loader.batch_sampler is None and not isinstance(sampler, BatchSampler):
        raise TypeError(
            f"{kind(loader)} has batch_size=None and gives one item at a time: "
            "active learning needs a loader that makes batches"
        )
    return reindex(loader, torch.arange(count))


def batches_of(indices: Tensor, costs: Tensor, batch_size: int) -> list[list[int]]:
    """Batches of items of about equal cost, the most expensive first: little padding, and memory runs out at once.

    Args:
        indices: Items, shape ``(m,)``.
        costs: Costs of all items.
        batch_size: Items per batch.

    Returns:
        Positions in ``indices``; equal costs stay in the order given.
    """
    order = torch.sort(costs[indices], descending=True, stable=True).indices
    return [part.tolist() for part in order.split(batch_size)]


def dropout_layers(module: nn.Module) -> list[nn.Module]:
    """The modules that have to be in training mode for dropout, and drop something.

    Torch's dropout layers, its attention and its recurrent layers with ``dropout``, and whatever has ``Dropout`` in the
    name of its class. Functional dropout that hangs on another module's mode is not found.
    """
    found = []
    for layer in module.modules():
        named = "dropout" in type(layer).__name__.lower() or isinstance(layer, _WITH_DROPOUT)
        if isinstance(layer, nn.RNNBase):
            named = layer.dropout > 0 and layer.num_layers > 1
        rate = getattr(layer, "p", getattr(layer, "dropout", None))
        rate = getattr(rate, "p", rate)  # a transformer layer's is a layer itself
        if named and not (isinstance(rate, int | float) and rate == 0):
            found.append(layer)
    return found


@contextmanager
def deciding(module: nn.Module, dropout: bool = False) -> Iterator[None]:
    """Evaluation mode, with dropout if asked for; each layer gets the mode back that it had.

    Args:
        module: The module.
        dropout: Whether dropout stays on, for Monte-Carlo passes.
    """
    before = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        for layer in dropout_layers(module) if dropout else ():
            layer.training = True  # of this layer alone: train() would reach the ones below
        yield
    finally:
        for layer, mode in before:
            layer.training = mode


class PoolRunner:
    """Runs a module over items of the pool.

    Batches are dealt out to the ranks, and what is drawn in a batch (dropout, augmentation) depends on the seed and the
    batch alone. So any number of processes gives the same results to the bit, given the same weights.

    Args:
        trainer: The trainer, in ``fit``.
        module: The module.
        loader: The loader that :func:`pool_loader` gave: its ``collate_fn`` and workers make the batches.
        costs: Costs of all its items.
        batch_size: Items per batch.
        seed: Seed of this round's passes.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        loader: DataLoader[Any],
        costs: Tensor,
        batch_size: int,
        seed: int,
    ) -> None:
        self.trainer, self.module, self.loader = trainer, module, loader
        self.costs, self.batch_size, self.seed = costs, batch_size, seed

    def choose(
        self, how: Acquisition, pool: PoolScores, labelled: Tensor, budget: float, generator: torch.Generator
    ) -> PoolScores:
        """The items to buy.

        Args:
            how: The acquisition function.
            pool: The items that can be bought.
            labelled: Indices of the items that are labelled.
            budget: Positive, in the unit of the costs.
            generator: Of the CPU, in the same state on all ranks.

        Returns:
            The bought items in ascending order, with their scores if the function made any.

        Raises:
            ValueError: If the acquisition function buys nothing.
        """
        if how.passes:
            pool = replace(pool, scores=self.scores(how, pool.indices))
        pool = pool.take(how.shortlist(pool, budget, generator))
        if how.embedding is not None:
            embeddings, *errors = self.embeddings(how, pool.indices)
            pool = replace(pool, embeddings=embeddings, errors=errors[0] if errors else None)
        if how.needs_labelled:
            pool = replace(pool, labelled=self.embeddings(how, labelled)[0])
        bought = how.select(pool, budget, generator)
        if not len(bought):
            raise ValueError(f"acquisition {how.name!r} chose none of {len(pool)} items with a budget of {budget:g}")
        return pool.take(bought.sort().values)

    def scores(self, how: Acquisition, indices: Tensor) -> Tensor:
        """Scores of items, shape ``(m,)``; with dropout if the function wants several passes."""

        def read(batch: Any) -> list[Tensor]:
            return [how.score(self._passes(batch, how.passes))]

        with self._deciding(dropout=how.passes > 1):
            return self._run(indices, read, "scoring the pool")[0]

    def embeddings(self, how: Acquisition, indices: Tensor) -> list[Tensor]:
        """Embeddings of items, shape ``(m, dim)``, and for gradient embeddings their errors, ``(m, classes)``."""

        def read(batch: Any) -> list[Tensor]:
            if how.embedding == "embedding":
                return [embedding_of(self.module, batch)]
            decisions, vectors = decisions_and_embedding_of(self.module, batch)
            return [vectors, gradient_errors(decisions)]

        with self._deciding():
            return self._run(indices, read, "embedding the pool")

    def suggestions(self, indices: Tensor) -> list[Any]:
        """What the module believes of each item: a class, or a list of classes of tokens. On one rank, for people."""
        batches = batches_of(indices, self.costs, self.batch_size)
        found: dict[int, Any] = {}
        with self._deciding():
            for number, batch in self._batches(indices, batches, "suggesting labels"):
                decisions = next(self._passes(batch, 1))
                for position, chosen, mask in zip(batches[number], decisions.chosen, decisions.mask):
                    own = chosen[mask].tolist()
                    found[position] = own[0] if decisions.mask.shape[1] == 1 else own
        return [found[position] for position in range(len(indices))]

    def check(self, how: Acquisition, indices: Tensor) -> None:
        """Try an acquisition function on a few items before anything is trained.

        Args:
            how: The acquisition function.
            indices: Some items of the pool.

        Raises:
            TypeError: If the module cannot be scored; the message names what it lacks.
            ValueError: If the function needs dropout and the module has none.
        """
        if how.passes > 1 and not isinstance(self.module, Scorable) and not dropout_layers(self.module):
            raise ValueError(
                f"acquisition {how.name!r} compares passes with dropout, and {kind(self.module)} has no dropout layer: "
                "all items would score alike"
            )
        with self._deciding():
            try:
                _, batch = next(self._batches(indices, [list(range(len(indices)))], "trying the module"))
            except Exception as error:
                data = kind(_innermost(self.loader.dataset))
                raise TypeError(
                    f"ActiveLearning puts items of {data} together into batches, and that failed: {_last(error)}"
                ) from error
            try:
                decisions_of(self.module, batch)
            except Exception as error:
                if isinstance(self.module, Scorable) or "acquisition_scores" in str(error):
                    raise
                raise TypeError(
                    f"{kind(self.module)} has no acquisition_scores, which ActiveLearning needs: "
                    f"its forward failed on the inputs alone: {_last(error)}"
                ) from error
        if how.passes:
            self.scores(how, indices)
        if how.embedding is not None:
            self.embeddings(how, indices)

    def _passes(self, batch: Any, passes: int) -> Iterator[Decisions]:
        return (decisions_of(self.module, batch) for _ in range(passes))

    def _run(self, indices: Tensor, read: Callable[[Any], list[Tensor]], what: str) -> list[Tensor]:
        """Run over items.

        Args:
            indices: The items, shape ``(m,)``, at least one.
            read: What to take from a batch: tensors of shape ``(batch, ...)``.
            what: For the progress bar.

        Returns:
            The tensors of all items on the CPU, in the order of ``indices``, the same on all ranks.
        """
        trainer = self.trainer
        batches = batches_of(indices, self.costs, self.batch_size)
        found: list[Tensor] = []
        for number, batch in self._batches(indices, batches, what, trainer.global_rank, trainer.world_size):
            parts = [part.detach().cpu() for part in read(batch)]
            wrong = [len(part) for part in parts if len(part) != len(batches[number])]
            if wrong:
                raise TypeError(
                    f"{kind(self.module)} has no acquisition_scores, which ActiveLearning needs: "
                    f"it gives {wrong[0]} decisions for a batch of {len(batches[number])} items"
                )
            if not found:
                found = [part.new_zeros(len(indices), *part.shape[1:]) for part in parts]
            if number % trainer.world_size == trainer.global_rank:
                for whole, part in zip(found, parts):
                    whole[batches[number]] = part
        if trainer.world_size == 1:
            return found
        device = trainer.strategy.root_device
        # Every item is on one rank and zero on the others, so that the sum is exact.
        return [trainer.strategy.reduce(whole.to(device), reduce_op="sum").cpu() for whole in found]

    def _batches(
        self, indices: Tensor, batches: list[list[int]], what: str, rank: int = 0, size: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """This rank's batches on its device, with their numbers; a rank without any gets the first, for its shape."""
        trainer, module = self.trainer, self.module
        numbers = list(range(len(batches)))[rank::size] or [0]
        items = [indices[batches[number]].tolist() for number in numbers]
        by_list = self.loader.batch_sampler is None  # then the sampler's lists go to the data set in one call
        loader = rebuild(self.loader, sampler=items) if by_list else rebuild(self.loader, batch_sampler=items)
        seed_all(derive(self.seed, "loader"))
        served = iter(loader)
        for number in self._progress(numbers, what):
            seed_all(derive(self.seed, "batch", number))
            batch = trainer.precision_plugin.convert_input(next(served))
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield number, trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    @contextmanager
    def _deciding(self, dropout: bool = False) -> Iterator[None]:
        """The module decides, nothing is learned, and what is drawn leaves no trace."""
        trainer = self.trainer
        stage = trainer.state.stage
        trainer.validating = True  # hooks on batches ask, before they augment
        try:
            # Not inference_mode: what a module keeps of a pass has to be fit for training.
            precision = trainer.precision_plugin.forward_context()
            with isolate_rng(), torch.no_grad(), precision, deciding(self.module, dropout):
                yield
        finally:
            trainer.state.stage = stage

    def _progress(self, numbers: list[int], what: str) -> Iterable[int]:
        bar = self.trainer.progress_bar_callback
        if bar is None or not getattr(bar, "is_enabled", False) or not self.trainer.is_global_zero:
            return numbers
        from tqdm import tqdm  # type: ignore[import-untyped]

        return tqdm(numbers, desc=what, unit="batch", leave=False, delay=1)


def _innermost(dataset: Any) -> Any:
    """What a data set is a part of."""
    return _innermost(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _last(error: Exception) -> str:
    """An error in one line: the last of a message that quotes a worker's traceback."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
