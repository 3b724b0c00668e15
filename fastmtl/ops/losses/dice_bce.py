"""Dice + BCE on logits as one op: one pass of segment sums forward, one elementwise pass backward.

With I = sum p t, P = sum p^q, T = sum t^q of a segment (q = 2 with squared_pred), N = 2 I + smooth_nr:
    Dice     D = P + T + smooth_dr             dL/dI = -2 / D              dL/dP = N / D^2
    Jaccard  D = 2 (P + T - I) + smooth_dr     dL/dI = -2 / D - 2 N / D^2  dL/dP = 2 N / D^2
so three coefficients per segment (slopes in the BCE sum, in I, and q times that in P) give the gradient:
    dx = c0 ((1 - t) p - pos_weight t (1 - p)) + (c1 t + c2 p^(q-1)) p (1 - p)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import checks
from ..core.batching import fold
from ..core.counts import Counts, with_counts
from ..core.fields import checks_of
from ..core.loss_op import LossOp
from .dice_bce_backends import BACKENDS, Options, Tensors, new_outputs, reference

if TYPE_CHECKING:
    from torch._functorch.autograd_function import VmapInfo

_check_options = checks_of(Options)


@with_counts
def dice_bce_loss(
    input: Tensor,
    target: Tensor,
    *,
    bce_weight: float = 0.5,
    dice_weight: float = 0.5,
    pos_weight: Tensor | float | None = None,
    weight: Tensor | float | None = None,
    mask: Tensor | None = None,
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
    """Weighted sum of soft Dice (or Jaccard) loss and binary cross-entropy, from logits, in one pass over memory.

    A segment is one channel of one sample, or one channel of the whole batch with `batch=True`. Over its valid
    elements, with p = sigmoid(input), t = target, q = 2 if squared_pred else 1:
        I = sum p t,  P = sum p^q,  T = sum t^q
        dice = 1 - (2 I + smooth_nr) / (P + T + smooth_dr)
        dice = 1 - (2 I + smooth_nr) / (2 (P + T - I) + smooth_dr)                       with jaccard=True
        bce = -(pos_weight t log p + (1 - t) log(1 - p))                                 per element
    "mean": bce_weight * mean of bce over all valid elements + dice_weight * mean of weight_c * dice over the counted
    segments. "none": bce_weight * mean of bce over the segment + dice_weight * weight_c * dice, for each segment.
    "sum": the sum of "none". A NaN in one segment stays in that segment under "none".

    Args:
        input: logits [B, C, *spatial], float16, bfloat16, float32 or float64, any value, infinities included.
        target: the shape of input; bool, uint8, int16, int32, int64 or floating, 0 to 1 (soft targets are fine). A
            value outside that range, as in a mask of 0 and 255, raises on a CPU and makes the loss NaN on a GPU. The
            target is read in its own dtype, without a copy or a cast.
        bce_weight, dice_weight: factors of the two terms.
        pos_weight: weight of the positive class in the BCE: a number, [C], or [C, 1, ...] as in torch.
        weight: a number or [C]; multiplies only the Dice term of each channel. The mean still divides by the number of
            counted segments, as MONAI's DiceLoss does.
        mask: bool or uint8, [B], [B, C] or as many dims as input, broadcastable to it. Elements where it is False are
            ignored, even if the logit or target there is invalid. The Dice mean leaves out segments without a valid
            element; without any valid element the loss and the gradient are 0.
        batch, squared_pred, jaccard, smooth_nr, smooth_dr: as in MONAI's DiceLoss.
        empty: how a segment with an empty target (T = 0) counts. "one", "zero": its Dice score is 1 or 0 if P is 0 too
            (in the float32 kernels: if all logits are below -87), smoothed as usual otherwise; "skip": the
            Dice mean leaves it out, and it has no Dice term under "none".
        reduction: "mean", "sum", or "none" for one loss per segment: [B, C], with `batch=True` [C].
        return_counts: also return the `Counts` of the valid elements at threshold 0.5, from the same pass.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar, [B, C] or [C]; float32, or float64 for float64 logits. Partial sums are added in float64; results are
        the same for any number of threads and in every run. With `return_counts=True` a tuple (loss, `ops.Counts`).

    Differentiable in `input` only, any number of times; second and forward-mode derivatives run the reference.
    The backward keeps the inputs and three numbers per segment. Contiguous, channels_last and expanded tensors are read
    in place; a tensor whose spatial dims have no common stride (a crop, a transpose) is copied.

    Raises:
        ValueError: an invalid shape, dtype, device, name or range, or an argument other than `input` that
            requires a gradient.
        TypeError: an argument that must be a tensor is not one.
        BackendError: the requested backend cannot run these inputs here.

    Source: Milletari et al. 2016, V-Net, eq. 2-3 (Dice, squared); MONAI 1.6 DiceLoss for smoothing and weights.

    >>> logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    >>> target = torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.uint8)
    >>> round(dice_bce_loss(logits, target).item(), 4)
    0.2268
    """
    checks.logits_and_target(input, target)
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
    pos_weight = checks.per_channel("pos_weight", pos_weight, input)
    weight = checks.per_channel("weight", weight, input)
    mask = checks.full_rank_mask(mask, input)
    if input.dim() == 2:  # no spatial dims: planes of one pixel
        input, target, mask = input.unsqueeze(-1), target.unsqueeze(-1), None if mask is None else mask.unsqueeze(-1)
    loss, _, counts = dice_bce_op(*Tensors(input, target, pos_weight, weight, mask), *options)
    return (loss, counts_of(counts)) if return_counts else loss


def counts_of(counts: Tensor) -> Counts:
    """The public form of the op's [4, B, C]."""
    return Counts(counts[0], counts[1], counts[2], counts[3].sum(1))


