"""Dice with a second term: cross-entropy or focal."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from .._overlap import Overlap, binary_entropy, cross_entropy, fused_sums
from ._arguments import Weights, one_of, stripped
from .focal import FocalLoss
from .overlap import DiceLoss


def _check_shapes(input: Tensor, target: Tensor) -> None:
    if input.dim() != target.dim():
        raise ValueError(
            f"`target` must have as many dims as `input` {list(input.shape)}; got {list(target.shape)}. "
            "Class numbers are [B, 1, *spatial]."
        )
    if target.shape[1] not in (1, input.shape[1]):
        raise ValueError(f"`target` must have 1 channel or {input.shape[1]} like `input`; got {target.shape[1]}.")


def _check_factors(**factors: float) -> None:
    for name, value in factors.items():
        if value < 0.0:
            raise ValueError(f"`{name}` must be 0 or more; got {value}.")


class DiceCELoss(_Loss):
    """`monai.losses.DiceCELoss`: lambda_dice * Dice + lambda_ce * cross-entropy.

    As in MONAI, the cross-entropy uses a softmax for several channels, also with `sigmoid=True`, and is binary for one
    channel; `weight` holds the class weights of both terms, or for one channel the weight of the positives.

    Fused: everything `DiceLoss` fuses; with a softmax, or a sigmoid of one channel, one pass computes both terms; with
    another activation or `label_smoothing` the cross-entropy is a second fused pass.

    >>> loss = DiceCELoss(to_onehot_y=True, softmax=True)
    >>> round(loss(torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 8, 8)).item(), 4)
    1.9319
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[..., Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        reduction = one_of("reduction", stripped(reduction), ("mean", "sum"))
        of_dice = weight if weight is None or include_background else weight[1:]
        self.dice = DiceLoss(include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard,
                             reduction, smooth_nr, smooth_dr, batch, of_dice)  # fmt: skip
        self.cross_entropy = nn.CrossEntropyLoss(weight=weight, reduction=reduction, label_smoothing=label_smoothing)
        self.binary_cross_entropy = nn.BCEWithLogitsLoss(pos_weight=weight, reduction=reduction)
        _check_factors(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        _check_shapes(input, target)
        positive = self.binary_cross_entropy.pos_weight
        if input.shape[1] != 1 or positive is None or positive.numel() != 1:
            positive = None
        sums = self.dice._sums(input, target, None if positive is None else positive.reshape(1))
        dice = self.dice._loss(sums, input)
        entropy = self._binary(sums, input, target) if input.shape[1] == 1 else self._softmax(sums, input, target)
        return self.lambda_dice * dice + self.lambda_ce * entropy

    def _softmax(self, sums: Overlap, input: Tensor, target: Tensor) -> Tensor:
        settings, index = self.cross_entropy, target.shape[1] == 1
        if target.requires_grad:
            return settings(input, target.squeeze(1).long() if index else target)
        if sums.entropy is None or not self.dice.softmax or settings.label_smoothing != 0:
            return cross_entropy(input, target, settings)
        return sums.cross_entropy(settings.weight, settings.reduction, index=index)

    def _binary(self, sums: Overlap, input: Tensor, target: Tensor) -> Tensor:
        settings = self.binary_cross_entropy
        positive = settings.pos_weight
        if target.requires_grad or (positive is not None and positive.numel() != 1):
            return settings(input, target if target.is_floating_point() else target.to(input.dtype))
        if sums.entropy is None:
            sums = fused_sums(input, target, "sigmoid", pos_weight=None if positive is None else positive.reshape(1))
        return binary_entropy(sums, None, settings.reduction)


class DiceFocalLoss(_Loss):
    """`monai.losses.DiceFocalLoss`: lambda_dice * Dice + lambda_focal * focal; the focal term always uses a sigmoid.

    Two fused passes, one per term; arguments are fused or plain as in `DiceLoss` and `FocalLoss`. With
    `reduction="none"` the Dice term [B, C, 1, ...] broadcasts over the focal one [B, C, *spatial].
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[..., Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        weight: Weights = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        self.dice = DiceLoss(include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard,
                             reduction, smooth_nr, smooth_dr, batch, weight)  # fmt: skip
        self.focal = FocalLoss(include_background, to_onehot_y, gamma, alpha, weight, reduction)
        _check_factors(lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        self.lambda_dice, self.lambda_focal, self.to_onehot_y = lambda_dice, lambda_focal, to_onehot_y

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        _check_shapes(input, target)
        return self.lambda_dice * self.dice(input, target) + self.lambda_focal * self.focal(input, target)
