import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from curriculum_runs import FULL, NAMES, TWO, Batches, curriculum, experience, fit, fixed
from lightning.pytorch import LightningDataModule, LightningModule

from callbacks.reward_curriculum import RewardCurriculum
from framework.errors import ConfigurationError
from modules.sac import SAC
from modules.td3 import TD3

BASE = torch.tensor([10.0, 1.0, 0, 0, 0, 0])
MIXED = torch.tensor(FULL) / 2


def run(made, **more):
    seen = Batches()
    module, data, trainer = fit(made, seen, **more)
    return seen, module, data, trainer


def first_of(stage, seen):
    """Number of the first batch of a stage."""
    return seen.stages.index(stage)


def test_all_experience_is_priced_anew_from_the_switch_on():
    made = curriculum()
    seen, _, data, _ = run(made)
    assert data.env_steps == data.buffer.added == 200  # none was lost
    assert made.schedule.history == [100]
    switch = first_of(1, seen)
    assert seen.steps[switch - 1] == 100  # the first batch after the switch was drawn before another step
    old = 0
    for number, ages in enumerate(seen.ages(data)):
        components = data.buffer.columns()["components"][ages]
        expected = components @ (BASE if number < switch else MIXED)
        torch.testing.assert_close(seen.batches[number]["reward"], expected, atol=1e-6, rtol=0)
        old += int((ages < 100).sum()) if number >= switch else 0
    assert old > 100  # so that what was stored before has been priced anew
    torch.testing.assert_close(data.buffer.weights, MIXED)


