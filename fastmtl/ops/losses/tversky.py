"""Tversky and focal Tversky loss: a few operations on sums from one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from .overlap import overlap_sums


def tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    activation: str = "sigmoid",
    weight: Tensor | float | None = None,
    mask: Tensor | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    batch: bool = False,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    empty: str = "one",
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Dice with separate weights for false positives and false negatives, from logits, in one pass over memory.

    A segment is one channel of one sample, or one channel of the whole batch with `batch=True`. Over its valid
    elements, with p the probability and t the target:
        I = sum p t,  FP = sum p - I,  FN = sum t - I
        index = (I + smooth_nr) / (I + alpha FP + beta FN + smooth_dr)
        loss = weight_c (1 - index)^gamma
    alpha = beta = 0.5 is Dice (with twice its smoothing), alpha = beta = 1 Jaccard.

    Args:
        input: logits [B, C, *spatial], float16, bfloat16, float32 or float64.
        target: the same shape, 0 to 1, any dtype; with "softmax" also class numbers [B, *spatial], integers. A value
            outside 0 to 1 raises on a CPU and makes the loss NaN on a GPU.
        alpha, beta: weights of false positives and of false negatives, 0 or more, as in MONAI.
        gamma: exponent of the focal Tversky loss, above 0; 1 is plain Tversky. Abraham and Khan write (1 - index)^(1 /
            gamma) with gamma = 4/3, which is gamma=0.75 here.
        activation: "sigmoid" or "softmax" (over C).
        weight: a number or [C]; multiplies each channel's loss. The mean still divides by the number of segments.
        mask: bool or uint8; True: the element counts. "sigmoid": [B], [B, C] or broadcastable to input; "softmax": [B]
            or broadcastable to [B, *spatial]. The mean leaves out segments without a valid element.
        ignore_index: with "softmax" and class numbers: pixels of this class are ignored.
        include_background: False leaves channel 0 out.
        batch, smooth_nr, smooth_dr: as in MONAI's TverskyLoss.
        empty: how a segment with an empty target counts. "one", "zero": its index is 1 or 0 if the prediction's sum is
            0 too, smoothed as usual otherwise; "skip": the mean leaves it out, and its loss is 0 under "none".
        reduction: "mean" over the counted segments, "sum", or "none" for one loss per segment: [B, C], with
            `batch=True` [C]; one channel fewer without background.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar, or one loss per segment; float32, or float64 for float64 logits.

    Differentiable in `input` only, any number of times; second and forward-mode derivatives run the reference.
    At an index of exactly 1 the derivative of the power is taken as 0, although it is infinite for gamma below 1.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names; an invalid class number as in
            `dice_ce_loss`.
        BackendError: the requested backend cannot run these inputs here.

    Source: Salehi et al. 2017, Tversky loss; Abraham and Khan 2019, focal Tversky loss, eq. 4.

    >>> logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    >>> target = torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.uint8)
    >>> round(tversky_loss(logits, target, alpha=0.3, beta=0.7).item(), 4)
    0.2275
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("smooth_nr", smooth_nr), ("smooth_dr", smooth_dr)):
        checks.not_negative(name, value)
    if checks.finite("gamma", gamma) <= 0:
        raise ValueError(f"`gamma` must be above 0; got {gamma}. Plain Tversky is gamma=1.")
    checks.flag("include_background", include_background)
    checks.flag("batch", batch)
    checks.one_of("empty", empty, checks.EMPTY)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    sums = overlap_sums(input, target, activation=activation, mask=mask, ignore_index=ignore_index, backend=backend)
    weight = checks.per_channel("weight", weight, input)
    if not include_background:
        if input.shape[1] == 1:
            raise ValueError("`include_background` must be True for `input` of one channel: no channel would be left.")
        sums, weight = type(sums)(*(part[:, 1:] for part in sums)), None if weight is None else weight[1:]
    if batch:
        sums = type(sums)(*(part.sum(0) for part in sums))
    losses, counted = _segments(
        sums.intersection, sums.prediction, sums.target, alpha, beta, smooth_nr, smooth_dr, empty
    )
    counted = counted & (sums.elements > 0)
    if gamma != 1:
        right = losses <= 0  # the index is 1, or above 1 by its smoothing
        losses = torch.where(right, 0.0, torch.where(right, 1.0, losses) ** gamma)
    if weight is not None:
        losses = losses * weight.to(losses.dtype)
    losses = torch.where(counted, losses, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum().clamp(min=1)


def _segments(
    intersection: Tensor, prediction: Tensor, target: Tensor,
    alpha: float, beta: float, smooth_nr: float, smooth_dr: float, empty: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """1 - index of each segment, and whether it counts under `empty`."""
    pair = (target == 0) & (prediction == 0)
    wrong = alpha * (prediction - intersection) + beta * (target - intersection)
    index = (intersection + smooth_nr) / torch.where(pair, 1.0, intersection + wrong + smooth_dr)
    index = torch.where(pair, 0.0 if empty == "zero" else 1.0, index)
    return 1 - index, (target != 0) | (empty != "skip")
