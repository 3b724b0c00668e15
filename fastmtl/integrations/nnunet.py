"""nnU-Net v2's own training with our losses: what `nnUNetTrainerFastmtl` does.

export nnUNet_extTrainer="$(python -m fastmtl.integrations.nnunet)"
nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerFastmtl
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastmtl import ops
from fastmtl.losses.nnunet import DC_and_BCE_loss, DC_and_CE_loss, MemoryEfficientSoftDiceLoss, SoftDiceLoss
from fastmtl.losses.patching import check_version
from fastmtl.utils.optional_imports import require

TRAINERS = Path(__file__).resolve().parent / "nnunet_trainers"
"""The folder for nnU-Net's variable nnUNet_extTrainer."""


class HeadInput(NamedTuple):
    """What a segmentation head reads, in place of its logits [B, C, *spatial]."""

    features: Tensor  # [B, F, *spatial]
    weight: Tensor  # [C, F, 1, ...]
    bias: Tensor | None


class HeadLoss(DC_and_CE_loss):
    """`DC_and_CE_loss` of logits or of a `HeadInput`, whose logits are not stored where that costs less memory."""

    def forward(self, net_output: Tensor | HeadInput, target: Tensor) -> Tensor:
        if isinstance(net_output, Tensor):
            return super().forward(net_output, target)
        return self.of_input(net_output, target)

    def of_input(self, given: HeadInput, target: Tensor, fuse: bool | None = None) -> Tensor:
        """The loss of what a head read; `fuse` as for `ops.linear_dice_ce_loss`, which lacks some options."""
        dice: Any = self.dc
        if not self._is_fusible(given, target):
            features, weight, bias = given
            convolution = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[features.dim() - 3]
            return super().forward(convolution(features, weight, bias), target)
        loss = ops.linear_dice_ce_loss(
            *given,
            _numbers(target),
            ce_weight=self.weight_ce,
            dice_weight=self.weight_dice,
            ignore_index=self.ignore_label,
            include_background=dice.do_bg,
            batch=dice.batch_dice,
            smooth_nr=dice.smooth,
            smooth_dr=dice.smooth,
            fuse=fuse,
        )
        return loss - self.weight_dice  # nnU-Net's Dice loss is minus the score, ours is 1 minus it

    def counts(self, given: HeadInput, target: Tensor, fuse: bool | None = None) -> ops.Counts:
        """The pixels [B, C] that the head predicts rightly, wrongly and misses, but for ignored ones."""
        options: Any = {"ignore_index": self.ignore_label, "fuse": fuse, "return_counts": True}
        return ops.linear_dice_ce_loss(*given, _numbers(target), **options)[1]

    def _is_fusible(self, given: HeadInput, target: Tensor) -> bool:
        """Whether options and target are those of nnU-Net's own trainer."""
        dice, ce = self.dc, self.ce
        return (
            type(dice) in (SoftDiceLoss, MemoryEfficientSoftDiceLoss)
            and dice.clip_tp is None
            and not (dice.ddp and dice.batch_dice)
            and ce.weight is None
            and ce.label_smoothing == 0
            and ce.reduction == "mean"
            and ce.ignore_index == (-100 if self.ignore_label is None else self.ignore_label)
            and target.shape[1] == 1
            and len(given.weight) > 1
        )


def loss_of(*, regions: bool, ignore_label: int | None, batch_dice: bool, ddp: bool) -> nn.Module:
    """The loss of nnU-Net's trainer for one output of the network, without deep supervision.

    Args:
        regions: the data set has regions, which may overlap.
        ignore_label: the label that has no ground truth; None if the data set has none.
        batch_dice: Dice of the whole batch, as the plan says.
        ddp: over the batches of all ranks.
    """
    dice = {"batch_dice": batch_dice, "do_bg": regions, "smooth": 1e-5, "ddp": ddp}
    if regions:
        return DC_and_BCE_loss({}, dice, use_ignore_label=ignore_label is not None)
    return HeadLoss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)


def pass_inputs_on(heads: Iterable[nn.Module]) -> None:
    """Let these 1x1 convolutions give `HeadLoss` what they read, in training; evaluated, they compute logits."""
    for head in heads:
        head.forward = partial(_forward, head)


@contextmanager
def inputs_passed_on(heads: Iterable[nn.Module]) -> Iterator[None]:
    """Heads of `pass_inputs_on` in an evaluated network do here what they do in training."""
    before = [(head, head.training) for head in heads]
    try:
        for head, _ in before:
            head.train()
        yield
    finally:
        for head, training in before:
            head.train(training)


def _forward(head: Any, features: Tensor) -> Tensor | HeadInput:
    if head.training:
        return HeadInput(features, head.weight, head.bias)
    return type(head).forward(head, features)


def _numbers(target: Tensor) -> Tensor:
    """Class numbers [B, *spatial] of nnU-Net's target [B, 1, *spatial]."""
    return target[:, 0].long() if target.is_floating_point() else target[:, 0]


def main() -> None:
    """Print the folder of the trainers if nnU-Net can use them; else one line on standard error, and status 1."""
    try:
        require("nnunetv2", "nnUNetTrainerFastmtl", "nnunet")
        check_version("nnunet")
    except (ImportError, ValueError) as error:
        sys.exit(f"fastmtl: {error}")
    print(TRAINERS)


if __name__ == "__main__":
    main()
