"""Deep supervision and auxiliary heads: the losses of all heads against one full-resolution mask, in one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference import deep_supervision as definition
from ..core import backends, checks, class_checks
from ..core.fields import checks_of, converted
from ..core.loss_op import LossOp
from . import dice_ce, dice_ce_backends
from .deep_supervision_backends import BACKENDS, Options, Tensors, new_outputs, reference

_deep_supervision = LossOp(
    "deep_supervision",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=new_outputs,
    reference=reference,
)
_check_options = checks_of(Options)


def deep_supervision_loss(
    inputs: Sequence[Tensor],
    target: Tensor,
    *,
    weights: Sequence[float] | Tensor | None = None,
    downsample: str = "nearest",
    activation: str = "sigmoid",
    pointwise_weight: float = 0.5,
    dice_weight: float = 0.5,
    pos_weight: Tensor | float | None = None,
    ignore_index: int | None = None,
    mask: Tensor | None = None,
    batch: bool = False,
    squared_pred: bool = False,
    jaccard: bool = False,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    empty: str = "one",
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of the losses of several heads, each at its own stride, against one full-resolution mask.

        loss = sum over l of weights_l * loss_l
        loss_l = pointwise_weight * (binary) cross-entropy + dice_weight * soft Dice (or Jaccard) of head l

    loss_l is `dice_bce_loss` of head l ("softmax": `dice_ce_loss`) against the mask down-sampled to the head's stride.
    With "sigmoid" no smaller mask is stored: the mask is down-sampled while the heads are read, all heads in one pass
    forward and one backward. With "softmax" the heads run one after another; "nearest" reads the class map by strides.

    Args:
        inputs: logits of L heads [B, C, *spatial], one to three spatial dims, all of one dtype (float16, bfloat16,
            float32 or float64). The spatial dims of each head divide those of the target; strides may differ between
            dims, and several heads may have the same stride.
        target: "sigmoid": [B, C, *spatial] at full resolution, bool, uint8, int16, int32, int64 or floating, 0 to 1.
            "softmax": class numbers [B, *spatial], bool, uint8, int16, int32 or int64.
        weights: one factor per head; None: 1 for each. A tensor [L] on the inputs' device can change between steps
            without a new graph. A head of weight 0 is off: it is not read, so a NaN in it has no effect.
        downsample: how the window of the mask under one head pixel becomes its target. "nearest": the first pixel, as
            in `F.interpolate(mode="nearest")`; small lesions vanish. "area": the mean, a soft target; with "softmax"
            the share of each class. "max": the largest value, which keeps a lesion of one pixel; with "softmax"
            the largest class number, so that any class wins over background 0.
        activation: "sigmoid" or "softmax" (over C).
        pointwise_weight, dice_weight: factors of the two terms.
        pos_weight: with "sigmoid": weight of the positive class in the cross-entropy, a number or [C].
        ignore_index: with "softmax": pixels of this class are ignored.
        mask: bool or uint8; elements where it is False are ignored. "sigmoid": [B], [B, C] or broadcastable to the
            target; "softmax": [B] or broadcastable to [B, *spatial]. "nearest" reads the mask at the pixel it samples;
            with "area" and "max" only the valid pixels of a window count, and the head's pixel is valid if its window
            has one.
        batch, squared_pred, jaccard, smooth_nr, smooth_dr, empty: as in `dice_bce_loss`.
        reduction: "mean": the weighted sum above, a scalar; "none": its terms, [L].
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar or [L]; float32, or float64 for float64 logits. Partial sums are added in float64; results are the same
        for any number of threads and in every run.

    Differentiable in every element of `inputs`, any number of times; second and forward-mode derivatives run the
    reference. The backward keeps the arguments and three numbers per segment and head, and with "softmax" the smaller
    class maps. With "sigmoid" the target and the mask are read in place with any strides, a head if its planes have one
    stride.

    Raises:
        ValueError: an invalid shape, dtype, device, name or range, or an argument other than `inputs` that
            requires a gradient; an invalid class number as in `dice_ce_loss`.
        TypeError: an argument that must be a tensor is not one.
        BackendError: the requested backend cannot run these inputs here.

    Source: Lee et al. 2015, Deeply-Supervised Nets, eq. 3 (companion losses); nnU-Net (Isensee et al. 2021) for heads
    of a decoder, with weights 1, 1/2, 1/4, ... divided by their sum.

    >>> heads = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 2, 2)]
    >>> target = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    >>> target[0, 0, 3, 3] = 1  # one pixel, which no stride of 4 meets
    >>> deep_supervision_loss(heads, target, weights=[1.0, 0.5], downsample="max", reduction="none").shape
    torch.Size([2])
    """
    checks.one_of("activation", activation, ("sigmoid", "softmax"))
    inputs = _check_inputs(inputs)
    if activation == "softmax" and inputs[0].shape[1] < 2:
        raise ValueError(f"`inputs[0]` must have 2 or more classes with 'softmax'; got {list(inputs[0].shape)}.")
    _check_target(inputs, target, activation)
    numbers, moving = _check_weights(weights, inputs)
    options = Options(
        numbers=numbers,
        downsample=downsample,
        pointwise_weight=pointwise_weight,
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
    if activation == "softmax":
        if pos_weight is not None:
            raise ValueError("`pos_weight` is for activation='sigmoid'; got 'softmax'. Weight classes with the mask.")
        ignored, mask = class_checks.ignored(ignore_index), class_checks.pixel_mask(mask, target.unsqueeze(1))
        return _softmax(inputs, target, numbers if moving is None else moving, ignored, mask, options)
    class_checks.no_class_ignored(ignore_index)
    pos_weight = checks.per_channel("pos_weight", pos_weight, inputs[0])
    mask = checks.full_rank_mask(mask, target, "target")
    if downsample != "nearest" and all(x.shape != target.shape for x in inputs) and checks.may_look(target):
        checks.unit(target, mask)  # a window's mean hides a few pixels of 255, and its maximum hides -1
    return _deep_supervision(*Tensors(inputs, target, moving, pos_weight, mask), *options)[0]


def _softmax(inputs: list[Tensor], target: Tensor, weights: list[float] | Tensor, ignore_index: int,
             mask: Tensor | None, options: Options) -> Tensor:  # fmt: skip
    """`dice_ce_loss` head by head; with "nearest" the smaller class maps are views."""
    mask, losses = None if mask is None else mask.squeeze(1).bool().expand(target.shape), []
    labelled = mask  # the other pixels of a window represent the ignored ones
    if options.downsample != "nearest" and ignore_index != class_checks.NOTHING_IGNORED:
        wanted = target.long() != ignore_index  # a number beyond uint8 would wrap around
        labelled = wanted if mask is None else wanted & mask
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    if options.downsample != "nearest" and checks.may_look(target):  # shares and maxima hide an invalid class number
        valid = None if mask is None else mask.unsqueeze(1)
        class_checks.check_classes(target.unsqueeze(1), valid, inputs[0], ignore_index)
    own = converted(
        options,
        dice_ce_backends.Options,
        ce_weight=options.pointwise_weight,
        ignore_index=ignore_index,
        reduction="mean",
    )
    for x, weight in zip(inputs, weights.to(dtype) if isinstance(weights, Tensor) else weights, strict=True):
        size = x.shape[2:]
        if options.downsample == "nearest" or size == target.shape[1:]:
            seen, valid = definition.sample(target, mask, size, "nearest")
        elif options.downsample == "area":
            seen, valid = definition.class_shares(target, labelled, size, x.shape[1], dtype)
        else:
            seen, valid = definition.sample(target, labelled, size, "max")
        used = weight != 0  # a head that is off has no effect, even if it is NaN
        if isinstance(used, Tensor):
            valid = used.expand(x.shape[0]) if valid is None else valid & used
        elif not used:
            valid = torch.zeros_like(x[(slice(None), *(0,) * (x.dim() - 1))], dtype=torch.bool)
        losses.append(weight * dice_ce.run(dice_ce.check_tensors(x, seen, None, valid), own)[0])
    return torch.stack(losses) if options.reduction == "none" else torch.stack(losses).sum()


def _check_inputs(inputs: object) -> list[Tensor]:
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise TypeError(
            f"`inputs` must be a list of Tensors, one per head; got {type(inputs).__name__}. Pass [logits]."
        )
    if not inputs:
        raise ValueError("`inputs` must contain at least one head; got none.")
    heads = list(inputs)
    first = heads[0]
    for index, x in enumerate(heads):
        name = f"inputs[{index}]"
        checks.tensor(name, x)
        shape = list(x.shape)
        if not 3 <= x.dim() <= 5:
            raise ValueError(f"`{name}` must be [B, C, *spatial] with one to three spatial dims; got {shape}.")
        if x.numel() == 0:
            raise ValueError(f"`{name}` must have at least one element; got {shape}. Leave out the empty head.")
        checks.dtype(name, x, backends.FLOATING, "Pass logits, not labels.")
        if x.dim() != first.dim() or x.shape[:2] != first.shape[:2]:
            expected = [*first.shape[:2], *["*"] * (first.dim() - 2)]
            raise ValueError(
                f"`{name}` must be {expected} like `inputs[0]`; got {shape}. All heads of one call must match."
            )
        if x.dtype != first.dtype:
            expected, found = checks.names((first.dtype,)), checks.names((x.dtype,))
            raise ValueError(f"`{name}` must be {expected} like `inputs[0]`; got {found}. Convert it first.")
        if x.device != first.device:
            raise ValueError(f"`{name}` must be on {first.device} like `inputs[0]`; got {x.device}. Move it first.")
    return heads


def _check_target(inputs: list[Tensor], target: Tensor, activation: str) -> None:
    checks.tensor("target", target)
    softmax, first, shape = activation == "softmax", inputs[0], list(target.shape)
    lead = list(first.shape[:1] if softmax else first.shape[:2])
    if shape[: len(lead)] != lead or target.dim() != first.dim() - softmax:
        kind = "class numbers" if softmax else "as many channels as the heads"
        expected = [*lead, *["*"] * (first.dim() - 2)]
        missing_channel = not softmax and first.shape[1] == 1 and target.dim() == first.dim() - 1
        advice = "Add the channel: target.unsqueeze(1)." if missing_channel else "See `activation`."
        raise ValueError(f"`target` must be {expected}, {kind}; got {shape}. {advice}")
    checks.dtype("target", target, class_checks.CLASSES if softmax else checks.TARGETS, "Convert it first.")
    checks.device("target", target, first)
    checks.constant("target", target)
    full = target.shape[len(lead) :]
    for index, x in enumerate(inputs):
        if any(size % own for size, own in zip(full, x.shape[2:], strict=True)):
            raise ValueError(
                f"`inputs[{index}]` must divide the target's spatial dims {list(full)}; got {list(x.shape[2:])}. "
                "Interpolate this head, or pad before the network."
            )


def _check_weights(weights: object, inputs: list[Tensor]) -> tuple[list[float], Tensor | None]:
    """The weights as numbers, or as a tensor [L]; the other is empty."""
    if weights is None:
        return [1.0] * len(inputs), None
    if isinstance(weights, Tensor):
        if weights.shape != (len(inputs),):
            raise ValueError(f"`weights` must be [{len(inputs)}], one per head; got {list(weights.shape)}.")
        checks.dtype("weights", weights, backends.FLOATING, "Convert it first.")
        checks.device("weights", weights, inputs[0])
        checks.constant("weights", weights)
        return [], weights
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"`weights` must be a list of numbers or a Tensor; got {type(weights).__name__}.")
    if len(weights) != len(inputs):
        raise ValueError(f"`weights` must be {len(inputs)} numbers, one per head; got {len(weights)}.")
    return [checks.finite(f"weights[{index}]", weight) for index, weight in enumerate(weights)], None
