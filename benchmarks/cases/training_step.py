"""One training step of the demo's joint U-Net, stage by stage and whole; the batch [16, 3, 96, 96] is in memory.

With two tasks PCGrad has only one order, so TorchJD's and LibMTL's steps must give the same gradients as ours. The case
TileLoader measures the stage before these, the loader.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl.balance.arena import GradientArena
from fastmtl.builders.components import build_balancer, build_model, build_tasks
from fastmtl.builders.optimizers import build_optimizer, build_update
from fastmtl.config import load_recipe
from fastmtl.protocols import Batch
from fastmtl.training.trainer import Trainer

from ..registry import Case, Contender, Inputs, Run, register
from . import pcgrad
from .dice_bce import formula

SIZE, BATCH, CLASSES = 96, 16, ("a", "b", "c")
TASKS = ("segmentation", "classification")
# float32, because hardware with bfloat16 would otherwise round other things than hardware without it.
RECIPE = load_recipe("demo", {"training": {"precision": "float32"}})

Losses = Callable[[Inputs, Any, Batch], dict[str, Tensor]]
Backward = Callable[[Mapping[str, Tensor]], Any]


def _make(device: torch.device) -> Inputs:
    source = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=source)
    targets = {
        "segmentation": torch.rand(BATCH, 1, SIZE, SIZE, generator=source).lt(0.3).to(torch.uint8),
        "classification": torch.randint(len(CLASSES), (BATCH,), generator=source),
    }
    batch = Batch(images, targets, torch.ones(BATCH, 2, dtype=torch.bool)).to(device)
    tasks = build_tasks(RECIPE, CLASSES)
    return {"batch": batch, "tasks": tasks, "model": build_model(RECIPE, tasks, device), "device": device}


def _model(inputs: Inputs) -> Any:
    """One of its own for every contender: running statistics move, and in the whole step the parameters."""
    return copy.deepcopy(inputs["model"]).train()


def _plain_model(inputs: Inputs) -> Any:
    """In torch's default layout."""
    return _model(inputs).to(memory_format=torch.contiguous_format)


def _heads(model: Any) -> list[Tensor]:
    """What belongs to one task alone; `parameters()` begins with the encoder."""
    shared = set(model.shared_parameters())
    return [parameter for parameter in model.parameters() if parameter not in shared]


def _fused(inputs: Inputs, model: Any, batch: Batch) -> dict[str, Tensor]:
    outputs = model(batch)
    return {task.name: task.loss(outputs[task.name], batch) for task in inputs["tasks"]}


def _plain(_: Inputs, model: Any, batch: Batch) -> dict[str, Tensor]:
    outputs, targets = model(batch), batch.targets
    return {
        "segmentation": formula(outputs["segmentation"], targets["segmentation"]),
        "classification": F.cross_entropy(outputs["classification"], targets["classification"]),
    }


def _double(inputs: Inputs) -> tuple[Any, dict[str, Tensor]]:
    """The model and its losses in float64."""
    model, batch = _model(inputs).double(), inputs["batch"]
    return model, _plain(inputs, model, Batch(batch.images.double(), batch.targets, batch.has_label))


def _true_losses(inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(loss.detach() for loss in _double(inputs)[1].values())


def _true_rows(inputs: Inputs) -> Tensor:
    """J [2, P], every parameter in its logical order."""
    model, losses = _double(inputs)
    shared = list(model.shared_parameters())
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
    return torch.stack([torch.cat([gradient.reshape(-1) for gradient in row]) for row in rows])


def _forward(losses: Losses) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        model = _model(inputs)
        return lambda: tuple(loss.detach() for loss in losses(inputs, model, inputs["batch"]).values())

    return prepare


def _into_arena(task: str, inputs: Inputs) -> Run:
    model, arena = _model(inputs), GradientArena()
    loss = _fused(inputs, model, inputs["batch"])[task]

    def run() -> tuple[Tensor, ...]:
        with arena.open(model.shared_parameters(), 1):
            loss.backward(retain_graph=True)
            arena.take(0)
        row = arena.complete()[0]
        arena.clear()
        return (row.norm(),)

    return run


def _into_cat(task: str, inputs: Inputs) -> Run:
    model = _plain_model(inputs)
    loss, shared = _plain(inputs, model, inputs["batch"])[task], list(model.shared_parameters())

    def run() -> tuple[Tensor, ...]:
        model.zero_grad()
        loss.backward(retain_graph=True)
        return (torch.cat([parameter.grad.reshape(-1) for parameter in shared]).norm(),)

    return run


def _rows(device: torch.device) -> Inputs:
    """What the case `pcgrad` takes, with the gradients of this model."""
    J = _true_rows(_make(device)).float()
    return {"J": J, "order": torch.tensor([[1], [0]], device=device)}


def _torchjd(model: Any) -> Backward:
    from torchjd.aggregation import PCGrad, Sum
    from torchjd.autojac import backward, jac_to_grad

    shared, heads = list(model.shared_parameters()), _heads(model)

    def run(losses: Mapping[str, Tensor]) -> None:
        # mtl_backward would count the skips of a U-Net twice: its features must not depend on each other.
        backward(list(losses.values()), inputs=[*shared, *heads], parallel_chunk_size=1)
        jac_to_grad(shared, PCGrad())
        jac_to_grad(heads, Sum())

    return run


def _libmtl(model: Any) -> Backward:
    from ..peers.libmtl import pcgrad_backward

    return pcgrad_backward(model, len(TASKS))


def _ours(model: Any) -> Backward:
    balancer = build_balancer(RECIPE)
    return lambda losses: balancer.backward(losses, model.shared_parameters())


def _gradients(losses: Losses, make_model: Callable[[Inputs], Any], make: Callable[[Any], Backward]) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        model = make_model(inputs)
        backward = make(model)

        def run() -> tuple[Tensor, ...]:
            model.zero_grad(set_to_none=True)
            backward(losses(inputs, model, inputs["batch"]))
            return (torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]),)

        return run

    return prepare


