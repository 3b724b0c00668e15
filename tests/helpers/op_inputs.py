"""What the contract suite calls the ops with: arguments by shape, and the losses in a common formulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.classes import class_map
from helpers.gradients import gradients, orders
from helpers.heads import pyramid
from helpers.inputs import generator, segmentation, views
from helpers.regression import pair

Shape = tuple[int, ...]


class Call(NamedTuple):
    """The arguments of an op: its differentiable tensors in order, all others by keyword."""

    inputs: tuple[Tensor, ...]
    rest: dict[str, Any]


Make = Callable[[Shape, torch.dtype, int], Call]


def _with_target(pair_of: Callable[..., tuple[Tensor, Tensor]], name: str = "target", **options: Any) -> Make:
    def make(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
        x, t = pair_of(shape, dtype, seed=seed, **options)
        return Call((x,), {name: t})

    return make


sigmoid, pairs = _with_target(segmentation), _with_target(segmentation, "targets")


classes, regression = _with_target(class_map, target_dtype=torch.int64), _with_target(pair)


def heads(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    maps, target = pyramid(shape, (1, 2), dtype=dtype, seed=seed)
    return Call(tuple(maps), {"target": target})


def heads_of_classes(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    maps, target = pyramid(shape, (1, 2), channels=3, dtype=dtype, seed=seed)
    return Call(tuple(maps), {"target": target.long().sum(1).clamp(max=2)})


def _with_layer(pixels: Make) -> Make:
    """As many features as channels, with a linear layer to the channels."""

    def make(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
        (x,), rest = pixels(shape, dtype, seed)
        source = generator(seed + 1)
        weight = torch.randn(shape[1], shape[1], generator=source, dtype=torch.float64)
        return Call((x, weight.to(dtype), torch.randn(shape[1], generator=source).to(dtype)), rest)

    return make


def _with_fixed_layer(layer: Make) -> Make:
    """The same, of which only the features are differentiable."""

    def make(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
        (x, weight, bias), rest = layer(shape, dtype, seed)
        return Call((x,), rest | {"weight": weight, "bias": bias})

    return make


layer_of_classes, layer_of_channels = _with_layer(classes), _with_layer(sigmoid)
features_of_classes, features_of_channels = _with_fixed_layer(layer_of_classes), _with_fixed_layer(layer_of_channels)


def two_views(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    return Call(views(*shape, dtype, scale=1.0, seed=seed), {"temperature": 0.5})


def rows(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    return Call((gradients(*shape, dtype=dtype, seed=seed),), {})


def combined(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    w = torch.randn(shape[0], generator=generator(seed), dtype=torch.float64)
    return Call((gradients(*shape, dtype=dtype, seed=seed), w if dtype == torch.float64 else w.float()), {})


def gram_and_order(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    J = gradients(*shape, dtype=torch.float64, seed=seed)
    return Call((), {"G": J @ J.T, "order": orders(shape[0], seed)})


def costs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    return Call((), {"cost": torch.randn(shape, generator=generator(seed)).to(dtype)})


def points(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    source = generator(seed)
    maps = torch.randn(shape, generator=source).to(dtype)
    at = torch.rand(shape[0], 40 * shape[-1], 2, generator=source) * 1.4 - 0.2
    return Call((maps,), {"coordinates": at.double() if dtype == torch.float64 else at})


def naive_dice(p: Tensor, t: Tensor) -> Tensor:
    p, t = p.flatten(2), t.flatten(2)
    return (1 - (2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)).mean()


def naive_dice_bce(x: Tensor, t: Tensor) -> Tensor:
    t = t.to(x.dtype)
    return 0.5 * F.binary_cross_entropy_with_logits(x, t) + 0.5 * naive_dice(x.sigmoid(), t)


def naive_dice_ce(x: Tensor, t: Tensor) -> Tensor:
    one_hot = F.one_hot(t.long(), x.shape[1]).movedim(-1, 1).to(x.dtype)
    return 0.5 * F.cross_entropy(x, t.long()) + 0.5 * naive_dice(x.softmax(1), one_hot)


def naive_focal(x: Tensor, t: Tensor) -> Tensor:
    p, t = x.sigmoid(), t.to(x.dtype)
    alpha = 0.25 * t + 0.75 * (1 - t)
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return (alpha * entropy * (1 - p * t - (1 - p) * (1 - t)) ** 2).mean()


def naive_softmax_focal(x: Tensor, t: Tensor) -> Tensor:
    log_p = x.log_softmax(1).gather(1, t.long().unsqueeze(1)).squeeze(1)
    alpha = torch.where(t == 0, 0.75, 0.25).to(x.dtype)
    return (-alpha * (1 - log_p.exp()) ** 2 * log_p).mean()


def on_floats(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: loss(x, t.to(x.dtype))
