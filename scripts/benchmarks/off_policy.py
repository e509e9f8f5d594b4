"""Off-policy learning, a step of an environment and an update at a time: ours under Lightning, and three peers.

A call is ``steps`` environment steps with one update each, batches of 256, networks of 256 x 256, one environment;
random steps before that and everything else that happens once are not timed. ``ours`` is a fit of the module on
OnlineReplay; ``no Lightning`` is the same core, buffer and collector in a plain loop, so that the difference is
Lightning's share; ``stable-baselines3`` is its ``learn``; ``single file`` is a loop in the manner of CleanRL: two
critics as separate networks, NumPy's buffer, torch's default Adam.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

NEEDS = ("gymnasium", "mujoco", "stable_baselines3")
CASES = [
    {"method": "SAC", "environment": "Pendulum-v1", "steps": 200},
    {"method": "SAC", "environment": "Hopper-v5", "steps": 200},
    {"method": "TD3", "environment": "Pendulum-v1", "steps": 300},
    {"method": "TD3", "environment": "Hopper-v5", "steps": 300},
]
WARM, BATCH, CAPACITY = 1000, 256, 100_000

Train = Callable[[dict[str, Any]], None]


def setup(method: str, environment: str, steps: int, variant: str) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    make = {"ours": lightning, "no Lightning": plain, "stable-baselines3": baselines, "single file": single_file}
    return {"go": make[variant](method, environment, steps)}


def train(given: dict[str, Any]) -> None:
    given["go"]()


def lightning(method: str, environment: str, steps: int) -> Callable[[], None]:
    """One fit goes on for ever, in a thread of its own that stands still between the timed calls."""
    import threading

    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback

    from datamodules.replay import OnlineReplay
    from framework.lean_steps import lighten
    from modules.sac import SAC
    from modules.td3 import TD3

    data = OnlineReplay(
        environment, total_env_steps=10**9, learning_starts=WARM, batch_size=BATCH, capacity=CAPACITY, eval_every=10**8
    )
    module = {"SAC": SAC, "TD3": TD3}[method](data.inputs, data.actions)
    begin, done = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx % steps == 0:
                done.release()
                begin.acquire()

    trainer = Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[Turns()], log_every_n_steps=50,
    )  # fmt: skip

    lighten()  # as the command line does

    def fit() -> None:
        torch.set_num_threads(1)
        trainer.fit(module, data)

    threading.Thread(target=fit, daemon=True).start()
    done.acquire()

    def go() -> None:
        begin.release()
        done.acquire()

    return go


def plain(method: str, environment: str, steps: int) -> Callable[[], None]:
    from framework.optimizers import fuse
    from framework.rl.collector import Collector
    from framework.rl.components import Components
    from framework.rl.environments import make, sizes
    from framework.rl.replay import ReplayBuffer
    from modules.sac import SAC
    from modules.td3 import TD3

    envs = make(environment, 1)
    inputs, actions = sizes(envs, environment)
    module = {"SAC": SAC, "TD3": TD3}[method](inputs, actions)
    collector = Collector(envs, Components(), environment)
    buffer = ReplayBuffer(CAPACITY, inputs, actions)
    optimizers = {name: fuse(torch.optim.Adam(group, lr=3e-4)) for name, group in module.core.groups().items()}
    generator = torch.Generator()

    def apply(name: str, parameters: Any, gradients: Any) -> None:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        optimizers[name].step()

    for _ in range(WARM):
        buffer.add(*collector.step(None)[0])
    count = itertools.count(1)

    def go() -> None:
        for _ in range(steps):
            buffer.add(*collector.step(module)[0])
            batch = buffer.sample(BATCH)
            noise = module.core.noise(batch, generator)
            module.core.update(batch, apply, noise, actor=method == "SAC" or next(count) % 2 == 0)

    return go


def baselines(method: str, environment: str, steps: int) -> Callable[[], None]:
    import stable_baselines3
    from stable_baselines3.common.noise import NormalActionNoise

    env = gymnasium.make(environment)
    shape = env.action_space.shape
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}, "train_freq": 1, "gradient_steps": 1}
    if method == "TD3":
        options["action_noise"] = NormalActionNoise(np.zeros(shape), 0.1 * np.ones(shape))
    model = getattr(stable_baselines3, method)(
        "MlpPolicy", env, learning_rate=3e-4, batch_size=BATCH, buffer_size=CAPACITY, learning_starts=WARM, seed=0,
        device="cpu", **options,
    )  # fmt: skip
    model.learn(WARM)

    def go() -> None:
        model.learn(steps, reset_num_timesteps=False)

    return go


def network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


def single_file(method: str, environment: str, steps: int) -> Callable[[], None]:
    env = gymnasium.make(environment)
    inputs, actions = env.observation_space.shape[0], env.action_space.shape[0]
    scale, shift = (
        (env.action_space.high - env.action_space.low) / 2,
        (env.action_space.high + env.action_space.low) / 2,
    )
    sac = method == "SAC"
    actor, first, second = (
        network(inputs, 2 * actions if sac else actions),
        *(network(inputs + actions, 1) for _ in "12"),
    )
    targets = [network(inputs + actions, 1) for _ in "12"] + ([] if sac else [network(inputs, actions)])
    online = [first, second] + ([] if sac else [actor])
    for target, own in zip(targets, online):
        target.load_state_dict(own.state_dict())
    critics = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=3e-4)
    policy = torch.optim.Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    temperature = torch.optim.Adam([log_alpha], lr=3e-4)
    held = {
        "observation": np.zeros((CAPACITY, inputs), np.float32), "action": np.zeros((CAPACITY, actions), np.float32),
        "reward": np.zeros(CAPACITY, np.float32), "following": np.zeros((CAPACITY, inputs), np.float32),
        "terminated": np.zeros(CAPACITY, np.float32),
    }  # fmt: skip
    random = np.random.default_rng(0)

    def draw(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(observation).chunk(2, -1)
        normal = torch.distributions.Normal(mean, (-5 + 3.5 * (log_std.tanh() + 1)).exp())
        raw = normal.rsample()
        action = raw.tanh()
        log_prob = normal.log_prob(raw) - torch.log(1 - action.pow(2) + 1e-6)
        return action, log_prob.sum(1, keepdim=True)

    def value(networks: list[nn.Module], observation: Tensor, action: Tensor) -> list[Tensor]:
        joint = torch.cat([observation, action], 1)
        return [each(joint) for each in networks]

    def update(number: int, filled: int) -> None:
        rows = random.integers(0, filled, BATCH)
        batch = {name: torch.as_tensor(column[rows]) for name, column in held.items()}
        observation, following = batch["observation"], batch["following"]
        with torch.no_grad():
            if sac:
                alpha = log_alpha.exp()
                action, log_prob = draw(following)
                future = torch.min(*value(targets[:2], following, action)) - alpha * log_prob
            else:
                noise = (torch.randn_like(batch["action"]) * 0.2).clamp(-0.5, 0.5)
                action = (targets[2](following).tanh() + noise).clamp(-1, 1)
                future = torch.min(*value(targets[:2], following, action))
            goal = batch["reward"] + (1 - batch["terminated"]) * 0.99 * future.view(-1)
        values = value([first, second], observation, batch["action"])
        loss = sum(nn.functional.mse_loss(each.view(-1), goal) for each in values)
        critics.zero_grad()
        loss.backward()
        critics.step()
        if not sac and number % 2:
            return
        if sac:
            action, log_prob = draw(observation)
            actor_loss = (
                log_alpha.exp().item() * log_prob - torch.min(*value([first, second], observation, action))
            ).mean()
        else:
            actor_loss = -value([first], observation, actor(observation).tanh())[0].mean()
        policy.zero_grad()
        actor_loss.backward()
        policy.step()
        if sac:
            with torch.no_grad():
                _, log_prob = draw(observation)
            alpha_loss = (-log_alpha.exp() * (log_prob - actions)).mean()
            temperature.zero_grad()
            alpha_loss.backward()
            temperature.step()
        for target, own in zip(targets, online):
            for theirs, ours in zip(target.parameters(), own.parameters()):
                theirs.data.copy_(0.005 * ours.data + 0.995 * theirs.data)

    place = {"observation": env.reset(seed=0)[0], "count": 0}

    def step(learn: bool) -> None:
        observation, count = place["observation"], place["count"]
        if learn:
            with torch.no_grad():
                seen = torch.as_tensor(observation[None], dtype=torch.float32)
                chosen = draw(seen)[0] if sac else actor(seen).tanh() + 0.1 * torch.randn(1, actions)
            action = chosen.clamp(-1, 1).numpy()[0]
        else:
            action = random.uniform(-1, 1, actions).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action * scale + shift)
        row = {"observation": observation, "action": action, "reward": reward, "following": following}
        for name, given in {**row, "terminated": terminated}.items():
            held[name][count % CAPACITY] = given
        place["observation"] = env.reset()[0] if terminated or truncated else following
        place["count"] = count + 1
        if learn:
            update(count, min(count + 1, CAPACITY))

    for _ in range(WARM):
        step(False)

    def go() -> None:
        for _ in range(steps):
            step(True)

    return go


VARIANTS = {"ours": train, "no Lightning": train, "stable-baselines3": train, "single file": train}
