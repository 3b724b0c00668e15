"""Softmax Dice + cross-entropy of a linear layer's logits, which are never stored."""

from __future__ import annotations

from torch import Tensor

from ..core import checks, class_checks
from ..core.counts import Counts, with_counts
from ..core.fields import checks_of, keywords
from ..core.loss_op import LossOp
from .dice_ce import check_reduction, counts_of, dice_ce_loss, soft_has_no_counts
from .dice_ce_backends import Options
from .linear_blocks import check_layer, stored_logits, stores_logits
from .linear_dice_ce_backends import BACKENDS, Tensors, new_outputs, reference

_check_options = checks_of(Options)


@with_counts
def linear_dice_ce_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    ce_weight: float = 0.5,
    dice_weight: float = 0.5,
    class_weight: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    include_background: bool = True,
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
    """`dice_ce_loss` of the logits `weight @ features + bias` at every pixel, without storing logits or their gradient.

    For networks whose last layer is a 1x1 convolution to many classes, or of volumes: there the logits and their
    gradient, each [B, C, *spatial], are the largest tensors. Logits are computed twice, for a block of pixels at a
    time, with sums in float32 and float64.

        loss = ops.linear_dice_ce_loss(features, head.weight, head.bias, target)    # for
        loss = ops.dice_ce_loss(head(features), target)                             # where head = nn.Conv2d(F, C, 1)

    Args:
        features: [B, F, *spatial], what the last layer reads; float16, bfloat16, float32 or float64. Contiguous and
            channels_last are read in place.
        weight: [C, F], or that of a 1x1 convolution [C, F, 1, ...]; C >= 2.
        bias: [C], or None.
        target: class numbers [B, *spatial] or [B, 1, *spatial], or probabilities, as for `dice_ce_loss`.
        class_weight: [C], the `weight` of `dice_ce_loss`.
        ce_weight, dice_weight, mask, ignore_index, label_smoothing, include_background, batch, squared_pred, jaccard,
            smooth_nr, smooth_dr, empty, reduction, return_counts: as for `dice_ce_loss`.
        fuse: False stores the logits and calls `dice_ce_loss`, True never does. None stores them where that is faster:
            if they, and on a CPU the features too, have less than 32 MiB; on a GPU also for fewer than 32 classes.
        backend: of the sums and gradients of each block, as for `dice_ce_loss`.

    Returns:
        A scalar, or [B] for reduction "none"; float32, or float64 for float64 features. Where nothing is stored,
        half-precision features are multiplied in float32 on a CPU, and in their own type on a GPU. With
        `return_counts=True` a tuple (loss, `ops.Counts`).

    Differentiable in features, weight and bias, any number of times; second and forward-mode derivatives store logits.
    Deterministic. The backward keeps the inputs and three numbers per segment.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names; class numbers as in `dice_ce_loss`.
        BackendError: the requested backend cannot run these inputs here.

    Source: the sums of `dice_ce_loss`; logits in blocks as Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary
    Language Models, have them for cross-entropy.

    >>> features, head = torch.ones(1, 2, 4), torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    >>> round(linear_dice_ce_loss(features, head, None, torch.zeros(1, 4, dtype=torch.long)).item(), 4)
    0.5452
    """
    layer = check_layer(features, weight, bias, classes=2)
    checks.tensor("target", target)
    checks.flag("return_counts", return_counts)
    check_reduction(reduction, batch)
    options = Options(
        ce_weight=ce_weight,
        dice_weight=dice_weight,
        ignore_index=class_checks.ignored(ignore_index),
        label_smoothing=label_smoothing,
        include_background=include_background,
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
    class_weight = class_checks.class_weight(class_weight, shape, "class_weight")
    if stores_logits(layer, fuse):
        given = {"weight": class_weight, "mask": mask, "ignore_index": ignore_index, "return_counts": return_counts}
        return dice_ce_loss(stored_logits(layer), target, **keywords(options, "counts", "ignore_index"), **given)
    _, target = class_checks.logits_and_classes(shape, target)
    tensors = Tensors(layer.tensors, target, class_weight, class_checks.pixel_mask(mask, shape))
    soft_has_no_counts(tensors.soft, return_counts)
    loss, _, counts = _linear_dice_ce(*tensors, *options)
    return (loss, counts_of(counts)) if return_counts else loss


_linear_dice_ce = LossOp(
    "linear_dice_ce",
    Tensors,
    Options,
    backends=BACKENDS,
    outputs=3,
    fake=new_outputs,
    reference=reference,
)
