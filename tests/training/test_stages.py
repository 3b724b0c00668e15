"""Stages: what rests does not move, what follows goes on where it should, and resuming is bit-equal in any of them."""

from __future__ import annotations

import pytest
import torch
from helpers.memory_loader import MemoryLoader
from helpers.stages import TWO, HeldOut, Records, cut_and_resumed, recipe_of, run, same, stages_for, weights

from fastmtl.config import ConfigError, load_recipe, optimizer_of
from fastmtl.training import checkpoint


def test_a_frozen_encoder_stays_bit_equal_statistics_included(tmp_path):
    records = Records()
    stages = stages_for(recipe_of(tmp_path, TWO), tmp_path / "run", [records])
    stages.check()
    loader = MemoryLoader()
    stages.begin(loader)
    first = stages.trainer
    first.fit(loader, HeldOut(seed=5))
    best = checkpoint.load(tmp_path / "run" / "best")["model"]
    stages._enter(1, loader)
    begun = weights(stages.model)
    assert same(begun, best), "it begins with the best weights of the stage before"
    stages.fit(loader, HeldOut(seed=5))
    after = weights(stages.model)
    moved = {name for name in after if not torch.equal(after[name], begun[name])}
    assert any(name.startswith("encoder") and name.endswith("running_mean") for name in after)
    assert moved
    assert all(name.startswith("heads.side") for name in moved)
    assert [(r["stage"], r["epoch"], r["step"], sorted(r["loss"])) for r in records.epochs] == [
        *(("outline", 1, 4, ["mask"]), ("outline", 2, 8, ["mask"])),
        *(("kind", 3, 12, ["side"]), ("kind", 4, 16, ["side"])),
    ]
    assert list(stages.model(next(iter(MemoryLoader())))) == ["mask", "side"], "all tasks are there in the end"
    assert all(parameter.requires_grad for parameter in stages.model.parameters())


@pytest.mark.long
@pytest.mark.parametrize(("stop_after", "average"), [(3, "ema"), (8, ""), (13, "swa")])
def test_resuming_in_any_stage_is_bit_equal(tmp_path, stop_after, average):
    balancer = {"name": "decay", "main": 0}
    three = [TWO[0], {**TWO[1], "balancer": balancer}, {"name": "both", "epochs": 1, "keep_optimizer": True}]
    recipe = recipe_of(tmp_path, three, training={"average": average, "average_decay": 0.9})
    whole = run(recipe, tmp_path / "whole")
    second = cut_and_resumed(recipe, tmp_path / "cut", stop_after)
    assert second.finished
    assert second.trainer.step_count == whole.trainer.step_count == 20
    assert same(weights(second.model), weights(whole.model))
    last = [checkpoint.load(tmp_path / name / "best") for name in ("whole", "cut")]
    assert same(last[0]["model"], last[1]["model"])
    assert last[0]["progress"]["stage"] == last[1]["progress"]["stage"] == "both"
    assert last[0]["progress"]["best_score"] == last[1]["progress"]["best_score"]


@pytest.mark.long
def test_a_kept_optimizer_goes_on_as_if_there_were_no_stages(tmp_path):
    """Moments, balancer, schedule and counts: two stages that differ in nothing are one."""
    halves = [{"name": "a", "epochs": 1}, {"name": "b", "epochs": 2, "keep_optimizer": True}]
    warm = {"warmup": 0.4}
    for balancer in ({"name": "uncertainty"}, {"name": "decay"}):
        made = [
            run(
                recipe_of(tmp_path, stages, training={"epochs": 3}, balancer=balancer, optimizer=warm),
                folder,
            )
            for stages, folder in (((), tmp_path / "one"), (halves, tmp_path / "two"))
        ]
        assert same(*(weights(stages.model) for stages in made))
        states = [stages.trainer.balancer.state_dict() for stages in made]
        assert states[0].keys() == states[1].keys()
    fresh = [halves[0], {**halves[1], "keep_optimizer": False}]
    other = run(recipe_of(tmp_path, fresh, balancer=balancer, optimizer=warm), tmp_path / "other")
    assert not same(weights(other.model), weights(made[0].model))