def test_weights_anneal_over_environment_steps_and_stages_follow_one_another():
    stages = [{"weight": 0}, {"weight": 0.5, "anneal_steps": 40, "criterion": fixed(60)}, {"weights": {"goal": 1}}]
    made = curriculum(stages, criterion=fixed(60))
    seen, _, data, _ = run(made)
    assert made.schedule.history == [60, 120]
    assert seen.stages == sorted(seen.stages)
    for steps, stage, weights in zip(seen.steps, seen.stages, seen.weights, strict=True):
        # The weights are those of the end of the update before, at most one round of steps ago.
        shares = [min(max(at - 60, 0) / 40, 1) for at in (steps - 4, steps)]
        expected = [BASE + share * (MIXED - BASE) for share in shares] if stage == 1 else []
        if stage == 1:
            assert any(torch.allclose(weights, each, atol=1e-6) for each in expected)
        else:
            torch.testing.assert_close(weights, BASE if stage == 0 else torch.tensor([1.0, 0, 0, 0, 0, 0]))
    assert len({tuple(weights.tolist()) for weights in seen.weights}) > 8
    torch.testing.assert_close(data.buffer.weights, torch.tensor([1.0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("kind", [SAC, TD3])
def test_a_single_stage_without_aux_is_the_plain_method_to_the_bit(kind):
    plain = fit(make=lambda: kind(9, 2, hidden=[16]), data=experience(reward_weights=dict.fromkeys(NAMES[2:], 0.0)))
    ours = fit(curriculum([{"weight": 0}]), make=lambda: kind(9, 2, hidden=[16]))
    # What a criterion looks at leaves no trace, until it has a say.
    fits = {"name": "actor_fit", "eps": 1e-9, "patience": 20}  # one check more than there are
    looked_at = fit(curriculum(criterion=fits), make=lambda: kind(9, 2, hidden=[16]))
    for module, data, _ in (ours, looked_at):
        for (name, expected), got in zip(plain[0].state_dict().items(), module.state_dict().values(), strict=True):
            assert torch.equal(got, expected), name
        for name, expected in plain[1].buffer.columns().items():
            assert torch.equal(data.buffer.columns()[name], expected), name


def test_the_naive_curriculum_draws_no_old_experience():
    seen, _, data, _ = run(curriculum(old="drop"))
    for steps, stage, ages in zip(seen.steps, seen.stages, seen.ages(data), strict=True):
        if stage == 1 and steps > 100:
            assert bool((ages >= 100).all())
    assert data.buffer.added == 200


def test_a_share_of_each_batch_is_new():
    seen, _, data, _ = run(curriculum(new_share=0.75))
    after = [ages for steps, ages in zip(seen.steps, seen.ages(data), strict=True) if steps > 100]
    assert {int((ages >= 100).sum()) for ages in after} == {12}  # of 16


def test_stored_rewards_stay_as_they_were_priced():
    seen, _, data, _ = run(curriculum(rewards="stored"))
    for number, ages in enumerate(seen.ages(data)):
        components = data.buffer.columns()["components"][ages]
        expected = torch.where(ages < 100, components @ BASE, components @ MIXED)
        torch.testing.assert_close(seen.batches[number]["reward"], expected, atol=1e-6, rtol=0)


def test_critics_warm_up_on_new_rewards_before_the_next_step():
    seen, module, data, _ = run(curriculum(critic_updates=7))
    plain, _, _, _ = run(curriculum())
    switch = first_of(1, seen)
    warm = range(switch, switch + 7)
    assert {seen.steps[number] for number in warm} == {100}
    assert all(torch.equal(seen.actors[number + 1], seen.actors[switch]) for number in warm)
    assert not torch.equal(seen.actors[switch + 9], seen.actors[switch])
    assert len(seen.steps) == len(plain.steps) + 7
    assert module.updates == len(seen.steps)
    assert data.env_steps == 200  # updates, not steps


def test_critics_warm_up_on_the_rewards_of_the_moment_where_a_stage_anneals():
    stages = [{"weight": 0}, {"weight": 0.5, "anneal_steps": 40}]
    seen, _, data, _ = run(curriculum(stages, critic_updates=7))
    switch = first_of(1, seen)
    for number in range(switch, switch + 7):
        components = data.buffer.columns()["components"][seen.ages(data)[number]]
        torch.testing.assert_close(seen.batches[number]["reward"], components @ BASE, atol=1e-6, rtol=0)


def test_networks_asked_for_begin_afresh():
    made = curriculum([{"weight": 0}, {"weight": 0.5}], reset=["actor", "alpha"], criterion=fixed(198), check_every=2)

    def warm():
        return SAC(9, 2, hidden=[16, 16], lr=3e-3, alpha=0.5)

    module, _, _ = fit(made, make=warm)
    before, _, _ = fit(curriculum([{"weight": 0}]), make=warm)
    assert made.schedule.history == [200]  # at its end, so that nothing has moved since
    assert before.core.log_alpha.exp().item() != pytest.approx(0.5, abs=1e-3)
    assert module.core.log_alpha.exp().item() == pytest.approx(0.5, abs=2e-2)
    assert not torch.equal(
        module.core.actor.state_dict()["layers.0.weight"], before.core.actor.state_dict()["layers.0.weight"]
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"name": "alpha_loss", "eps": 1e-9}, "average"),
        ({"name": "actor_loss", "eps": 1e-9}, "average"),
        ({"name": "actor_fit", "eps": 1e-9, "spread": None}, "average"),
        ({"name": "plateau", "steps": 100, "of": "val/success"}, "best"),
        ({"name": "plateau", "steps": 100, "of": "actor_loss", "mode": "min"}, "best"),
        ({"name": "plateau", "steps": 100, "of": "return/evaluation"}, "best"),
        ({"name": "plateau", "steps": 100}, "best"),
    ],
    ids=["alpha_loss", "actor_loss", "actor_fit", "metric", "loss", "evaluation", "collected"],
)
def test_every_criterion_is_told_what_it_looks_at(given, kept):
    made = curriculum(criterion=given, max_steps=150)
    fit(made)
    assert isinstance(made.schedule.state_dict()["criteria"][0][kept], float)
    assert made.schedule.index == 1
    assert made.schedule.history[0] <= 160


def test_a_loss_counts_once_however_long_it_is_the_latest():
    made = curriculum(criterion={"name": "actor_loss", "patience": 1}, check_every=10_000)
    module, _, _ = fit(made, make=lambda: TD3(9, 2, hidden=[16], policy_delay=3))
    # The first check, after one update of the critics alone, took nothing.
    assert made._means.state_dict()["actor_loss"][1] == module.updates // 3 > 20


