"""A training step on a GPU, recorded without one: it waits for nothing, copies nothing, and its launches are few."""

from __future__ import annotations

import pytest
import torch
from helpers.fake_gpu import DEVICE, fake_gpu
from helpers.memory_loader import CLASSES, MemoryLoader
from helpers.op_backends import needs_triton
from torch import nn

from fastmtl import balance, models
from fastmtl.balance.plain_step import PlainUpdate
from fastmtl.config import TrainingConfig
from fastmtl.tasks import create_task
from fastmtl.training.trainer import Trainer
from fastmtl.training.weight_averaging import WeightAverage

pytestmark = needs_triton
# Of a U-Net with 75 parameters, 45 of them shared, and two tasks: forward and two backwards are most of it. The
# definition in torch updates each parameter by itself.
MOST = {"plain": 355, "cuda": 365, "reference": 3900}


def _trainer(update: str) -> Trainer:
    with DEVICE:
        tasks = [
            create_task("binary_segmentation", "mask", 0),
            create_task("classification", "side", 1, class_names=CLASSES),
        ]
        model = models.create_model("joint_unet", tasks={task.name: task.output for task in tasks}, base_channels=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    step = PlainUpdate(optimizer, 1.0) if update == "plain" else balance.FusedStep(optimizer, clip_norm=1.0)
    if update == "reference":
        step = balance.FusedStep(optimizer, clip_norm=1.0, backend=update)
    config = TrainingConfig(precision="float32", epochs=1, log_every=1000)
    average = WeightAverage(model, "ema")
    balancer = balance.create_balancer("pcgrad")
    return Trainer(model, tasks, balancer, optimizer, config, device=DEVICE, update=step, average=average)


@pytest.mark.parametrize("update", MOST)
def test_a_step_never_waits_and_copies_nothing(update, monkeypatch):
    trainer, batch = _trainer(update), next(iter(MemoryLoader())).to(DEVICE)
    with fake_gpu(monkeypatch) as launches:
        for _ in range(2):
            trainer.step(batch)
        launches.clear()
        trainer.step(batch)
    assert not launches.faults
    assert launches.counts["_foreach_copy_"] == 3  # the rows of two tasks, and BatchNorm's counts of the average
    assert launches.counts["split_with_sizes_copy"] == 2  # BatchNorm's statistics and counts, if the step was skipped
    assert launches.counts["_foreach_lerp_"] == 1
    total = launches.counts.total()
    assert 0.95 * MOST[update] < total <= MOST[update], launches.counts.most_common()


def test_the_recorder_finds_what_a_step_must_not_do(monkeypatch):
    x = torch.empty(3, device=DEVICE)
    for act in (
        lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        lambda: torch.ones(3).to(DEVICE),
        lambda: x + torch.ones(()),
    ):
        with fake_gpu(monkeypatch) as launches:
            act()
        assert launches.faults
    for act in (
        x.cpu,
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 0),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: torch.linalg.inv(torch.eye(3, device=DEVICE)),
    ):
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), fake_gpu(monkeypatch):
            act()


def test_an_average_moves_in_one_call(monkeypatch):
    with DEVICE:
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(50)))
    average = WeightAverage(model, "ema")
    with fake_gpu(monkeypatch) as launches:
        average.on_step(0)
        average.on_step(0)
    assert launches.counts == {"_foreach_copy_": 1, "_foreach_lerp_": 1}
    assert not launches.faults


@pytest.mark.parametrize("method", balance.list_balancers())
def test_no_balancer_waits_or_copies(method, monkeypatch):
    with DEVICE:
        encoder, heads = nn.Linear(5, 7), nn.ModuleList(nn.Linear(7, n) for n in (1, 2, 3))
        x, active = torch.empty(4, 5), torch.empty(3, dtype=torch.bool)
    with DEVICE:  # learned weights are moved by assignment, which meta tensors refuse
        balancer = balance.create_balancer(method)

    def losses() -> dict[str, torch.Tensor]:
        z = encoder(x)
        return {f"task {k}": head(z).square().mean() for k, head in enumerate(heads)}

    def step() -> None:
        balancer.backward(losses(), encoder.parameters(), active=active)
        balancer.after_step(losses)
        balancer.on_epoch()

    with fake_gpu(monkeypatch) as launches:
        for _ in range(2):  # state and constants reach the device
            step()
        launches.clear()
        step()
    assert not launches.faults
