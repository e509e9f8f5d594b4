"""Losses, targets and updates of SAC and TD3, against hand computations, torch.distributions and stable-baselines3."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from modules.rl.networks import Critics, GaussianActor, mlp
from modules.rl.soft_actor_critic import SoftActorCritic
from modules.rl.twin_delayed import TwinDelayed

INPUTS, ACTIONS, HIDDEN = 4, 2, (16, 16)


def batch(size=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "observation": torch.randn(size, INPUTS, generator=draw),
        "action": torch.rand(size, ACTIONS, generator=draw) * 2 - 1,
        "reward": torch.randn(size, generator=draw),
        "next_observation": torch.randn(size, INPUTS, generator=draw),
        "terminated": torch.rand(size, generator=draw) < 0.4,
    }


def adams(core, lr=1e-2):
    optimizers = {name: torch.optim.Adam(group, lr=lr) for name, group in core.groups().items()}
    steps = []

    def apply(name, parameters, gradients):
        steps.append(name)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        optimizers[name].step()

    return apply, steps


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def critic_by_hand(critics, number, observation, action):
    """One critic as a plain stack of linear layers."""
    layers = mlp(INPUTS + ACTIONS, HIDDEN, 1)
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, weight, bias in zip(linears, critics.weights, critics.biases):
            layer.weight.copy_(weight[number].T)
            layer.bias.copy_(bias[number, 0])
        linears[-1].weight.copy_(critics.last_weight[number])
        linears[-1].bias.copy_(critics.last_bias[number])
        return layers(torch.cat([observation, action], 1)).squeeze(1)


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_ensemble_is_its_critics(count):
    torch.manual_seed(0)
    critics, given = Critics(INPUTS, ACTIONS, HIDDEN, count), batch()
    values = critics(given["observation"], given["action"])
    assert values.shape == (count, 12)
    for number in range(count):
        expected = critic_by_hand(critics, number, given["observation"], given["action"])
        torch.testing.assert_close(values[number], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(critics(given["observation"], given["action"], only=1), values[:1])
    assert count == 1 or not torch.allclose(values[0], values[1], atol=1e-3)


def test_the_density_is_that_of_a_squashed_normal():
    torch.manual_seed(1)
    actor, given = GaussianActor(INPUTS, ACTIONS, HIDDEN).double(), batch()
    observation, noise = given["observation"].double(), torch.randn(12, ACTIONS, dtype=torch.float64)
    drawn = actor.draw(observation, noise)
    mean, log_std = actor(observation)
    oracle = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), [TanhTransform(cache_size=1)])
    action = (mean + log_std.exp() * noise).tanh()
    torch.testing.assert_close(drawn.action.double(), action)
    expected = oracle.log_prob(action.clamp(-1 + 1e-12, 1 - 1e-12))
    torch.testing.assert_close(drawn.log_prob.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_density_stays_finite_far_out_and_integrates_to_one():
    actor = GaussianActor(1, 1, ())
    with torch.no_grad():
        actor.layers[0].weight.zero_()
        actor.layers[0].bias.copy_(torch.tensor([0.4, -0.5]))  # mean and log deviation
    noise = torch.linspace(-60, 60, 9)[:, None]
    assert bool(actor.draw(torch.zeros(9, 1), noise).log_prob.isfinite().all())
    u = torch.linspace(-7, 7, 20001)[:, None]
    drawn = actor.draw(torch.zeros(len(u), 1), (u - 0.4) / math.exp(-0.5))
    area = torch.trapezoid(drawn.log_prob.double().exp(), drawn.action[:, 0].double())
    assert float(area) == pytest.approx(1, abs=1e-4)


# -- SAC --------------------------------------------------------------------------------------------------------------


def test_the_target_of_sac_by_hand():
    torch.manual_seed(2)
    core, given = SoftActorCritic(INPUTS, ACTIONS, HIDDEN, critics=3, gamma=0.9), batch()
    noise = torch.randn(12, ACTIONS)
    with torch.no_grad():
        for each in core.target.parameters():
            each.add_(0.1 * torch.randn_like(each))
        following = core.actor.draw(given["next_observation"], noise)
        values = [critic_by_hand(core.target, n, given["next_observation"], following.action) for n in range(3)]
    got = core.value_target(given, torch.tensor(0.3), noise)
    for row in range(12):
        value = min(float(each[row]) for each in values) - 0.3 * float(following.log_prob[row])
        expected = float(given["reward"][row]) + (0.0 if given["terminated"][row] else 0.9 * value)
        assert float(got[row]) == pytest.approx(expected, abs=1e-4)


def test_an_update_of_sac_by_hand():
    """Losses and gradients from autograd on plain formulas; steps of the same size; targets; the order of it all."""
    torch.manual_seed(3)
    core, given = SoftActorCritic(INPUTS, ACTIONS, HIDDEN, alpha=0.2, tau=0.1), batch()
    plain = copy.deepcopy(core)
    apply, steps = adams(core)
    told = core.update(given, apply, core.noise(given, torch.Generator().manual_seed(7)))
    assert steps == ["critic", "actor", "alpha"]

    first, second = torch.randn(2, 12, ACTIONS, generator=torch.Generator().manual_seed(7))
    optimizers = {name: torch.optim.Adam(group, lr=1e-2) for name, group in plain.groups().items()}
    goal = plain.value_target(given, torch.tensor(0.2), second)
    critic_loss = sum(
        0.5 * nn.functional.mse_loss(v, goal) for v in plain.critic(given["observation"], given["action"])
    )
    critic_loss.backward()
    optimizers["critic"].step()
    mean, log_std = plain.actor(given["observation"])
    action = (mean + log_std.exp() * first).tanh()
    log_prob = (Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * first) - (1 - action**2).log()).sum(1)
    for each in plain.critic.parameters():
        each.requires_grad_(False)
    actor_loss = (0.2 * log_prob - torch.minimum(*plain.critic(given["observation"], action))).mean()
    optimizers["actor"].zero_grad()
    actor_loss.backward()
    optimizers["actor"].step()
    alpha_loss = -(plain.log_alpha * (log_prob.detach() - ACTIONS)).mean()
    plain.log_alpha.grad = None
    alpha_loss.backward()
    optimizers["alpha"].step()
    expected = {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss, "alpha": 0.2}
    for name, value in {**expected, "entropy": -log_prob.mean()}.items():
        assert float(told[name]) == pytest.approx(float(value), abs=1e-5)
    before = {name: value.clone() for name, value in plain.target.state_dict().items()}
    for name, value in core.state_dict().items():
        if name.startswith("target."):
            key = name.removeprefix("target.")
            torch.testing.assert_close(value, 0.9 * before[key] + 0.1 * core.critic.state_dict()[key])
        else:
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("form", "factor"), [("log_alpha", math.log(0.5)), ("alpha", 0.5)])
def test_both_forms_of_the_temperatures_loss(form, factor):
    core = SoftActorCritic(INPUTS, ACTIONS, HIDDEN, alpha=0.5, target_entropy=-1.5, alpha_loss=form)
    told = core.update(batch(), adams(core)[0], core.noise(batch()))
    assert float(told["alpha_loss"]) == pytest.approx(factor * (float(told["entropy"]) + 1.5), abs=1e-5)
    # Too much entropy lowers the temperature, too little raises it.
    assert (float(core.log_alpha) < math.log(0.5)) == (float(told["entropy"]) > -1.5)


def test_a_fixed_temperature_stays_and_critics_alone_leave_the_actor():
    core = SoftActorCritic(INPUTS, ACTIONS, HIDDEN, alpha=0.3, learn_alpha=False)
    apply, steps = adams(core)
    before = weights(core.actor)
    told = core.update(batch(), apply, core.noise(batch()), actor=False)
    assert steps == ["critic"]
    assert set(told) == {"critic_loss", "q_mean", "alpha"}
    assert all(torch.equal(value, before[name]) for name, value in weights(core.actor).items())
    assert float(core.update(batch(), apply, core.noise(batch()))["alpha"]) == pytest.approx(0.3)
    assert steps == ["critic", "critic", "actor"]


def test_one_update_of_sac_is_that_of_stable_baselines3(monkeypatch):
    """The same weights, batch and noise: the same weights afterwards, of actor, critics, targets and temperature."""
    gymnasium, baselines = pytest.importorskip("gymnasium"), pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    class Space(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10.0, 10.0, (INPUTS,))
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,))

    options = {"net_arch": list(HIDDEN)}
    peer = baselines.SAC("MlpPolicy", Space(), learning_rate=1e-2, tau=0.1, policy_kwargs=options, seed=0, device="cpu")
    peer._logger = Logger(None, [])
    core, given = SoftActorCritic(INPUTS, ACTIONS, HIDDEN, tau=0.1), batch()

    def take(network, linears):
        stacked = [torch.stack([layers[n].weight.T for layers in linears]) for n in range(3)]
        biases = [torch.stack([layers[n].bias for layers in linears]) for n in range(3)]
        for n in range(2):
            network.weights[n].copy_(stacked[n])
            network.biases[n].copy_(biases[n][:, None])
        network.last_weight.copy_(stacked[2].transpose(1, 2))
        network.last_bias.copy_(biases[2])

    def linear(layers):
        return [layer for layer in layers if isinstance(layer, nn.Linear)]

    def adopt(core):
        with torch.no_grad():
            policy = peer.policy
            for network, critics in ((core.critic, policy.critic), (core.target, policy.critic_target)):
                take(network, [linear(each) for each in critics.q_networks])
            own = linear(core.actor.layers)
            for layer, theirs in zip(own, linear(policy.actor.latent_pi)):
                layer.load_state_dict(theirs.state_dict())
            heads = (policy.actor.mu, policy.actor.log_std)
            own[-1].weight.copy_(torch.cat([head.weight for head in heads]))
            own[-1].bias.copy_(torch.cat([head.bias for head in heads]))
            core.log_alpha.copy_(peer.log_ent_coef[0])

    adopt(core)
    apply, _ = adams(core)
    core.update(given, apply, core.noise(given, torch.Generator().manual_seed(5)))

    noise = iter(torch.randn(2, 12, ACTIONS, generator=torch.Generator().manual_seed(5)))
    monkeypatch.setattr(Normal, "rsample", lambda self, shape=(): self.loc + self.scale * next(noise))
    columns = (given["reward"][:, None], given["terminated"].float()[:, None])
    sample = ReplayBufferSamples(
        given["observation"], given["action"], given["next_observation"], columns[1], columns[0], None
    )
    monkeypatch.setattr(peer, "replay_buffer", type("One", (), {"sample": lambda *_, **__: sample})())
    peer.train(gradient_steps=1, batch_size=12)
    theirs = SoftActorCritic(INPUTS, ACTIONS, HIDDEN)
    adopt(theirs)
    for (name, ours), other in zip(core.state_dict().items(), theirs.state_dict().values()):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4, msg=name)


# -- TD3 --------------------------------------------------------------------------------------------------------------


def test_an_update_of_td3_by_hand():
    torch.manual_seed(4)
    core, given = TwinDelayed(INPUTS, ACTIONS, HIDDEN, gamma=0.9, tau=0.1, target_noise=0.4, noise_clip=0.5), batch()
    plain = copy.deepcopy(core)
    apply, steps = adams(core)
    told = core.update(given, apply, core.noise(given, torch.Generator().manual_seed(8)))
    assert steps == ["critic", "actor"]

    noise = torch.randn(12, ACTIONS, generator=torch.Generator().manual_seed(8))
    assert float((noise * 0.4).abs().max()) > 0.5  # some of it is clipped
    action = (plain.target_actor(given["next_observation"]) + (noise * 0.4).clamp(-0.5, 0.5)).clamp(-1, 1)
    values = torch.minimum(*plain.target(given["next_observation"], action)).detach()
    goal = given["reward"] + 0.9 * (1 - given["terminated"].float()) * values
    optimizers = {name: torch.optim.Adam(group, lr=1e-2) for name, group in plain.groups().items()}
    critic_loss = sum(nn.functional.mse_loss(v, goal) for v in plain.critic(given["observation"], given["action"]))
    critic_loss.backward()
    optimizers["critic"].step()
    actor_loss = -critic_mean(plain.critic, given["observation"], plain.actor(given["observation"]))
    optimizers["actor"].zero_grad()
    actor_loss.backward()
    before = {name: value.clone() for name, value in plain.state_dict().items() if name.startswith("target")}
    optimizers["actor"].step()
    assert float(told["critic_loss"]) == pytest.approx(float(critic_loss), abs=1e-5)
    assert float(told["actor_loss"]) == pytest.approx(float(actor_loss), abs=1e-5)
    for name, value in core.state_dict().items():
        if name.startswith("target"):
            own = name.replace("target_actor.", "actor.").replace("target.", "critic.")
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * core.state_dict()[own])
        else:
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=2e-5)


def critic_mean(critics, observation, action):
    """Of the first critic alone."""
    return critics(observation, action)[0].mean()


def test_td3_leaves_actor_and_targets_between_their_turns():
    core = TwinDelayed(INPUTS, ACTIONS, HIDDEN)
    before = weights(core)
    apply, steps = adams(core)
    assert "actor_loss" not in core.update(batch(), apply, core.noise(batch()), actor=False)
    assert steps == ["critic"]
    for name, value in weights(core).items():
        assert torch.equal(value, before[name]) is not name.startswith("critic.")


def test_the_targets_of_td3_follow_critics_that_are_trained_alone():
    core = TwinDelayed(INPUTS, ACTIONS, HIDDEN, tau=0.1)
    before = weights(core)
    apply, steps = adams(core)
    core.update(batch(), apply, core.noise(batch()), actor=False, targets=True)
    assert steps == ["critic"]
    after = weights(core)
    for name, value in after.items():
        if name.startswith("target."):
            own = name.replace("target.", "critic.")
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * after[own])
        else:
            assert torch.equal(value, before[name]) is not name.startswith("critic.")


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terminated", "value"), [(True, 1.0), (False, 1 / (1 - 0.5))])
@pytest.mark.parametrize("kind", [SoftActorCritic, TwinDelayed])
def test_the_value_where_an_episode_ends_and_where_it_is_cut(kind, terminated, value):
    """One state that leads to itself, with a reward of 1: worth 1 if it ends there, 1 / (1 - gamma) if time ran out."""
    torch.manual_seed(0)
    options = {"learn_alpha": False, "alpha": 1e-8} if kind is SoftActorCritic else {}
    core = kind(1, 1, (16,), gamma=0.5, tau=0.2, **options)
    apply, _ = adams(core)
    draw = torch.Generator().manual_seed(0)
    for _ in range(250):
        state = torch.ones(32, 1)
        action = torch.rand(32, 1, generator=draw) * 2 - 1
        ends = torch.full((32,), terminated)
        given = {"observation": state, "action": action, "reward": torch.ones(32), "next_observation": state}
        core.update({**given, "terminated": ends}, apply, core.noise(given, draw))
    assert core.critic(state, action).detach().mean() == pytest.approx(value, abs=0.03)