def test_a_metric_that_training_does_not_log_is_named():
    given = {"name": "plateau", "steps": 50, "of": "train/sucess"}
    with pytest.raises(ConfigurationError, match=r"training has logged no 'train/sucess' so far; .*train/success"):
        fit(curriculum(criterion=given), log_every_n_steps=2)


def test_a_metric_that_validation_does_not_log_is_named():
    given = {"name": "plateau", "steps": 5, "of": "val/sucess"}
    with pytest.raises(ConfigurationError, match=r"validation logs no 'val/sucess'; there are .*val/success"):
        fit(curriculum(criterion=given))


def test_returns_are_priced_with_the_weights_of_the_stage():
    told = []

    class Listens:
        needs, earliest = ("return/collected", "return/evaluation"), 0

        def due(self, step, values):
            told.append((step, values))
            return False

        def state_dict(self):
            return {}

    made = curriculum()
    made.schedule.switches = (type(made.schedule.switches[0])(Listens()),)
    _, data, trainer = fit(made)
    last = 0
    for step, values in told:
        rows = [row for row in data.episodes if last < row[0] <= step]
        if rows:
            expected = sum(float(BASE.double() @ torch.tensor(row[3:], dtype=torch.double)) for row in rows) / len(rows)
            assert values["return/collected"] == pytest.approx(expected, abs=1e-6)
        else:
            assert "return/collected" not in values
        last = step
    evaluated = [values["return/evaluation"] for _, values in told if "return/evaluation" in values]
    assert len(evaluated) >= 2
    components = torch.stack([trainer.callback_metrics[f"val/component/{name}"] for name in NAMES])
    full = float(components @ torch.tensor(FULL))
    assert float(trainer.callback_metrics["val/return"]) == pytest.approx(full, abs=1e-5)  # whatever the stage


