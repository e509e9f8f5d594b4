"""SAC and TD3 on environments under Lightning: data and updates alternate, checkpoints, evaluation, two ranks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fails, rows
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from datamodules.replay import OnlineReplay
from framework.cli import run
from modules.sac import SAC
from modules.td3 import TD3

ROOT = Path(__file__).resolve().parents[2]
PENDULUM = {
    "environment": "Pendulum-v1", "total_env_steps": 130, "learning_starts": 40, "batch_size": 8, "eval_every": 30,
    "eval_episodes": 1,
}  # fmt: skip
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--threads", "1"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def trainer(**options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    given = {"max_epochs": -1, "num_sanity_val_steps": 0, "accelerator": "cpu", "log_every_n_steps": 1}
    return Trainer(**{**quiet, **given, **options})


def sac(**options):
    torch.manual_seed(0)
    return SAC(3, 1, hidden=[8], **options)


def differences(ours, theirs, at=""):
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), at
        return [each for key in theirs for each in differences(ours[key], theirs[key], f"{at}.{key}")]
    if isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            return [at]
        return [each for n, pair in enumerate(zip(ours, theirs)) for each in differences(*pair, f"{at}[{n}]")]
    if isinstance(theirs, torch.Tensor):
        return [] if ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=True) else [at]
    return [] if ours == theirs else [at]


class Watch(Callback):
    """What a training step found: environment steps taken, transitions held, and rewards against their components."""

    def __init__(self):
        self.seen, self.validated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        data = trainer.datamodule
        self.seen.append((data.env_steps, len(data.buffer), trainer.global_step))
        assert {name: tuple(value.shape) for name, value in batch.items()} == {
            "observation": (8, 3), "action": (8, 1), "reward": (8,), "next_observation": (8, 3), "terminated": (8,),
        }  # fmt: skip

    def on_validation_end(self, trainer, pl_module):
        self.validated.append((trainer.datamodule.env_steps, float(trainer.callback_metrics["val/return"])))


# -- data and updates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps", "updates", "validated"),
    [
        ({}, list(range(41, 131)), 90, [70, 100, 130]),
        ({"train_every": 4, "updates_per_step": 0.5}, sorted([*range(44, 129, 4), *range(44, 129, 4)]) + [132] * 2, 46,
         [72, 100, 132, 132]),
        ({"num_envs": 3, "updates_per_step": 1 / 3}, list(range(45, 133, 3)), 30, [72, 102, 132]),
        ({"updates_per_step": 2, "total_env_steps": 65}, sorted([*range(41, 66), *range(41, 66)]), 50, [65]),
        ({"updates_per_step": 0.25, "total_env_steps": 50}, [44, 50], 2, [50]),  # no update goes with the last two
    ],
    ids=["each", "rounds", "several", "twice", "left"],
)  # fmt: skip
def test_steps_and_updates_alternate_until_the_steps_are_taken(options, steps, updates, validated):
    watch, data = Watch(), OnlineReplay(**{**PENDULUM, **options})
    fitted = trainer(callbacks=[watch])
    fitted.fit(sac(), data)
    assert fitted.global_step == updates  # one for each update, whatever the number of optimisers
    assert len(watch.seen) == updates
    assert [seen[0] for seen in watch.seen][: len(steps)] == steps
    assert all(held == taken for taken, held, _ in watch.seen)
    assert [seen[2] for seen in watch.seen] == list(range(updates))
    assert [at for at, _ in watch.validated] == validated
    assert validated[-1] == data.env_steps >= data.hparams["total_env_steps"]


@pytest.mark.parametrize("kind", [SAC, TD3])
@pytest.mark.parametrize(("most", "batches"), [(3, 3 * 15), (8, 15), (100, 15)])
def test_updates_of_a_round_in_one_batch_are_the_same(kind, most, batches):
    """Eight updates in a round: weights, counts and evaluations of eight batches, or of three, or one."""

    def fit(**options):
        torch.manual_seed(0)
        module = kind(3, 1, hidden=[8])
        rounds = {"num_envs": 2, "train_every": 8, "total_env_steps": 160, "eval_every": 40}
        data, steps, told = OnlineReplay(**{**PENDULUM, **rounds, **options}), [], []

        class Watch(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                steps.append(trainer.global_step)
                told.append({name: float(value) for name, value in pl_module.told.items()})

            def on_validation_end(self, trainer, pl_module):
                told.append(trainer.datamodule.env_steps)

        fitted = trainer(callbacks=[Watch()])
        fitted.fit(module, data)
        weights = {**module.state_dict(), **{f"buffer.{k}": v for k, v in data.buffer.columns().items()}}
        return {"weights": weights, "updates": module.updates, "steps": fitted.global_step}, steps, told

    (one, steps, single), (several, at, told) = fit(), fit(updates_per_batch=most)
    assert differences(several, one) == []
    assert one["updates"] == len(steps) == 120
    assert len(at) == batches
    assert at[-1] == steps[-1]
    assert [each for each in told if isinstance(each, int)] == [each for each in single if isinstance(each, int)]
    # What is told is a mean: of the first updates those that the first batch was for.
    count = min(most, 8)
    losses = [each["critic_loss"] for each in single[:count]]
    assert told[0]["critic_loss"] == pytest.approx(sum(losses) / count, rel=1e-5)


def test_steps_too_few_for_an_update_end_all_the_same():
    data, module = OnlineReplay(**{**PENDULUM, "updates_per_step": 0.25, "total_env_steps": 42}), sac()
    trainer().fit(module, data)
    assert (data.env_steps, module.updates) == (42, 0)


def test_the_module_acts_and_the_numbers_are_logged():
    data = OnlineReplay(**{**PENDULUM, "total_env_steps": 250, "learning_starts": 190, "eval_every": 200})
    module, fitted = sac(), trainer()
    fitted.fit(module, data)
    told = fitted.callback_metrics
    names = ("critic_loss", "actor_loss", "alpha", "alpha_loss", "entropy", "q_mean", "return", "length")
    assert {f"train/{name}" for name in names} <= set(told)
    assert float(told["env_steps"]) == 250
    (episode,) = data.episodes
    assert episode[:2] == [200, 200]
    assert float(told["train/return"]) == pytest.approx(episode[3], rel=1e-6)
    assert set(data.figures()) == {"returns"}
    assert data.buffer.columns()["action"][190:].std() > 0


def test_validation_is_the_same_episodes_without_exploration_and_leaves_no_trace():
    watch, data = Watch(), OnlineReplay(**{**PENDULUM, "total_env_steps": 60, "eval_every": 10})
    module = sac(lr=1e-12)  # which does not learn
    trainer(callbacks=[watch]).fit(module, data)
    assert len({value for _, value in watch.validated}) == 1
    unwatched = OnlineReplay(**{**PENDULUM, "total_env_steps": 60, "eval_every": 10})
    trainer(limit_val_batches=0).fit(sac(lr=1e-12), unwatched)
    assert differences(data.buffer.state_dict(), unwatched.buffer.state_dict()) == []
    result = trainer().test(module, data, verbose=False)[0]
    assert result["test/length"] == 200
    assert result["test/return"] != watch.validated[0][1]  # other episodes


def test_new_weights_reach_the_very_next_batch():
    class Reweigh(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            data = trainer.datamodule
            if batch_idx == 3:
                data.buffer.weights = [0.0, 0.0, 5.0]  # that of survival
                data.more_updates(4)
                data.buffer.mark()
            self.steps = [*getattr(self, "steps", []), data.env_steps]

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx > 3:
                assert torch.equal(batch["reward"], 5.0 * ~batch["terminated"])

    given = {"environment": "Hopper-v5", "total_env_steps": 50, "learning_starts": 40, "batch_size": 8}
    data, reweigh = OnlineReplay(**given, eval_every=100, eval_episodes=1), Reweigh()
    module = SAC(11, 3, hidden=[8])
    trainer(callbacks=[reweigh], limit_val_batches=0).fit(module, data)
    assert data.components == ("forward", "control", "survive")
    assert reweigh.steps == [41, 42, 43, 44, 44, 44, 44, 44, 45, 46, 47, 48, 49, 50]  # four without a step


def test_td3_delays_its_actor_and_explores():
    class Actor(Callback):
        def __init__(self):
            self.moved, self.before = [], None

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            now = torch.cat([each.flatten() for each in pl_module.core.actor.parameters()]).detach().clone()
            self.moved.append(self.before is not None and not torch.equal(now, self.before))
            self.before = now

    watch, data = Actor(), OnlineReplay(**{**PENDULUM, "total_env_steps": 52})
    torch.manual_seed(0)
    module = TD3(3, 1, hidden=[8], policy_delay=3, exploration_noise=0.2)
    trainer(callbacks=[watch]).fit(module, data)
    assert watch.moved == [False, False, True] * 4
    state = torch.zeros(2000, 3)
    given = {name: torch.zeros(4, width) for name, width in (("observation", 3), ("action", 1))}
    given |= {"next_observation": torch.ones(4, 3), "reward": torch.ones(4), "terminated": torch.zeros(4).bool()}
    module.train_critics_only(6)
    module.trainer.log_every_n_steps = 0  # outside of a loop nothing can be logged
    before = {name: value.clone() for name, value in module.core.state_dict().items()}
    for number in range(3):
        module.training_step(given, number)
    for name, value in module.core.state_dict().items():
        assert torch.equal(value, before[name]) is not name.startswith(("critic.", "target.", "target_actor.")), name
    noise = module.act(state, generator=torch.Generator().manual_seed(0)) - module.act(state, deterministic=True)
    assert float(noise.std()) == pytest.approx(0.2, rel=0.1)
    assert module.q(state, noise).shape == (2, 2000)


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SAC, TD3])
@pytest.mark.parametrize("several", [{}, {"train_every": 94, "updates_per_batch": 47, "eval_every": 150}])
def test_a_run_goes_on_from_the_middle_of_an_epoch_bit_for_bit(kind, several, tmp_path):
    def fit(folder, **options):
        torch.manual_seed(0)
        given = {**PENDULUM, "num_envs": 2, "total_env_steps": 260, **several}
        module, data = kind(3, 1, hidden=[8]), OnlineReplay(**given)
        keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=47, save_top_k=-1, save_on_train_epoch_end=False)
        fitted = trainer(callbacks=[keep], enable_checkpointing=True)
        fitted.fit(module, data, **options)
        return {
            "weights": module.state_dict(), "optimizers": [each.state_dict() for each in fitted.optimizers],
            "data": data.state_dict(), "updates": module.updates, "steps": fitted.global_step,
        }  # fmt: skip

    whole = fit(tmp_path / "whole")
    assert whole["steps"] == (282 if several else 220)
    for step in (94, 188):
        kept = tmp_path / "whole" / f"step={step}.ckpt"
        assert 0 < torch.load(kept, weights_only=True)["OnlineReplay"]["ranks"][0]["env_steps"] < 260
        assert differences(fit(tmp_path / f"from{step}", ckpt_path=kept), whole) == []


def test_a_checkpoint_goes_on_with_its_own_task_and_a_test_takes_nothing_back(tmp_path):
    small = {**PENDULUM, "total_env_steps": 60}
    fitted, data = trainer(limit_val_batches=0), OnlineReplay(**small)
    fitted.fit(sac(), data)
    fitted.save_checkpoint(tmp_path / "it.ckpt")
    others = {"num_envs": 2, "arguments": {"g": 5.0}, "reward_weights": {"reward": 2.0}}
    for name, value in others.items():
        other = OnlineReplay(**{**small, name: value})
        with pytest.raises(ValueError, match=f"{name} is .*, but the checkpoint's experience is of .*: go on with"):
            trainer().fit(sac(), other, ckpt_path=tmp_path / "it.ckpt")
    longer = OnlineReplay(**{**small, "total_env_steps": 70})
    again = trainer(limit_val_batches=0)
    again.fit(sac(), longer, ckpt_path=tmp_path / "it.ckpt")
    again.test(sac(), longer, ckpt_path=tmp_path / "it.ckpt", verbose=False)
    assert (longer.env_steps, len(longer.buffer)) == (70, 70)


MINE = """
import os, signal
from lightning.pytorch import Callback


