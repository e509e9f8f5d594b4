"""The train loader's path: re-indexing keeps a loader what it is, stages compose in order, refusals name names."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from framework.loaders import Partition, Pool, Stage, StageCallback, TrainPath, World, labels_of, rebuild, reindex

# -- Third parties: none of them knows anything about us


class TokenisedTexts(Dataset):
    """What Hugging Face's tutorials have people write: a class whose items are dicts."""

    def __init__(self, count: int) -> None:
        self.encodings = {"input_ids": torch.arange(count).unsqueeze(1), "attention_mask": torch.ones(count, 1)}
        self.labels = [i % 3 for i in range(count)]

    def __getitem__(self, i: int) -> dict:
        return {**{key: value[i] for key, value in self.encodings.items()}, "labels": torch.tensor(self.labels[i])}

    def __len__(self) -> int:
        return len(self.labels)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(4.0))


class Numbers(LightningDataModule):
    """A stranger's DataModule over the numbers 0, 1, ..., count - 1."""

    def __init__(self, count: int = 40, batch_size: int = 4, **kwargs) -> None:
        super().__init__()
        self.count, self.batch_size, self.kwargs = count, batch_size, kwargs

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(self.count)), batch_size=self.batch_size, **self.kwargs)


class Recorder(LightningModule):
    """Remembers which numbers each epoch saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch, batch_idx):
        x = batch[0]
        self.seen[-1] += x.flatten().tolist()
        return self.layer(x.float().reshape(-1, 1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(*callbacks, **kwargs) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, **quiet, **kwargs}
    return Trainer(callbacks=list(callbacks), **options)


def numbers(loader: DataLoader) -> list[int]:
    """The numbers a loader yields, in its order."""
    return [int(x) for batch in loader for x in batch[0].flatten()]


def counting(count: int, **kwargs) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(count)), **{"batch_size": 4, **kwargs})


subsets = st.integers(1, 30).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=2 * n))
)


# -- Re-indexing


@settings(max_examples=60, deadline=None)
@given(subsets, st.booleans())
def test_reindex_yields_exactly_the_items_asked_for(case, shuffle):
    n, indices = case
    got = numbers(reindex(counting(n, shuffle=shuffle), indices))
    assert sorted(got) == sorted(indices)
    if not shuffle:
        assert got == indices


@settings(max_examples=60, deadline=None)
@given(subsets, st.data())
def test_reindexing_twice_is_indexing_the_indices(case, data):
    n, outer = case
    inner = data.draw(st.lists(st.integers(0, len(outer) - 1), min_size=1))
    loader = reindex(reindex(counting(n), outer), inner)
    assert numbers(loader) == [outer[i] for i in inner]
    assert isinstance(loader.dataset.dataset, TensorDataset)  # one Subset, however many stages


@settings(max_examples=30, deadline=None)
@given(subsets, st.data())
def test_partition_then_pool_is_the_index_algebra_whoever_registers_first(case, data):
    n, partition = case
    pool = data.draw(st.lists(st.integers(0, len(partition) - 1), min_size=1))
    stages = data.draw(st.permutations([Pool(pool), Partition(partition)]))
    datamodule = Numbers(n)
    for stage in stages:
        TrainPath.on(datamodule).add(stage)
    assert numbers(datamodule.train_dataloader()) == [partition[i] for i in pool]


def test_a_mask_is_a_set_of_indices():
    assert numbers(reindex(counting(5), torch.tensor([True, False, False, True, True]))) == [0, 3, 4]


def test_reindex_keeps_every_setting():
    def collate(items):
        return [torch.stack([x for (x,) in items])]

    def init(worker):
        return None

    loader = counting(
        20,
        batch_size=3,
        drop_last=True,
        num_workers=2,
        collate_fn=collate,
        pin_memory=True,
        timeout=7,
        worker_init_fn=init,
        multiprocessing_context="spawn",
        prefetch_factor=5,
        persistent_workers=True,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        in_order=False,
    )
    loader.note = "a user's own attribute"
    new = reindex(loader, range(10))
    names = "batch_size drop_last num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context "
    names += "prefetch_factor persistent_workers generator in_order note"
    for name in names.split():
        assert getattr(new, name) is getattr(loader, name), name
    assert type(new.sampler) is RandomSampler
    assert new.sampler.generator is loader.generator
    assert len(new) == 3
    assert len(loader) == 6, "the loader given must stay as it is"


def test_workers_serve_the_new_items_and_not_the_old():
    loader = counting(12, num_workers=1, persistent_workers=True)
    assert numbers(loader) == list(range(12))  # now it holds an iterator with live workers
    assert numbers(reindex(loader, [3, 1])) == [3, 1]
    assert numbers(loader) == list(range(12))


def test_same_generator_state_same_order():
    orders = [
        numbers(reindex(counting(50, shuffle=True, generator=torch.Generator().manual_seed(3)), range(25)))
        for _ in range(2)
    ]
    assert orders[0] == orders[1] != sorted(orders[0])


def test_shuffle_and_drop_last_can_be_replaced():
    loader = counting(10, shuffle=True, drop_last=True)
    assert numbers(reindex(loader, range(9), shuffle=False, drop_last=False)) == list(range(9))
    assert type(reindex(counting(10), range(9), shuffle=True).sampler) is RandomSampler


def test_without_batching():
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=None, shuffle=True)
    new = reindex(loader, [5, 2])
    assert new.batch_size is None
    assert sorted(int(x) for (x,) in new) == [2, 5]


def test_lists_of_indices_in_one_call_stay_lists():
    class ByList(Dataset):
        def __getitem__(self, i):
            assert isinstance(i, list)
            return torch.tensor(i)

        def __len__(self):
            return 9

    data = ByList()
    loader = DataLoader(data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 2, False))
    new = DataLoader.__iter__(reindex(loader, [8, 0, 4]))
    assert [batch.tolist() for batch in new] == [[8, 0], [4]]


def test_weights_follow_their_items():
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0])
    loader = counting(5, sampler=WeightedRandomSampler(weights, 5))
    new = reindex(loader, [0, 3, 4])
    assert new.sampler.weights.tolist() == [0.0, 2.0, 0.0]
    assert numbers(new) == [3, 3, 3]  # as many draws as items, all on the only weight
    assert len(reindex(counting(5, sampler=WeightedRandomSampler(weights, 7)), [0, 3]).sampler) == 7


def test_a_subset_sampler_is_part_of_the_data():
    loader = counting(10, sampler=SubsetRandomSampler([9, 7, 5, 3]))
    new = reindex(loader, [0, 2])
    assert sorted(numbers(new)) == [5, 9]
    with pytest.raises(ValueError, match=r"indices must be in \[0, 4\), got 4"):
        reindex(loader, [4])


def test_a_distributed_sampler_keeps_its_rank_and_epoch():
    sampler = DistributedSampler(range(12), num_replicas=3, rank=1, shuffle=True, seed=5)
    sampler.set_epoch(2)
    new = reindex(counting(12, sampler=sampler), range(6)).sampler
    assert (new.num_replicas, new.rank, new.shuffle, new.seed, new.epoch, len(new)) == (3, 1, True, 5, 2, 2)


class ByParity(Sampler):
    """A batch sampler that knows how to follow its data set."""

    def __init__(self, items: list[int]) -> None:
        self.items = items

    def __iter__(self):
        yield [i for i, x in enumerate(self.items) if x % 2 == 0]
        yield [i for i, x in enumerate(self.items) if x % 2 == 1]

    def __len__(self):
        return 2

    def reindex(self, dataset, indices):
        assert len(dataset) == len(indices)
        return ByParity([self.items[i] for i in indices])


def test_a_batch_sampler_that_can_follow_is_honoured_and_another_refused_by_name():
    data = TensorDataset(torch.arange(10))
    new = reindex(DataLoader(data, batch_sampler=ByParity(list(range(10)))), [9, 2, 4, 1])
    assert [batch[0].tolist() for batch in new] == [[2, 4], [9, 1]]
    with pytest.raises(TypeError, match=r"shuffle cannot be set: ByParity"):
        reindex(new, [0], shuffle=False)
    Own = type("Own", (Sampler,), {"__iter__": lambda self: iter([[0, 1]]), "__len__": lambda self: 1})
    with pytest.raises(TypeError, match=r"Own cannot be re-indexed.*reindex\(dataset, indices\)"):
        reindex(DataLoader(data, batch_sampler=Own()), [0])
    with pytest.raises(TypeError, match="Own cannot be re-indexed"):
        reindex(DataLoader(data, batch_size=2, sampler=Own()), [0])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "must not be empty"),
        ([0, 5], r"must be in \[0, 5\), got 5"),
        ([-1], r"must be in \[0, 5\), got -1"),
        (torch.tensor([0.5]), "one-dimensional integers, got torch.float32"),
        (torch.tensor([[1]]), r"one-dimensional integers, got torch.int64 of shape \(1, 1\)"),
        (torch.zeros(5, dtype=torch.bool), "the mask has no True entry"),
        (torch.ones(4, dtype=torch.bool), "4 entries for 5 items"),
    ],
)
def test_bad_indices(indices, message):
    with pytest.raises(ValueError, match=message):
        reindex(counting(5), indices)


def test_iterable_unsized_and_foreign_loaders_are_refused_by_name():
    with pytest.raises(TypeError, match="Stream is an IterableDataset"):
        reindex(DataLoader(Stream()), [0])
    with pytest.raises(TypeError, match="got list"):
        reindex([1, 2], [0])
    Unsized = type("Unsized", (Dataset,), {"__getitem__": lambda self, i: i})
    loader = DataLoader(Unsized(), sampler=[0, 1])
    with pytest.raises(TypeError, match="Unsized has no __len__"):
        reindex(loader, [0])


def test_rebuild_refuses_what_does_not_fit_together():
    loader = counting(4)
    with pytest.raises(ValueError, match="sampler or batch_sampler, not both"):
        rebuild(loader, sampler=[0], batch_sampler=[[0]])
    with pytest.raises(ValueError, match="new dataset needs a new sampler"):
        rebuild(loader, dataset=loader.dataset)
    with pytest.raises(ValueError, match="drop_last does not go with batch_sampler"):
        rebuild(loader, batch_sampler=[[0]], drop_last=True)
    with pytest.raises(ValueError, match="drop_last needs a loader with a batch_size"):
        rebuild(DataLoader(loader.dataset, batch_size=None), drop_last=True)


def test_rebuild_with_batches_of_ones_own():
    assert numbers(rebuild(counting(6), batch_sampler=[[5], [0, 1]])) == [5, 0, 1]


# -- Third-party loaders


def test_a_torch_geometric_loader_keeps_its_collater():
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader

    graphs = [
        Data(x=torch.full((i + 1, 1), float(i)), edge_index=torch.zeros(2, 1, dtype=torch.int64), y=i) for i in range(8)
    ]
    loader = GraphLoader(graphs, batch_size=2, follow_batch=["x"])
    new = reindex(loader, [7, 0, 3])
    assert type(new) is GraphLoader
    first, second = list(new)
    assert first.num_graphs == 2
    assert first.y.tolist() == [7, 0]
    assert first.x_batch.tolist() == [0] * 8 + [1]
    assert second.y.tolist() == [3]
    assert labels_of(new.dataset).tolist() == [7, 0, 3]


def test_a_dict_data_set():
    loader = DataLoader(TokenisedTexts(9), batch_size=2)
    batches = list(reindex(loader, [8, 1, 3]))
    assert [batch["input_ids"].flatten().tolist() for batch in batches] == [[8, 1], [3]]
    assert [batch["labels"].tolist() for batch in batches] == [[2, 1], [0]]


class FastLoader(DataLoader):
    """A stranger's loader whose ``__init__`` shares nothing with DataLoader's."""

    def __init__(self, tensors) -> None:
        super().__init__(TensorDataset(tensors), batch_size=2)


def test_a_loader_class_with_an_init_of_its_own():
    new = reindex(FastLoader(torch.arange(6)), [4, 5, 0])
    assert type(new) is FastLoader
    assert numbers(new) == [4, 5, 0]


# -- The path under a stock trainer


class Growing(StageCallback):
    """Buys the next ``step`` items after each epoch."""

    def __init__(self, step: int) -> None:
        super().__init__(Pool(range(step)))
        self.step = step

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.stage.set(range(len(self.stage.indices) + self.step))


def test_a_pool_grows_from_epoch_to_epoch_and_the_hook_is_given_back():
    module, datamodule = Recorder(), Numbers(40)
    trainer(Growing(8), max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(module, datamodule)
    assert [sorted(seen) for seen in module.seen] == [list(range(8)), list(range(16)), list(range(24))]
    assert "train_dataloader" not in vars(datamodule)


@pytest.mark.parametrize("source", ["datamodule", "module", "loader"])
def test_partition_and_pool_wherever_the_data_come_from(source):
    partition, pool = StageCallback(Partition(range(20, 40))), Growing(2)
    module = Recorder()
    data = {"datamodule": Numbers()} if source == "datamodule" else {}
    if source == "module":
        module.train_dataloader = functools.partial(counting, 40)
    if source == "loader":
        data = {"train_dataloaders": counting(40)}
    runner = trainer(pool, partition, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    runner.fit(module, **data)
    assert module.seen == [[20, 21], [20, 21, 22, 23]]
    assert "dataloader" not in vars(runner.fit_loop._data_source)


def test_without_reload_a_changing_stage_is_refused_before_training():
    module = Recorder()
    with pytest.raises(ValueError, match=r"reload_dataloaders_every_n_epochs must be 1 because Pool .* got 0"):
        trainer(StageCallback(Pool([0])), max_epochs=2).fit(module, Numbers())
    assert module.seen == []
    datamodule = Numbers()
    TrainPath.on(datamodule).add(Pool([0]))  # before any trainer is known
    with pytest.raises(ValueError, match="must be 1 because Pool"):
        trainer().fit(module, datamodule)
    assert module.seen == []


def test_a_change_after_the_loader_was_made_is_not_passed_over():
    class TooLate(StageCallback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            self.stage.set([1, 2])
            super().on_train_epoch_start(trainer, pl_module)

    datamodule = Numbers()
    with pytest.raises(RuntimeError, match=r"pool stage \(Pool\) has changed since the train loader was made"):
        trainer(TooLate(Pool([0])), reload_dataloaders_every_n_epochs=1).fit(Recorder(), datamodule)
    assert "train_dataloader" not in vars(datamodule), "an exception must not leave the stage behind"


def test_a_path_that_was_gone_around_is_noticed():
    class Around(StageCallback):
        def setup(self, trainer, pl_module, stage) -> None:
            super().setup(trainer, pl_module, stage)
            trainer.datamodule.train_dataloader = functools.wraps(trainer.datamodule.train_dataloader)(
                lambda: counting(3)  # replaces the loader instead of passing it on
            )

    with pytest.raises(RuntimeError, match=r"not gone through the stages partition \(Partition\)"):
        trainer(Around(Partition([0]))).fit(Recorder(), Numbers())


def test_collections_and_streams_are_refused_by_name():
    class Two(Numbers):
        def train_dataloader(self):
            return [super().train_dataloader(), super().train_dataloader()]

    class Streaming(Numbers):
        def train_dataloader(self):
            return DataLoader(Stream())

    callback = StageCallback(Partition([0]))
    with pytest.raises(TypeError, match=r"Two.train_dataloader gave a list; the stages partition need one"):
        trainer(callback).fit(Recorder(), Two())
    with pytest.raises(TypeError, match="Stream is an IterableDataset"):
        trainer(StageCallback(Partition([0]))).fit(Recorder(), Streaming())


def test_one_stage_per_slot_and_known_slots_only():
    path, stage = TrainPath.on(Numbers()), Partition([0])
    path.add(stage).add(stage)
    assert path.stages == (stage,)
    with pytest.raises(ValueError, match="partition stage of the train loader is taken by Partition"):
        path.add(Partition([1]))

    class Elsewhere(Partition):
        slot = "somewhere"

    with pytest.raises(ValueError, match="slot of Elsewhere must be one of partition, pool, sampler, got 'somewhere'"):
        path.add(Elsewhere([0]))
    with pytest.raises(ValueError, match="before must be one of"):
        path.build(before="tea")


def test_what_a_pool_may_choose_from():
    datamodule = Numbers(10)
    path = TrainPath.on(datamodule).add(Partition([9, 8, 7])).add(Pool([1]))
    assert numbers(path.build(before="pool")) == [9, 8, 7]
    assert numbers(path.build(before="partition")) == list(range(10))
    assert numbers(path.build()) == [8]


def test_the_path_is_found_again_and_other_wrappers_are_left_alone():
    datamodule, calls = Numbers(10), []

    def wrap(name):
        before = datamodule.train_dataloader

        @functools.wraps(before)
        def wrapper():
            calls.append(name)
            return before()

        datamodule.train_dataloader = wrapper
        return wrapper

    inner = wrap("inner")
    stage = Partition([3, 4])
    path = TrainPath.on(datamodule).add(stage)
    outer = wrap("outer")
    assert TrainPath.on(datamodule) is path
    assert numbers(datamodule.train_dataloader()) == [3, 4]
    assert calls == ["outer", "inner"]
    path.remove(stage)
    assert datamodule.train_dataloader is outer, "it was wrapped after us: we stay as a pass-through"
    assert numbers(datamodule.train_dataloader()) == list(range(10))
    datamodule.train_dataloader = path._wrapper
    path.add(stage)
    path.remove(stage)
    assert datamodule.train_dataloader is inner


def test_a_copied_or_pickled_datamodule_has_a_path_of_its_own():
    original = Numbers(10)
    stage = Partition([1, 2])
    TrainPath.on(original).add(stage)
    original.train_dataloader()
    for clone in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        clone.count = 3
        assert numbers(clone.train_dataloader()) == [1, 2]
        path = TrainPath.on(clone)
        path.remove(path.stages[0])
        assert numbers(clone.train_dataloader()) == [0, 1, 2]
        assert numbers(original.train_dataloader()) == [1, 2]


def test_pool_state_loads_with_weights_only():
    buffer, pool = io.BytesIO(), Pool([4, 2])
    torch.save(pool.state_dict(), buffer)
    buffer.seek(0)
    other = Pool([0])
    version = other.version
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.indices.tolist() == [4, 2]
    assert other.version == version + 1


def test_a_stage_callback_without_a_stage_says_so():
    with pytest.raises(TypeError, match="StageCallback has no stage"):
        trainer(StageCallback()).fit(Recorder(), Numbers())


# -- The last slot, as private or resumable training will use it


class Poisson(Stage):
    """Every item enters a batch with probability ``rate``, on its own."""

    slot = "sampler"
    splits_ranks = True

    def __init__(self, rate: float, steps: int) -> None:
        self.rate, self.steps = rate, steps
        self.world = World()

    def apply(self, loader, world):
        self.world = world
        mine = torch.arange(len(loader.dataset))[world.rank :: world.size]
        generator = torch.Generator().manual_seed(world.rank)
        batches = [mine[torch.rand(len(mine), generator=generator) < self.rate].tolist() for _ in range(self.steps)]
        return rebuild(loader, batch_sampler=batches)


def test_a_sampler_stage_comes_last_and_reaches_the_trainer():
    module, stage = Recorder(), Poisson(0.5, steps=30)
    runner = trainer(StageCallback(stage), StageCallback(Partition(range(100, 120))))
    runner.fit(module, Numbers(200))
    counts = torch.tensor(module.seen[0]).bincount(minlength=120)
    assert counts[:100].sum() == 0
    assert (counts[100:] > 0).all()
    assert abs(float(counts[100:].float().mean()) - 15) < 4 * (30 * 0.25 / 20) ** 0.5
    assert len(set(module.seen[0])) == 20


def test_a_replaced_sampler_is_noticed():
    class Shuffled(Stage):
        slot = "sampler"

        def apply(self, loader, world):
            return rebuild(loader, sampler=RandomSampler(loader.dataset))

    with pytest.raises(RuntimeError, match="replaced the sampler that Shuffled gave"):
        trainer(StageCallback(Shuffled()), overfit_batches=2).fit(Recorder(), Numbers())


# -- Two processes


class Gathered(Recorder):
    """Keeps what all ranks saw, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.everywhere: list[list[list[int]]] = []

    def on_train_epoch_end(self) -> None:
        ranks: list = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(ranks, self.seen[-1])
        self.everywhere.append(ranks)