def test_the_switch_moves_the_tap_and_nothing_else(tmp_path):
    tables = {"auxiliary": {"kind": "auxiliary_segmentation", "column": "mask"}}
    switched = [
        {"name": "stride_8", "epochs": 1, "auxiliary_stride": 8},
        {"name": "stride_4", "epochs": 1, "auxiliary_stride": 4, "keep_optimizer": True},
    ]
    stages = stages_for(recipe_of(tmp_path, switched, tasks=tables), tmp_path)
    stages.check()
    loader = MemoryLoader()
    loader.spoil = lambda batch, epoch, number: type(batch)(
        batch.images, batch.targets | {"auxiliary": batch.targets["mask"]}, batch.has_label[:, [0, 1, 0]]
    )
    stages.begin(loader)
    heads = stages.model.auxiliary["auxiliary"].convs
    for used, other in (("stride8", "stride4"), ("stride4", "stride8")):
        resting = heads[other].weight.clone()
        losses = stages.trainer.losses(next(iter(MemoryLoader.__iter__(loader))))
        stages.trainer.balancer.backward(losses, stages.model.shared_parameters())
        reached = {name for name, value in stages.model.named_parameters() if value.grad is not None}
        assert f"auxiliary.auxiliary.convs.{used}.weight" in reached
        assert not any(other in name for name in reached)
        everything_else = {name for name, _ in stages.model.named_parameters() if "convs" not in name}
        assert everything_else <= reached
        stages.model.zero_grad()
        loader.load_state_dict({"epoch": 0, "batch": 0})
        stages.trainer.fit(loader)
        assert torch.equal(heads[other].weight, resting)
        if used == "stride8":
            moments = stages.trainer.optimizer.state[heads["stride8"].weight]
            stages._enter(1, loader)
            assert torch.equal(stages.trainer.optimizer.state[heads["stride8"].weight]["exp_avg"], moments["exp_avg"])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a", "epochs": 0}], "stages.a.epochs must be at least 1"),
        ([{"name": "a"}], "stages.a needs `epochs`"),
        ([{"epochs": 1}], "stages[0] needs `name`"),
        ([{"name": "a", "epochs": 1, "task": ["mask"]}], "unknown key 'stages.a.task'; did you mean 'tasks'"),
        ([{"name": "a", "epochs": 1, "tasks": ["msk"]}], "stages.a has an unknown task 'msk'; did you mean 'mask'"),
        ([{"name": "a", "epochs": 1, "tasks": [3]}], "stages.a.tasks must be a list of texts; got [3]"),
        ([{"name": "a", "epochs": 1, "start": "best"}], "stages.a is the first stage"),
        ([{"name": "a", "epochs": 1}] * 2, "two stages have the name 'a'"),
        (
            [{"name": "a", "epochs": 1, "optimizer": {"lrr": 1}}],
            "unknown key 'stages.a.optimizer.lrr'; did you mean 'lr'",
        ),
        ([{"name": "a", "epochs": 1, "optimizer": {"lr": -1.0}}], "stages.a.optimizer.lr must be finite"),
        ([{"name": "a", "epochs": 1, "balancer": {"alpha": 1}}], "stages.a.balancer needs a `name`"),
        ([3], "stages[0] must be a table; got 3"),
    ],
)
def test_stages_that_cannot_be_are_named_when_they_are_read(stages, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, stages)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["encodr"]}, "stages.a: model 'joint_unet' has no part 'encodr'; did you mean 'encoder'"),
        ({"freeze": ["encoder", "heads", "decoders"]}, "stages.a freezes everything that task 'mask' could learn with"),
        ({"freeze": ["encoder", "heads"], "tasks": ["side"]}, "freezes everything that task 'side' could learn with"),
        ({"auxiliary_stride": 8}, 'in a recipe with [tasks.auxiliary] kind = "auxiliary_segmentation"'),
    ],
)
def test_stages_that_the_model_cannot_have_are_named_before_the_first(tmp_path, changes, message):
    recipe = recipe_of(tmp_path, [{"name": "first", "epochs": 1}, {"name": "a", "epochs": 1, **changes}])
    stages = stages_for(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="recipe two: ") as caught:
        stages.check()
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_kept_optimizer_of_another_kind_is_refused(tmp_path):
    second = {"name": "b", "epochs": 1, "keep_optimizer": True, "optimizer": {"optimizer": "sgd"}}
    stages = stages_for(recipe_of(tmp_path, [{"name": "a", "epochs": 1}, second]), tmp_path)
    with pytest.raises(ConfigError, match=r"stages\.b keeps the optimizer, which was adamw, and asks for sgd"):
        stages.check()


def test_epochs_are_those_of_the_stages(tmp_path):
    recipe = recipe_of(tmp_path, TWO)
    assert recipe.training.epochs == 4
    path = tmp_path / "two.toml"
    changed = load_recipe(path, {"stages": {"kind": {"epochs": 7, "optimizer": {"lr": 0.5}}}})
    assert [stage.epochs for stage in changed.stages] == [2, 7]
    assert changed.stages[1].freeze == ["encoder"]
    assert optimizer_of(changed, changed.stages[1]).lr == 0.5
    assert optimizer_of(changed, changed.stages[0]).lr == 3e-3
    with pytest.raises(
        ConfigError, match=r"stages with their own epochs .outline 2, kind 2., but training.epochs is 9"
    ):
        load_recipe(path, {"training": {"epochs": 9}})
    with pytest.raises(ConfigError, match=r"unknown key 'stages\.knd'; did you mean 'kind'"):
        load_recipe(path, {"stages": {"knd": {"epochs": 7}}})
