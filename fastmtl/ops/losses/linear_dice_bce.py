"""Dice + BCE of a linear layer's logits, which are never stored."""

from __future__ import annotations

from torch import Tensor

from ..core import checks
from ..core.counts import Counts, with_counts
from ..core.fields import checks_of, keywords
from ..core.loss_op import LossOp
from .dice_bce import counts_of, dice_bce_loss
from .dice_bce_backends import Options
from .linear_blocks import check_layer, stored_logits, stores_logits
from .linear_dice_bce_backends import BACKENDS, Tensors, new_outputs, reference

_check_options = checks_of(Options)


@with_counts
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
    return_counts: bool = False,
    fuse: bool | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Counts]:
    """`dice_bce_loss` of the logits `weight @ features + bias` at every pixel, without storing logits or their
    gradient: the sigmoid sister of `linear_dice_ce_loss`, for many channels that may overlap.

    Args:
        features: [B, F, *spatial], float16, bfloat16, float32 or float64.
        weight: [C, F], or that of a 1x1 convolution [C, F, 1, ...].
        bias: [C], or None.
        target: [B, C, *spatial], 0 to 1, as for `dice_bce_loss`; uint8 or bool needs least memory.
        channel_weight: a number or [C], the `weight` of `dice_bce_loss`.
        bce_weight, dice_weight, pos_weight, mask, batch, squared_pred, jaccard, smooth_nr, smooth_dr, empty, reduction,
            return_counts: as for `dice_bce_loss`.
        fuse: see `linear_dice_ce_loss`.
        backend: of the sums and gradients of each block, as for `dice_bce_loss`.

    Returns:
        A scalar, [B, C] or [C]; float32, or float64 for float64 features. With `return_counts=True` a tuple (loss,
        `ops.Counts`).

    Differentiable in features, weight and bias, any number of times; second and forward-mode derivatives store logits.
    Deterministic. The backward keeps the inputs and three numbers per segment.

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
    checks.flag("return_counts", return_counts)
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
        counts=return_counts,
        backend=backend,
    )
    _check_options(options)
    shape = layer.like_logits()
    pos_weight = checks.per_channel("pos_weight", pos_weight, shape)
    channel_weight = checks.per_channel("channel_weight", channel_weight, shape)
    if stores_logits(layer, fuse):
        given = {"pos_weight": pos_weight, "weight": channel_weight, "mask": mask, "return_counts": return_counts}
        return dice_bce_loss(stored_logits(layer), target, **keywords(options, "counts", "groups"), **given)
    checks.logits_and_target(shape, target)
    tensors = Tensors(layer.tensors, target, pos_weight, channel_weight, checks.full_rank_mask(mask, shape))
    loss, _, counts = _linear_dice_bce(*tensors, *options)
    return (loss, counts_of(counts)) if return_counts else loss


_linear_dice_bce = LossOp(
    "linear_dice_bce",
    Tensors,
    Options,
    backends=BACKENDS,
    outputs=3,
    fake=new_outputs,
    reference=reference,
)
