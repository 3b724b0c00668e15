"""Softmax Dice + cross-entropy as one op: one pass of sums forward, one pass of gradients backward."""

from __future__ import annotations

from torch import Tensor

from ..core import checks, class_checks
from ..core.counts import Counts, with_counts
from ..core.fields import checks_of
from ..core.loss_op import LossOp
from .dice_ce_backends import BACKENDS, Options, Tensors, alone, new_outputs, reference

_check_options = checks_of(Options)


@with_counts
def dice_ce_loss(
    input: Tensor,
    target: Tensor,
    *,
    ce_weight: float = 0.5,
    dice_weight: float = 0.5,
    weight: Tensor | None = None,
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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Counts]:
    """Weighted sum of soft Dice (or Jaccard) loss and cross-entropy, from logits and class numbers, in one pass.

    A segment is one class of one sample, or one class of the whole batch with `batch=True`. Over its valid pixels, with
    p = softmax of input over C, t = 1 where the target is the class and 0 elsewhere, q = 2 if squared_pred else 1:
        I = sum p t,  P = sum p^q,  T = sum t^q
        dice = 1 - (2 I + smooth_nr) / (P + T + smooth_dr)
        dice = 1 - (2 I + smooth_nr) / (2 (P + T - I) + smooth_dr)                       with jaccard=True
        ce = -sum_c weight_c ((1 - label_smoothing) t_c + label_smoothing / C) log p_c       per pixel
    "mean": ce_weight * (sum of ce over all valid pixels / sum of their classes' weights) + dice_weight * mean of
    weight_c * dice over the counted segments. "none": for each sample, ce_weight * its own weighted mean of ce +
    dice_weight * mean over its counted classes. "sum": the sum of "none". A NaN in one sample stays in its loss under
    "none".

    Args:
        input: logits [B, C, *spatial], C >= 2, float16, bfloat16, float32 or float64. -infinity is a probability of 0;
            a pixel with NaN, with +infinity or with -infinity for all classes makes the loss NaN, as in torch.
        target: class numbers [B, *spatial] or [B, 1, *spatial], bool, uint8, int16, int32 or int64, read in their own
            dtype; or probabilities (or one-hot) [B, C, *spatial] of any dtype: the cross-entropy is then divided by the
            number of valid pixels, as in torch.
        ce_weight, dice_weight: factors of the two terms.
        weight: [C]; the class weights of the cross-entropy, and factors of the classes' Dice terms; the Dice mean still
            divides by the number of counted segments. Both as in MONAI's DiceCELoss. Must be finite: an infinite weight
            makes the loss NaN, even if no valid pixel has its class.
        mask: bool or uint8, [B] or broadcastable to [B, *spatial]: samples or pixels without annotation are False and
            are ignored, even if the logits or the class there are invalid.
        ignore_index: pixels of this class number are ignored too, for example 255 in uint8 maps; None: all pixels
            count.
        label_smoothing: 0 to 1; applies only to the cross-entropy, as in torch.
        include_background: False: class 0 has no Dice term (its weight then applies only to the cross-entropy).
        batch, squared_pred, jaccard, smooth_nr, smooth_dr: as in MONAI's DiceLoss.
        empty: how a segment with an empty target (T = 0) counts. "one", "zero": its Dice score is 1 or 0 if P is 0 too,
            smoothed as usual otherwise; "skip": the Dice mean leaves it out.
        reduction: "mean", "sum", or "none" for one loss per sample: [B]. `batch=True` allows only "mean", because
            single samples have no loss.
        return_counts: also return `Counts` of the hard prediction (the largest logit) from the same pass, for training
            metrics. The target must be class numbers.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar, or [B]; float32, or float64 for float64 logits. Without a valid pixel the loss and the gradient are 0.
        With `return_counts=True` a tuple (loss, `ops.Counts`).

    Differentiable in `input` only, any number of times; second and forward-mode derivatives run the reference.
    The backward keeps the inputs and three numbers per segment. Contiguous, channels_last and expanded tensors are read
    in place; a tensor whose spatial dims have no common stride (a crop, a transpose) is copied.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names. A class number outside 0..C-1 that is not
            ignore_index raises on a CPU; on a GPU, where a check would wait for the device, it makes the loss NaN.
        BackendError: the requested backend cannot run these inputs here.

    Source: Milletari et al. 2016, V-Net, eq. 2-3 (Dice, squared); MONAI 1.6 DiceCELoss for smoothing and weights.

    >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])  # [1, 3, 2]
    >>> round(dice_ce_loss(logits, torch.tensor([[0, 1]], dtype=torch.uint8)).item(), 4)
    0.3427
    """
    checks.flag("return_counts", return_counts)
    check_reduction(reduction, batch)
    tensors = check_tensors(input, target, weight, mask)
    soft_has_no_counts(tensors.soft, return_counts)
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
    loss, counts = run(tensors, options)
    return (loss, counts_of(counts)) if return_counts else loss


def soft_has_no_counts(soft: bool, return_counts: bool) -> None:
    """Refuse `return_counts` with probabilities."""
    if soft and return_counts:
        raise ValueError("`return_counts` needs class numbers as `target`; got probabilities. Pass target.argmax(1).")


def counts_of(counts: Tensor) -> Counts:
    """The public form of the op's [B, 3 C + 1]."""
    true_positive, false_positive, false_negative = counts[:, :-1].unflatten(1, (3, -1)).unbind(1)
    return Counts(true_positive, false_positive, false_negative, counts[:, -1])


def check_reduction(reduction: str, batch: bool) -> None:
    """Raise ValueError for an unknown reduction, or one per sample of a loss of the whole batch."""
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    checks.flag("batch", batch)
    if batch and reduction != "mean":
        raise ValueError(
            f"`reduction` must be 'mean' with batch=True, because single samples have no loss; got {reduction!r}."
        )


def check_tensors(input: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None) -> Tensors:
    """The op's tensors, with at least one pixel per sample."""
    input, target = class_checks.logits_and_classes(input, target)
    return Tensors(input, target, class_checks.class_weight(weight, input), class_checks.pixel_mask(mask, input))


def run(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    """(loss, counts) after the options' checks."""
    _check_options(options)
    of_batch = options.reduction in ("mean", "total") and (options.batch or options.dice_weight == 0)
    if of_batch and not options.counts and not alone(tensors, options) and tensors.input[0, 0].numel() == 1:
        tensors = _samples_as_pixels(tensors)
    loss, _, counts = _dice_ce(*tensors, *options)
    return loss, counts


def _samples_as_pixels(tensors: Tensors) -> Tensors:
    """Views of samples of one pixel as one sample with many pixels, because kernels vectorise over pixels."""

    def turned(tensor: Tensor) -> Tensor:
        return tensor.flatten(1).t().unsqueeze(0)

    mask = None if tensors.mask is None else turned(tensors.mask)
    return Tensors(turned(tensors.input), turned(tensors.target), tensors.weight, mask)


_dice_ce = LossOp(
    "dice_ce",
    Tensors,
    Options,
    backends=BACKENDS,
    outputs=3,
    fake=new_outputs,
    reference=reference,
)
