"""Steps with a loss far above its running median: found on the device, skipped, and judged like those with NaN."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from helpers.memory_loader import CLASSES, MemoryLoader

from fastmtl import balance, models
from fastmtl.config import ConfigError, TrainingConfig, load_recipe
from fastmtl.distributed import World
from fastmtl.tasks import create_task
from fastmtl.training.errors import NonFiniteError
from fastmtl.training.loss_spikes import FEWEST, WINDOW, LossSpikes
from fastmtl.training.trainer import Trainer

NAMES = ("mask", "side")


def _losses(mask, side):
    return {"mask": torch.tensor(mask, requires_grad=True), "side": torch.tensor(side, requires_grad=True)}


def _spikes(factor=3.0, world=None, steps=FEWEST):
    found = LossSpikes(factor, NAMES, torch.device("cpu"), world or World())
    for _ in range(steps):
        assert not found.screen(_losses(1.0, 2.0))[1].any()
    return found


def test_a_loss_above_the_factor_is_a_spike_of_its_task_alone():
    screened, spikes = _spikes().screen(_losses(1.5, 6.5))
    assert spikes.tolist() == [False, True]
    assert screened["mask"] == 1.5
    assert screened["side"].isnan()
    assert not _spikes().screen(_losses(3.0, 6.0))[1].any(), "the factor itself is none"


def test_nothing_is_judged_before_enough_losses_are_known():
    early = _spikes(steps=FEWEST - 1)
    assert not early.screen(_losses(100.0, 100.0))[1].any()


def test_batches_without_labels_do_not_count():
    """Their loss is 0: with it the median would fall, and each other loss would be a spike."""
    found = _spikes()
    for _ in range(WINDOW // 2 + 5):
        assert not found.screen(_losses(0.0, 2.0))[1].any()
    assert not found.screen(_losses(2.9, 2.0))[1].any()
    assert found.screen(_losses(3.1, 2.0))[1].tolist() == [True, False]


def test_spikes_and_nan_leave_the_median_as_it_was():
    found = _spikes()
    for _ in range(WINDOW + 1):
        assert found.screen(_losses(50.0, 2.0))[1].tolist() == [True, False]
        assert not found.screen(_losses(float("nan"), 2.0))[1].any()
    assert found.screen(_losses(3.1, 2.0))[1].tolist() == [True, False]


def test_the_ranks_judge_the_mean_of_their_losses():
    other = torch.tensor([1.0, 2.0], dtype=torch.float64)
    world = SimpleNamespace(size=2, sum=lambda values: values + other)
    found = _spikes(world=world)
    other[1] = 20.0
    screened, spikes = found.screen(_losses(1.0, 2.0))
    assert spikes.tolist() == [False, True]
    assert screened["side"].isnan(), "also on the rank whose own loss was as before"


def _trainer(folder, **config):
    torch.manual_seed(0)
    tasks = [
        create_task("binary_segmentation", "mask", 0),
        create_task("classification", "side", 1, class_names=CLASSES),
    ]
    model = models.create_model("joint_unet", tasks={task.name: task.output for task in tasks}, base_channels=2)
    settings = {"precision": "float32", "epochs": 1, "log_every": 1, "spike_factor": 5.0} | config
    restores = []
    seen = SimpleNamespace(
        on_step=lambda *_: None, on_epoch=lambda _: None, on_restore=lambda *given: restores.append(given)
    )
    trainer = Trainer(
        model,
        tasks,
        balance.create_balancer("pcgrad"),
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        TrainingConfig(**settings),
        folder=folder / "checkpoints",
        nonfinite=folder / "nonfinite",
        observers=[seen],
    )
    trainer.restores = restores
    return trainer


def _spiking(trainer, monkeypatch, step):
    """The loss of one step is a hundred times what it would be."""
    losses = trainer.losses

    def high(batch):
        found = losses(batch)
        return found | {"side": 100 * found["side"]} if trainer.step_count + 1 == step else found

    monkeypatch.setattr(trainer, "losses", high)


def test_a_skipped_spike_changes_no_weight_and_is_written_out(tmp_path, monkeypatch):
    trainer, step = _trainer(tmp_path, on_nonfinite="skip"), FEWEST + 3
    _spiking(trainer, monkeypatch, step)
    weights, taken = [], trainer.step

    def stepping(batch):
        weights.append(copy.deepcopy(trainer.model.state_dict()))
        return taken(batch)

    monkeypatch.setattr(trainer, "step", stepping)
    record = trainer.fit(MemoryLoader(num_batches=step + 2))
    assert record["skipped"] == 1
    assert record["loss"]["side"] < 10, "the spike is not in the mean"
    before, after = weights[step - 1 : step + 1]
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    facts = json.loads((tmp_path / "nonfinite" / f"step-{step:06d}.json").read_text())
    assert facts["spikes"] == ["side"]
    assert facts["losses"]["side"] > 10


def test_raise_and_restore_judge_a_spike_like_nan(tmp_path, monkeypatch):
    step = FEWEST + 3
    trainer = _trainer(tmp_path / "raise")
    _spiking(trainer, monkeypatch, step)
    with pytest.raises(
        NonFiniteError, match=rf"the loss of task 'side' was above 5 times its running median in 1 of .* step {step} "
    ):
        trainer.fit(MemoryLoader(num_batches=step + 2))
    trainer = _trainer(tmp_path / "restore", on_nonfinite="restore", checkpoint_steps=10)
    _spiking(trainer, monkeypatch, step)
    assert trainer.fit(MemoryLoader(num_batches=step + 2))["skipped"] == 1
    assert [given[0] for given in trainer.restores] == [20]


def test_a_resumed_training_knows_the_median(tmp_path, monkeypatch):
    """Three steps after the checkpoint are too few to judge by."""
    trainer, loader = _trainer(tmp_path, checkpoint_steps=FEWEST), MemoryLoader(num_batches=FEWEST + 5)
    trainer.fit(loader)
    again, loader = _trainer(tmp_path, on_nonfinite="skip"), MemoryLoader(num_batches=FEWEST + 5)
    again.resume(tmp_path / "checkpoints" / f"step-{FEWEST:08d}", loader)
    assert again.step_count == FEWEST
    _spiking(again, monkeypatch, FEWEST + 3)
    assert again.fit(loader)["skipped"] == 1
    without = _trainer(tmp_path, spike_factor=0.0)
    without.resume(tmp_path / "checkpoints" / f"step-{FEWEST:08d}", MemoryLoader(num_batches=FEWEST + 5))


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1.0, float("inf"), float("nan")])
def test_a_factor_that_skips_every_other_step_is_refused(factor):
    with pytest.raises(ConfigError, match=r"spike_factor must be 0 or above 1, and finite"):
        load_recipe("demo", {"training": {"spike_factor": factor}})