@pytest.mark.process
@pytest.mark.parametrize("case", ["lightning_splits", "stage_splits", "own_init"])
def test_two_processes(case, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    run_two(script, case)


TWO_PROCESSES = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("t", sys.argv[1]); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
case = sys.argv[2]
options = dict(strategy="ddp", devices=2, max_epochs=2, reload_dataloaders_every_n_epochs=1)
module = t.Gathered()
if case == "lightning_splits":
    t.trainer(t.Growing(8), t.StageCallback(t.Partition(range(10, 40))), **options).fit(module, t.Numbers())
    for epoch, count in enumerate((8, 16)):
        first, second = module.everywhere[epoch]
        assert len(first) == len(second) == count // 2, module.everywhere
        assert sorted(first + second) == list(range(10, 10 + count)), module.everywhere
elif case == "stage_splits":
    stage = t.Poisson(0.5, 30)
    partition = t.Partition(range(100, 120))
    t.trainer(t.StageCallback(stage), t.StageCallback(partition), **options).fit(module, t.Numbers(200))
    first, second = module.everywhere[0]
    assert set(first) == set(range(100, 120, 2)) and set(second) == set(range(101, 120, 2)), module.everywhere
else:
    class Own(t.Numbers):
        def train_dataloader(self):
            return t.FastLoader(torch.arange(40))
    try:
        t.trainer(t.StageCallback(t.Partition(range(10))), **options).fit(module, Own())
    except TypeError as error:
        assert "FastLoader.__init__ has no argument dataset" in str(error), error
    else:
        raise AssertionError("Lightning would have trained on all the data")
print("rank done")
"""


def run_two(script, case) -> None:
    import os
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command = [*command, "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(script), __file__, case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rank done") == 2


# -- Labels


def test_labels_without_decoding():
    class Images(Dataset):
        targets = [2, 0, 1]

        def __getitem__(self, i):
            raise AssertionError("an item was decoded")

        def __len__(self):
            return 3

    pair = TensorDataset(torch.zeros(4, 2), torch.tensor([1, -1, 0, 2], dtype=torch.int32))
    assert labels_of(Images()).tolist() == [2, 0, 1]
    assert labels_of(pair).tolist() == [1, -1, 0, 2]
    assert labels_of(pair).dtype == torch.int64
    assert labels_of(Subset(Subset(pair, [3, 2, 1]), [0, 2])).tolist() == [2, -1]
    assert labels_of(ConcatDataset([pair, Images()])).tolist() == [1, -1, 0, 2, 2, 0, 1]
    assert labels_of(TokenisedTexts(4)).tolist() == [0, 1, 2, 0]
    assert labels_of([{"x": 1.0, "label": 3}, {"x": 2.0, "label": 5}]).tolist() == [3, 5]
    assert labels_of([(torch.zeros(2), 3), (torch.zeros(2), 5)]).tolist() == [3, 5]
    triple = TensorDataset(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([[4], [6]]))
    assert labels_of(triple, field=2).tolist() == [4, 6]


def test_labels_of_columns():
    class Columns:
        """As ``datasets.Dataset``: a column comes by its name, lazily."""

        column_names = ["text", "label", "other"]

        def __getitem__(self, key):
            return {"label": LazyColumn([1, 0]), "other": LazyColumn([7, 8])}[key]

        def __len__(self):
            return 2

    class LazyColumn:
        def __init__(self, values):
            self.values = values

        def __getitem__(self, key):
            return self.values[key]

    assert labels_of(Columns()).tolist() == [1, 0]
    assert labels_of(Columns(), field="other").tolist() == [7, 8]


def test_labels_of_a_torch_geometric_data_set(tmp_path):
    from torch_geometric.data import Data, InMemoryDataset

    class Graphs(InMemoryDataset):
        def __init__(self):
            super().__init__(None)
            self.data, self.slices = self.collate([Data(x=torch.zeros(2, 1), y=torch.tensor([k])) for k in (2, 0, 1)])

    assert labels_of(Graphs()).tolist() == [2, 0, 1]
    assert labels_of(Graphs()[[2, 1]]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Stream(), TypeError, "Stream is an IterableDataset"),
        (TensorDataset(torch.zeros(2), torch.zeros(2), torch.zeros(2)), TypeError, "TensorDataset of 3 tensors"),
        (
            TensorDataset(torch.zeros(2, 1), torch.zeros(2)),
            ValueError,
            "one integer per item, but tensor 1 holds torch.fl",
        ),
        (TensorDataset(torch.zeros(2), torch.zeros(2, 5).long()), ValueError, r"shape \(2, 5\) for 2 items"),
        ([1, 2], TypeError, "items of type int have no labels"),
        ([{"label": "dog"}], ValueError, "holds strings such as 'dog'"),
        (type("Opaque", (Dataset,), {"__len__": lambda self: 1})(), TypeError, "Opaque has no labels .* targets"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_labels_that_cannot_be_known(dataset, error, message):
    with pytest.raises(error, match=message):
        labels_of(dataset)
