"""Short runs of a reward curriculum on a small navigation task; as a script, runs that are killed, and two ranks."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.reward_curriculum import RewardCurriculum
from datamodules.replay import OnlineReplay
from modules.sac import SAC

NAMES = ("goal", "progress", "speed", "acceleration", "clearance", "collision")
FULL = (10.0, 1.0, 0.2, 0.5, 1.0, 10.0)
TASK = {"circles": 0, "polygons": 0, "moving": 0, "rays": 4, "scans": 1, "time_limit": 20}
TASK |= {"room": 4.0, "min_distance": 0.6, "max_distance": 1.5}
TWO = [{"weight": 0}, {"weight": 0.5}]


def fixed(steps: int) -> dict:
    return {"name": "fixed", "steps": steps}


def curriculum(stages=None, **more) -> RewardCurriculum:
    given = {"base": ["goal", "progress"], "criterion": fixed(100), "check_every": 10, **more}
    return RewardCurriculum(TWO if stages is None else stages, **given)


def experience(**more) -> OnlineReplay:
    given = {"num_envs": 2, "total_env_steps": 200, "learning_starts": 20, "train_every": 4, "updates_per_step": 0.5}
    given |= {"batch_size": 16, "eval_every": 60, "eval_episodes": 2, "seed": 3, "arguments": TASK}
    return OnlineReplay(**{"environment": "Fulgurite/Navigation-v0", **given, **more})


def trainer(*callbacks, **more) -> Trainer:
    given = {"accelerator": "cpu", "devices": 1, "max_epochs": -1, "logger": False, "enable_checkpointing": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(callbacks=list(callbacks), **{**given, **more})


def fit(*callbacks, make=None, data=None, ckpt_path=None, **more):
    """Module, data and trainer after training."""
    seed_everything(5, verbose=False)
    module = SAC(9, 2, hidden=[16, 16], lr=3e-3) if make is None else make()  # once the seed is set
    data = experience() if data is None else data
    run = trainer(*callbacks, **more)
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, data, run


class Batches(Callback):
    """Remembers every batch, with the steps taken and the stage in which it was trained on."""

    def __init__(self) -> None:
        self.steps, self.batches, self.stages, self.weights, self.actors = [], [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (curricula,) = [[each for each in trainer.callbacks if isinstance(each, RewardCurriculum)]]
        self.stages.append(curricula[0].schedule.index if curricula else 0)
        self.steps.append(trainer.datamodule.env_steps)
        self.batches.append({name: column.clone() for name, column in batch.items()})
        self.weights.append(trainer.datamodule.buffer.weights.clone())
        self.actors.append(torch.cat([p.detach().flatten().clone() for p in pl_module.core.actor.parameters()]))

    def ages(self, data) -> list[torch.Tensor]:
        """Of each transition of each batch, its place in the order in which transitions were stored."""
        columns = data.buffer.columns()
        assert len(data.buffer) == data.buffer.added  # nothing was overwritten
        keys = torch.cat([columns["observation"], columns["action"]], 1)
        place = {row.numpy().tobytes(): age for age, row in enumerate(keys)}
        assert len(place) == len(keys)
        pairs = [torch.cat([batch["observation"], batch["action"]], 1) for batch in self.batches]
        return [torch.tensor([place[row.numpy().tobytes()] for row in rows]) for rows in pairs]


class Kill(Callback):
    """Ends the process in the middle of an update."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.updates == self.update:
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(function) -> int:
    """Run in a process that has imported everything already; returns its exit code."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def long(folder: Path, *callbacks, ckpt_path=None, **more) -> None:
    """Three stages, by three ways to decide; its last state is ``final.ckpt``."""
    stages = [
        {"weight": 0, "criterion": "alpha_loss", "min_steps": 50, "max_steps": 60},
        {"weight": 0.3, "anneal_steps": 40, "criterion": {"name": "plateau", "steps": 40}},
        {"weights": {"base": 0.5, "aux": 0.5}, "anneal_steps": 1000},
    ]
    made = curriculum(stages, new_share=0.5, critic_updates=3, reset=["alpha"])
    saved = ModelCheckpoint(folder, filename="at", every_n_train_steps=7, enable_version_counter=False)
    _, _, run = fit(made, saved, *callbacks, ckpt_path=ckpt_path, enable_checkpointing=True, **more)
    run.save_checkpoint(folder / "final.ckpt")


def killed(folder: Path, updates: list[int]) -> None:
    assert in_a_fork(partial(long, folder / "whole")) == 0
    for update in updates:
        home = folder / str(update)
        assert in_a_fork(partial(long, home, Kill(update))) == -signal.SIGKILL
        kept = torch.load(home / "at.ckpt", weights_only=True)
        (state,) = [value for key, value in kept["callbacks"].items() if key.startswith("RewardCurriculum")]
        (home / "stage").write_text(str(state["schedule"]["index"]))
        assert in_a_fork(partial(long, home, ckpt_path=home / "at.ckpt")) == 0


class Ranks(Callback):
    """Writes what each rank has measured by itself, what it was told of all, and when it switched."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.own, self.all = folder, [], []

    def on_train_start(self, trainer, pl_module):
        (made,) = [each for each in trainer.callbacks if isinstance(each, RewardCurriculum)]
        self.made, take = made, made._means.take

        def noted(names, reduce=None):
            self.own.append({name: made._means.state_dict().get(name, [0.0, 0.0]) for name in names})
            self.all.append(take(names, reduce))
            return self.all[-1]

        made._means.take = noted

    def on_train_end(self, trainer, pl_module):
        weights = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        kept = {"own": self.own, "all": self.all, "history": self.made.schedule.history, "weights": weights}
        torch.save(kept, self.folder / f"rank{trainer.global_rank}.pt")


def ranks(folder: Path) -> None:
    stages = [
        {"weight": 0, "criterion": {"name": "reward_threshold", "threshold": -0.2, "patience": 2}},
        {"weight": 0.2, "criterion": "actor_fit", "max_steps": 90},
        {"weight": 0.5},
    ]
    made = curriculum(stages, check_every=16, critic_updates=2)
    data = experience(total_env_steps=400, learning_starts=40)
    assert in_a_fork(lambda: fit(made, Ranks(folder), data=data, devices=2, strategy="ddp_fork")) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    if sys.argv[1] == "ranks":
        ranks(place)
    else:
        killed(place, [int(each) for each in sys.argv[3:]])