class Kill(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 55:
            os.kill(os.getpid(), signal.SIGKILL)
"""
SMALL = ["--data.total_env_steps", "260", "--data.learning_starts", "100", "--data.eval_every", "40"]
SMALL += ["--data.eval_episodes", "1", "--data.batch_size", "8", "--model.hidden", "[8]"]
SMALL += ["--trainer.log_every_n_steps", "5", *QUIET]


def fulgurite(*args):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path.cwd())]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "framework.cli", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.process
def test_a_killed_run_goes_on_bit_identically(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    command = ["fit", "-c", "rl/pendulum_sac", *SMALL]
    whole = run([*command, "--trainer.default_root_dir", "whole"]).directory
    killed = fulgurite(*command, "--trainer.callbacks+", "mine.Kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = Path("runs/rl/pendulum_sac/0")
    done = fulgurite(*command, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    ours, theirs = (torch.load(home / "checkpoints/last.ckpt", weights_only=True) for home in (resumed, whole))
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "OnlineReplay", "off_policy"):
        assert differences(ours[part], theirs[part], part) == []
    assert ours["OnlineReplay"]["ranks"][0]["env_steps"] == 260
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert rows(whole)[0]["env_steps"] == "105.0"
    again = fulgurite(*command, "--ckpt_path", "last")
    assert again.returncode == 0, again.stderr
    assert "nothing left to train" in again.stdout


# -- two processes ----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import gymnasium
import numpy as np
import torch
from lightning import Trainer
from datamodules.replay import OnlineReplay
from framework.seeding import derive
from modules.sac import SAC

rank = sys.argv[1]


class Tells(gymnasium.Env):
    # Says that an episode succeeded, never that it did not; it does where its seed is even.

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (3,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.good = 5, (seed or 1) % 2 == 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.ones(3, np.float32), 1.0, self.left == 0, False, {"is_success": True} if self.good else {}


gymnasium.register("Tells-v0", entry_point=Tells)
# Of the two episodes evaluated, one for each process, one succeeds.
seed = next(n for n in range(99) if sum(derive(n, "val", each) % 2 for each in range(2)) == 1)


def fit(steps, ckpt_path=None, environment="Pendulum-v1", **more):
    torch.manual_seed(0 if ckpt_path else int(rank))  # ranks agree all the same
    module = SAC(3, 1, hidden=[8])
    data = OnlineReplay(
        environment, total_env_steps=steps, learning_starts=40, batch_size=8, eval_every=60,
        **{"eval_episodes": 3, **more},
    )
    trainer = Trainer(
        max_epochs=-1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, data, trainer


module, data, trainer = fit(160)
trainer.save_checkpoint("kept.ckpt")
columns = data.buffer.columns()
again, resumed, other = fit(220, "kept.ckpt")
_, _, telling = fit(60, environment="Tells-v0", eval_episodes=2, seed=seed)
told = {
    "weights": torch.cat([each.detach().flatten() for each in module.parameters()]), "columns": columns,
    "steps": data.env_steps, "updates": trainer.global_step, "return": float(trainer.callback_metrics["val/return"]),
    "again": torch.cat([each.detach().flatten() for each in again.parameters()]), "kept": resumed.buffer.columns(),
    "success": float(telling.callback_metrics["val/success"]),
    "resumed_steps": resumed.env_steps, "resumed_updates": other.global_step,
}
torch.save(told, f"{rank}.pt")
"""


@pytest.mark.process
def test_two_processes_share_weights_and_have_experience_of_their_own(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "script.py", rank],
            env=environment | {"LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for each in running:
        _, errors = each.communicate(timeout=240)
        assert each.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in "01")
    for name in ("weights", "again"):
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["weights"], first["again"])
    for name, value in {
        "steps": 160,
        "updates": 60,
        "resumed_steps": 220,
        "resumed_updates": 90,
        "success": 0.5,
    }.items():
        assert first[name] == second[name] == value
    assert first["return"] == second["return"]
    for each in (first, second):
        assert len(each["columns"]["action"]) == 80
        assert torch.equal(each["kept"]["observation"][:80], each["columns"]["observation"])  # its own, after a resume
    assert not torch.equal(first["columns"]["observation"], second["columns"]["observation"])


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 2}, "num_workers must be 0, got 2: each worker would step environments"),
        ({"total_env_steps": 40}, r"total_env_steps must be more than learning_starts \(40\), got 40"),
        ({"updates_per_step": 0}, "updates_per_step must be positive, got 0"),
        ({"capacity": 3, "num_envs": 4}, r"capacity must be at least num_envs \(4\), got 3"),
        ({"updates_per_batch": 0}, "updates_per_batch must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"buffer_device": "disk"}, "buffer_device must be cpu or module, got 'disk'"),
    ],
)
def test_what_data_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        OnlineReplay(**{**PENDULUM, **options})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SAC, {"tau": 0}, r"tau must be in \(0, 1\], got 0"),
        (SAC, {"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        (SAC, {"alpha": 0}, "alpha must be positive, got 0"),
        (SAC, {"critics": 0}, "critics must be at least 1, got 0"),
        (SAC, {"critic_lr": -1}, "critic_lr must be positive, got -1"),
        (SAC, {"alpha_loss": "beta"}, "alpha_loss must be log_alpha or alpha, got 'beta'"),
        (TD3, {"policy_delay": 0}, "policy_delay must be at least 1, got 0"),
        (TD3, {"noise_clip": -0.1}, "noise_clip must be at least 0, got -0.1"),
    ],
)
def test_what_modules_refuse(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(3, 1, **options)


def test_what_does_not_go_together():
    class Plain(LightningModule):
        def training_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return None

    with pytest.raises(TypeError, match="Plain has no act, which OnlineReplay needs"):
        trainer(limit_val_batches=0).fit(Plain(), OnlineReplay(**PENDULUM))
    with pytest.raises(ValueError, match="inputs is 4, but the environment has 3"):
        trainer().fit(SAC(4, 1), OnlineReplay(**PENDULUM))
    with pytest.raises(ValueError, match=r"trainer.precision must be one of .* for SAC, got 16-true"):
        trainer(precision="16-true").fit(sac(), OnlineReplay(**PENDULUM))
    with pytest.raises(ValueError, match="no group 'actr' in SAC; there are critic, actor, alpha"):
        sac().reset("actr")
    data = OnlineReplay(**PENDULUM)
    data.trainer = trainer()
    with pytest.raises(ValueError, match="num_workers must be 0, got 1"):
        next(iter(DataLoader(data.train_dataloader(), batch_size=None, num_workers=1)))


def test_networks_begin_afresh():
    module, data = sac(), OnlineReplay(**{**PENDULUM, "total_env_steps": 60})
    trainer().fit(module, data)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.reset("critic")
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) is not name.startswith(("core.critic.", "core.target."))
    assert torch.equal(module.core.critic.weights[0], module.core.target.weights[0])
    assert not module._optimizers["critic"].state
    assert module._optimizers["actor"].state
    module.reset("alpha")
    assert module.core.log_alpha.item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.environment", "CartPole-v1"], "CartPole-v1 has the actions Discrete"),
        (
            ["--data.reward_weights", "{speed: 1}"],
            "no component 'speed' in this environment's reward; there are reward",
        ),
        (["--data.environment", "Pendul-v1"], "environment 'Pendul-v1' cannot be made"),
        (["--data.num_workers", "3"], "num_workers must be 0, got 3"),
        (["--model.actions", "2"], "2"),
    ],
)
def test_one_line_of_the_command_line(capsys, options, message):
    assert message in fails(capsys, "fit", "-c", "rl/pendulum_sac", *SMALL, *options)
