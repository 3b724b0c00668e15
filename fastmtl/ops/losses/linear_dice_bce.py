"""Dice + BCE of a linear layer's logits, which are never stored."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor

from ...reference.dice_bce import loss_of_sums
from ..core import checks
from ..core.fields import checks_of, keywords
from .dice_bce import dice_bce_loss
from .dice_bce_backends import Options
from .linear_blocks import check_layer, linear_loss, stored_logits, stores_logits
from .sigmoid_overlap import sigmoid_overlap_op

_check_options = checks_of(Options)


def linear_dice_bce_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    bce_weight: float = 0.5,
    dice_weight: float = 0.5,
    pos_weight: Tensor | float | None = None,
    channel_weight: Tensor | float | None = None,
    mask: Tensor | None = None,
    batch: bool = False,
    squared_pred: bool = False,
    jaccard: bool = False,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    empty: str = "one",
    reduction: str = "mean",
    fuse: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """`dice_bce_loss` of the logits `weight @ features + bias` at every pixel, without storing logits or their
    gradient: the sigmoid sister of `linear_dice_ce_loss`, for many channels that may overlap.

    Args:
        features: [B, F, *spatial], float16, bfloat16, float32 or float64.
        weight: [C, F], or that of a 1x1 convolution [C, F, 1, ...].
        bias: [C], or None.
        target: [B, C, *spatial], 0 to 1, as for `dice_bce_loss`; uint8 or bool needs least memory.
        channel_weight: a number or [C], the `weight` of `dice_bce_loss`.
        bce_weight, dice_weight, pos_weight, mask, batch, squared_pred, jaccard, smooth_nr, smooth_dr, empty, reduction:
            as for `dice_bce_loss`.
        fuse: see `linear_dice_ce_loss`.
        backend: of the sums and gradients of each block, as for `dice_bce_loss`.

    Returns:
        A scalar, [B, C] or [C]; float32, or float64 for float64 features.

    Differentiable in features, weight and bias, once where nothing is stored. Deterministic.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names.
        BackendError: the requested backend cannot run these inputs here.

    Source: see `linear_dice_ce_loss`.

    >>> features, head = torch.ones(1, 2, 4), torch.tensor([[1.0, 0.0], [0.0, -0.5]])
    >>> round(linear_dice_bce_loss(features, head, None, torch.ones(1, 2, 4)).item(), 4)
    0.4736
    """
    layer = check_layer(features, weight, bias, classes=1)
    checks.tensor("target", target)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    options = Options(
        bce_weight=bce_weight,
        dice_weight=dice_weight,
        batch=batch,
        squared_pred=squared_pred,
        jaccard=jaccard,
        smooth_nr=smooth_nr,
        smooth_dr=smooth_dr,
        empty=empty,
        reduction=reduction,
        backend=backend,
    )
    _check_options(options)
    shape = layer.like_logits()
    pos_weight = checks.per_channel("pos_weight", pos_weight, shape)
    channel_weight = checks.per_channel("channel_weight", channel_weight, shape)
    if stores_logits(layer, fuse):
        settings = keywords(options, "counts", "groups")
        logits = stored_logits(layer)
        return cast(
            Tensor, dice_bce_loss(logits, target, pos_weight=pos_weight, weight=channel_weight, mask=mask, **settings)
        )
    checks.logits_and_target(shape, target)
    mask = checks.full_rank_mask(mask, shape)
    if checks.may_look(target):  # all of it before the first block
        checks.unit(target, mask)
    if mask is not None:  # one spatial dim, as the blocks have
        mask = mask.expand(*mask.shape[:2], *shape.shape[2:]).flatten(2)
    return linear_loss(layer, _DiceBCE(target.flatten(2), pos_weight, channel_weight, mask, options))


class _DiceBCE(NamedTuple):
    """The loss of the sums I, P, T, BCE and elements of each channel."""

    target: Tensor  # [B, C, N]
    pos_weight: Tensor | None
    channel_weight: Tensor | None
    mask: Tensor | None  # [B or 1, C or 1, N]
    options: Options

    def sums(self, logits: Tensor, sample: int, pixels: slice) -> Tensor:
        o = self.options
        return sigmoid_overlap_op(logits, *self._given(sample, pixels), o.squared_pred, o.backend)[0]

    def gradient(self, grad: Tensor, logits: Tensor, sample: int, pixels: slice) -> Tensor:
        o, given = self.options, self._given(sample, pixels)
        return sigmoid_overlap_op.backward(
            grad.contiguous(), logits, *given, grad.new_empty(0), o.squared_pred, o.backend
        )

    def loss(self, sums: Tensor) -> Tensor:
        settings = keywords(self.options, "counts", "groups", "backend", "squared_pred", "batch")
        parts = sums.sum(1) if self.options.batch else sums
        return loss_of_sums(*parts, weight=self.channel_weight, **settings)

    def _given(self, sample: int, pixels: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        mask = self.mask
        if mask is not None:
            row = sample if mask.shape[0] > 1 else 0
            mask = mask[row : row + 1, :, pixels]
        return self.target[sample : sample + 1, :, pixels], self.pos_weight, mask
