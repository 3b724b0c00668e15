"""Registry of the public ops of `fastmtl.ops` for the contract suite: one entry per op."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmtl import ops
from helpers.op_inputs import (
    classes,
    combined,
    costs,
    features_of_channels,
    features_of_classes,
    gram_and_order,
    heads,
    heads_of_classes,
    layer_of_channels,
    layer_of_classes,
    naive_dice_bce,
    naive_dice_ce,
    naive_focal,
    naive_softmax_focal,
    on_floats,
    pairs,
    points,
    regression,
    rows,
    sigmoid,
    two_views,
)  # fmt: skip
from helpers.op_spec import PIXELS, OpSpec


def _weights(number: int) -> Tensor:
    return torch.linspace(0.2, 1.5, number)


_PLAIN = {"batches": False, "maps": False}
_LINEAR: dict[str, Any] = _PLAIN | {
    "forward": False,
    "batched": False,
    "argument": "J",
    "tiny": (3, 11),
    "small": (3, 40),
}
_OF_HEADS: dict[str, Any] = {"tiny": (2, 2), "small": (8, 4), "large": (240, 200), "argument": "inputs[0]"}
_KERNELS = ("softmax_sums", "softmax_gradient", "softmax_tiles", "softmax_tiles_gradient", "class_registers")
_SOFTMAX = ("dice_ce", *_KERNELS)

SPECS = (
    OpSpec(
        "dice_bce_loss",
        "dice_bce",
        ops.dice_bce_loss,
        sigmoid,
        (
            lambda C: {"reduction": "none", "squared_pred": True, "weight": _weights(C), "mask": PIXELS},
            lambda C: {"reduction": "sum", "jaccard": True, "pos_weight": _weights(C), "empty": "skip"},
            lambda C: {"batch": True, "jaccard": True, "squared_pred": True, "bce_weight": 0.2, "dice_weight": 2.0},
        ),
        kept=3 * 2 * 3,
        naive=naive_dice_bce,
    ),
    OpSpec(
        "bce_with_logits",
        "bce",
        ops.bce_with_logits,
        sigmoid,
        (
            lambda C: {"reduction": "sum", "pos_weight": _weights(C), "mask": PIXELS},
            lambda C: {"reduction": "none", "pos_weight": 2.0},
            lambda C: {"weight": _weights(C).view(-1, 1, 1)},
        ),
        kept=3 * 2 * 3,
        naive=on_floats(F.binary_cross_entropy_with_logits),
        shares=("dice_bce",),
    ),
    OpSpec(
        "overlap_sums",
        "overlap",
        ops.overlap_sums,
        sigmoid,
        (lambda C: {"squared_pred": True, "pos_weight": _weights(C), "mask": PIXELS},),
        kept=0,
        shares=("dice_bce",),
    ),
    OpSpec(
        "overlap_sums softmax",
        "overlap",
        partial(ops.overlap_sums, activation="softmax"),
        classes,
        (lambda C: {"squared_pred": True, "ignore_index": 1, "mask": PIXELS},),
        kept=0,
        shares=_SOFTMAX,
    ),
    OpSpec(
        "tversky_loss",
        "tversky",
        ops.tversky_loss,
        sigmoid,
        (
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
        classes,
        (lambda C: {"include_background": False, "reduction": "sum", "ignore_index": 1},),
        tolerance=1e-5,
        shares=("overlap", *_SOFTMAX),
    ),
    OpSpec(
        "dice_ce_loss",
        "dice_ce",
        ops.dice_ce_loss,
        classes,
        (
            lambda C: {"reduction": "none", "weight": _weights(C), "squared_pred": True, "mask": PIXELS},
            lambda C: {"reduction": "sum", "include_background": False, "label_smoothing": 0.3, "ignore_index": 1},
            lambda C: {"batch": True, "jaccard": True, "empty": "skip", "ce_weight": 0.2, "dice_weight": 2.0},
        ),
        kept=3 * 2 * 3,
        naive=naive_dice_ce,
        shares=_KERNELS,
    ),
    OpSpec(
        "cross_entropy",
        "cross_entropy",
        ops.cross_entropy,
        classes,
        (
            lambda C: {"reduction": "sample", "weight": _weights(C), "mask": PIXELS},
            lambda C: {"reduction": "sum", "label_smoothing": 0.2, "ignore_index": 1},
        ),
        kept=2,
        naive=F.cross_entropy,
        shares=("class_loss", *_SOFTMAX),
    ),
    OpSpec(
        "cross_entropy rows",
        "cross_entropy",
        ops.cross_entropy,
        classes,
        (lambda C: {"reduction": "none", "weight": _weights(C), "mask": PIXELS},),
        tiny=(2, 66),
        small=(2, 70),
        large=(90, 2000),
        maps=False,
        kept=3 * 2,
        shares=("class_loss", *_SOFTMAX),
    ),
    OpSpec(
        "focal_loss",
        "focal",
        ops.focal_loss,
        sigmoid,
        (
            lambda C: {"gamma": 1.5, "alpha": _weights(C) / 2, "reduction": "none", "mask": PIXELS},
            lambda C: {"gamma": 1.0, "alpha": None, "weight": _weights(C), "reduction": "sum"},
            lambda C: {"gamma": 0.0},
        ),
        kept=2 * 3,
        naive=naive_focal,
        tolerance=1e-5,
    ),
    OpSpec(
        "focal_loss softmax",
        "focal_softmax",
        partial(ops.focal_loss, activation="softmax"),
        classes,
        (
            lambda C: {"gamma": 1.5, "alpha": _weights(C), "reduction": "none", "mask": PIXELS},
            lambda C: {"gamma": 1.0, "alpha": None, "weight": _weights(C), "reduction": "sum", "ignore_index": 1},
            lambda C: {"gamma": 0.0},
        ),
        kept=2 + 3,
        naive=naive_softmax_focal,
        tolerance=1e-5,
        shares=("focal", "class_registers", "focal_softmax_tiles", "class_loss"),
    ),
    *(
        OpSpec(
            name,
            "regression",
            function,
            regression,
            (
                lambda C: {"reduction": "none", "mask": PIXELS},
                lambda C: {"reduction": "sum", "mask": torch.tensor([[True], [True]])},
            ),
            kept=2,
            naive=on_floats(plain),
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
        two_views,
        (lambda C: {"mask": torch.tensor([False, True, True])},),
        tiny=(3, 4),
        small=(3, 5),
        large=(400, 50),
        kept=3 * 2 * 5 + 4 * 3 + 1,
        argument="z1",
        tolerance=2e-5,
        **_PLAIN,
    ),
    OpSpec(
        "deep_supervision_loss",
        "deep_supervision",
        lambda *inputs, **rest: ops.deep_supervision_loss(inputs, **rest),
        heads,
        (
            lambda C: {"downsample": "area", "reduction": "none", "weights": [0.7, 0.3], "mask": PIXELS},
            lambda C: {"downsample": "max", "jaccard": True, "batch": True, "weights": torch.tensor([0.7, 0.3])},
        ),
        kept=2 * 3 * 2 * 2,
        **_OF_HEADS,
    ),
    OpSpec(
        "deep_supervision_loss softmax",
        "deep_supervision",
        lambda *inputs, **rest: ops.deep_supervision_loss(inputs, activation="softmax", **rest),
        heads_of_classes,
        (
            lambda C: {"downsample": "area", "reduction": "none", "weights": [0.7, 0.3], "mask": PIXELS},
            lambda C: {"downsample": "max", "ignore_index": 1, "weights": torch.tensor([0.7, 0.3])},
        ),
        **_OF_HEADS,
    ),
    *(
        OpSpec(
            f"linear_dice_ce_loss{name}",
            "linear_dice_ce",
            partial(ops.linear_dice_ce_loss, fuse=True),
            make,
            (
                lambda C: {"reduction": "none", "class_weight": _weights(C), "squared_pred": True, "mask": PIXELS},
                lambda C: {"reduction": "sum", "include_background": False, "label_smoothing": 0.3, "ignore_index": 1},
                lambda C: {"batch": True, "jaccard": True, "empty": "skip", "ce_weight": 0.2, "dice_weight": 2.0},
            ),
            kept=3 * 2 * 3,
            argument="features",
            tolerance=1e-5,
            shares=("linear_losses", "linear_blocks"),
            batches=maps,
            maps=maps,
        )
        for name, make, maps in (("", layer_of_classes, False), (" features", features_of_classes, True))
    ),
    *(
        OpSpec(
            f"linear_dice_bce_loss{name}",
            "linear_dice_bce",
            partial(ops.linear_dice_bce_loss, fuse=True),
            make,
            (
                lambda C: {"reduction": "none", "squared_pred": True, "channel_weight": _weights(C), "mask": PIXELS},
                lambda C: {"reduction": "sum", "jaccard": True, "pos_weight": _weights(C), "empty": "skip"},
                lambda C: {"batch": True, "jaccard": True, "squared_pred": True, "bce_weight": 0.2},
            ),
            kept=3 * 2 * 3,
            argument="features",
            tolerance=1e-5,
            shares=("linear_losses", "linear_blocks"),
            batches=False,
            maps=maps,
        )
        for name, make, maps in (("", layer_of_channels, False), (" features", features_of_channels, True))
    ),
    OpSpec("gram", "gram", ops.gram, rows, large=(8, 100_003), kept=0, **_LINEAR),
    OpSpec("grad_norms", "gram", ops.grad_norms, rows, large=(8, 100_003), kept=3, **_LINEAR),
    OpSpec("combine", "combine", ops.combine, combined, large=(5, 200_003), kept=0, **_LINEAR),
    OpSpec(
        "pcgrad_weights",
        "pcgrad",
        ops.pcgrad_weights,
        gram_and_order,
        (lambda C: {"reduction": "mean"},),
        small=(4, 40),
        large=(40, 60),
        differentiable=False,
        batched=False,
        argument="G",
        **_PLAIN,
    ),
    OpSpec(
        "linear_assignment",
        "assignment",
        ops.linear_assignment,
        costs,
        (lambda C: {"num_targets": torch.tensor([2, 0])},),
        small=(2, 5, 4),
        large=(6, 60, 30),
        differentiable=False,
        argument="cost",
        **_PLAIN,
    ),
    OpSpec(
        "sample_points",
        "points",
        ops.sample_points,
        points,
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
        pairs,
        (lambda C: {"bce_weight": 2.0, "dice_weight": 0.5},),
        tiny=(1, 3, 5),
        small=(2, 3, 50),
        large=(2, 30, 900),
        kernels=(),
        argument="mask_logits",
        **_PLAIN,
    ),
)
# Public ops outside of this contract, and the tests that cover them.
ELSEWHERE = {
    "fused_step": "tests/balance/test_fused_step.py",
    "release_memory": "tests/ops/test_buffer_cache.py",
    "sample_uncertain_points": "tests/ops/test_points.py",
    "stain_normalize": "tests/stain/test_stain_normalize.py",
}
