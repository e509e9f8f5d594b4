"""gymnasium's contract: checker, one robot and many alike, seeds, resets in the same step, state, registration."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from framework.rl.navigation import ID, register
from framework.rl.navigation.environment import Navigation, VectorNavigation
from framework.rl.navigation.settings import COMPONENTS

ROOT = Path(__file__).resolve().parents[4]
SHORT = {"time_limit": 25, "min_distance": 1.0, "max_distance": 3.0}  # many episodes end, in all three ways
COUNT = 12


def test_gymnasiums_checker_has_nothing_to_say():
    register()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ID, render_mode="rgb_array").unwrapped)


def test_many_robots_are_as_many_single_ones():
    """Against gymnasium's own vector environment of single robots: bit for bit, with what it tells of episode ends."""
    many = VectorNavigation(COUNT, **SHORT)
    singles = SyncVectorEnv([lambda: Navigation(**SHORT)] * COUNT, autoreset_mode=AutoresetMode.SAME_STEP)
    assert many.metadata["autoreset_mode"] == singles.metadata["autoreset_mode"]
    assert many.observation_space == singles.observation_space
    assert many.single_action_space == singles.single_action_space
    a, b = many.reset(seed=7)[0], singles.reset(seed=7)[0]
    assert (a == b).all()
    ends = {"success": 0, "collision": 0, "time": 0}
    for actions in np.random.default_rng(0).uniform([-0.2, -1], 1, (70, COUNT, 2)).astype(np.float32):
        ours, theirs = many.step(actions), singles.step(actions)
        for mine, their in zip(ours[:4], theirs[:4]):
            assert mine.dtype == their.dtype
            assert (mine == their).all()
        info, other = ours[4], theirs[4]
        ended = ours[2] | ours[3]
        assert info["reward_components"] @ many.component_weights == pytest.approx(ours[1], abs=1e-12)
        going = ~ended
        assert (info["reward_components"][going] == other.get("reward_components", np.empty((COUNT, 6)))[going]).all()
        assert ("final_obs" in info) == ended.any()
        if not ended.any():
            continue
        assert (info["_final_obs"] == other["_final_obs"]).all()
        assert (info["_final_info"] == other["_final_info"]).all()
        for robot in np.flatnonzero(ended):
            assert (info["final_obs"][robot] == other["final_obs"][robot]).all()
        for key, value in other["final_info"].items():
            assert (info["final_info"][key] == value).all(), key
        assert (info["final_info"]["reward_components"][ended] == info["reward_components"][ended]).all()
        ends["success"] += int(info["is_success"].sum())
        ends["collision"] += int(info["is_collision"].sum())
        ends["time"] += int(ours[3].sum())
        assert ((info["is_success"] | info["is_collision"]) == ours[2]).all()
    assert min(ends.values()) > 0, ends


def test_contract_of_reward_components():
    for env in (gymnasium.make(ID, weights={"speed": 0.0}), gymnasium.make_vec(ID, num_envs=3, weights={"speed": 0.0})):
        assert env.unwrapped.reward_components == COMPONENTS
        assert env.unwrapped.component_weights.tolist() == [10, 1, 0, 0.5, 1, 10]
        env.reset(seed=0)
        _, reward, *_, info = env.step(env.action_space.sample())
        assert info["reward_components"].shape == (*np.shape(reward), 6)
        assert np.sum(info["reward_components"] * env.unwrapped.component_weights, axis=-1) == pytest.approx(reward)
    assert isinstance(env, VectorNavigation)


def test_seeds():
    env = VectorNavigation(3)
    first = env.reset(seed=1)[0]
    assert (env.reset(seed=[1, 2, 3])[0] == first).all()
    assert (env.reset(seed=2)[0][:2] == first[1:]).all()
    assert not (env.reset()[0] == first).all()
    assert (VectorNavigation(3).reset()[0] != VectorNavigation(3).reset()[0]).any()
    env.reset(seed=1)
    mask = np.array([False, True, False])
    partly = env.reset(options={"reset_mask": mask})[0]
    assert (partly[~mask] == first[~mask]).all()
    assert (partly[1] != first[1]).any()
    with pytest.raises(ValueError, match=r"^seed must be one number or one per robot: 2 for 3 robots"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match=r"^reset_mask must have shape \(3,\), got \(2,\)"):
        env.reset(options={"reset_mask": [True, False]})
    for seed in (None, 3):
        with pytest.raises(ValueError, match=r"^reset_mask must name all robots at the first reset, got 1 of them"):
            VectorNavigation(3, record=1).reset(seed=seed, options={"reset_mask": mask})


@pytest.mark.parametrize("kind", ["many", "single"])
def test_a_saved_state_goes_on_bit_for_bit(kind, tmp_path):
    def make():
        return VectorNavigation(5, **SHORT) if kind == "many" else Navigation(**SHORT)

    def play(env, actions):
        seen = []
        for action in actions if kind == "many" else actions[:, 0]:
            observation, reward, terminated, truncated, info = env.step(action)
            seen += [observation.copy(), np.array(reward), info["reward_components"]]
            if kind == "single" and (terminated or truncated):
                seen.append(env.reset()[0])
        return seen

    actions = np.random.default_rng(1).uniform(-1, 1, (80, 5, 2))
    whole, parted = make(), make()
    whole.reset(seed=3), parted.reset(seed=3)
    play(whole, actions[:33]), play(parted, actions[:33])
    state = parted.state_dict()
    assert {array.dtype.name for array in state.values()} <= {"float32", "float64", "int64"}
    np.savez(tmp_path / "state.npz", **state)
    expected = play(whole, actions[33:])
    with np.load(tmp_path / "state.npz") as saved:
        resumed = make()
        resumed.load_state_dict(saved)
    assert all((a == b).all() for a, b in zip(expected, play(resumed, actions[33:]), strict=True))
    # Later steps do not reach into a state that was taken.
    with np.load(tmp_path / "state.npz") as saved:
        play(parted, actions[33:])
        assert all((saved[name] == array).all() for name, array in state.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"render_mode": "human"}, "render_mode must be rgb_array or none, got 'human'"),
        ({"record": -1}, "record must be a whole number of robots, at least 0, got -1"),
        ({"ray": 3}, "navigation has no option ray"),
    ],
    ids=["render", "record", "option"],
)
def test_bad_options(options, message):
    for make in (Navigation, VectorNavigation):
        with pytest.raises(ValueError, match=f"^{message}"):
            make(**options)


@pytest.mark.process
def test_nothing_imports_gymnasium_before_it_is_asked_for():
    code = (
        "import sys; import framework.rl.navigation.robots, framework.rl.navigation.pilots\n"
        "assert not {'gymnasium', 'torch', 'matplotlib'} & set(sys.modules)\n"
        "import gymnasium\n"
        f"env = gymnasium.make('framework.rl.navigation.environment:{ID}')\n"
        "print(env.reset(seed=0)[0].shape); assert 'torch' not in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "(53,)\n"), done.stderr