def test_what_is_logged(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    fit(curriculum(criterion="alpha_loss", max_steps=100), logger=CSVLogger(tmp_path), log_every_n_steps=5)
    table = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    head = table[0].split(",")
    logged = [dict(zip(head, line.split(","), strict=True)) for line in table[1:]]
    stages = [(float(row["env_steps"]), float(row["curriculum/stage"])) for row in logged if row["curriculum/stage"]]
    assert {stage for _, stage in stages} == {0.0, 1.0}
    assert all(stage == (steps >= 100) for steps, stage in stages)
    assert {row["curriculum/weight/collision"] for row in logged} >= {"0.0", "5.0"}
    assert any(row["curriculum/alpha_loss"] for row in logged)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": []}, "stages must hold at least one stage, got none"),
        ({"stages": [3]}, r"stages\[0\] must be a mapping with weight or weights, got 3"),
        (
            {"stages": [{"weigth": 0}]},
            r"stages\[0\] has no 'weigth'; there are weight, weights, .*; did you mean weight",
        ),
        (
            {"stages": [{"weight": 0}, {"weight": 1, "max_steps": 5}]},
            r"stages\[1\].max_steps ends a stage, but nothing",
        ),
        ({"criterion": "alpha"}, "criterion: no criterion 'alpha'; there are fixed"),
        ({"stages": [{"weight": 0, "criterion": "fixed"}, {"weight": 1}]}, r"stages\[0\].criterion \(fixed\): missing"),
        ({"min_steps": 10, "max_steps": 5}, "max_steps must be at least min_steps = 10, got 5"),
        ({"criterion": fixed(50), "max_steps": 40}, "FixedStep can never be due: max_steps = 40"),
        ({"criterion": {"name": "alpha_loss", "patience": 50}, "max_steps": 400}, "AlphaLoss can never be due: max_st"),
        ({"check_every": 0}, "check_every must be a whole number of at least 1, got 0"),
        ({"critic_updates": -1}, "critic_updates must be a whole number of at least 0, got -1"),
        ({"rewards": "old"}, "rewards must be current or stored, got 'old'"),
        ({"old": "forget"}, "old must be keep or drop, got 'forget'"),
        ({"new_share": 1.5}, r"new_share must be in \[0, 1\] or null, got 1.5"),
        ({"new_share": 0.5, "old": "drop"}, "new_share must be null with old: drop"),
        ({"critic_updates": 5, "rewards": "stored"}, "critic_updates must be 0 with rewards: stored"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        curriculum(**arguments)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ({"aux": ["speed", "goal"]}, {}, "base and aux must not share components, both have goal"),
        ({"base": []}, {}, r"base must be a list of components, or weights by name; got \[\]"),
        ({"base": ["gaol"]}, {}, "base: no component 'gaol'; there are goal, progress, speed, .*; did you mean goal"),
        (
            {"stages": [{"weights": [1, 2]}]},
            {},
            r"stages\[0\].weights must be 6 numbers, for goal, .*, got|got \[1, 2\]",
        ),
        (
            {"criterion": fixed(200)},
            {},
            "the last stage can begin at environment step 200 at the earliest, .* ends at 200",
        ),
        ({"min_steps": 500}, {}, "the last stage can begin at environment step 500"),
        ({"reset": ["alpha"]}, {"make": lambda: TD3(9, 2)}, "reset: no 'alpha' in this TD3; there are critic, actor"),
        (
            {"criterion": "alpha_loss"},
            {"make": lambda: TD3(9, 2)},
            "alpha_loss can never be due: this TD3 learns no temperature",
        ),
        (
            {"criterion": "alpha_loss"},
            {"make": lambda: SAC(9, 2, learn_alpha=False)},
            "alpha_loss can never be due: this SAC",
        ),
        (
            {"criterion": {"name": "plateau", "steps": 5, "of": "val/success"}},
            {"limit_val_batches": 0},
            "val/success needs evaluation, but this run has no validation",
        ),
        (
            {},
            {"data": experience(environment="Pendulum-v1", arguments={}), "make": lambda: SAC(3, 1)},
            "this one has 'reward' alone",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(arguments, more, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(curriculum(**arguments), **more)


class Stranger(LightningModule):
    def training_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return None

    def act(self, observation, deterministic=False, generator=None):
        return torch.zeros(len(observation), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"criterion": "alpha_loss"},
            "Stranger has no told, which the criterion of RewardCurriculum needs: losses by name",
        ),
        ({"criterion": "actor_fit"}, "Stranger has no q, which the criterion of RewardCurriculum needs: values"),
        ({"critic_updates": 1}, "Stranger has no train_critics_only, which critic_updates of RewardCurriculum needs"),
        ({"reset": ["actor"]}, "Stranger has no reset, which reset of RewardCurriculum needs"),
    ],
)
def test_what_a_module_lacks_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        fit(curriculum(**arguments), make=Stranger)


def test_a_strangers_module_is_enough_for_the_rest():
    made = curriculum(criterion={"name": "reward_threshold", "threshold": -1000}, min_steps=60)
    _, data, _ = fit(made, make=Stranger, limit_val_batches=0)
    assert 60 <= made.schedule.history[0] <= 70
    torch.testing.assert_close(data.buffer.weights, MIXED)


def test_data_without_components_are_named():
    class Plain(LightningDataModule):
        pass

    with pytest.raises(TypeError, match="Plain has no buffer, which RewardCurriculum needs: a framework"):
        fit(curriculum(), data=Plain())


def test_a_batch_drawn_ahead_would_keep_old_rewards_and_is_refused():
    data = experience()
    loader = data.train_dataloader

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(loader())

    data.train_dataloader = Endless
    with pytest.raises(ConfigurationError, match="OnlineReplay must give a train loader with a length"):
        fit(curriculum(), data=data)


def test_experience_from_before_the_curriculum_is_priced_from_the_first_batch_on(tmp_path):
    _, _, trainer = fit(data=experience(total_env_steps=110))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    seen, _, data, trainer = run(curriculum(criterion=fixed(150)), ckpt_path=tmp_path / "plain.ckpt")
    assert seen.stages[0] == 0
    for stage, weights in zip(seen.stages, seen.weights, strict=True):
        torch.testing.assert_close(weights, MIXED if stage else BASE)
    trainer.save_checkpoint(tmp_path / "curriculum.ckpt")
    # And without a curriculum there is the full reward again.
    seen = Batches()
    _, data, _ = fit(seen, data=experience(total_env_steps=220), ckpt_path=tmp_path / "curriculum.ckpt")
    assert all(torch.equal(weights, torch.tensor(FULL, dtype=weights.dtype)) for weights in seen.weights)
    assert data.env_steps == 220


def test_a_checkpoint_of_other_stages_is_refused(tmp_path):
    _, _, trainer = fit(
        curriculum(), data=experience(total_env_steps=110), enable_checkpointing=True, default_root_dir=tmp_path
    )
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="there are 3 stages, but the checkpoint is of 2"):
        fit(curriculum([*TWO[:1], *TWO], criterion=fixed(40)), ckpt_path=tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match=r"criterion of stage 1 is .*AlphaLoss, but the checkpoint's is .*FixedStep"):
        fit(curriculum(criterion="alpha_loss"), ckpt_path=tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="keeps stored rewards, but the checkpoint's has none"):
        fit(curriculum(rewards="stored"), ckpt_path=tmp_path / "two.ckpt")
    stored = torch.load(tmp_path / "two.ckpt", weights_only=True)
    (key,) = [key for key in stored["callbacks"] if key.startswith("RewardCurriculum")]
    stored["callbacks"][key]["rewards"] = "stored"
    torch.save(stored, tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="rewards is current, but the checkpoint's experience is of stored"):
        fit(curriculum(), ckpt_path=tmp_path / "two.ckpt")


