"""Registry of the public ops of `fastmtl.ops` for the contract suite: one entry per op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmtl import ops
from helpers.classes import class_map
from helpers.gradients import gradients, orders
from helpers.heads import pyramid
from helpers.inputs import generator, segmentation, views
from helpers.regression import pair

Shape = tuple[int, ...]
TINY, SMALL = (2, 3, 2, 2), (2, 3, 6, 5)
SOFTMAX_FILES = ("class_registers", "softmax_tiles", "softmax_tiles_gradient")  # files of the softmax kernels
PIXELS = "pixels"  # replaced by a mask of the target's shape with about two of three elements valid


class Call(NamedTuple):
    """The arguments of an op: its differentiable tensors in order, all others by keyword."""

    inputs: tuple[Tensor, ...]
    rest: dict[str, Any]


@dataclass(frozen=True)
class OpSpec:
    """The contract of one op, or of one variant of it: `function(*inputs, **rest)` is the public function.

    Attributes:
        name: as in `fastmtl.ops`; the variant follows after a space.
        stem: common stem of the names of its files.
        make: (shape, dtype, seed) -> Call; the op defines what the shape means.
        cases: settings to try, each a function of the number of channels (or rows).
        tiny, small, large: shapes for finite differences, for most tests, and with several chunks.
        batches, maps: whether the first input has a batch dim to mask, and spatial dims whose memory layout can change.
        kernels: the backends besides the reference.
        differentiable: whether the op has a gradient; forward: whether also in forward mode.
        kept: numbers the backward may keep besides the arguments, at `small`.
        naive: (input, target) -> loss in a common formulation, in the inputs' dtype.
        tolerance: error of float32 results against float64, relative to the largest.
        batched: whether vmap works; argument: name of the first input in messages.
        shares: stems of the ops whose definition and kernels this one uses, if it has none.
    """

    name: str
    stem: str
    function: Callable[..., Any]
    make: Callable[[Shape, torch.dtype, int], Call]
    cases: Sequence[Callable[[int], Mapping[str, Any]]] = (lambda C: {},)
    tiny: Shape = TINY
    small: Shape = SMALL
    large: Shape = (3, 4, 150, 101)
    batches: bool = True
    maps: bool = True
    kernels: tuple[str, ...] = ("cpp", "triton")
    differentiable: bool = True
    forward: bool = True
    kept: int | None = None
    naive: Callable[[Tensor, Tensor], Tensor] | None = None
    tolerance: float = 5e-6
    batched: bool = True
    argument: str = "input"
    shares: tuple[str, ...] = ()


def _sigmoid(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    x, t = segmentation(shape, dtype, seed=seed)
    return Call((x,), {"target": t})


def _classes(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    x, t = class_map(shape, dtype, torch.int64, seed=seed)
    return Call((x,), {"target": t})


def _regression(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    x, t = pair(shape, dtype, seed=seed)
    return Call((x,), {"target": t})


def _heads(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    heads, target = pyramid(shape, (1, 2), dtype=dtype, seed=seed)
    return Call(tuple(heads), {"target": target})


def _heads_of_classes(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    heads, target = pyramid(shape, (1, 2), channels=3, dtype=dtype, seed=seed)
    return Call(tuple(heads), {"target": target.long().sum(1).clamp(max=2)})


def _views(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    return Call(views(shape[0], shape[1], dtype, scale=1.0, seed=seed), {"temperature": 0.5})


def _rows(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    return Call((gradients(*shape, dtype=dtype, seed=seed),), {})


def _combined(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    w = torch.randn(shape[0], generator=generator(seed), dtype=torch.float64)
    return Call((gradients(*shape, dtype=dtype, seed=seed), w if dtype == torch.float64 else w.float()), {})


def _gram_and_order(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    J = gradients(*shape, dtype=torch.float64, seed=seed)
    return Call((), {"G": J @ J.T, "order": orders(shape[0], seed)})


def _costs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    return Call((), {"cost": torch.randn(shape, generator=generator(seed)).to(dtype)})


def _points(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    source = generator(seed)
    maps = torch.randn(shape, generator=source).to(dtype)
    number = 40 * shape[-1]
    at = torch.rand(shape[0], number, 2, generator=source) * 1.4 - 0.2
    return Call((maps,), {"coordinates": at.double() if dtype == torch.float64 else at})


def _pairs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Call:
    x, t = segmentation(shape, dtype, seed=seed)
    return Call((x,), {"targets": t})


def _naive_dice(p: Tensor, t: Tensor) -> Tensor:
    p, t = p.flatten(2), t.flatten(2)
    return (1 - (2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)).mean()


def _naive_dice_bce(x: Tensor, t: Tensor) -> Tensor:
    t = t.to(x.dtype)
    return 0.5 * F.binary_cross_entropy_with_logits(x, t) + 0.5 * _naive_dice(x.sigmoid(), t)


def _naive_dice_ce(x: Tensor, t: Tensor) -> Tensor:
    one_hot = F.one_hot(t.long(), x.shape[1]).movedim(-1, 1).to(x.dtype)
    return 0.5 * F.cross_entropy(x, t.long()) + 0.5 * _naive_dice(x.softmax(1), one_hot)


def _naive_focal(x: Tensor, t: Tensor) -> Tensor:
    p, t = x.sigmoid(), t.to(x.dtype)
    alpha = 0.25 * t + 0.75 * (1 - t)
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return (alpha * entropy * (1 - p * t - (1 - p) * (1 - t)) ** 2).mean()


def _naive_softmax_focal(x: Tensor, t: Tensor) -> Tensor:
    log_p = x.log_softmax(1).gather(1, t.long().unsqueeze(1)).squeeze(1)
    alpha = torch.where(t == 0, 0.75, 0.25).to(x.dtype)
    return (-alpha * (1 - log_p.exp()) ** 2 * log_p).mean()


def _as_tensor(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: loss(x, t.to(x.dtype))


def _weights(number: int) -> Tensor:
    return torch.linspace(0.2, 1.5, number)


SPECS = (
    OpSpec(
        "dice_bce_loss",
        "dice_bce",
        ops.dice_bce_loss,
        _sigmoid,
        (
            lambda C: {},
            lambda C: {"reduction": "none", "squared_pred": True, "weight": _weights(C), "mask": PIXELS},
            lambda C: {"reduction": "sum", "jaccard": True, "pos_weight": _weights(C), "empty": "skip"},
            lambda C: {"batch": True, "jaccard": True, "squared_pred": True, "bce_weight": 0.2, "dice_weight": 2.0},
        ),
        kept=3 * 2 * 3,
        naive=_naive_dice_bce,
    ),
    OpSpec(
        "bce_with_logits",
        "bce",
        ops.bce_with_logits,
        _sigmoid,
        (
            lambda C: {},
            lambda C: {"reduction": "sum", "pos_weight": _weights(C), "mask": PIXELS},
            lambda C: {"reduction": "none", "pos_weight": 2.0},
            lambda C: {"weight": _weights(C).view(-1, 1, 1)},
        ),
        kept=3 * 2 * 3,
        naive=_as_tensor(F.binary_cross_entropy_with_logits),
        shares=("dice_bce",),
    ),
    OpSpec(
        "overlap_sums",
        "overlap",
        ops.overlap_sums,
        _sigmoid,
        (lambda C: {}, lambda C: {"squared_pred": True, "pos_weight": _weights(C), "mask": PIXELS}),
        kept=0,
        shares=("dice_bce",),
    ),
    OpSpec(
        "overlap_sums softmax",
        "overlap",
        partial(ops.overlap_sums, activation="softmax"),
        _classes,
        (lambda C: {}, lambda C: {"squared_pred": True, "ignore_index": 1, "mask": PIXELS}),
        kept=0,
        shares=("dice_ce", "softmax_sums", "softmax_gradient", *SOFTMAX_FILES),
    ),
    OpSpec(
        "tversky_loss",
        "tversky",
        ops.tversky_loss,
        _sigmoid,
        (
            lambda C: {},
            lambda C: {"alpha": 0.3, "beta": 0.7, "gamma": 0.75, "reduction": "none", "mask": PIXELS},
            lambda C: {"batch": True, "gamma": 1.5, "weight": _weights(C)},
        ),
        tolerance=1e-5,
        shares=("overlap", "dice_bce"),
    ),
    OpSpec(
        "tversky_loss softmax",
        "tversky",
        partial(ops.tversky_loss, activation="softmax"),
        _classes,
        (lambda C: {}, lambda C: {"include_background": False, "reduction": "sum", "ignore_index": 1}),
        tolerance=1e-5,
        shares=("overlap", "dice_ce", "softmax_sums", "softmax_gradient", *SOFTMAX_FILES),
    ),
    OpSpec(
        "dice_ce_loss",
        "dice_ce",
        ops.dice_ce_loss,
        _classes,
        (
            lambda C: {},
            lambda C: {"reduction": "none", "weight": _weights(C), "squared_pred": True, "mask": PIXELS},
            lambda C: {"reduction": "sum", "include_background": False, "label_smoothing": 0.3, "ignore_index": 1},
            lambda C: {"batch": True, "jaccard": True, "empty": "skip", "ce_weight": 0.2, "dice_weight": 2.0},
        ),
        kept=3 * 2 * 3,
        naive=_naive_dice_ce,
        shares=("softmax_sums", "softmax_gradient", *SOFTMAX_FILES),
    ),
    OpSpec(
        "cross_entropy",
        "cross_entropy",
        ops.cross_entropy,
        _classes,
        (
            lambda C: {},
            lambda C: {"reduction": "sample", "weight": _weights(C), "mask": PIXELS},
            lambda C: {"reduction": "sum", "label_smoothing": 0.2, "ignore_index": 1},
        ),
        kept=2,
        naive=F.cross_entropy,
        shares=("class_loss", "dice_ce", "softmax_sums", "softmax_gradient", *SOFTMAX_FILES),
    ),
    OpSpec(
        "cross_entropy rows",
        "cross_entropy",
        ops.cross_entropy,
        _classes,
        (lambda C: {}, lambda C: {"reduction": "none", "weight": _weights(C), "mask": PIXELS}),
        tiny=(2, 66),
        small=(2, 70),
        large=(90, 2000),
        maps=False,
        kept=3 * 2,
        shares=("class_loss", "dice_ce", "softmax_sums", "softmax_gradient", *SOFTMAX_FILES),
    ),
    OpSpec(
        "focal_loss",
        "focal",
        ops.focal_loss,
        _sigmoid,
        (
            lambda C: {},
            lambda C: {"gamma": 1.5, "alpha": _weights(C) / 2, "reduction": "none", "mask": PIXELS},
            lambda C: {"gamma": 1.0, "alpha": None, "weight": _weights(C), "reduction": "sum"},
            lambda C: {"gamma": 0.0},
        ),
        kept=2 * 3,
        naive=_naive_focal,
        tolerance=1e-5,
    ),
    OpSpec(
        "focal_loss softmax",
        "focal_softmax",
        partial(ops.focal_loss, activation="softmax"),
        _classes,
        (
            lambda C: {},
            lambda C: {"gamma": 1.5, "alpha": _weights(C), "reduction": "none", "mask": PIXELS},
            lambda C: {"gamma": 1.0, "alpha": None, "weight": _weights(C), "reduction": "sum", "ignore_index": 1},
            lambda C: {"gamma": 0.0},
        ),
        kept=2 + 3,
        naive=_naive_softmax_focal,
        tolerance=1e-5,
        shares=("focal", "class_registers", "focal_softmax_tiles", "class_loss"),
    ),
    *(
        OpSpec(
            name,
            "regression",
            function,
            _regression,
            (
                lambda C: {},
                lambda C: {"reduction": "none", "mask": PIXELS},
                lambda C: {"reduction": "sum", "mask": torch.tensor([[True], [True]])},
            ),
            kept=2,
            naive=_as_tensor(plain),
        )
        for name, function, plain in (
            ("mse_loss", ops.mse_loss, F.mse_loss),
            ("l1_loss", ops.l1_loss, F.l1_loss),
            ("smooth_l1_loss", ops.smooth_l1_loss, F.smooth_l1_loss),
        )
    ),
    OpSpec(
        "nt_xent_loss",
        "nt_xent",
        ops.nt_xent_loss,
        _views,
        (lambda C: {}, lambda C: {"mask": torch.tensor([False, True, True])}),
        tiny=(3, 4),
        small=(3, 5),
        large=(400, 50),
        batches=False,
        maps=False,
        kept=3 * 2 * 5 + 4 * 3 + 1,
        argument="z1",
        tolerance=2e-5,
    ),
    OpSpec(
        "deep_supervision_loss",
        "deep_supervision",
        lambda *heads, **rest: ops.deep_supervision_loss(heads, **rest),
        _heads,
        (
            lambda C: {},
            lambda C: {"downsample": "area", "reduction": "none", "weights": [0.7, 0.3], "mask": PIXELS},
            lambda C: {"downsample": "max", "jaccard": True, "batch": True, "weights": torch.tensor([0.7, 0.3])},
        ),
        tiny=(2, 2),
        small=(8, 4),
        large=(240, 200),
        kept=2 * 3 * 2 * 2,
        argument="inputs[0]",
    ),
    OpSpec(
        "deep_supervision_loss softmax",
        "deep_supervision",
        lambda *heads, **rest: ops.deep_supervision_loss(heads, activation="softmax", **rest),
        _heads_of_classes,
        (
            lambda C: {},
            lambda C: {"downsample": "area", "reduction": "none", "weights": [0.7, 0.3], "mask": PIXELS},
            lambda C: {"downsample": "max", "ignore_index": 1, "weights": torch.tensor([0.7, 0.3])},
        ),
        tiny=(2, 2),
        small=(8, 4),
        large=(240, 200),
        argument="inputs[0]",
    ),
    OpSpec(
        "gram",
        "gram",
        ops.gram,
        _rows,
        tiny=(3, 11),
        small=(3, 40),
        large=(8, 100_003),
        batches=False,
        maps=False,
        forward=False,
        batched=False,
        kept=0,
        argument="J",
    ),
    OpSpec(
        "grad_norms",
        "gram",
        ops.grad_norms,
        _rows,
        tiny=(3, 11),
        small=(3, 40),
        large=(8, 100_003),
        batches=False,
        maps=False,
        forward=False,
        batched=False,
        kept=3,
        argument="J",
    ),
    OpSpec(
        "combine",
        "combine",
        ops.combine,
        _combined,
        tiny=(3, 11),
        small=(3, 40),
        large=(5, 200_003),
        batches=False,
        maps=False,
        forward=False,
        batched=False,
        kept=0,
        argument="J",
    ),
    OpSpec(
        "pcgrad_weights",
        "pcgrad",
        ops.pcgrad_weights,
        _gram_and_order,
        (lambda C: {}, lambda C: {"reduction": "mean"}),
        small=(4, 40),
        large=(40, 60),
        batches=False,
        maps=False,
        differentiable=False,
        batched=False,
        argument="G",
    ),
    OpSpec(
        "linear_assignment",
        "assignment",
        ops.linear_assignment,
        _costs,
        (lambda C: {}, lambda C: {"num_targets": torch.tensor([2, 0])}),
        small=(2, 5, 4),
        large=(6, 60, 30),
        batches=False,
        maps=False,
        differentiable=False,
        argument="cost",
    ),
    OpSpec(
        "sample_points",
        "points",
        ops.sample_points,
        _points,
        tiny=(1, 2, 3, 2),
        small=(2, 3, 7, 5),
        large=(2, 20, 30, 40),
        batches=False,
        forward=False,
        batched=False,
        kept=0,
        argument="maps",
    ),
    OpSpec(
        "pairwise_mask_cost",
        "pairwise_mask",
        ops.pairwise_mask_cost,
        _pairs,
        (lambda C: {}, lambda C: {"bce_weight": 2.0, "dice_weight": 0.5}),
        tiny=(1, 3, 5),
        small=(2, 3, 50),
        large=(2, 30, 900),
        batches=False,
        maps=False,
        kernels=(),
        argument="mask_logits",
    ),
)
# Public ops outside of this contract, and the tests that cover them.
ELSEWHERE = {
    "fused_step": "tests/balance/test_fused_step.py",
    "release_memory": "tests/ops/test_buffer_cache.py",
    "sample_uncertain_points": "tests/ops/test_points.py",
    "stain_normalize": "tests/stain/test_stain_normalize.py",
}
