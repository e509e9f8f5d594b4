"""Experience of environments as the data of a module that learns off-policy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from framework.rl.batches import Batches, refuse_workers
from framework.rl.components import Components, components_of
from framework.rl.policy import Policy, policy_of
from framework.rl.replay import ReplayBuffer
from framework.seeding import derive

if TYPE_CHECKING:
    from framework.rl.collector import Collector
    from framework.rl.evaluation import Evaluation


class OnlineReplay(LightningDataModule):
    """Environments, a collector and a replay buffer, whose train batches are drawn while the module acts.

    The module must have ``act`` (:class:`framework.rl.policy.Policy`) and take batches as
    :meth:`framework.rl.replay.ReplayBuffer.sample` gives them. After ``learning_starts`` random steps, ``train_every``
    steps of the module's policy and the updates that go with them alternate, until ``total_env_steps``; the trainer is
    then told to stop, so set its ``max_epochs`` to -1. An epoch lasts for the updates of ``eval_every`` steps (so for
    fewer steps if :meth:`more_updates` asks for updates besides) and ends with a validation: the mean over
    ``eval_episodes`` episodes without exploration, the same ones each time.

    Buffer, environments, generators and counters are in the checkpoint. What of an environment can be saved is said in
    :mod:`framework.rl.environments`; on these a killed run goes on bit-identically, on others with new episodes.

    With several processes each has environments and a buffer of its own; steps are counted over all of them, and each
    process makes ``updates_per_step`` updates, together with the others, for each of its own steps.

    Args:
        environment: A gymnasium id, such as ``Hopper-v5`` or ``package.module:Mine-v0``.
        arguments: Keyword arguments of the environment.
        num_envs: Environments that each process steps at once, at least 1.
        total_env_steps: Steps after which training ends, over all processes; more than ``learning_starts``.
        learning_starts: Steps of random actions before the first update, at least 1.
        train_every: Steps of each process between rounds of updates, at least 1.
        updates_per_step: Updates for each step, positive.
        updates_per_batch: The most updates of a round that a train batch is for, at least 1. A trainer's own work for a
            batch takes a millisecond, several times an update of a small network on a GPU. From 2 on a batch is a list.
        batch_size: Transitions of a batch, in each process.
        capacity: The most transitions a process keeps; the oldest are overwritten.
        reward_weights: Weights of components of the reward, by name; those left out keep the environment's own.
        eval_every: Steps, over all processes, between evaluations.
        eval_episodes: Episodes of an evaluation, over all processes.
        eval_arguments: Keyword arguments of the environment that differ in evaluation.
        eval_max_steps: Steps after which an episode of an evaluation is cut off, where the environment has not done so.
        buffer_device: Where the buffer lies: ``cpu``, or ``module`` for the device that trains.
        seed: Seed of environments, exploration and sampling.
        num_workers: 0; there is no other choice, because a worker would step environments of its own.

    Attributes:
        inputs: Numbers of an observation (makes an environment when first asked).
        actions: Numbers of an action.
        components: Components of the environment's reward.
        reward_weights: Weight of each in the reward that evaluation reports.
        buffer: The replay buffer, from ``setup`` on; its own ``weights`` may change in training.
        env_steps: Steps taken so far, over all processes.
        episodes: A row for each episode in training of this process: ``env_steps`` at its end, length, success (NaN
            where the environment has not said yet), and the sum of each component.

    Raises:
        ValueError: If an argument is out of range or does not go with the environment.
    """

    def __init__(
        self,
        environment: str,
        arguments: dict[str, Any] | None = None,
        num_envs: int = 1,
        total_env_steps: int = 100_000,
        learning_starts: int = 1000,
        train_every: int = 1,
        updates_per_step: float = 1.0,
        updates_per_batch: int = 1,
        batch_size: int = 256,
        capacity: int = 1_000_000,
        reward_weights: dict[str, float] | None = None,
        eval_every: int = 5000,
        eval_episodes: int = 10,
        eval_arguments: dict[str, Any] | None = None,
        eval_max_steps: int = 10_000,
        buffer_device: Literal["cpu", "module"] = "cpu",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        counts = {"num_envs": num_envs, "learning_starts": learning_starts, "train_every": train_every}
        counts |= {"batch_size": batch_size, "capacity": capacity, "eval_every": eval_every}
        counts |= {"updates_per_batch": updates_per_batch}
        for name, value in {**counts, "eval_episodes": eval_episodes, "eval_max_steps": eval_max_steps}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if total_env_steps <= learning_starts:
            raise ValueError(
                f"total_env_steps must be more than learning_starts ({learning_starts}), got {total_env_steps}"
            )
        if capacity < num_envs:
            raise ValueError(f"capacity must be at least num_envs ({num_envs}), got {capacity}")
        if not (updates_per_step > 0 and math.isfinite(updates_per_step)):
            raise ValueError(f"updates_per_step must be positive, got {updates_per_step}")
        if buffer_device not in ("cpu", "module"):
            raise ValueError(f"buffer_device must be cpu or module, got {buffer_device!r}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        refuse_workers(num_workers)
        self.save_hyperparameters()
        self.env_steps = 0
        self.episodes: list[list[float]] = []
        self._collector: Collector | None = None
        self._buffer: ReplayBuffer | None = None
        self._steps = 0  # of this process since the first update, which set how many updates there are to be
        self._updates = 0
        self._extra = 0
        self._told = 0
        self._evaluations: list[list[float]] = []
        self._evaluators: dict[str, Evaluation] = {}

    # --- the environment ----------------------------------------------------------------------------------------------

    def _make(self, count: int, more: Mapping[str, Any] | None = None) -> Any:
        from framework.rl.environments import make

        return make(self.hparams["environment"], count, {**(self.hparams["arguments"] or {}), **(more or {})})

    @cached_property
    def _seen(self) -> tuple[int, int, Components]:
        """What one environment, made for that and closed, shows: sizes, and components of its reward."""
        from framework.rl.environments import sizes

        envs = self._make(1)
        try:
            inputs, actions = sizes(envs, self.hparams["environment"])
            singles = getattr(envs, "envs", None)
            return inputs, actions, components_of(envs if singles is None else singles[0])
        finally:
            envs.close()

    @property
    def inputs(self) -> int:
        """Numbers of an observation."""
        return self._seen[0]

    @property
    def actions(self) -> int:
        """Numbers of an action."""
        return self._seen[1]

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components of the reward."""
        return self._seen[2].names

    @cached_property
    def reward_weights(self) -> list[float]:
        """Weight of each component, as asked for."""
        return self._seen[2].weighted(self.hparams["reward_weights"])

    @property
    def buffer(self) -> ReplayBuffer:
        """The replay buffer of this process."""
        if self._buffer is None:
            raise RuntimeError("the replay buffer is made in setup, for fit")
        return self._buffer

    def setup(self, stage: str) -> None:
        weights = self.reward_weights  # names are checked at every stage
        if stage != "fit" or self._buffer is not None:
            return
        from framework.rl.collector import Collector

        p, name = self.hparams, self.hparams["environment"]
        rank, size = self._world
        if p["eval_episodes"] < size:
            raise ValueError(
                f"eval_episodes must be at least the number of processes ({size}), got {p['eval_episodes']}"
            )
        seed = derive(p["seed"], "rank", rank)
        device = self.trainer.strategy.root_device if p["buffer_device"] == "module" and self.trainer else "cpu"
        self._buffer = ReplayBuffer(p["capacity"], self.inputs, self.actions, self.components, weights, device, seed)
        self._collector = Collector(self._make(p["num_envs"]), self._seen[2], name, seed)

    @property
    def _world(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def teardown(self, stage: str) -> None:
        for evaluator in self._evaluators.values():
            evaluator.collector.envs.close()
        self._evaluators = {}

    # --- training -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Batches:
        """Batches of an epoch; the iterator goes on where the last one stopped."""
        p = self.hparams
        updates = p["eval_every"] / self._world[1] * p["updates_per_step"]
        of_a_round = max(self._round * p["updates_per_step"], 1)
        epoch = max(1, round(updates / of_a_round * math.ceil(of_a_round / p["updates_per_batch"])))
        return Batches(self._batches, lambda: 0 if self._finished() else epoch)

    @property
    def _owed(self) -> int:
        """Updates that go with the steps taken and have not been handed out."""
        return self._due(self._steps)

    def _due(self, steps: int) -> int:
        return int(steps * self.hparams["updates_per_step"] + 1e-6) + self._extra - self._updates

    @property
    def _round(self) -> int:
        """Steps of this process between rounds of updates."""
        count: int = self.hparams["num_envs"]
        return -(-self.hparams["train_every"] // count) * count

    def _is_last(self) -> bool:
        """Whether no update goes with the steps that are left."""
        left = max(0, self.hparams["total_env_steps"] - self.env_steps)
        rounds = -(-left // (self._round * self._world[1]))
        return self._due(self._steps + rounds * self._round) < 1

    def _finished(self) -> bool:
        return self.env_steps >= self.hparams["total_env_steps"] and self._owed < 1

    def more_updates(self, count: int) -> None:
        """Make some updates beyond those that go with steps, before the next step; the same on all ranks.

        Args:
            count: How many, at least 0.
        """
        self._extra += count

    def _batches(self) -> Iterator[dict[str, Tensor] | list[dict[str, Tensor]]]:
        trainer = self.trainer
        assert trainer is not None
        policy = policy_of(trainer.lightning_module, type(self).__name__)
        while not self._finished():
            if self._owed < 1:
                self._collect(policy)
                continue
            most = self.hparams["updates_per_batch"]
            batches = [self.buffer.sample(self.hparams["batch_size"]) for _ in range(min(self._owed, most))]
            self._updates += len(batches)
            if self._is_last():
                while not self._finished():
                    self._collect(policy)
                trainer.should_stop = True  # after this batch and a validation
            yield batches if most > 1 else batches[0]
        trainer.should_stop = True  # where no update at all went with the steps

    def _collect(self, policy: Policy) -> None:
        """The random steps before the first update, or ``train_every`` of the policy."""
        p = self.hparams
        # A trial run is there to find mistakes, in seconds.
        trial = self.trainer is not None and self.trainer.fast_dev_run  # type: ignore[attr-defined]
        first = min(p["learning_starts"], p["batch_size"]) if trial else p["learning_starts"]
        while self.env_steps < first:
            self._step(None)
        for _ in range(self._round // p["num_envs"]):
            self._steps += p["num_envs"]
            self._step(policy)

    def _step(self, policy: Policy | None) -> None:
        assert self._collector is not None
        transitions, ended = self._collector.step(policy)
        self.buffer.add(*transitions)
        self.env_steps += self.hparams["num_envs"] * self._world[1]
        for episode in ended:
            success = math.nan if episode.success is None else float(episode.success)
            self.episodes.append([self.env_steps, episode.length, success, *episode.components.tolist()])

    def told(self) -> dict[str, float]:
        """What to log: steps taken, and means over the episodes of this process that ended since the last call."""
        rows = self.episodes[self._told :]
        self._told = len(self.episodes)
        values = {"env_steps": float(self.env_steps)}
        if rows:
            table = np.array(rows)
            _, length, _, *sums = table.mean(0).tolist()
            values |= {"train/return": float(np.dot(sums, self.reward_weights)), "train/length": length}
            if not np.isnan(table[:, 2]).all():  # where not all: the environment tells of successes alone
                values["train/success"] = float(np.nan_to_num(table[:, 2]).mean())
        return values

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluation(self, stage: str) -> Evaluation:
        """The episodes of a stage that are this process's."""
        from framework.rl.evaluation import Evaluation

        if stage not in self._evaluators:
            p, (rank, size) = self.hparams, self._world
            trial = self.trainer is not None and self.trainer.fast_dev_run  # type: ignore[attr-defined]
            numbers = list(range(rank, size if trial else p["eval_episodes"], size))
            # 31 bits, for some environments hand their seed to generators that take no more
            seeds = [derive(p["seed"], stage, number) % 2**31 for number in numbers]
            envs = self._make(len(seeds), p["eval_arguments"])
            self._evaluators[stage] = Evaluation(
                envs, self._seen[2], self.reward_weights, p["environment"], seeds, p["eval_max_steps"]
            )
        return self._evaluators[stage]

    def _policy(self) -> Policy:
        assert self.trainer is not None
        return policy_of(self.trainer.lightning_module, type(self).__name__)

    def val_dataloader(self) -> Batches:
        """One batch: what each episode reached."""

        def run() -> Iterator[dict[str, Tensor]]:
            results = self._evaluation("val").run(self._policy())
            trainer = self.trainer
            if trainer is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
                values = results["return"].double()
                self._evaluations.append([self.env_steps, float(values.mean()), float(values.std(correction=0))])
            yield results

        return Batches(run, lambda: 1)

    def test_dataloader(self) -> Batches:
        """The same of other episodes."""
        return Batches(lambda: iter([self._evaluation("test").run(self._policy())]), lambda: 1)

    def predict_dataloader(self) -> Batches:
        """One batch: every step of the episodes of test."""
        return Batches(lambda: iter([self._evaluation("test").trajectories(self._policy())]), lambda: 1)

    def figures(self) -> dict[str, Any]:
        """Returns over environment steps, and what the environment itself draws of the episodes evaluated."""
        from framework.rl.figures import returns_figure

        training = [(row[0], float(np.dot(row[3:], self.reward_weights))) for row in self.episodes]
        figure = returns_figure(training, [(row[0], row[1], row[2]) for row in self._evaluations])
        found = {} if figure is None else {"returns": figure}
        for evaluator in self._evaluators.values():
            own = evaluator.collector.envs.unwrapped
            found |= own.figures() if hasattr(own, "figures") else {}
        return found

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that changes, of all processes: every one of them must call this."""
        if self._buffer is None or self._collector is None:
            return {}
        own = {
            "buffer": self._buffer.state_dict(),
            "collector": self._collector.state_dict(),
            "episodes": torch.tensor(self.episodes, dtype=torch.float64),
            "evaluations": torch.tensor(self._evaluations, dtype=torch.float64),
            **{name: getattr(self, name) for name in ("env_steps", *_COUNTERS)},
            "task": self._task,
        }
        rank, size = self._world
        if size == 1:
            return {"ranks": [own]}
        gathered: list[Any] | None = [None] * size if rank == 0 else None
        torch.distributed.gather_object(own, gathered)
        return {"ranks": gathered or []}

    @property
    def _task(self) -> dict[str, str]:
        """What the experience, and the states of the environments, are of."""
        p = self.hparams
        given = {"environment": p["environment"], "arguments": p["arguments"] or {}, "num_envs": p["num_envs"]}
        given["reward_weights"] = dict(zip(self.components, self.reward_weights))
        return {name: json.dumps(value, sort_keys=True, default=str) for name, value in given.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; only where there is training to go on with."""
        if self._buffer is None or self._collector is None or "ranks" not in state_dict:
            return
        if self.trainer is not None and self.trainer.state.fn not in (None, TrainerFn.FITTING):
            return  # a test after training would take back what has been experienced since its checkpoint
        rank, size = self._world
        if len(state_dict["ranks"]) != size:
            raise ValueError(
                f"the checkpoint has the experience of {len(state_dict['ranks'])} processes, but there are {size}: "
                "go on with as many as before"
            )
        own = state_dict["ranks"][rank]
        for name, value in self._task.items():
            if own["task"][name] != value:
                raise ValueError(
                    f"{name} is {value}, but the checkpoint's experience is of {own['task'][name]}: go on with the same"
                )
        self._buffer.load_state_dict(own["buffer"])
        self._collector.load_state_dict(own["collector"])
        self.episodes, self._evaluations = own["episodes"].tolist(), own["evaluations"].tolist()
        for name in ("env_steps", *_COUNTERS):
            setattr(self, name, own[name])
        # A curriculum that had set others does so again when training starts, if it is there again.
        self._buffer.weights = torch.tensor(self.reward_weights, dtype=torch.float64)


_COUNTERS = ("_steps", "_updates", "_extra", "_told")
