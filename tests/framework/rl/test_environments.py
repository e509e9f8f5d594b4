"""Environments as data: components of their rewards, collected transitions, saved states, evaluation."""

from __future__ import annotations

import io
import math
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers

from framework.errors import ConfigurationError
from framework.rl.collector import Collector
from framework.rl.components import Components, components_of
from framework.rl.environments import make, restore, sizes, state_of
from framework.rl.evaluation import Evaluation

MUJOCO = {
    "Hopper-v5": ("forward", "control", "survive"),
    "Walker2d-v5": ("forward", "control", "survive"),
    "HalfCheetah-v5": ("forward", "control"),
    "Ant-v5": ("forward", "control", "contact", "survive"),
    "Reacher-v5": ("distance", "control"),
    "Pusher-v5": ("distance", "control", "near"),
}


needs_suite = pytest.mark.skipif(find_spec("dm_control") is None, reason="dm_control, which Python 3.13 has not")


class Corridor(gymnasium.Env):
    """Steps to the right, 0 to ``end``: ends there; ``bad`` makes the reward of one step no number."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-2.0, 4.0, (1,))
    reward_components = ("task", "effort")
    component_weights = (1.0, 0.1)

    def __init__(self, end=5, bad=None):
        self.end, self.bad, self.at, self.resets = end, bad, 0, -1

    def _seen(self):
        return np.array([self.at, self.resets], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.resets = 0, self.resets + 1
        return self._seen(), {}

    def step(self, action):
        self.at += 1
        task = math.nan if self.at == self.bad else 1.0
        parts = np.array([task, -(float(action[0]) ** 2)])
        ended = self.at == self.end
        info = {"reward_components": parts, "is_success": ended}
        return self._seen(), float(parts @ self.component_weights), ended, False, info


class SavedCorridor(Corridor):
    def state_dict(self):
        return {"at": np.array(self.at), "resets": self.resets}

    def load_state_dict(self, state):
        self.at, self.resets = int(state["at"]), state["resets"]


class Tells(Corridor):
    """Says only that an episode succeeded, never that it did not; those that begin with an even seed do."""

    def reset(self, *, seed=None, options=None):
        self.good = (seed or 0) % 2 == 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        *rest, info = super().step(action)
        if not (info.pop("is_success") and self.good):
            return *rest, info
        return *rest, {**info, "is_success": True}


class Odd(Corridor):
    def __init__(self, told):
        super().__init__()
        self.told = told

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "reward_components": self.told}


class Remembers(gymnasium.Wrapper):
    """Keeps what is not numbers."""

    def __init__(self, env):
        super().__init__(env)
        self.memory = {"last": 0}


def wrapped(*wrappers):
    def make_one():
        env = gymnasium.make("Pendulum-v1").unwrapped
        for wrapper in wrappers:
            env = wrapper(env)
        return env

    return make_one


class Blocks(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3, 3))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))


gymnasium.register("Corridor-v0", entry_point=Corridor)
gymnasium.register("SavedCorridor-v0", entry_point=SavedCorridor)
gymnasium.register("ShortCorridor-v0", entry_point=Corridor, max_episode_steps=3)
gymnasium.register("Blocks-v0", entry_point=Blocks)
gymnasium.register("Tells-v0", entry_point=Tells)
gymnasium.register("Odd-v0", entry_point=Odd)
WRAPPED = {
    "Stacked-v0": (lambda env: wrappers.FrameStackObservation(env, 3), wrappers.FlattenObservation),
    "Normalized-v0": (wrappers.NormalizeObservation, lambda env: wrappers.RescaleAction(env, -1, 1)),
    "Sticky-v0": (lambda env: wrappers.StickyAction(env, 0.5), wrappers.RecordEpisodeStatistics),
    "Remembers-v0": (Remembers,),
}
for label, layers in WRAPPED.items():
    gymnasium.register(label, entry_point=wrapped(*layers), max_episode_steps=17)


class Constant:
    def __init__(self, *action):
        self.action = torch.tensor(action)

    def act(self, observation, deterministic=False, generator=None):
        noise = 0 if deterministic else 0.1 * torch.randn(len(observation), len(self.action), generator=generator)
        return self.action.expand(len(observation), -1) + noise


def collector(name, count=2, seed=0, **arguments):
    envs = make(name, count, arguments)
    return Collector(envs, components_of(envs.envs[0] if hasattr(envs, "envs") else envs), name, seed)


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


# -- components -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MUJOCO)
def test_components_of_mujoco_sum_to_the_reward_with_the_default_weights(name):
    envs = make(name, 2)
    components = components_of(envs.envs[0])
    assert components.names == MUJOCO[name]
    envs.reset(seed=0)
    generator, control, ended = np.random.default_rng(0), components.names.index("control"), 0
    for _ in range(150):
        action = generator.uniform(envs.single_action_space.low, envs.single_action_space.high, envs.action_space.shape)
        _, reward, terminated, truncated, info = envs.step(action.astype(np.float32))
        values = components.read(reward, terminated | truncated, info)
        np.testing.assert_allclose(values.astype(float) @ components.weights, reward, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(values[:, control], -np.square(action).sum(1), rtol=1e-5)
        ended += int((terminated | truncated).sum())
    assert ended > 0 or name not in {"Hopper-v5", "Walker2d-v5"}  # steps at the end of an episode are among them


@needs_suite
def test_a_task_of_the_control_suite_has_the_cost_of_actions_as_a_component():
    steps = collector("dm_control/cartpole-swingup", task_kwargs={"time_limit": 0.2})  # of the 0.01 s that a step takes
    from dm_control import suite

    assert steps.components == Components(("task", "control"), (1.0, 0.0))
    steps.begin([7, 8])
    theirs = suite.load("cartpole", "swingup", {"random": 7, "time_limit": 0.2})
    shown = theirs.reset()
    for number in range(20):
        assert steps.observation[0].tolist() == pytest.approx(np.concatenate([*shown.observation.values()]), rel=1e-6)
        action = math.sin(number)
        shown = theirs.step(np.array([action]))
        transitions, ended = steps.step(Constant(action), deterministic=True)
        assert transitions.components[0].tolist() == pytest.approx([shown.reward, -(action**2)], rel=1e-6)
        assert not transitions.terminated.any()  # a time limit
    assert shown.last()
    assert [episode.length for episode in ended] == [20, 20]


@needs_suite
def test_an_unknown_task_of_the_control_suite_is_told_with_those_there_are():
    with pytest.raises(
        ConfigurationError, match=r"no 'dm_control/cartpole-swing'; there are .*did you mean dm_control"
    ):
        make("dm_control/cartpole-swing", 1)
    assert make("dm_control/cartpole-swingup-v0", 1).single_observation_space.shape == (5,)


def test_weights_of_mujoco_follow_the_environments_arguments():
    envs = make("HalfCheetah-v5", 1, {"ctrl_cost_weight": 0.7})
    assert components_of(envs.envs[0]).weights == (1.0, 0.7)
    assert components_of(envs.envs[0]).weighted({"control": 0.2}) == [1.0, 0.2]
    with pytest.raises(ConfigurationError, match="the control weight of HopperEnv is 0"):
        components_of(make("Hopper-v5", 1, {"ctrl_cost_weight": 0.0}).envs[0])


def test_an_environment_names_its_own_components_and_any_other_has_its_reward():
    steps = collector("Corridor-v0", end=2)
    assert steps.components == Components(("task", "effort"), (1.0, 0.1))
    for _ in range(3):  # the second ends the episode
        transitions, _ = steps.step(Constant(0.0), deterministic=True)
        assert transitions.components.tolist() == [[1.0, -1.0]] * 2  # the action 0 is 1 between -2 and 4
    envs = make("Pendulum-v1", 2)
    assert components_of(envs.envs[0]) == Components()
    assert Components().read(np.array([1.0, 2.0]), np.array([False, True]), {}).tolist() == [[1.0], [2.0]]


def test_an_unknown_component_is_told_with_those_there_are():
    with pytest.raises(ConfigurationError, match=r"no component 'taks' .* there are task, effort; did you mean task\?"):
        Components(("task", "effort"), (1.0, 0.1)).weighted({"taks": 1.0})
    with pytest.raises(ConfigurationError, match=r"reward_weights.task must be a finite number, got inf"):
        Components(("task",), (1.0,)).weighted({"task": math.inf})


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (np.array([1.0]), r"must be an array of 2 numbers, got array\(\[1.\]\)"),
        (np.array([1.0, 2.0, 3.0]), "must be an array of 2 numbers"),
        ([1.0, "much"], r"must be an array of 2 numbers, got \[1.0, 'much'\]"),
        (None, "must be an array of 2 numbers"),
    ],
)
def test_components_that_are_not_as_announced_are_named(told, message):
    with pytest.raises(ValueError, match=r"the environment's info\['reward_components'\] " + message):
        collector("Odd-v0", told=told).step(None)


# -- collecting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "length"), [("Corridor-v0", 5), ("ShortCorridor-v0", 3)])
def test_no_transition_crosses_the_end_of_an_episode(name, length):
    steps = collector(name)
    lengths = []
    for number in range(14):
        transitions, ended = steps.step(None)
        before, after = transitions.observation, transitions.next_observation
        assert torch.equal(after[:, 0], before[:, 0] + 1)  # position
        assert torch.equal(after[:, 1], before[:, 1])  # episode
        assert torch.equal(transitions.terminated, after[:, 0] == 5)  # a time limit terminates nothing
        assert bool(transitions.action.abs().max() <= 1)
        lengths += [episode.length for episode in ended]
        assert len(ended) == (2 if (number + 1) % length == 0 else 0)
        assert all(episode.components[0] == length for episode in ended)
        assert all(episode.success is (length == 5) for episode in ended)
    assert set(lengths) == {length}


def test_actions_are_scaled_to_the_bounds():
    for action, square in ((-1.0, 4.0), (1.0, 16.0), (5.0, 16.0), (0.5, 6.25)):
        transitions, _ = collector("Corridor-v0").step(Constant(action), deterministic=True)
        torch.testing.assert_close(transitions.components[:, 1], torch.full((2,), -square))


def test_numbers_that_are_none_name_the_episode_and_the_step():
    steps = collector("Corridor-v0", count=1, end=5, bad=3)
    steps.step(None)
    steps.step(None)
    with pytest.raises(ValueError, match="Corridor-v0: reward is nan in environment 0, episode 1, step 3"):
        steps.step(None)
    with pytest.raises(ValueError, match="Corridor-v0: action is nan in environment 0, episode 1, step 1"):
        collector("Corridor-v0").step(Constant(math.nan))


def test_a_first_observation_that_is_no_number_is_named_before_it_is_stored(monkeypatch):
    steps = collector("Corridor-v0", count=1, end=2)
    steps.step(None)
    seen = Corridor._seen
    monkeypatch.setattr(Corridor, "_seen", lambda self: seen(self) if self.at else np.array([0, np.nan], np.float32))
    with pytest.raises(ValueError, match="Corridor-v0: observation is nan in environment 0, episode 2, step 0"):
        steps.step(None)
    with pytest.raises(ValueError, match="Corridor-v0: observation is nan in environment 0, episode 1, step 0"):
        collector("Corridor-v0")


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch):
    text = "import gymnasium\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
    (tmp_path / "registers_mine.py").write_text(text + "gymnasium.register('Mine-v0', entry_point=PendulumEnv)\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert make("registers_mine:Mine-v0", 2).num_envs == 2
    finally:
        gymnasium.registry.pop("Mine-v0", None)
    with pytest.raises(ConfigurationError, match="'no_such_module:Mine-v0' cannot be made: No module named"):
        make("no_such_module:Mine-v0", 1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("CartPole-v1", {}, "CartPole-v1 has the actions Discrete"),
        ("Blocks-v0", {}, "they must be a vector"),
        ("Pendullum-v1", {}, "environment 'Pendullum-v1' cannot be made"),
        ("Hopper-v5", {"gravitation": 3}, "environment 'Hopper-v5' cannot be made"),
    ],
)
def test_environments_that_do_not_go(name, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        sizes(make(name, 1, arguments), name)


# -- states -----------------------------------------------------------------------------------------------------------

RESTORED = ["Pendulum-v1", "MountainCarContinuous-v0", "SavedCorridor-v0", "Fulgurite/Navigation-v0", *MUJOCO]
RESTORED += ["Stacked-v0", "Normalized-v0", "Sticky-v0"]
# Of these tasks some keep what they draw for an episode in the model, in MuJoCo's or in the task's own attributes.
SUITE = ["cartpole-swingup", "reacher-easy", "finger-turn_easy", "point_mass-hard", "hopper-hop", "swimmer-swimmer6"]
RESTORED += [pytest.param(f"dm_control/{name}", marks=needs_suite) for name in SUITE]


@pytest.mark.parametrize("name", RESTORED)
def test_a_collector_goes_on_bit_identically(name):
    ours = collector(name, seed=1)
    for _ in range(23):  # beyond the end of some episodes of Hopper
        ours.step(None)
    state = saved(ours.state_dict())
    theirs = collector(name, seed=2)
    theirs.step(None)
    theirs.load_state_dict(state)
    for _ in range(60):
        (one, ended), (other, ended_too) = ours.step(None), theirs.step(None)
        assert all(torch.equal(mine, its) for mine, its in zip(one, other))
        assert [str(each) for each in ended] == [str(each) for each in ended_too]
    assert torch.equal(ours.observation, theirs.observation)


def test_time_limits_go_on():
    ours = collector("Pendulum-v1", count=1)
    for _ in range(150):
        ours.step(None)
    theirs = collector("Pendulum-v1", count=1)
    theirs.load_state_dict(saved(ours.state_dict()))
    assert [bool(theirs.step(None)[1]) for _ in range(50)] == [False] * 49 + [True]


def test_a_wrapper_that_keeps_more_than_numbers_begins_new_episodes():
    assert state_of(make("Remembers-v0", 1)) is None


def test_an_environment_of_unknown_state_begins_new_episodes():
    steps = collector("Corridor-v0")
    assert state_of(steps.envs) is None
    steps.step(None)
    state = saved(steps.state_dict())
    steps.step(None)
    steps.load_state_dict(state)
    assert steps.observation[:, 0].tolist() == [0, 0]
    assert steps.episodes == 1


def test_a_state_of_another_number_of_environments_is_refused():
    state = state_of(make("Pendulum-v1", 2))
    with pytest.raises(ValueError, match="num_envs is 3, but the checkpoint is of 2"):
        restore(make("Pendulum-v1", 3), state)


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_reports_the_first_episode_of_each_seed():
    envs = make("Corridor-v0", 3, {"end": 4})
    evaluation = Evaluation(envs, components_of(envs.envs[0]), [2.0, 1.0], "Corridor-v0", [5, 6, 7])
    results = evaluation.run(Constant(0.0))
    assert {name: values.tolist() for name, values in results.items()} == {
        "return": [4.0] * 3, "length": [4.0] * 3, "success": [1.0] * 3,
        "component/task": [4.0] * 3, "component/effort": [-4.0] * 3,
    }  # fmt: skip
    table = evaluation.trajectories(Constant(0.0))
    assert table["episode"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table["step"].tolist() == [0, 1, 2, 3] * 3
    assert table["observation"][:4, 0].tolist() == [0, 1, 2, 3]
    assert table["reward"].tolist() == [1.0] * 12
    assert table["terminated"].tolist() == [0, 0, 0, 1] * 3


def test_evaluation_ends_where_the_environment_does_not():
    envs = make("Corridor-v0", 2, {"end": 10**6})
    evaluation = Evaluation(envs, components_of(envs.envs[0]), [1.0, 0.0], "Corridor-v0", [5, 6], longest=7)
    for _ in range(2):
        results = evaluation.run(Constant(0.0))
        assert results["length"].tolist() == [7.0, 7.0]
        assert results["success"].tolist() == [0.0, 0.0]  # what was cut has not succeeded
    assert evaluation.trajectories(Constant(0.0))["step"].tolist() == [*range(7), *range(7)]


@pytest.mark.parametrize("longest", [100, 5, 3])
def test_an_episode_that_is_not_said_to_succeed_has_not(longest):
    envs = make("Tells-v0", 4)
    evaluation = Evaluation(envs, components_of(envs.envs[0]), [1.0, 0.0], "Tells-v0", [5, 6, 7, 8], longest=longest)
    results = evaluation.run(Constant(0.0))
    assert results.get("success", torch.zeros(0)).tolist() == ([0.0, 1.0, 0.0, 1.0] if longest > 3 else [])


def test_success_is_unknown_until_the_environment_says_something():
    steps = collector("Tells-v0", count=1, seed=0)
    told = [episode.success for _ in range(60) for episode in steps.step(None)[1]]
    first = told.index(True)
    assert told[:first] == [None] * first
    assert None not in told[first:]
    assert collector("Pendulum-v1", count=1).cut(0)[0].success is None


def test_evaluation_is_the_same_each_time_and_draws_nothing():
    envs = make("Pendulum-v1", 2)
    evaluation = Evaluation(envs, Components(), [1.0], "Pendulum-v1", [1, 2])
    first = evaluation.run(Constant(0.3))
    evaluation.run(Constant(-1.0))
    assert torch.equal(evaluation.run(Constant(0.3))["return"], first["return"])
    single = gymnasium.make("Pendulum-v1")
    single.reset(seed=2)
    total = sum(float(single.step(np.array([0.6], np.float32))[1]) for _ in range(200))
    assert float(first["return"][1]) == pytest.approx(total, rel=1e-5)
