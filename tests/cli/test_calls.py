"""How many calls lie between a command and a training step."""

import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.tiles import write_folder

from fastmtl.cli import main
from fastmtl.training.trainer import Trainer

SMALL = ["--epochs", "2", "--size", "32", "--batch-size", "4", "--set", "model.base_channels=2"]


def _calls() -> list[str]:
    """The functions of fastmtl that are running, from the command's to the caller's caller."""
    found, frame = [], sys._getframe(2)
    while frame is not None and frame.f_code is not main.__code__:
        if Path(frame.f_code.co_filename).is_relative_to(ROOT / "fastmtl"):
            found.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return found[::-1]


@pytest.fixture
def calls(monkeypatch):
    """A list that each training step appends its callers to; it also asks the training to stop."""
    found, step = [], Trainer.step

    def recording(trainer, batch):
        found.append(_calls())
        trainer.stop_requested = True
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "step", recording)
    return found


@pytest.mark.long
def test_a_command_reaches_a_step_in_eight_calls(calls, tmp_path):
    write_folder(tmp_path / "data", {"a": 4, "b": 4}, size=32)
    run = str(tmp_path / "run")
    assert main(["train", "demo", "--data", str(tmp_path / "data"), "--out", run, *SMALL]) == 75
    assert main(["train", "--resume", "--out", run]) in (0, 75)
    below = ["_run", "_fit", "Stages.fit", "Trainer.fit", "Trainer._train_epoch"]
    assert calls[0] == ["train", "train", *below], "and Trainer.step is the eighth"
    assert calls[-1] == ["train", "resume", *below]