def _fold_tensors(size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> Tensors:
    folded: list[Any] = [
        None if tensor is None else fold(tensor, dim, size)
        for tensor, dim in zip(arguments[:4], in_dims[:4], strict=True)
    ]
    mask, dim = arguments[4], in_dims[4]
    if dim is not None:
        stacked = mask.movedim(dim, 0)
        mask = stacked.expand(size, folded[0].shape[0] // size, *stacked.shape[2:]).flatten(0, 1)
    elif mask is not None and mask.shape[0] != 1:
        mask = fold(mask, None, size)
    return Tensors._make([*folded, mask])


def _vmap_forward(info: VmapInfo, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    size, options = info.batch_size, Options(*arguments[5:])
    tensors = _fold_tensors(size, in_dims, arguments)
    loss, coefficients, counts = dice_bce_op(*tensors, *options._replace(groups=size * options.groups))
    samples, *rest = tensors.input.shape
    inner = options.loss_shape(torch.Size((samples // size, *rest)))
    if options.counts:
        counts = counts.unflatten(1, (size, -1))
    outputs = loss.reshape(size, *inner), coefficients.unflatten(1, (size, -1)), counts
    return outputs, (0, 1, 1 if options.counts else None)


def _vmap_backward(info: VmapInfo, in_dims: tuple[Any, ...], grad: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    size, options = info.batch_size, Options(*arguments[6:])
    options = options._replace(groups=size * options.groups)
    tensors = _fold_tensors(size, in_dims[1:], arguments)
    grad = grad.expand(size, *grad.shape) if in_dims[0] is None else grad.movedim(in_dims[0], 0)
    grad = grad.reshape(options.loss_shape(tensors.input.shape))
    coefficients, dim = arguments[5], in_dims[6]  # [3, B, C] with the vmapped dim anywhere or nowhere
    stacked = coefficients.unsqueeze(1).expand(-1, size, -1, -1) if dim is None else coefficients.movedim(dim, 1)
    gradient = dice_bce_op.backward(grad, *tensors, stacked.flatten(1, 2).contiguous(), *options)
    return gradient.unflatten(0, (size, -1)), 0


dice_bce_op = LossOp(
    "dice_bce",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=lambda tensors, options: new_outputs(tensors.input, options),
    reference=reference,
    outputs=3,
    vmap=_vmap_forward,
    vmap_backward=_vmap_backward,
)
