"""Steps that are not finite: they are skipped, told, counted, written out; and the training goes back if it should."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from helpers.memory_loader import CLASSES, MemoryLoader
from safetensors.torch import load_file
from torch import nn

from fastmtl import balance, models
from fastmtl.balance.plain_step import PlainUpdate
from fastmtl.config import TrainingConfig
from fastmtl.tasks import create_task
from fastmtl.training import checkpoint, skipped_steps
from fastmtl.training.checkpoint_names import history
from fastmtl.training.errors import NonFiniteError
from fastmtl.training.trainer import Trainer
from fastmtl.training.weight_averaging import WeightAverage


class Seen:
    def __init__(self):
        self.epochs, self.looks, self.restores = [], [], []

    def on_step(self, step, epoch, batch, num_batches, record):
        self.looks.append((step, record["skipped"]))

    def on_epoch(self, record):
        self.epochs.append(record)

    def on_restore(self, step, epoch, why):
        self.restores.append((step, epoch, why))


def _trainer(folder=None, balancer="linear", fused=False, average=False, **config):
    torch.manual_seed(0)
    tasks = [
        create_task("binary_segmentation", "mask", 0),
        create_task("classification", "side", 1, class_names=CLASSES),
    ]
    model = models.create_model("joint_unet", tasks={task.name: task.output for task in tasks}, base_channels=4)
    made = balance.create_balancer(balancer)
    optimizer = torch.optim.AdamW([*model.parameters(), *made.parameters()], lr=3e-3, fused=True)
    settings = TrainingConfig(**{"precision": "float32", "epochs": 2, "log_every": 2} | config)
    seen = Seen()
    return Trainer(
        model,
        tasks,
        made,
        optimizer,
        settings,
        folder=None if folder is None else folder / "checkpoints",
        nonfinite=None if folder is None else folder / "nonfinite",
        update=balance.FusedStep(optimizer, clip_norm=1.0) if fused else None,
        average=WeightAverage(model, "ema", decay=0.5) if average else None,
        observers=[seen],
    ), seen


def _spoiling(*places, num_batches=6):
    """A loader with NaN images at these (epoch, batch)."""
    loader = MemoryLoader(num_batches=num_batches)

    def spoil(batch, epoch, number):
        if (epoch, number) not in places:
            return dataclasses.replace(batch, ids=[f"tile {epoch} {number} {row}" for row in range(len(batch))])
        images = batch.images.clone()
        images[1, 0, 3, 3] = float("nan")
        return dataclasses.replace(batch, images=images, ids=["fine", "spoilt", "fine too", "last"])

    loader.spoil = spoil
    return loader


def _finite(value):
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, (list, tuple)) else True


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_leaves_no_trace_in_the_whole_state(fused):
    trainer, _ = _trainer(fused=fused, average=True, log_every=100)
    batches = list(_spoiling((0, 1)))
    trainer.step(batches[0])
    before = copy.deepcopy(trainer.state_dict(MemoryLoader()))
    trainer.step(batches[1])
    after = trainer.state_dict(MemoryLoader())
    assert all(torch.equal(value, before["model"][name]) for name, value in after["model"].items())  # BatchNorm's too
    assert all(torch.equal(value, before["progress"]["sums"][0]) for value in after["progress"]["sums"])
    assert str(after["optimizer"]) == str(before["optimizer"])
    assert _finite(after)
    for name, value in after["average"].items():  # it moves towards the same weights
        assert value.isfinite().all(), name


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", balance.list_balancers())
def test_no_balancer_keeps_anything_of_a_step_that_is_not_finite(method, fused):
    """Neither of a NaN loss, nor of a finite loss with an infinite gradient; it then balances as before."""
    torch.manual_seed(0)
    encoder, heads = nn.Linear(5, 7), nn.ModuleDict({name: nn.Linear(7, n) for n, name in ((1, "a"), (2, "b"))})
    balancer = balance.create_balancer(method)
    parameters = [*encoder.parameters(), *heads.parameters(), *balancer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    update = balance.FusedStep(optimizer, clip_norm=1.0) if fused else PlainUpdate(optimizer, 1.0)
    x = torch.randn(4, 5)

    def losses(spoilt=""):
        z = encoder(x)
        found = {name: head(z).square().mean() for name, head in heads.items()}
        if spoilt == "loss":
            found["b"] = found["b"] * float("nan")
        elif spoilt == "gradient":
            found["b"] = found["b"] + (z - z.detach()).sum().abs().sqrt()  # 0, with an infinite slope
        return found

    def step(spoilt=""):
        log = update(balancer, losses(spoilt), encoder.parameters())
        balancer.after_step(lambda: losses(spoilt))
        return log

    for _ in range(2):  # some know the means of two epochs
        step()
        balancer.on_epoch()
    weights = [parameter.detach().clone() for parameter in parameters]
    for spoilt in ("loss", "gradient"):
        assert step(spoilt)["skipped"]
        assert _finite(balancer.state_dict())
        assert all(map(torch.equal, parameters, weights))
    balancer.on_epoch()
    assert _finite(balancer.state_dict())
    log = step()
    assert not log["skipped"]
    assert log["weights"].isfinite().all()
    assert _finite(balancer.state_dict())


def test_raise_names_the_task_and_keeps_the_batch_and_the_last_good_checkpoint(tmp_path):
    trainer, _ = _trainer(tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"loss of task 'mask' and of task 'side' was .* in 1 of the steps up to step 10 .*Look"
    ):
        trainer.fit(_spoiling((1, 2)))
    state = checkpoint.load(tmp_path / "checkpoints" / "last")
    assert state["progress"]["step"] == 6
    assert _finite(state)
    names = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert names == ["step-000009.json", "step-000009.safetensors"]
    facts = json.loads((tmp_path / "nonfinite" / names[0]).read_text())
    assert facts["tiles"] == ["fine", "spoilt", "fine too", "last"]
    assert facts["losses"] == {"mask": "nan", "side": "nan"}
    assert (facts["epoch"], facts["step"]) == (2, 9)
    tensors = load_file(tmp_path / "nonfinite" / names[1])
    assert tensors["images"].isnan().nonzero().tolist() == [[1, 0, 3, 3]]
    assert sorted(tensors) == ["has_label", "images", "targets.mask", "targets.side"]


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_skip_goes_on_and_counts(tmp_path, log_every):
    trainer, seen = _trainer(tmp_path, on_nonfinite="skip", max_skipped=0.4, average=True, log_every=log_every)
    trainer.fit(_spoiling((0, 1), (0, 3), (1, 5)))
    assert [record["skipped"] for record in seen.epochs] == [2, 1]
    assert seen.looks[-1] == (12, 1)
    assert all(loss > 0 for record in seen.epochs for loss in record["loss"].values())
    assert _finite(checkpoint.load(tmp_path / "checkpoints" / "last"))
    assert len(list((tmp_path / "nonfinite").glob("*.json"))) == 3


def test_skipped_steps_do_not_change_the_mean_loss_of_an_epoch():
    trainer, seen = _trainer(on_nonfinite="skip", max_skipped=0.5, epochs=1)
    losses = []
    step = trainer.step

    def watched(batch):
        found = step(batch)
        losses.append({name: loss.item() for name, loss in found[0].items()})
        return found

    trainer.step = watched
    trainer.fit(_spoiling((0, 2)))
    good = [loss["mask"] for number, loss in enumerate(losses) if number != 2]
    assert seen.epochs[0]["loss"]["mask"] == pytest.approx(sum(good) / 5)


@pytest.mark.parametrize(
    ("places", "limit", "message"),
    [
        ([(0, 0), (0, 3)], 0.2, r"Of this epoch's 6 steps 2 were skipped, .*max_skipped = 0\.2 allows 1"),
        ([(0, number) for number in range(10)], 1.0, "up to 10 in a row"),
        ([(0, 9), *((1, number) for number in range(9))], 1.0, "up to 10 in a row"),  # over the end of an epoch
    ],
)
def test_skip_stops_above_a_rate_and_after_ten_in_a_row(places, limit, message):
    num_batches = 6 if limit < 1 else 10
    trainer, _ = _trainer(on_nonfinite="skip", max_skipped=limit)
    with pytest.raises(NonFiniteError, match=message):
        trainer.fit(_spoiling(*places, num_batches=num_batches))


def test_restore_equals_a_training_that_never_saw_the_batch(tmp_path):
    """The steps before the bad batch are repeated bit for bit, and it is passed over."""
    trainer, seen = _trainer(tmp_path / "a", on_nonfinite="restore", log_every=3)
    trainer.fit(_spoiling((0, 1), (1, 3)))
    assert [(step, epoch) for step, epoch, _ in seen.restores] == [(0, 0), (6, 1)]
    assert "Restore 2 of 3." in seen.restores[1][2]
    assert [record["skipped"] for record in seen.epochs] == [1, 1]
    assert trainer.step_count == 12

    plain, _ = _trainer(tmp_path / "b")
    for epoch in range(2):
        for number, batch in enumerate(_spoiling_epoch(epoch)):
            if (epoch, number) in ((0, 1), (1, 3)):
                plain.step_count += 1
            else:
                plain.step(batch)
        plain.epoch += 1
    weights = plain.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())


def test_restore_goes_further_back_if_the_newest_checkpoint_is_damaged(tmp_path):
    trainer, seen = _trainer(tmp_path, on_nonfinite="restore", log_every=3)
    loader = _spoiling((1, 3))
    spoil = loader.spoil

    def damage(batch, epoch, number):
        if (epoch, number) == (1, 3) and not seen.restores:
            trainer.wait()
            (history(tmp_path / "checkpoints")[-1].path / "state.json").write_text("{}")
        return spoil(batch, epoch, number)

    loader.spoil = damage
    trainer.fit(loader)
    ((step, epoch, why),) = seen.restores
    assert (step, epoch) == (0, 0)
    assert "step-00000006 is damaged" in why
    assert trainer.step_count == 12


def _spoiling_epoch(epoch):
    loader = MemoryLoader(num_batches=6)
    loader.epoch = epoch
    return loader


def test_restore_gives_up_and_without_a_folder_it_says_why(tmp_path):
    spoilt = [(0, number) for number in range(6)]
    trainer, seen = _trainer(tmp_path, on_nonfinite="restore", max_restores=1, log_every=1)
    with pytest.raises(NonFiniteError, match="went back to a checkpoint 1 time "):
        trainer.fit(_spoiling(*spoilt))
    assert len(seen.restores) == 1
    trainer, _ = _trainer(on_nonfinite="restore")
    with pytest.raises(NonFiniteError, match="has no folder"):
        trainer.fit(_spoiling(*spoilt))


def test_few_batches_are_written_and_large_ones_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(skipped_steps, "_KEPT_BYTES", 4 * 3 * 32 * 32 * 4 * 2)  # one batch and a half
    trainer, _ = _trainer(tmp_path, on_nonfinite="skip", max_skipped=1.0, log_every=6)
    trainer.fit(_spoiling((0, 0), (0, 1), (0, 5), (1, 5)))
    assert sorted(path.name for path in (tmp_path / "nonfinite").iterdir()) == [
        *("step-000001.json", "step-000002.json"),  # their images were dropped
        *("step-000006.json", "step-000006.safetensors"),
    ]
    facts = json.loads((tmp_path / "nonfinite" / "step-000001.json").read_text())
    assert facts["tiles"] == ["fine", "spoilt", "fine too", "last"]


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    (tmp_path / "nonfinite").write_text("a file")
    trainer, _ = _trainer(tmp_path)
    with pytest.raises(NonFiniteError, match=r"NaN or infinite.* \(incomplete: "):
        trainer.fit(_spoiling((0, 0)))


def test_statistics_of_frozen_layers_and_of_other_layers_are_left_alone():
    layers = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True), nn.BatchNorm2d(2))
    layers[2].eval()
    from fastmtl.training.norm_statistics import NormStatistics

    statistics = NormStatistics(layers)
    x = torch.randn(2, 2, 4, 4)
    layers(x)
    before, taken = copy.deepcopy(layers.state_dict()), statistics.take()
    layers(x * float("nan"))
    layers[2].running_mean.fill_(5.0)
    statistics.undo(taken, torch.tensor(True))
    assert layers[2].running_mean.tolist() == [5.0, 5.0]
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items() if name[0] != "2")
    taken = statistics.take()
    layers(x)
    statistics.undo(taken, torch.tensor(False))
    assert layers[0].num_batches_tracked == 2
    assert not torch.equal(layers[0].running_mean, before["0.running_mean"])
