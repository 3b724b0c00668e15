"""What each rank set aside is in the checkpoint, and set aside again when it is resumed."""

from __future__ import annotations

import pytest
import torch
from helpers.memory_loader import CLASSES, MemoryLoader

from fastmtl import balance, models
from fastmtl.config import TrainingConfig
from fastmtl.distributed import World
from fastmtl.tasks import create_task
from fastmtl.training.trainer import Trainer


class Rank(World):
    """One of two ranks; the other one found tile b damaged."""

    def gather(self, values):
        return torch.stack([values, values])

    def gather_entries(self, own):
        return {1: [{"tile": "b"}], **own}


class Loader(MemoryLoader):
    quarantine = ()

    def state_dict(self):
        return super().state_dict() | {"quarantine": list(self.quarantine)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.quarantine = state["quarantine"]


def _trainer(world):
    tasks = [create_task("classification", "side", 0, class_names=CLASSES)]
    model = models.create_model("joint_unet", tasks={task.name: task.output for task in tasks}, base_channels=2)
    optimizer = torch.optim.AdamW(model.parameters())
    config = TrainingConfig(precision="float32")
    return Trainer(model, tasks, balance.create_balancer("linear"), optimizer, config, world=world)


@pytest.mark.parametrize(
    ("world", "expected"), [(Rank(0, 2), ["a"]), (Rank(1, 2), ["b"]), (World(), ["a", "b"])], ids=["0", "1", "alone"]
)
def test_each_rank_gets_its_own_list_and_other_numbers_of_ranks_all_of_them(world, expected):
    saved = Loader()
    saved.quarantine = [{"tile": "a"}]
    state = _trainer(Rank(0, 2)).state_dict(saved)
    loader = Loader()
    _trainer(world).load_state_dict(state, loader)
    assert [entry["tile"] for entry in loader.quarantine] == expected
    del state["quarantines"]  # of an earlier version
    _trainer(world).load_state_dict(state, loader)
    assert [entry["tile"] for entry in loader.quarantine] == ["a"]
