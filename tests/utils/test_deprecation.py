"""Names of the version before: they work, and each says once what it is called now."""

from types import SimpleNamespace

import pytest
import torch

from fastmtl import balance, data
from fastmtl.config import TrainingConfig
from fastmtl.data.dataset import ImageSource
from fastmtl.protocols import Batch
from fastmtl.tasks import BinarySegmentation
from fastmtl.tasks.base import BaseTask
from fastmtl.trainer import Trainer


def test_a_batch_takes_and_gives_present():
    has_label = torch.ones(2, 1, dtype=torch.bool)
    with pytest.warns(DeprecationWarning, match=r"`present` is now called `has_label`.*0\.2"):
        batch = Batch(torch.zeros(2, 3, 4, 4), {}, present=has_label)
    assert batch.has_label is has_label
    with pytest.warns(DeprecationWarning, match="Batch.has_label"):
        assert batch.present is has_label


def test_a_task_of_the_version_before():
    with pytest.warns(DeprecationWarning, match="Mine.headline is now called primary_metric"):
        mine = type("Mine", (BaseTask,), {"headline": "dice"})
    batch = Batch(torch.zeros(2, 3, 4, 4), {}, torch.tensor([[True], [False]]))
    assert mine.primary_metric == "dice"
    with pytest.warns(DeprecationWarning, match="BaseTask.primary_metric"):
        assert BinarySegmentation("mask", 0).headline == "dice"
    with pytest.warns(DeprecationWarning, match="BaseTask.has_label"):
        assert mine("mine", 0).present(batch).tolist() == [True, False]


def test_a_balancer_of_the_version_before():
    with pytest.warns(DeprecationWarning, match="is now called") as warned:
        mine = type("Mine", (balance.PCGrad,), {"looks_twice": True, "held": ()})
    assert mine.needs_reevaluation is True
    assert {str(each.message).split(" is now")[0] for each in warned} == {"Mine.looks_twice", "Mine.held"}


def test_attributes_are_read_by_their_old_names():
    famo = balance.FAMO()
    with pytest.warns(DeprecationWarning, match="looks_twice is now called needs_reevaluation"):
        assert famo.looks_twice is True
    with pytest.warns(DeprecationWarning, match="held is now called state_names"):
        assert famo.held == famo.state_names
    with pytest.warns(DeprecationWarning, match="state_names"):
        famo.held = ()
    assert famo.state_names == ()


def test_the_trainer_takes_tasks_and_balancers_that_only_follow_the_protocols():
    task = SimpleNamespace(name="mask", column=0, headline="dice")
    balancer = SimpleNamespace(looks_twice=False, distribute=lambda model, **options: None)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.warns(DeprecationWarning, match="is now called") as warned:
        Trainer(model, [task], balancer, optimizer, TrainingConfig())
    assert len(warned) == 2
    assert (task.primary_metric, balancer.needs_reevaluation) == ("dice", False)


def test_classes_of_data_that_are_called_otherwise():
    with pytest.warns(DeprecationWarning, match="data.Picture is now called data.ImageSource"):
        assert data.Picture == ImageSource
    with pytest.warns(DeprecationWarning, match="data.EncodedTile"):
        assert data.Piece is data.EncodedTile
