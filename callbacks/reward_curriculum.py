"""A reward curriculum: the task first, what else counts later, and all experience priced anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from framework.errors import ConfigurationError, near
from framework.rl.criteria import ACTOR_FIT, ACTOR_LOSS, ALPHA_LOSS, RETURNS, ActorFit, criterion
from framework.rl.curriculum import Priced, RewardStage, priced, reward_stages
from framework.rl.measures import Means, actor_fit
from framework.seeding import derive, run_seed
from framework.stages import Schedule, Switch

STAGE_KEYS = ("weight", "weights", "anneal_steps", "criterion", "min_steps", "max_steps")


class RewardCurriculum(Callback):
    """Train on some components of the reward first and on others later, on experience that is priced when sampled.

    A stage is a vector of weights over the components that the environment names. A criterion looks at training every
    ``check_every`` environment steps and says when a stage has done its work; the next one begins at once, for all
    experience, old and new. There is one switch from each stage to the next, at the same step on all ranks, and the
    state of it all is in the checkpoint. Loggers get ``curriculum/stage`` (from 0), ``curriculum/weight/<name>``,
    and what the criterion was told at the latest check, such as ``curriculum/alpha_loss``.

    The data must be :class:`framework.rl.curriculum.Priced`, as OnlineReplay is; what its evaluation reports stays the
    full reward, whatever the stage. Any module will do. Some options use more, which SAC and TD3 have: criteria
    ``told``, or ``act`` and ``q``; ``critic_updates`` and ``reset`` the methods ``train_critics_only`` and ``reset``.

    Args:
        stages: In their order, each a mapping: ``weight``, of the auxiliary components in the mix, or ``weights``, by
            name of a component or group; ``anneal_steps``, environment steps after the switch over which the weights
            get there, linearly (0 for a jump); and what ends the stage, where it is not as below: ``criterion``,
            ``min_steps``, ``max_steps``. A single stage is training without a curriculum.
        base: Components of the task: names, with the environment's own weights, or weights by name. None for all that
            are not in ``aux``.
        aux: The auxiliary components; None for all that are not in ``base``.
        mix: ``convex``: ``(1 - weight) base + weight aux``; ``add``: ``base + weight aux``.
        criterion: ``fixed``, ``reward_threshold``, ``alpha_loss``, ``actor_fit``, ``actor_loss``, ``plateau``, or the
            dotted path of a class; with arguments a mapping, such as ``{name: fixed, steps: 50000}``.
        min_steps: Environment steps that a stage takes at least, at least 0.
        max_steps: Environment steps after which it ends, whatever the criterion says; None for no such bound.
        check_every: Environment steps between checks, at least 1.
        rewards: ``current`` prices all experience with the weights of the moment; ``stored`` leaves each transition the
            reward that it had when it was stored (an ablation).
        old: ``keep`` goes on with the experience of earlier stages; ``drop`` draws none of it any more once the new
            stage has some of its own (the naive curriculum, an ablation).
        new_share: Share of each batch that comes from the present stage once there is a switch, in [0, 1]; None draws
            from all experience alike.
        critic_updates: Updates of the critics alone at a switch, before the next environment step; at the weights of
            that moment, which are the new ones after a jump and still the old ones where the stage anneals.
        reset: Which networks begin afresh at a switch: ``actor``, ``critic``, ``alpha``.

    Attributes:
        schedule: Where training is among the stages.

    Raises:
        ValueError: If an argument is out of range, or does not go with another; before training, if it does not go with
            the components of the reward or a criterion can never be due.
        TypeError: Before training, if data or module lack what is needed.
    """

    def __init__(
        self,
        stages: list[dict[str, Any]],
        base: list[str] | dict[str, float] | None = None,
        aux: list[str] | dict[str, float] | None = None,
        mix: Literal["convex", "add"] = "convex",
        criterion: str | dict[str, Any] = "alpha_loss",
        min_steps: int = 0,
        max_steps: int | None = None,
        check_every: int = 1000,
        rewards: Literal["current", "stored"] = "current",
        old: Literal["keep", "drop"] = "keep",
        new_share: float | None = None,
        critic_updates: int = 0,
        reset: list[str] | None = None,
    ) -> None:
        for name, number, least in (("check_every", check_every, 1), ("critic_updates", critic_updates, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ConfigurationError(f"{name} must be a whole number of at least {least}, got {number!r}")
        for name, choice, allowed in (("rewards", rewards, ("current", "stored")), ("old", old, ("keep", "drop"))):
            if choice not in allowed:
                raise ConfigurationError(f"{name} must be {' or '.join(allowed)}, got {choice!r}")
        if new_share is not None and not 0 <= new_share <= 1:
            raise ConfigurationError(f"new_share must be in [0, 1] or null, got {new_share}")
        if old == "drop" and new_share is not None:
            raise ConfigurationError(
                f"new_share must be null with old: drop, which leaves no old experience; got {new_share}"
            )
        if rewards == "stored" and critic_updates:
            raise ConfigurationError(
                f"critic_updates must be 0 with rewards: stored, which leaves critics nothing new; got {critic_updates}"
            )
        self.stages = _checked(stages)
        self.base, self.aux, self.mix, self.check_every = base, aux, mix, check_every
        self.rewards, self.old, self.new_share = rewards, old, new_share
        self.critic_updates, self.reset = critic_updates, list(reset or [])
        self.schedule = Schedule(_switches(self.stages, criterion, min_steps, max_steps, check_every))
        self._rewards: list[RewardStage] = []
        self._origin: list[float] | None = None  # weights of the moment at which the present stage began
        self._annealing = True
        self._means = Means()
        self._checks = (0, 0)  # environment steps of the latest check and of the next one
        self._latest: dict[str, Any] = {}  # losses of the module that have been counted
        self._told: dict[str, float] = {}  # to the criterion at the latest check

    # -- before training ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = priced(trainer.datamodule, "RewardCurriculum")  # type: ignore[attr-defined]
        buffer = data.buffer
        if len(buffer.components) < 2:
            raise ConfigurationError(
                f"RewardCurriculum needs a reward of several components, this one has {buffer.components[0]!r} alone"
            )
        names, weights = buffer.components, list(data.reward_weights)
        self._rewards = reward_stages(self.stages, names, weights, self.base, self.aux, self.mix)
        total = getattr(data, "hparams", {}).get("total_env_steps")
        if total is not None and self.schedule.earliest >= total:
            raise ConfigurationError(
                f"the last stage can begin at environment step {self.schedule.earliest} at the earliest, "
                f"but training ends at {total}"
            )
        self._check(trainer, pl_module, data)
        if self.rewards == "stored":
            buffer.keep_frozen()
            buffer.use_frozen = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._price(_data(trainer))  # here, for a checkpoint may have brought experience, or the middle of a stage

    def _check(self, trainer: Trainer, pl_module: LightningModule, data: Priced) -> None:
        """Refuse what module and data cannot do before they have trained for hours."""
        needs = {name for switch in self.schedule.switches for name in switch.criterion.needs}
        losses, returns = needs & {ALPHA_LOSS, ACTOR_LOSS}, RETURNS["collected"]
        fit, count = ACTOR_FIT in needs, "a method that takes their number"
        asked: list[tuple[object, object, str, str, str]] = [
            (losses, pl_module, "told", "the criterion", "losses by name, the latest of each"),
            (fit, pl_module, "act", "the criterion", "actions for observations"),
            (fit, pl_module, "q", "the criterion", "values (M, B) of observations and actions"),
            (returns in needs, data, "episodes", "the criterion", "a row for each that ended"),
            (self.reset, pl_module, "reset", "reset", "a method that takes names of networks"),
            (self.critic_updates, pl_module, "train_critics_only", "critic_updates", count),
            (self.critic_updates, data, "more_updates", "critic_updates", count),
        ]
        for needed, owner, name, by, meaning in asked:
            if needed and not hasattr(owner, name):
                raise TypeError(
                    f"{type(owner).__name__} has no {name}, which {by} of RewardCurriculum needs: {meaning}"
                )
        groups = list(getattr(getattr(pl_module, "core", None), "groups", dict)())
        for name in self.reset:
            if groups and name not in groups:
                raise ConfigurationError(
                    f"reset: no {name!r} in this {type(pl_module).__name__}; there are {', '.join(groups)}"
                )
        if ALPHA_LOSS in needs and groups and "alpha" not in groups:
            raise ConfigurationError(
                f"{ALPHA_LOSS} can never be due: this {type(pl_module).__name__} learns no temperature"
            )
        evaluated = sorted(name for name in needs if name == RETURNS["evaluation"] or name.startswith("val/"))
        if evaluated and not trainer.enable_validation:
            raise ConfigurationError(f"{evaluated[0]} needs evaluation, but this run has no validation")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        fetcher = trainer.fit_loop._data_fetcher
        if fetcher is not None and fetcher.length is None:
            # Lightning draws one batch ahead where it does not know their number.
            raise ConfigurationError(
                f"{type(_data(trainer)).__name__} must give a train loader with a length: without one a batch is drawn "
                "ahead, which would keep the rewards from before a switch"
            )

    # -- the course of training ---------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data, schedule = _data(trainer), self.schedule
        for name in schedule.needs:
            told = cast(Any, pl_module).told.get(name) if name in (ALPHA_LOSS, ACTOR_LOSS) else None
            if told is not None and told is not self._latest.get(name):  # not again after an update of critics alone
                self._latest[name] = told
                self._means.add(name, told)
        step = data.env_steps
        if step >= self._checks[1]:
            self._told = self._measured(trainer, pl_module, data)
            if schedule.check(step, self._told):
                self._begin(pl_module, data, step)
            self._checks = (step, (step // self.check_every + 1) * self.check_every)
        if self._annealing:
            self._price(data)
        if trainer._logger_connector.should_update_logs:
            weights = zip(data.buffer.components, data.buffer.weights)
            values = {f"curriculum/weight/{name}": float(weight) for name, weight in weights}
            values |= {f"curriculum/{name}": value for name, value in self._told.items()}
            pl_module.log_dict({"curriculum/stage": float(schedule.index), **values})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        names = [f"val/component/{name}" for name in _data(trainer).buffer.components]
        for name in self.schedule.needs:
            if name == RETURNS["evaluation"]:
                if not metrics.keys() >= set(names):
                    raise TypeError(f"{type(pl_module).__name__} logs no {names[0]}, which {name} needs in validation")
                self._means.add(name, sum(weight * metrics[each] for weight, each in zip(self._target.weights, names)))
            elif name.startswith("val/"):
                if name not in metrics:
                    known = sorted(each for each in metrics if each.startswith("val/"))
                    raise ConfigurationError(f"criterion: validation logs no {name!r}; there are {', '.join(known)}")
                self._means.add(name, metrics[name])

    @property
    def _target(self) -> RewardStage:
        return self._rewards[self.schedule.index]

    def _price(self, data: Priced) -> None:
        """Give the buffer the weights of the moment."""
        elapsed = data.env_steps - self.schedule.began
        data.buffer.weights = torch.tensor(self._target.at(elapsed, self._origin), dtype=torch.float64)
        self._annealing = self._origin is not None and elapsed < self._target.anneal_steps

    def _begin(self, pl_module: LightningModule, data: Priced, step: int) -> None:
        """The first moment of a stage."""
        buffer, module, experience = data.buffer, cast(Any, pl_module), cast(Any, data)
        self._origin, self._annealing = buffer.weights.tolist(), True
        buffer.mark()
        # Until there is new experience, old is drawn even from a share of 0.
        buffer.new_share = 1.0 if self.old == "drop" else self.new_share
        if self.reset:
            module.reset(*self.reset)
        if self.critic_updates:
            experience.more_updates(self.critic_updates)
            module.train_critics_only(self.critic_updates)
        rank_zero_info(
            f"RewardCurriculum: stage {self.schedule.index + 1} of {len(self.stages)} from environment step {step} on"
        )

    def _measured(self, trainer: Trainer, pl_module: LightningModule, data: Priced) -> dict[str, float]:
        """What the criterion looks at: means since the latest check, over all ranks."""
        needs, means, metrics = self.schedule.needs, self._means, trainer.callback_metrics
        for name in needs:
            if name == RETURNS["collected"]:
                for row in reversed(cast(Any, data).episodes):
                    if row[0] <= self._checks[0]:
                        break
                    means.add(name, sum(weight * value for weight, value in zip(self._target.weights, row[3:])))
            elif name == ACTOR_FIT:
                means.add(name, self._fit(trainer, pl_module, data))
            elif name not in RETURNS.values() and "/" in name and not name.startswith("val/"):
                if name in metrics:
                    means.add(name, metrics[name])
                    continue
                known = sorted(each for each in metrics if not each.startswith(("val/", "curriculum/")))
                if known and self._checks[0] and self.schedule.overdue(data.env_steps):
                    raise ConfigurationError(
                        f"criterion: training has logged no {name!r} so far; there are {', '.join(known)}"
                    )

        def total(table: Tensor) -> Tensor:
            return cast(Tensor, trainer.strategy.reduce(table.to(trainer.strategy.root_device), reduce_op="sum")).cpu()

        return means.take(needs, total if trainer.world_size > 1 else None)

    def _fit(self, trainer: Trainer, pl_module: LightningModule, data: Priced) -> Tensor:
        """Of stored states, without a trace in what is drawn for training."""
        assert self.schedule.switch is not None
        given: Any = self.schedule.switch.criterion
        how = given if isinstance(given, ActorFit) else ActorFit()
        before = data.buffer.generator.get_state()
        observation = data.buffer.sample(how.states)["observation"]
        data.buffer.generator.set_state(before)
        seed = derive(run_seed(), "actor_fit", trainer.global_rank, data.env_steps)
        return actor_fit(pl_module, observation, how.actions, how.spread, torch.Generator().manual_seed(seed))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that changes, of all processes: every one of them must call this."""
        means: list[Any] = [self._means.state_dict()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, means[0])
            means = gathered
        own = {
            "rewards": self.rewards,
            "origin": self._origin,
            "means": means,
            "checks": self._checks,
            "told": dict(self._told),
        }
        return {"schedule": self.schedule.state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._rewards:
            return  # validate, test and predict restore callbacks, too
        if state_dict["rewards"] != self.rewards:
            raise ValueError(
                f"rewards is {self.rewards}, but the checkpoint's experience is of {state_dict['rewards']}"
            )
        self.schedule.load_state_dict(state_dict["schedule"])
        self._origin, self._annealing = state_dict["origin"], True
        latest, following = state_dict["checks"]
        self._checks, self._told, means = (latest, following), dict(state_dict["told"]), state_dict["means"]
        rank = torch.distributed.get_rank() if len(means) > 1 else 0
        self._means.load_state_dict(means[rank])


def _data(trainer: Trainer) -> Priced:
    return cast(Priced, trainer.datamodule)  # type: ignore[attr-defined]


def _checked(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stages, if they have no keys but those there are."""
    if not stages:
        raise ConfigurationError("stages must hold at least one stage, got none")
    for number, entry in enumerate(stages):
        if not isinstance(entry, Mapping):
            raise ConfigurationError(f"stages[{number}] must be a mapping with weight or weights, got {entry!r}")
        for key in entry:
            if key not in STAGE_KEYS:
                raise ConfigurationError(
                    f"stages[{number}] has no {key!r}; there are {', '.join(STAGE_KEYS)}{near(key, STAGE_KEYS)}"
                )
    for key in ("criterion", "min_steps", "max_steps"):
        if key in stages[-1]:
            raise ConfigurationError(f"stages[{len(stages) - 1}].{key} ends a stage, but nothing follows the last one")
    return [dict(entry) for entry in stages]


def _switches(
    stages: Sequence[Mapping[str, Any]],
    given: str | Mapping[str, Any],
    min_steps: int,
    max_steps: int | None,
    check_every: int,
) -> list[Switch]:
    switches = []
    for number, entry in enumerate(stages[:-1]):
        where = f"stages[{number}].criterion" if "criterion" in entry else "criterion"
        made = criterion(entry.get("criterion", given), where)
        bounds = entry.get("min_steps", min_steps), entry.get("max_steps", max_steps)
        switches.append(Switch(made, *bounds, check_every))
    return switches
