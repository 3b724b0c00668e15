"""The cost of logging in training: an epoch with the run's log, TensorBoard and progress, compared with bare steps."""

from __future__ import annotations

import atexit
import copy
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fastmtl.builders.components import build_balancer
from fastmtl.builders.optimizers import build_optimizer, build_update
from fastmtl.protocols import Batch
from fastmtl.training.progress import ProgressLine
from fastmtl.training.run_dir import RunFolder
from fastmtl.training.trainer import Trainer

from ..registry import Case, Inputs, Run, register
from .training_step import BATCH, RECIPE, SIZE, _make

STEPS = 40  # two looks at the losses, and one more where the epoch ends


class _Repeated:
    """A loader that always returns the same batch."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * STEPS)

    def __len__(self) -> int:
        return STEPS

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _trainer(inputs: Inputs, observers: list[Any]) -> Trainer:
    model, balancer = copy.deepcopy(inputs["model"]).train(), build_balancer(RECIPE)
    optimizer, config = build_optimizer(RECIPE, model, balancer), replace(RECIPE.training, epochs=1)
    options = {"device": inputs["device"], "observers": observers, "update": build_update(RECIPE, optimizer)}
    return Trainer(model, inputs["tasks"], balancer, optimizer, config, **options)


def _means(trainer: Trainer) -> tuple[Tensor, ...]:
    return (trainer.sums / STEPS,)


def _measured(inputs: Inputs) -> Run:
    folder = Path(tempfile.mkdtemp(prefix="fastmtl-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = RunFolder(folder / "run")
    run.create(RECIPE, {})
    trainer, batches = _trainer(inputs, [run, ProgressLine(1, Console(file=io.StringIO()))]), _Repeated(inputs["batch"])

    def epoch() -> tuple[Tensor, ...]:
        trainer.epoch = 0
        losses = trainer.fit(batches)["loss"].values()
        return (torch.tensor(list(losses), dtype=torch.float64),)

    return epoch


def _bare(inputs: Inputs) -> Run:
    trainer = _trainer(inputs, [])

    def steps() -> tuple[Tensor, ...]:
        trainer.sums.zero_()
        for _ in range(STEPS):
            trainer.step(inputs["batch"])
        return _means(trainer)

    return steps


register(
    Case(
        "training_step",
        f"joint_unet base 8, B={BATCH}, {SIZE} x {SIZE} float32",
        f"{STEPS} steps, log every {RECIPE.training.log_every}",
        _make,
        {"fastmtl": _measured, "steps alone": _bare},
        0,
        1e-6,
        lambda inputs: _bare(inputs)(),
    )
)
