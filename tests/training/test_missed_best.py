"""The best checkpoint is one that is on the disk, also after a full disk."""

import errno

import pytest
import torch
from helpers.memory_loader import CLASSES, MemoryLoader

from fastmtl import balance, models
from fastmtl.config import TrainingConfig
from fastmtl.tasks import create_task
from fastmtl.training import checkpoint
from fastmtl.training.disk_policy import DiskPolicy
from fastmtl.training.trainer import Trainer


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.5, 0.9, 0.7), 3),  # better than the first, and the second is not there
        ((0.5, 0.9, 0.4), 1),
        ((0.5, 0.6, 0.9), 3),
        ((0.5, 0.9), 2),  # the end tries again
    ],
)
def test_a_best_epoch_that_could_not_be_saved_gives_way_to_one_that_was(scores, best, tmp_path, monkeypatch):
    torch.manual_seed(0)
    tasks = [create_task("classification", "side", 0, class_names=CLASSES)]
    model = models.create_model("joint_unet", tasks={task.name: task.output for task in tasks}, base_channels=4)
    trainer = Trainer(
        model,
        tasks,
        balance.create_balancer("linear"),
        torch.optim.AdamW(model.parameters()),
        TrainingConfig(precision="float32", epochs=len(scores), on_disk_error="continue"),
        folder=tmp_path,
        disk=DiskPolicy("continue", lambda _: None),
    )
    found, write, full = iter(scores), checkpoint.write, []

    def evaluate(*_):
        return {"score": next(found), "loss": {"side": 1.0}, "tasks": {}}

    def writing(directory, tree, tensors, *, best):
        if best == directory.name and directory.name.startswith("step-00000004") and not full:
            full.append(directory)
            raise checkpoint.refused(directory, OSError(errno.ENOSPC, "full"), tensors)
        write(directory, tree, tensors, best=best)

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    monkeypatch.setattr(checkpoint, "write", writing)
    trainer.fit(MemoryLoader(num_batches=2), MemoryLoader(num_batches=1))
    assert full
    assert checkpoint.load(tmp_path / "best")["progress"]["step"] == 2 * best
    assert checkpoint.load(tmp_path / "last")["progress"]["step"] == 2 * len(scores)
