"""What the evidence of off-policy learning needs besides runs of the command line: curves, and stable-baselines3.

.venv/bin/python -m scripts.experiments.rl  draws docs/images/rl-hopper.png from docs/results
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from framework.configuration import read, shipped
from framework.seeding import derive

LAST = 3
"""Evaluations at the end whose mean is reported besides: a single one depends on the day."""


def returns(directory: Path) -> dict[str, Any]:
    """The evaluations of a run over environment steps.

    Args:
        directory: Directory of the run.
    """
    with (directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/return")]
    return _summary([float(row["env_steps"]) for row in rows], [float(row["val/return"]) for row in rows])


def baseline(data: str, seed: int, method: str, steps: int | None = None) -> dict[str, dict[str, Any]]:
    """The same task by stable-baselines3, with the settings of our configuration and our evaluation episodes.

    Args:
        data: ``pendulum``, ``hopper`` or ``halfcheetah``.
        seed: Seed of everything.
        method: ``SAC`` or ``TD3``.
        steps: Environment steps; None for those of the configuration.
    """
    import gymnasium
    import stable_baselines3
    import torch
    from stable_baselines3.common.noise import NormalActionNoise

    from framework.rl.components import components_of
    from framework.rl.environments import make
    from framework.rl.evaluation import Evaluation

    torch.set_num_threads(1)
    given = read(shipped() / "rl" / f"{data}_{method.lower()}.yaml")
    own, rate = given["data"]["init_args"], given["model"]["init_args"].get("lr", 3e-4)
    name, every, episodes = own["environment"], own["eval_every"], own.get("eval_episodes", 10)
    total = own["total_env_steps"] if steps is None else steps
    env = gymnasium.make(name)
    shape = env.action_space.shape
    low, high = env.action_space.low, env.action_space.high
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}, "train_freq": 1, "gradient_steps": 1}
    if method == "TD3":
        options["action_noise"] = NormalActionNoise(np.zeros(shape), 0.1 * np.ones(shape))
    model = getattr(stable_baselines3, method)(
        "MlpPolicy", env, learning_rate=rate, batch_size=256, learning_starts=own["learning_starts"], seed=seed,
        device="cpu", **options,
    )  # fmt: skip

    class Mean:
        def act(self, observation: Any, deterministic: bool = False, generator: Any = None) -> Any:
            action, _ = model.predict(observation.numpy(), deterministic=deterministic)
            return torch.from_numpy((action - low) / (high - low) * 2 - 1)

    def evaluation(stage: str) -> Evaluation:
        envs = make(name, episodes)
        components = components_of(envs.envs[0])
        seeds = [derive(seed, stage, number) % 2**31 for number in range(episodes)]
        return Evaluation(envs, components, components.weights, name, seeds)

    validation, times, values = evaluation("val"), [], []
    ends = range(own["learning_starts"] + every, total + every, every)
    for end in (min(each, total) for each in ends):
        model.learn(end - model.num_timesteps, reset_num_timesteps=False)
        times.append(float(model.num_timesteps))
        values.append(float(validation.run(Mean())["return"].mean()))
    found = _summary(times, values)
    found["metrics"]["test/return"] = float(evaluation("test").run(Mean())["return"].mean())
    row = f"{method} of stable-baselines3" + ("" if data == "pendulum" else " on MuJoCo")
    return {row: found}


def _summary(steps: list[float], values: list[float]) -> dict[str, Any]:
    return {
        "metrics": {"last/return": float(np.mean(values[-LAST:]))},
        "curves": {"env_steps": steps, "return": values},
    }


def draw(results: Path) -> None:
    """Returns over environment steps on Hopper, beside stable-baselines3's.

    Args:
        results: The file of records.
    """
    from framework.evaluation.records import read_records
    from scripts.experiments.reward_curriculum import DOCS, curves_figure

    records = [record for record in read_records(results) if record.data == "hopper"]
    rows = ["SAC on MuJoCo", "SAC of stable-baselines3 on MuJoCo"]
    curves_figure(records, "return", rows).savefig(DOCS / "images" / "rl-hopper.png", dpi=100)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "results" / "rl.json")
