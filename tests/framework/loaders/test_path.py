"""Stages compose in their order, under a stock trainer and on two ranks; refusals name names."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import Numbers, Recorder, Stream, counting, numbers, trainer
from torch.utils.data import DataLoader, RandomSampler

from framework.loaders import Partition, Pool, Stage, StageCallback, TrainPath, World, rebuild

subsets = st.integers(1, 30).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=2 * n))
)


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


# -- Under a stock trainer


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


def test_a_stage_that_splits_ranks_needs_batches(monkeypatch):
    class TwoRanks(Poisson):
        def apply(self, loader, world):
            return rebuild(loader, sampler=RandomSampler(loader.dataset))

    path = TrainPath.on(Numbers(8, batch_size=None)).add(TwoRanks(0.5, 1))
    assert len(path.build()) == 8  # a single process keeps the stage's sampler
    monkeypatch.setattr("framework.loaders.path.World", lambda: World(rank=1, size=2))
    with pytest.raises(
        TypeError, match="TwoRanks gives each process its own items and needs a loader that makes batches"
    ):
        path.build()


@pytest.mark.process
@pytest.mark.parametrize("case", ["lightning_splits", "stage_splits", "own_init"])
def test_two_processes(case, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    run_two(script, case)


TWO_PROCESSES = """
import importlib.util, sys
import strangers, torch
spec = importlib.util.spec_from_file_location("t", sys.argv[1]); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
case = sys.argv[2]
options = dict(strategy="ddp", devices=2, max_epochs=2, reload_dataloaders_every_n_epochs=1)
module = t.Gathered()
if case == "lightning_splits":
    partition = t.StageCallback(t.Partition(range(10, 40)))
    strangers.trainer(t.Growing(8), partition, **options).fit(module, strangers.Numbers())
    for epoch, count in enumerate((8, 16)):
        first, second = module.everywhere[epoch]
        assert len(first) == len(second) == count // 2, module.everywhere
        assert sorted(first + second) == list(range(10, 10 + count)), module.everywhere
elif case == "stage_splits":
    stage = t.Poisson(0.5, 30)
    partition = t.Partition(range(100, 120))
    strangers.trainer(t.StageCallback(stage), t.StageCallback(partition), **options).fit(module, strangers.Numbers(200))
    first, second = module.everywhere[0]
    assert set(first) == set(range(100, 120, 2)) and set(second) == set(range(101, 120, 2)), module.everywhere
else:
    class Own(strangers.Numbers):
        def train_dataloader(self):
            return strangers.FastLoader(torch.arange(40))
    try:
        strangers.trainer(t.StageCallback(t.Partition(range(10))), **options).fit(module, Own())
    except TypeError as error:
        assert "FastLoader.__init__ has no argument dataset" in str(error), error
    else:
        raise AssertionError("Lightning would have trained on all the data")
print("rank done")
"""


def run_two(script, case) -> None:
    root = Path(__file__).parents[3]
    path = os.pathsep.join((str(root), str(root / "tests" / "support")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command = [*command, "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(script), __file__, case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rank done") == 2
