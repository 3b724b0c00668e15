"""nnU-Net's losses under the same names: the same arguments, defaults, results and exceptions, in fewer passes.

    -from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
    +from fastmtl.losses.nnunet import DC_and_BCE_loss, DC_and_CE_loss

     loss = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, ignore_label=4,
                           dice_class=MemoryEfficientSoftDiceLoss)

Fused, both terms with one read of logits and target in the forward pass and one in the backward pass: any keyword of
the two Dice classes, `weight` of the cross-entropy, `weight` and `pos_weight` of the BCE as one number or one per
channel ([C, 1, 1]). nnU-Net's own Dice classes are recognised and replaced. One fused pass per term: `label_smoothing`,
any other `dice_class` (called unchanged), and one-hot targets of `DC_and_CE_loss`. Plain torch, slower with the same
results: reduction "none", BCE weights of another shape, the softmax of one channel.

Tested against nnunetv2 2.8.1. Intended differences: a batch with only ignored pixels has a cross-entropy of 0, without
waiting for the GPU; a class number without a channel raises ValueError on a CPU (nnU-Net: torch's error) and gives NaN
on a GPU; `ce_kwargs` and `bce_kwargs` are not modified; sums of float64 logits stay float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from . import _plain
from ._overlap import Overlap, all_per_channel, binary_entropy, cross_entropy, fused_sums


def softmax_helper_dim1(x: Tensor) -> Tensor:
    """nnU-Net's softmax over the channels; fused as `apply_nonlin`."""
    return torch.softmax(x, 1)


def _activation(apply_nonlin: Callable[[Tensor], Tensor] | None) -> str | None:
    """The name of a nonlinearity that can be fused; nnU-Net's own softmax is recognised by its module path."""
    if apply_nonlin is torch.sigmoid:
        return "sigmoid"
    address = (getattr(apply_nonlin, "__module__", ""), getattr(apply_nonlin, "__name__", ""))
    theirs = address == ("nnunetv2.utilities.helpers", "softmax_helper_dim1")
    return "softmax" if theirs or apply_nonlin is softmax_helper_dim1 else None


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of their gradients, as in nnU-Net's gather."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        sums = sums.clone()
        distributed.all_reduce(sums)
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        distributed.all_reduce(grad)
        return grad


class SoftDiceLoss(nn.Module):
    """`nnunetv2.training.loss.dice.SoftDiceLoss`: minus the mean of (2 I + s) / (P + T + s).

    `x`: [B, C, *spatial]; `y`: class numbers [B, 1, *spatial] or [B, *spatial], or one-hot like `x`; `loss_mask`: bool
    [B, 1, *spatial]. With `ddp` and `batch_dice` the sums are summed over the ranks. Fused for `torch.sigmoid` and
    `softmax_helper_dim1` (of two channels or more) as `apply_nonlin`, plain for any other.

    >>> dice = SoftDiceLoss(softmax_helper_dim1, do_bg=False, ddp=False)
    >>> round(dice(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)
    -0.68
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        super().__init__()
        self.apply_nonlin, self.batch_dice, self.do_bg = apply_nonlin, batch_dice, do_bg
        self.smooth, self.ddp, self.clip_tp = smooth, ddp, clip_tp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        y = y.detach()
        if x.dim() != y.dim():
            y = y.view(y.shape[0], 1, *y.shape[1:])
        index = x.shape != y.shape
        activation = _activation(self.apply_nonlin)
        if activation == "sigmoid" or (activation == "softmax" and x.shape[1] > 1):
            return self.of(fused_sums(x, y, activation, index=index, mask=_as_bool(loss_mask)))
        p = x if self.apply_nonlin is None else self.apply_nonlin(x)
        y = _plain.one_hot(y, p.shape[1]) if p.shape != y.shape else y
        return self.of(Overlap(*_plain.overlap(p, y, loss_mask)))

    def of(self, sums: Overlap) -> Tensor:
        """The loss from sums per sample and channel [B, C]."""
        if self.batch_dice:
            pooled = torch.stack(sums[:3]).sum(1)  # [3, C]: one message for all three
            sums = Overlap(*(_SumOverRanks.apply(pooled) if self.ddp else pooled))
        if self.clip_tp is not None:
            clipped = sums.intersection.clamp(min=self.clip_tp)
            gained = clipped - sums.intersection
            sums = Overlap(
                clipped, sums.prediction + gained, sums.target + gained
            )  # the number of false pixels does not change
        score = sums.score(smooth_nr=self.smooth, smooth_dr=self.smooth, scale=2.0, floor=1e-8)
        return -(score if self.do_bg else score[..., 1:]).mean()


class MemoryEfficientSoftDiceLoss(SoftDiceLoss):
    """`nnunetv2.training.loss.dice.MemoryEfficientSoftDiceLoss`: `SoftDiceLoss` without `clip_tp`."""

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
    ) -> None:
        super().__init__(apply_nonlin, batch_dice, do_bg, smooth, ddp)


def _as_bool(mask: Tensor | None) -> Tensor | None:
    return mask if mask is None or mask.dtype == torch.bool else mask != 0


def _dice(dice_class: type[nn.Module], apply_nonlin: Callable[[Tensor], Tensor], keywords: dict[str, Any]) -> nn.Module:
    if dice_class.__module__ == "nnunetv2.training.loss.dice":
        dice_class = {
            "SoftDiceLoss": SoftDiceLoss,
            "MemoryEfficientSoftDiceLoss": MemoryEfficientSoftDiceLoss,
        }.get(dice_class.__name__, dice_class)
    return dice_class(apply_nonlin=apply_nonlin, **keywords)


def _fused_dice(dice: nn.Module) -> SoftDiceLoss | None:
    """The Dice module if sums suffice for its loss; unwrapped, since nnU-Net's trainer wraps it in torch.compile."""
    found: Any = getattr(dice, "_orig_mod", dice)
    return found if type(found) in (SoftDiceLoss, MemoryEfficientSoftDiceLoss) else None