def test_a_test_run_does_not_need_the_experience(tmp_path):
    module, _, trainer = fit(curriculum())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    results = trainer.test(module, datamodule=experience(), ckpt_path=tmp_path / "it.ckpt", verbose=False)
    assert "test/return" in results[0]
    assert isinstance(curriculum().state_dict()["means"], list)
    assert isinstance(curriculum(), RewardCurriculum)


# -- processes --------------------------------------------------------------------------------------------------------


def script(*arguments):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests/support")])}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(root / "tests/support/curriculum_runs.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def differences(a, b, at=""):
    """Where two checkpoints differ, to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            yield from differences(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from differences(left, right, f"{at}[{i}]")
    elif not (torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, torch.Tensor) else a == b):
        yield at


@pytest.mark.process
@pytest.mark.slow
def test_a_run_killed_in_any_stage_goes_on_to_the_bit(tmp_path):
    updates = [20, 40, 85]
    script("kill", tmp_path, *updates)
    whole = torch.load(tmp_path / "whole" / "final.ckpt", weights_only=True)
    (key,) = [key for key in whole["callbacks"] if key.startswith("RewardCurriculum")]
    assert whole["callbacks"][key]["schedule"]["index"] == 2
    assert [(tmp_path / str(update) / "stage").read_text() for update in updates] == ["0", "1", "2"]
    for update in updates:
        ours = torch.load(tmp_path / str(update) / "final.ckpt", weights_only=True)
        for part in ("state_dict", "optimizer_states", "off_policy", "OnlineReplay"):
            assert list(differences(ours[part], whole[part], part)) == []
        assert list(differences(ours["callbacks"][key], whole["callbacks"][key], "curriculum")) == []


@pytest.mark.process
@pytest.mark.slow
def test_two_ranks_with_other_experience_switch_together(tmp_path):
    script("ranks", tmp_path)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["history"] == two["history"]
    assert len(one["history"]) == 2
    assert one["all"] == two["all"]
    assert one["own"] != two["own"]
    for own, other, together in zip(one["own"], two["own"], one["all"], strict=True):
        for name, value in together.items():
            (a, n), (b, m) = own[name], other[name]
            assert value == pytest.approx((a + b) / (n + m), rel=1e-6)
    assert torch.equal(one["weights"], two["weights"])
