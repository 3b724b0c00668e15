"""The extra time of PCGrad in one step of a small U-Net: the backward passes of the shared encoder for K gradients.

The floor is a plain step of the same trainer and K - 1 more backwards of the encoder alone. The target for fastmtl is
at most 1.05 times the floor's time, so that the floor's ratio is at least 0.95.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmtl.builders.components import build_balancer, build_model, build_tasks
from fastmtl.builders.optimizers import build_optimizer, build_update
from fastmtl.config import load_recipe
from fastmtl.protocols import Batch
from fastmtl.training.trainer import Trainer

from ..registry import Case, Inputs, Run, register

SIZE, BATCH, CLASSES = 96, 16, ("a", "b", "c")


def recipe_of(num_tasks: int, balancer: dict[str, Any]) -> Any:
    kinds = ("binary_segmentation", "classification")
    tasks = {f"task {k}": {"kind": kinds[k % 2]} for k in range(num_tasks)}
    recipe = load_recipe("demo", {"training": {"precision": "float32"}, "balancer": balancer})
    return replace(recipe, tasks=tasks)


def make_inputs(num_tasks: int) -> Callable[[torch.device], Inputs]:
    def make(device: torch.device) -> Inputs:
        source, recipe = torch.Generator().manual_seed(0), recipe_of(num_tasks, {"name": "pcgrad"})
        tasks = build_tasks(recipe, CLASSES)
        maps = torch.rand(BATCH, 1, SIZE, SIZE, generator=source).lt(0.3).to(torch.uint8)
        classes = torch.randint(len(CLASSES), (BATCH,), generator=source)
        targets = {task.name: maps if task.target.kind == "mask" else classes for task in tasks}
        images = torch.randn(BATCH, 3, SIZE, SIZE, generator=source)
        batch = Batch(images, targets, torch.ones(BATCH, num_tasks, dtype=torch.bool)).to(device)
        return {"batch": batch, "tasks": tasks, "model": build_model(recipe, tasks, device), "device": device}

    return make


def trainer_of(inputs: Inputs, **balancer: Any) -> Trainer:
    recipe, model = recipe_of(len(inputs["tasks"]), balancer), copy.deepcopy(inputs["model"]).train()
    made = build_balancer(recipe)
    optimizer = build_optimizer(recipe, model, made)
    options = {"device": inputs["device"], "update": build_update(recipe, optimizer)}
    return Trainer(model, inputs["tasks"], made, optimizer, recipe.training, **options)


def detached(losses: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(loss.detach() for loss in losses.values())


def _ours(inputs: Inputs) -> Run:
    trainer = trainer_of(inputs, name="pcgrad")
    return lambda: detached(trainer.step(inputs["batch"])[0])


def _plain(inputs: Inputs) -> Run:
    trainer = trainer_of(inputs, name="linear")
    return lambda: detached(trainer.step(inputs["batch"])[0])


def _floor(inputs: Inputs) -> Run:
    """A plain step, in whose middle the encoder's backward is done K - 1 times more, from its own features."""
    trainer, more = trainer_of(inputs, name="linear"), len(inputs["tasks"]) - 1
    encoder: Any = trainer.model.encoder
    seen: list[list[Tensor]] = []
    encoder.register_forward_hook(lambda _module, _inputs, features: seen.append(features))
    update, source = trainer.update, torch.Generator(device=inputs["device"]).manual_seed(0)
    slopes: list[Tensor] = []

    def with_more(balancer: Any, losses: Any, shared: Any, **options: Any) -> Any:
        features, shared = seen.pop(), list(shared)
        if not slopes:
            slopes.extend(torch.empty_like(each).normal_(generator=source) for each in features)
        for _ in range(more):
            torch.autograd.grad(features, shared, slopes, retain_graph=True)
        return update(balancer, losses, shared, **options)

    trainer.update = with_more
    return lambda: detached(trainer.step(inputs["batch"])[0])


def true_losses(inputs: Inputs) -> tuple[Tensor, ...]:
    model, batch = copy.deepcopy(inputs["model"]).train().double(), inputs["batch"]
    outputs = model(Batch(batch.images.double(), batch.targets, batch.has_label))
    return tuple(task.loss(outputs[task.name], batch).detach() for task in inputs["tasks"])


for _tasks in (2, 4):
    register(
        Case(
            op="step_cost",
            shape=f"joint_unet base 8, K={_tasks}, B={BATCH}, {SIZE} x {SIZE} float32",
            mode="whole step with PCGrad",
            make=make_inputs(_tasks),
            contenders={
                "fastmtl": _ours,
                f"plain step, {_tasks - 1} more encoder backwards": _floor,
                "plain step": _plain,
            },
            min_bytes=0,
            tolerance=1e-3,
            truth=true_losses,
            figures={f"plain step, {_tasks - 1} more encoder backwards": 0.95},
        )
    )