class RobustCrossEntropyLoss(nn.CrossEntropyLoss):
    """`nnunetv2.training.loss.robust_ce_loss.RobustCrossEntropyLoss`: class numbers of any dtype, channel or none.

    Fused: reduction "mean" (0 if all pixels are ignored) and "sum", for two classes or more.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if target.dim() == input.dim():
            assert target.shape[1] == 1, f"`target` must have one channel; got {list(target.shape)}."
            target = target[:, 0]
        several = input.dim() > 1 and input.shape[1] > 1
        if several and target.shape == (len(input), *input.shape[2:]) and self.reduction in ("mean", "sum"):
            return cross_entropy(input, target, self)
        return super().forward(input, target.long())


class DC_and_CE_loss(nn.Module):
    """nnU-Net's loss for classes: weight_dice * (minus softmax Dice) + weight_ce * cross-entropy.

    `net_output`: logits [B, C, *spatial]; `target`: class numbers [B, 1, *spatial], integers or floats. Pixels of
    `ignore_label` count in neither term. Fused and plain arguments: see the module.

    >>> loss = DC_and_CE_loss({"do_bg": False, "ddp": False}, {}, ignore_label=2)
    >>> round(loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)
    0.0131
    """

    def __init__(
        self,
        soft_dice_kwargs: dict[str, Any],
        ce_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: type[nn.Module] = SoftDiceLoss,
    ) -> None:
        super().__init__()
        ignored = {} if ignore_label is None else {"ignore_index": ignore_label}
        self.weight_dice, self.weight_ce, self.ignore_label = weight_dice, weight_ce, ignore_label
        self.ce = RobustCrossEntropyLoss(**{**ce_kwargs, **ignored})
        self.dc = _dice(dice_class, softmax_helper_dim1, soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        if self.ignore_label is not None and target.shape[1] != 1:
            raise AssertionError(f"`target` must have one channel with `ignore_label`; got {list(target.shape)}.")
        dice = _fused_dice(self.dc)
        classes = net_output.shape[1]
        numbers = net_output.dim() > 2 and classes > 1 and target.shape == (len(net_output), 1, *net_output.shape[2:])
        if dice is None or not numbers or self.ce.label_smoothing != 0 or self.ce.reduction not in ("mean", "sum"):
            return self._separately(net_output, target)
        ignored = self.ignore_label if self.weight_dice != 0 else self.ce.ignore_index
        sums = fused_sums(net_output, target, "softmax", index=True, ignore_index=ignored)
        dc_loss: Any = dice.of(sums) if self.weight_dice != 0 else 0
        ce_loss: Any = sums.cross_entropy(self._class_weight(sums), self.ce.reduction, index=True)
        return self.weight_ce * (ce_loss if self.weight_ce != 0 else 0) + self.weight_dice * dc_loss

    def _class_weight(self, sums: Overlap) -> Tensor | None:
        """The classes' weights [C], 0 for one that the cross-entropy ignores by `ce_kwargs` while Dice counts it."""
        ignored, weight = self.ce.ignore_index, self.ce.weight
        if self.ignore_label is not None or not 0 <= ignored < sums.target.shape[1]:
            return weight
        counted = torch.arange(sums.target.shape[1], device=sums.target.device) != ignored
        return counted if weight is None else weight * counted

    def _separately(self, net_output: Tensor, target: Tensor) -> Tensor:
        mask = None if self.ignore_label is None else target != self.ignore_label
        labels = target if mask is None else torch.where(mask, target, 0)
        dc_loss: Any = self.dc(net_output, labels, loss_mask=mask) if self.weight_dice != 0 else 0
        ce_loss: Any = self._cross_entropy(net_output, target[:, 0], mask) if self.weight_ce != 0 else 0
        return self.weight_ce * ce_loss + self.weight_dice * dc_loss

    def _cross_entropy(self, net_output: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or self.ce.reduction != "mean" or net_output.shape[1] > 1:
            return self.ce(net_output, labels)
        # With one class every loss is 0: the sum equals the mean, also without valid pixels, where torch's is 0 / 0.
        return nn.functional.cross_entropy(
            net_output, labels.long(), self.ce.weight, ignore_index=self.ce.ignore_index, reduction="sum"
        )


class DC_and_BCE_loss(nn.Module):
    """nnU-Net's loss for regions: weight_dice * (minus sigmoid Dice) + weight_ce * binary cross-entropy.

    `net_output`: logits [B, C, *spatial]; `target`: one-hot, the same shape; with `use_ignore_label` an additional last
    channel marks ignored pixels. The cross-entropy is then divided by the number of valid pixels, without the channels,
    as in nnU-Net. Fused and plain arguments: see the module.
    """

    def __init__(
        self,
        bce_kwargs: dict[str, Any],
        soft_dice_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: type[nn.Module] = MemoryEfficientSoftDiceLoss,
    ) -> None:
        super().__init__()
        elements = {"reduction": "none"} if use_ignore_label else {}
        self.weight_dice, self.weight_ce, self.use_ignore_label = weight_dice, weight_ce, use_ignore_label
        self.ce = nn.BCEWithLogitsLoss(**{**bce_kwargs, **elements})
        self.dc = _dice(dice_class, torch.sigmoid, soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        mask, regions = None, target
        if self.use_ignore_label:
            last, regions = target[:, -1:], target[:, :-1]
            mask = ~last if last.dtype == torch.bool else (1 - last).bool()
        dice = _fused_dice(self.dc)
        weights = all_per_channel((self.ce.weight, self.ce.pos_weight), net_output)
        reduced = mask is not None or self.ce.reduction in ("mean", "sum")
        if dice is None or weights is None or not reduced or regions.shape != net_output.shape or regions.requires_grad:
            return self._separately(net_output, regions, mask)
        sums = fused_sums(net_output, regions, "sigmoid", mask=mask, pos_weight=weights[1])
        if mask is None:
            ce_loss = binary_entropy(sums, weights[0], self.ce.reduction)
        else:
            ce_loss = binary_entropy(sums, weights[0], "sum") / mask.sum().clamp(min=1)
        return self.weight_ce * ce_loss + self.weight_dice * dice.of(sums)

    def _separately(self, net_output: Tensor, regions: Tensor, mask: Tensor | None) -> Tensor:
        dc_loss = self.dc(net_output, regions, loss_mask=mask)
        ce_loss = self.ce(net_output, regions.float())
        if mask is not None:
            ce_loss = (ce_loss * mask).sum() / mask.sum().clamp(min=1)
        return self.weight_ce * ce_loss + self.weight_dice * dc_loss
