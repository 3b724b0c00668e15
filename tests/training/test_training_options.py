"""Training follows a recipe's options for schedule, learning rate, weight averaging and balancers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers.memory_loader import MemoryLoader
from helpers.stages import HeldOut, Records, recipe_of, run, same, stages_for, weights

from fastmtl import balance
from fastmtl.builders import components
from fastmtl.config import ConfigError, OptimizerConfig
from fastmtl.training import checkpoint
from fastmtl.training.lr_finder import NoRateFound, find_lr, steepest
from fastmtl.training.lr_schedule import Schedule


def _optimizer(groups=1):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(groups)], lr=1.0)


def _rates(schedule, optimizer, num_epochs, scores=(), steps=4):
    rates = []
    for epoch in range(num_epochs):
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        schedule.on_epoch(scores[epoch] if scores else None)
    return rates


def test_cosine_and_constant_after_a_warm_up():
    for name, late in (("cosine", 0.5 * (1 + math.cos(math.pi / 2))), ("constant", 1.0)):
        optimizer = _optimizer()
        rates = _rates(Schedule(optimizer, OptimizerConfig(schedule=name, warmup=0.5), 8), optimizer, 2)
        assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
        assert rates[6] == pytest.approx(late)


def test_plateau_waits_warms_up_and_is_told_of_scores_alone():
    optimizer = _optimizer(2)
    config = OptimizerConfig(schedule="plateau", warmup=0.2, plateau_factor=0.5, plateau_patience=1)
    schedule = Schedule(optimizer, config, 20)
    rates = _rates(schedule, optimizer, 5, scores=[0.3, 0.4, 0.4, 0.4, float("nan")])
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[12] == 1.0, "one epoch without a better score is patience"
    assert rates[16:] == [0.5] * 4
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    again, fewer = _optimizer(1), OptimizerConfig(schedule="plateau", warmup=0.2, plateau_factor=0.5)
    resumed = Schedule(again, fewer, 20)
    resumed.load_state_dict(schedule.state_dict())
    assert again.param_groups[0]["lr"] == 0.5
    for score in (0.1, 0.1):
        resumed.on_epoch(score)
    assert again.param_groups[0]["lr"] == 0.25


def _rebased(config, rate, num_steps):
    """The rates of the next two steps after 5 of 10, with another highest rate and length."""
    optimizer = _optimizer()
    schedule = Schedule(optimizer, config, 10)
    _rates(schedule, optimizer, 1)
    if config.schedule == "plateau":
        for score in (0.5, 0.5):
            schedule.on_epoch(score)
    again = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=rate)
    longer = Schedule(again, config, num_steps)
    groups = [dict(group) for group in again.param_groups]
    longer.load_state_dict(schedule.state_dict())
    longer.rebase(groups)
    before = again.param_groups[0]["lr"]
    again.step()
    longer.step()
    return [before, again.param_groups[0]["lr"]]


def test_another_rate_and_length_hold_from_the_next_step_on():
    cosine = OptimizerConfig(schedule="cosine", warmup=0.0)
    wanted = [0.5 * 0.5 * (1 + math.cos(math.pi * step / 20)) for step in (4, 5)]
    assert _rebased(cosine, 0.5, 20) == pytest.approx(wanted)
    plateau = OptimizerConfig(schedule="plateau", warmup=0.0, plateau_factor=0.1, plateau_patience=0)
    assert _rebased(plateau, 0.5, 20) == pytest.approx([0.05, 0.05]), "what the plateau has reduced stays reduced"


def test_the_plateau_reads_the_validation_score(tmp_path):
    optimizer = {"lr": 0.0, "schedule": "plateau", "warmup": 0.0, "plateau_patience": 0}
    made = run(recipe_of(tmp_path, optimizer=optimizer, training={"epochs": 1}), tmp_path)
    assert made.trainer.scheduler.state_dict()["by_score"]["best"] == made.trainer.best_score


@pytest.mark.parametrize(("tasks", "goes_on"), [([], True), (["side"], False)])
def test_a_kept_plateau_goes_on_with_the_same_tasks_alone(tmp_path, tasks, goes_on):
    """Of other tasks the score is another mean, and a lower one would be no progress for ever."""
    stages = [{"name": "a", "epochs": 1}, {"name": "b", "epochs": 1, "tasks": tasks, "keep_optimizer": True}]
    optimizer = {"schedule": "plateau", "warmup": 0.0, "plateau_patience": 0}
    made, loader = stages_for(recipe_of(tmp_path, stages, optimizer=optimizer), tmp_path), MemoryLoader(num_batches=1)
    made.begin(loader)
    made.trainer.scheduler.on_epoch(0.9)
    made._enter(1, loader)
    assert made.trainer.scheduler.state_dict()["by_score"]["best"] == (0.9 if goes_on else -math.inf)


@pytest.mark.parametrize(
    ("balancer", "expected"),
    [
        ({"name": "linear", "weights": {"mask": 0.25, "side": 3.0}}, (0.25, 3.0)),
        ({"name": "constant", "weight": 0.5, "main": "mask"}, (1.0, 0.5)),
        ({"name": "decay", "weight": 0.5, "main": "mask"}, (1.0, 0.25)),  # c / t in epoch 2
        ({"name": "uncertainty"}, (1.0, 1.0)),
        ({"name": "pcgrad"}, (1.0, 1.0)),
    ],
)
def test_the_monitored_loss_is_the_sum_with_the_weights_of_the_training(tmp_path, balancer, expected):
    records = Records()
    run(recipe_of(tmp_path, balancer=balancer, training={"monitor": "loss"}), tmp_path, [records])
    found = records.epochs[-1]["validation"]
    weighted = sum(weight * loss for weight, loss in zip(expected, found["loss"].values(), strict=True))
    assert records.epochs[-1]["epoch"] == 2
    assert found["weighted_loss"] == pytest.approx(weighted)


def test_the_losses_of_some_tasks_can_be_monitored(tmp_path):
    records, training = Records(), {"monitor": "loss", "monitor_tasks": ["mask"]}
    balancer = {"name": "linear", "weights": {"mask": 0.5, "side": 9.0}}
    run(recipe_of(tmp_path, balancer=balancer, training=training), tmp_path, [records])
    found = records.epochs[-1]["validation"]
    assert found["weighted_loss"] == pytest.approx(0.5 * found["loss"]["mask"])
    with pytest.raises(ConfigError, match=r"training.monitor_tasks has an unknown task 'musk'; did you mean 'mask'"):
        recipe_of(tmp_path, training=training | {"monitor_tasks": ["musk"]})
    with pytest.raises(ConfigError, match=r'needs training.monitor = "loss"'):
        recipe_of(tmp_path, training={"monitor_tasks": ["mask"]})


def test_normalised_weights_of_the_monitored_loss(tmp_path):
    records = Records()
    balancer = {"name": "linear", "weights": {"mask": 0.5, "side": 2.0}, "normalise": True}
    run(recipe_of(tmp_path, balancer=balancer, training={"monitor": "loss"}), tmp_path, [records])
    first, found = records.epochs[0]["loss"], records.epochs[1]["validation"]
    weighted = 0.5 * found["loss"]["mask"] / first["mask"] + 2.0 * found["loss"]["side"] / first["side"]
    assert found["weighted_loss"] == pytest.approx(weighted)


@pytest.mark.parametrize(("monitor", "best"), [("score", 1), ("loss", 3)])
def test_the_monitor_chooses_the_epoch_stops_and_reduces_the_rate(tmp_path, monitor, best):
    """Scores fall and losses fall until epoch 3: the score alone would keep the first epoch."""
    optimizer = {"lr": 0.0, "schedule": "plateau", "warmup": 0.0, "plateau_patience": 9}
    recipe = recipe_of(tmp_path, optimizer=optimizer, training={"monitor": monitor, "patience": 2, "epochs": 9})
    stages, loader = stages_for(recipe, tmp_path), MemoryLoader(num_batches=1)
    stages.begin(loader)
    losses = iter([3.0, 2.0, 1.0, 1.5, 1.6, 1.7])

    def evaluate(_):
        loss = next(losses)
        return {"score": loss / 10, "loss": {"mask": loss, "side": 0.0}, "tasks": {}, "num_images": 1}

    stages.trainer.evaluate = evaluate
    stages.fit(loader, HeldOut())
    assert checkpoint.load(tmp_path / "best")["progress"]["epoch"] == best
    assert stages.trainer.epoch == best + 2
    assert abs(stages.trainer.scheduler.state_dict()["by_score"]["best"]) == (1.0 if monitor == "loss" else 0.3)


def test_a_plateau_of_losses_takes_a_rise_for_no_progress():
    optimizer = _optimizer()
    config = OptimizerConfig(schedule="plateau", warmup=0.0, plateau_factor=0.5, plateau_patience=0)
    rates = _rates(Schedule(optimizer, config, 20, "min"), optimizer, 4, scores=[2.0, 1.0, 1.00005, 0.5])
    assert rates[::4] == [1.0, 1.0, 1.0, 0.5]


def test_steepest_descent():
    rates = [10.0**power for power in range(-6, 1)]
    assert steepest(rates, [1.0, 1.0, 0.99, 0.8, 0.4, 0.39, 2.0]) == pytest.approx(1e-3)
    with pytest.raises(NoRateFound, match=r"Give optimizer\.lr instead"):
        steepest(rates, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])


@pytest.mark.long
def test_losses_that_stay_have_no_rate(tmp_path):
    """Nothing labelled: the running mean of equal losses differs by rounding, which was taken for a fall."""
    stages, loader = stages_for(recipe_of(tmp_path), tmp_path), MemoryLoader()
    loader.spoil = lambda batch, epoch, number: replace(batch, has_label=torch.zeros_like(batch.has_label))
    stages.begin(loader)
    with pytest.raises(NoRateFound):
        find_lr(stages.trainer, loader, num_steps=20)
    with pytest.raises(NoRateFound):
        steepest([], [])


@pytest.mark.long
@pytest.mark.parametrize("balancer", ["pcgrad", "famo"])
def test_the_sweep_finds_a_rate_that_learns_and_leaves_no_trace(tmp_path, balancer):
    recipe = recipe_of(tmp_path, balancer={"name": balancer}, training={"average": "ema"})
    stages, loader = stages_for(recipe, tmp_path), MemoryLoader(num_batches=3)
    stages.begin(loader)
    trainer = stages.trainer
    trainer.step(next(iter(loader)))
    before, state = weights(stages.model), copy.deepcopy(trainer.state_dict(loader))
    found = find_lr(trainer, loader, num_steps=24)
    assert 1e-5 < found < 1.0
    after = trainer.state_dict(loader)
    assert same(weights(stages.model), before)
    assert str(after["optimizer"]) == str(state["optimizer"])
    assert str(after["balancer"]) == str(state["balancer"])
    assert str(after["scheduler"]) == str(state["scheduler"])
    assert same(after["average"], state["average"])
    assert torch.equal(after["rng"], state["rng"])
    assert after["loader"] == state["loader"]
    trainer.skipped.judge(0, 3)  # does not raise: the sweep's diverging steps are forgotten


@pytest.mark.long
def test_a_found_rate_is_the_highest_of_the_stage(tmp_path):
    recipe = recipe_of(
        tmp_path, optimizer={"find_lr": True, "lr": 123.0, "schedule": "constant"}, training={"epochs": 1}
    )
    made = run(recipe, tmp_path)
    assert 1e-6 < made.trainer.optimizer.param_groups[0]["lr"] < 1.0


def test_ema_is_its_formula_and_what_is_judged_and_kept(tmp_path):
    recipe = recipe_of(tmp_path, training={"average": "ema", "average_decay": 0.9, "epochs": 1})
    stages, loader = stages_for(recipe, tmp_path), MemoryLoader(num_batches=3)
    stages.begin(loader)
    seen = []
    step = stages.trainer.step

    def watched(batch):
        done = step(batch)
        seen.append(weights(stages.model))
        return done

    stages.trainer.step = watched
    stages.fit(loader, HeldOut(seed=5))
    expected = seen[0]
    for one in seen[1:]:
        expected = {
            name: 0.9 * value + 0.1 * one[name] if value.is_floating_point() else one[name]
            for name, value in expected.items()
        }
    best = components.build_model(recipe, stages.order.all_tasks, stages.device)
    checkpoint.load_model(tmp_path / "best", best)
    for name, value in expected.items():
        torch.testing.assert_close(weights(best)[name], value)
    assert same(checkpoint.load(tmp_path / "last")["model"], seen[-1])
    stages.model.load_state_dict(weights(best))
    stages.trainer.average = None  # the averaged weights are the model's own now
    judged = stages.trainer.evaluate(HeldOut(seed=5))["score"]
    assert checkpoint.load(tmp_path / "best")["progress"]["best_score"] == judged


def test_the_last_checkpoint_is_judged_by_its_average(tmp_path):
    recipe = recipe_of(tmp_path, training={"average": "swa", "average_start": 1, "epochs": 3})
    stages, loader = stages_for(recipe, tmp_path), MemoryLoader(num_batches=1)
    judged = components.build_model(recipe, stages.order.all_tasks, stages.device)
    stages.begin(loader)
    stages.trainer.save(loader)
    stages.trainer.wait()
    checkpoint.load_model(tmp_path / "last", judged)
    assert same(weights(judged), weights(stages.model)), "no average yet"
    stages.fit(loader, HeldOut(seed=5))
    checkpoint.load_model(tmp_path / "last", judged)
    assert same(weights(judged), weights(stages.trainer.average.module))
    assert not same(weights(judged), weights(stages.model))


def test_swa_begins_where_it_is_told(tmp_path):
    recipe = recipe_of(tmp_path, training={"average": "swa", "average_start": 1, "epochs": 3})
    stages, loader = stages_for(recipe, tmp_path), MemoryLoader(num_batches=1)
    stages.begin(loader)
    seen = []

    class Watcher:
        def on_step(self, *_):
            pass

        def on_epoch(self, record):
            seen.append((weights(stages.model), stages.trainer.average.module is None))

    stages.trainer.observers.append(Watcher())
    stages.fit(loader, HeldOut(seed=5))
    assert [early for _, early in seen] == [True, False, False]
    name = "encoder.stages.0.conv1.weight"
    mean = (seen[1][0][name] + seen[2][0][name]) / 2
    torch.testing.assert_close(stages.trainer.average.module.state_dict()[name], mean)


BALANCERS = {
    "c": ({"name": "constant", "weight": 0.4, "main": "mask"}, [1.0, 0.4]),
    "c/t": ({"name": "decay", "weight": 0.5, "main": ["mask"]}, [1.0, 0.5]),
    "log sigma": (
        {"name": "uncertainty", "initial": {"mask": 0.0, "side": 4.0}, "log": "deviation"}
        | {"forms": {"mask": "classification", "side": "regression"}},
        [1.0, math.exp(-8) / 2],
    ),
    "gradnorm": ({"name": "gradnorm", "alpha": 0.06, "lr": 0.01}, [1.0, 1.0]),
    "linear": ({"name": "linear", "weights": {"mask": 0.3, "side": 0.7}}, [0.3, 0.7]),
}


@pytest.mark.parametrize("name", BALANCERS)
def test_a_stages_balancer_has_the_options_of_the_papers(tmp_path, name):
    table, expected = BALANCERS[name]
    stages_list = [{"name": "a", "epochs": 1}, {"name": "b", "epochs": 1, "balancer": table}]
    stages, loader = stages_for(recipe_of(tmp_path, stages_list), tmp_path), MemoryLoader()
    components.check_names(stages.recipe)
    stages.begin(loader)
    assert isinstance(stages.trainer.balancer, balance.PCGrad)
    stages._enter(1, loader)
    _, done = stages.trainer.step(next(iter(loader)))
    assert done["weights"].tolist() == pytest.approx(expected, rel=1e-6)
    _, again = stages.trainer.step(next(iter(loader)))
    if name == "gradnorm":
        assert again["weights"].tolist() != expected
        assert again["weights"].sum().item() == pytest.approx(2)
    stages.trainer.balancer.on_epoch()
    if name == "c/t":
        assert stages.trainer.step(next(iter(loader)))[1]["weights"].tolist() == [1.0, 0.25]


def test_a_stages_unknown_balancer_is_named_before_any_data(tmp_path):
    recipe = recipe_of(tmp_path, [{"name": "a", "epochs": 1, "balancer": {"name": "pcgrd"}}])
    with pytest.raises(ValueError, match="did you mean 'pcgrad'"):
        components.check_names(recipe)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"training": {"average": "mean"}}, "training.average must be one of '', 'ema', 'swa'"),
        ({"training": {"average_decay": 1.0}}, "training.average_decay must be in"),
        ({"optimizer": {"schedule": "plato"}}, "optimizer.schedule must be one of"),
        ({"optimizer": {"plateau_factor": 1.5}}, "optimizer.plateau_factor must be in"),
    ],
)
def test_options_out_of_range(tables, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, **tables)
    assert message in str(caught.value)
