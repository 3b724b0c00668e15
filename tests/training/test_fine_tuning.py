"""Pretrained encoders: a frozen warm-up, then smaller rates for earlier layers; resuming is bit-equal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.memory_loader import MemoryLoader
from helpers.stages import Records, cut_and_resumed, recipe_of, run, same, stages_for, weights

from fastmtl import balance
from fastmtl.builders import optimizers
from fastmtl.config import ConfigError

WARM_UP = [{"name": "heads", "epochs": 1, "freeze": ["encoder"]}, {"name": "all", "epochs": 1, "keep_optimizer": True}]
SLOWER = {"encoder_lr_factor": 0.1, "layer_decay": 0.5}


def _rates(stages):
    """Parameter -> learning rate."""
    names = {parameter: name for name, parameter in stages.model.named_parameters()}
    groups = stages.trainer.optimizer.param_groups
    return {names[one]: group["lr"] for group in groups for one in group["params"] if one in names}


def test_rates_follow_the_depth_of_the_layer(tmp_path):
    stages = stages_for(recipe_of(tmp_path, optimizer=SLOWER | {"schedule": "constant"}), tmp_path)
    stages.check()
    before = weights(stages.model)
    stages.begin(MemoryLoader())
    assert same(weights(stages.model), before), "looking for the depths changes nothing"
    rates = _rates(stages)
    assert rates.keys() == dict(stages.model.named_parameters()).keys()
    deepest = len(stages.model.encoder.stages) - 1
    for name, rate in rates.items():
        depth = deepest - int(name.split(".")[2]) if name.startswith("encoder") else None
        assert rate == pytest.approx(3e-3 if depth is None else 3e-3 * 0.1 * 0.5**depth)
    for group in stages.trainer.optimizer.param_groups:
        assert len({parameter.ndim > 1 for parameter in group["params"]}) == 1
        assert group["weight_decay"] == (1e-2 if group["params"][0].ndim > 1 else 0)


def test_one_cosine_goes_on_when_the_encoder_wakes(tmp_path):
    """As without a frozen stage: the heads' rate, and the encoder's at a tenth of it."""
    records = Records()
    whole = [{"name": "heads", "epochs": 1}, WARM_UP[1]]
    optimizer = {"encoder_lr_factor": 0.1, "warmup": 0.25}
    expected = run(recipe_of(tmp_path, whole, optimizer=optimizer), tmp_path / "whole")
    stages = run(recipe_of(tmp_path, WARM_UP, optimizer=optimizer), tmp_path / "frozen", [records])
    assert _rates(stages) == _rates(expected)
    trainer = stages.trainer
    heads, encoder = ({one["lr"] for one in trainer.optimizer.param_groups if one["lr_factor"] == f} for f in (1, 0.1))
    assert encoder.pop() == pytest.approx(heads.pop() / 10, abs=1e-12)
    halfway = stages_for(recipe_of(tmp_path, WARM_UP, optimizer=optimizer), tmp_path / "half")
    halfway.begin(loader := MemoryLoader())
    halfway.trainer.fit(loader)
    before = halfway.trainer.optimizer.param_groups[0]["lr"]
    halfway._enter(1, loader)
    rates = _rates(halfway)
    assert 0 < before < 3e-3
    for name, rate in rates.items():
        assert rate == pytest.approx(before * (0.1 if name.startswith("encoder") else 1))
    assert [record["lr"] for record in records.epochs] == pytest.approx([before, 0])


def test_a_frozen_encoder_keeps_its_statistics_and_then_learns(tmp_path):
    stages = stages_for(recipe_of(tmp_path, WARM_UP, optimizer=SLOWER), tmp_path)
    before = weights(stages.model)
    stages.check()
    stages.begin(loader := MemoryLoader())
    stages.trainer.fit(loader)
    warm = weights(stages.model)
    moved = {name.split(".")[0] for name, value in warm.items() if not torch.equal(value, before[name])}
    assert moved == {"decoders", "heads"}
    stages.fit(loader)
    after = weights(stages.model)
    still = [name for name, value in after.items() if value.is_floating_point() and torch.equal(value, warm[name])]
    assert not still


@pytest.mark.long
@pytest.mark.parametrize("method", balance.list_balancers())
def test_resuming_is_bit_equal_with_every_balancer(tmp_path, method):
    heads, both = WARM_UP
    if method == "gradnorm":  # measures gradients of a shared layer, and with a frozen encoder there is none
        heads = {**heads, "balancer": {"name": "linear"}}
    recipe = recipe_of(tmp_path, [heads, both], optimizer=SLOWER, balancer={"name": method})
    whole = run(recipe, tmp_path / "whole")
    second = cut_and_resumed(recipe, tmp_path / "cut", 6)
    assert second.trainer.step_count == whole.trainer.step_count == 8
    assert same(weights(second.model), weights(whole.model))


@pytest.mark.parametrize("method", ["pcgrad", "gradnorm", "linear"])
def test_the_fused_step_takes_each_groups_rate(tmp_path, method):
    plain, fused = (
        run(
            recipe_of(
                tmp_path, optimizer=SLOWER, balancer={"name": method}, training={"epochs": 1, "fused_step": step}
            ),
            tmp_path / str(step),
        )
        for step in (False, True)
    )
    assert isinstance(fused.trainer.update, balance.FusedStep)
    other = weights(fused.model)
    for name, value in weights(plain.model).items():
        if value.is_floating_point():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-4)


def test_a_found_rate_keeps_the_factors(tmp_path):
    stages = stages_for(recipe_of(tmp_path, optimizer=SLOWER | {"find_lr": True}), tmp_path)
    stages.begin(MemoryLoader())
    rates = {group["lr"] / group["lr_factor"] for group in stages.trainer.optimizer.param_groups}
    assert max(rates) == pytest.approx(min(rates))
    assert max(rates) != 3e-3


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"encoder_lr_factor": 0.0}, r"optimizer.encoder_lr_factor must be in \(0, 1\]; got 0.0"),
        ({"layer_decay": 1.5}, r"optimizer.layer_decay must be in \(0, 1\]; got 1.5"),
    ],
)
def test_factors_out_of_range(tmp_path, optimizer, message):
    with pytest.raises(ConfigError, match=message):
        recipe_of(tmp_path, optimizer=optimizer)


def test_layer_decay_needs_layers(tmp_path):
    pytest.importorskip("transformers", reason="extra models is not installed")
    recipe = recipe_of(tmp_path, model={"name": "swin_t", "preset": "tiny"}, optimizer={"layer_decay": 0.5})
    stages = stages_for(replace(recipe, tasks={"side": recipe.tasks["side"]}), tmp_path)
    with pytest.raises(ConfigError, match="layer_decay needs an encoder with several feature maps; that of swin_t has"):
        stages.check()


def test_a_model_without_an_encoder_has_one_rate(tmp_path):
    recipe = recipe_of(tmp_path, optimizer={"encoder_lr_factor": 0.5})
    with pytest.raises(ConfigError, match=r'optimizer.encoder_lr_factor needs a model with `parts\["encoder"\]`'):
        optimizers.build_optimizer(recipe, torch.nn.Linear(2, 2), balance.create_balancer("linear"))