def _true_gradients(inputs: Inputs) -> tuple[Tensor, ...]:
    first, second = _true_rows(inputs)
    dot = (first @ second).clamp(max=0)
    shared = first + second - dot / second.square().sum() * second - dot / first.square().sum() * first
    model, losses = _double(inputs)
    heads = _heads(model)
    own = torch.autograd.grad(torch.stack(list(losses.values())).sum(), heads)
    return (torch.cat([shared, *(gradient.reshape(-1) for gradient in own)]),)


def _whole(losses: Losses, make_model: Callable[[Inputs], Any], make: Callable[[Any], Backward]) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        model = make_model(inputs)
        backward, optimizer = make(model), torch.optim.AdamW(model.parameters(), lr=1e-3)

        def run() -> tuple[Tensor, ...]:
            optimizer.zero_grad(set_to_none=True)
            found = losses(inputs, model, inputs["batch"])
            backward(found)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return tuple(loss.detach() for loss in found.values())

        return run

    return prepare


def _trainer(inputs: Inputs) -> Run:
    model, balancer = _model(inputs), build_balancer(RECIPE)
    optimizer = build_optimizer(RECIPE, model, balancer)
    options = {"device": inputs["device"], "update": build_update(RECIPE, optimizer)}
    trainer = Trainer(model, inputs["tasks"], balancer, optimizer, RECIPE.training, **options)
    return lambda: tuple(loss.detach() for loss in trainer.step(inputs["batch"])[0].values())


def _sum(_: Any) -> Backward:
    return lambda losses: torch.stack(list(losses.values())).sum().backward()


def _optimizer(options: Mapping[str, Any] | None, inputs: Inputs) -> Run:
    """Clip and step on gradients that stay; `options` of None is the recipe's optimizer."""
    model = _model(inputs).to(inputs["device"])
    source = torch.Generator().manual_seed(1)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=source))
    if options is None:
        optimizer = build_optimizer(RECIPE, model, build_balancer(RECIPE))
    else:
        groups = [[p for p in parameters if (p.ndim > 1) == decays] for decays in (True, False)]
        decay = RECIPE.optimizer.weight_decay
        optimizer = torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": decay}, {"params": groups[1], "weight_decay": 0.0}],
            lr=RECIPE.optimizer.lr,
            **options,
        )

    def run() -> tuple[Tensor, ...]:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return tuple(parameter.detach() for parameter in parameters)

    return run


def _true_optimizer(inputs: Inputs) -> tuple[Tensor, ...]:
    return _optimizer({"foreach": False}, dict(inputs) | {"model": copy.deepcopy(inputs["model"]).double()})()


def _register(mode: str, contenders: Mapping[str, Contender], truth: Callable, tolerance: float, make: Any = _make):
    shape = f"joint_unet base 8, B={BATCH}, {SIZE} x {SIZE} float32"
    register(Case("training_step", shape, mode, make, contenders, 0, tolerance, truth))


_register("forward and losses", {"fastmtl": _forward(_fused), "torch losses": _forward(_plain)}, _true_losses, 1e-3)
for _row, _task in enumerate(TASKS):
    _register(
        f"backward of {_task}",
        {"fastmtl": partial(_into_arena, _task), "torch.cat of .grad": partial(_into_cat, _task)},
        lambda inputs, row=_row: (_true_rows(inputs)[row].norm(),),
        1e-2,
    )
_register(
    "balance",
    {"fastmtl": pcgrad.ours, "TorchJD PCGrad": pcgrad.torchjd, "LibMTL PCGrad": pcgrad.libmtl},
    pcgrad.truth,
    5e-3,
    _rows,
)
_register(
    "optimizer",
    {"fastmtl": partial(_optimizer, None)}
    | {f"torch AdamW, {name}": partial(_optimizer, {name: True}) for name in ("foreach",)}
    | {"torch AdamW, one by one": partial(_optimizer, {"foreach": False})},
    _true_optimizer,
    1e-3,
)
for _mode, _build, _truth, _tolerance in (
    ("forward + backwards + balance", _gradients, _true_gradients, 2e-2),
    ("whole step", _whole, _true_losses, 1e-3),
):
    _register(
        _mode,
        {
            "fastmtl": _trainer if _build is _whole else _gradients(_fused, _model, _ours),
            "TorchJD PCGrad": _build(_plain, _model, _torchjd),
            "LibMTL PCGrad": _build(_plain, _plain_model, _libmtl),
        }
        | ({"plain sum of losses": _whole(_plain, _plain_model, _sum)} if _build is _whole else {}),
        _truth,
        _tolerance,
    )
