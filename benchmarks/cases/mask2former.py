"""Mask2Former's loss compared with transformers, and its matching alone compared with SciPy, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.losses.mask2former import Mask2FormerLoss, pad_targets

from ..registry import Case, Contender, Inputs, Run, register

_CLASSES, _QUERIES, _TARGETS, _POINTS = 10, 100, 20, 4096
_SETTINGS: dict[str, Any] = {"oversample_ratio": 3.0, "importance_sample_ratio": 0.75, "no_object_weight": 0.1}
_WEIGHTS: dict[str, Any] = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0}


def _make(samples: int, device: torch.device) -> Inputs:
    source = torch.Generator().manual_seed(0)
    rows = torch.arange(256)[:, None], torch.arange(256)

    def disc() -> Tensor:
        x, y, radius = (256 * torch.rand(3, generator=source)).tolist()
        return ((rows[0] - y).square() + (rows[1] - x).square() < (10 + radius / 5) ** 2).to(torch.uint8)

    masks = [torch.stack([disc() for _ in range(_TARGETS)]).to(device) for _ in range(samples)]
    labels = [torch.randint(_CLASSES, (_TARGETS,), generator=source).to(device) for _ in range(samples)]
    maps = torch.randn(samples, _QUERIES, 64, 64, generator=source).mul(3).to(device)
    classes = torch.randn(samples, _QUERIES, _CLASSES + 1, generator=source).to(device)
    return {"maps": maps.requires_grad_(), "classes": classes.requires_grad_(), "labels": labels, "masks": masks}


def _ours(inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    targets = pad_targets(inputs["labels"], inputs["masks"])
    loss = Mask2FormerLoss(_CLASSES, num_points=_POINTS, **_WEIGHTS, **_SETTINGS).to(inputs["maps"].device)
    return lambda classes, maps: loss.total(loss(classes, maps, *targets))


def _transformers(inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    from fastmtl.utils.torchvision_guard import make_torchvision_importable

    make_torchvision_importable()
    from transformers.models.mask2former import modeling_mask2former

    config: Any = SimpleNamespace(num_labels=_CLASSES, train_num_points=_POINTS, **_WEIGHTS, **_SETTINGS)
    loss = modeling_mask2former.Mask2FormerLoss(config, {}).to(inputs["maps"].device)
    masks, labels = [mask.float() for mask in inputs["masks"]], inputs["labels"]  # as its image processor makes them

    def total(classes: Tensor, maps: Tensor) -> Tensor:
        found = loss(maps, classes, masks, labels)
        return 5 * found["loss_mask"] + 5 * found["loss_dice"] + 2 * found["loss_cross_entropy"]

    return total


@contextmanager
def _points_on_a_grid() -> Iterator[None]:
    """Both draw the same points, whatever the order and the number of their calls: row n of a lattice, n by size."""
    rand, tables = torch.rand, {}

    def fixed(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None, generator: Any = None) -> Tensor:
        key = (shape[1], dtype, device)
        if key not in tables:
            steps = torch.arange(1, shape[1] + 1, dtype=torch.float64)[:, None]
            lattice = (steps * torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)) % 1
            tables[key] = lattice.to(device or "cpu", dtype)
        return tables[key].expand(*shape).clone()

    torch.rand = fixed
    try:
        yield
    finally:
        torch.rand = rand


def _loss_run(make_loss: Callable[[Inputs], Callable[[Tensor, Tensor], Tensor]]) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        loss, leaves = make_loss(inputs), (inputs["classes"], inputs["maps"])

        def run() -> tuple[Tensor, ...]:
            with _points_on_a_grid():
                value = loss(*leaves)
                return value.detach(), *torch.autograd.grad(value, leaves)

        return run

    return prepare


def _loss_truth(inputs: Inputs) -> tuple[Tensor, ...]:
    double = {**inputs, **{name: inputs[name].detach().double().requires_grad_() for name in ("classes", "maps")}}
    return _loss_run(_ours)(double)()


def _make_costs(samples: int, queries: int, targets: int, device: torch.device) -> Inputs:
    source = torch.Generator().manual_seed(0)
    return {"cost": torch.randn(samples, queries, targets, generator=source).to(device)}


def _match(inputs: Inputs) -> Run:
    return lambda: (ops.linear_assignment(inputs["cost"]),)


def _scipy(inputs: Inputs) -> Run:
    """As transformers' matcher calls it, with the result on the device of the loss."""
    from scipy.optimize import linear_sum_assignment

    cost: Tensor = inputs["cost"]

    def run() -> tuple[Tensor, ...]:
        matches = []
        for own in cost:
            queries, targets = linear_sum_assignment(own.cpu())
            matches.append(torch.from_numpy(queries)[torch.from_numpy(targets).argsort()])
        return (torch.stack(matches).to(cost.device),)

    return run


register(
    Case(
        op="mask2former_loss",
        shape=f"B=2, Q={_QUERIES}, T={_TARGETS}, 64x64 float32 logits, 256x256 uint8 masks, {_POINTS} points",
        mode="forward + backward",
        make=partial(_make, 2),
        contenders={"fastmtl": _loss_run(_ours), "transformers Mask2FormerLoss": _loss_run(_transformers)},
        min_bytes=0,
        tolerance=1e-3,
        truth=_loss_truth,
    )
)
for _sizes in ((2, 100, 20), (16, 100, 20), (16, 300, 100)):
    register(
        Case(
            op="linear_assignment",
            shape=f"B={_sizes[0]}, Q={_sizes[1]}, T={_sizes[2]} float32",
            mode="matching",
            make=partial(_make_costs, *_sizes),
            contenders={"fastmtl": _match, "SciPy, sample by sample": _scipy},
            min_bytes=0,
            tolerance=0,
            truth=lambda inputs: _scipy({"cost": inputs["cost"].double()})(),
        )
    )
