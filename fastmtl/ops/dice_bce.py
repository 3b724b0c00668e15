"""Dice + BCE on logits as one op: a pass of segment sums forward, an elementwise pass backward, nothing else saved.

With I = sum p t, P = sum p^q, T = sum t^q of a segment (q = 2 with squared_pred), N = 2 I + smooth_nr:
    Dice     D = P + T + smooth_dr             dL/dI = -2 / D              dL/dP = N / D^2
    Jaccard  D = 2 (P + T - I) + smooth_dr     dL/dI = -2 / D - 2 N / D^2  dL/dP = 2 N / D^2
so three coefficients per segment (slopes in the BCE sum, in I, and q times that in P) give the gradient:
    dx = c0 ((1 - t) p - pos_weight t (1 - p)) + (c1 t + c2 p^(q-1)) p (1 - p)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _backends, _checks
from ._dice_bce import EMPTY, REDUCTIONS, Options, Tensors, new_outputs, reference_gradient
from ._planes import gradient_like

_OPTIONS = (
    "float bce_weight, float dice_weight, bool batch, bool squared_pred, bool jaccard, float smooth_nr, "
    "float smooth_dr, str empty, str reduction, int groups, str backend"
)
_TENSORS = "Tensor input, Tensor target, Tensor? pos_weight, Tensor? weight, Tensor? mask"
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define(f"dice_bce({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)", tags=_TAGS)
_LIBRARY.define(f"dice_bce_backward(Tensor grad, {_TENSORS}, Tensor coefficients, {_OPTIONS}) -> Tensor", tags=_TAGS)
_forward_op = torch.ops.fastmtl.dice_bce.default
_backward_op = torch.ops.fastmtl.dice_bce_backward.default


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
    backend: str = "auto",
) -> Tensor:
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
        target: as input in shape; bool, uint8, int16, int32, int64 or floating, 0 to 1 (soft targets are fine), never
            0 to 255: the CPU kernel notices a mean above 1 and raises. Read as it is, never copied or cast up front.
        bce_weight, dice_weight: the two terms' factors.
        pos_weight: weight of the positive class in the BCE: a number, [C], or [C, 1, ...] as in torch.
        weight: a number or [C]; multiplies each channel's Dice term alone. The mean still divides by the number of
            counted segments, as MONAI's DiceLoss does.
        mask: bool or uint8, [B], [B, C] or as many dims as input, broadcastable to it. What is False takes part in
            nothing, whatever the logit or target there. A segment without a valid element leaves the Dice mean; with
            no valid element at all the loss is 0 and so is the gradient.
        batch, squared_pred, jaccard, smooth_nr, smooth_dr: as in MONAI's DiceLoss.
        empty: what a segment with an empty target (T = 0) does. "one", "zero": its Dice score is 1 or 0 if P is 0 too
            (in the float32 kernels that takes logits below -87 throughout), smoothed as usual otherwise; "skip": it
            leaves the Dice mean, and has no Dice term under "none".
        reduction: "mean", "sum", or "none" for one loss per segment: [B, C], with `batch=True` [C].
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar, [B, C] or [C]; float32, or float64 for float64 logits. Sums are finished in float64 and do not
        depend on the thread count, nor change from run to run.

    Differentiable in `input` alone, any number of times (beyond the first through the reference). The backward keeps
    the inputs and three numbers per segment. Contiguous, channels_last and expanded tensors are read in place;
    a tensor whose spatial dims have no common stride (a crop, a transpose) is copied.

    Raises:
        ValueError: a shape, dtype, device, name or range that does not fit, or an argument other than `input` that
            requires a gradient.
        TypeError: something that should be a tensor is not one.
        BackendError: the backend asked for cannot run these inputs here.

    Source: Milletari et al. 2016, V-Net, eq. 2-3 (Dice, squared); MONAI 1.6 DiceLoss for smoothing and weights.

    >>> logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    >>> target = torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.uint8)
    >>> round(dice_bce_loss(logits, target).item(), 4)
    0.2268
    """
    _checks.logits_and_target(input, target)
    _checks.finite("bce_weight", bce_weight)
    _checks.finite("dice_weight", dice_weight)
    _checks.flag("batch", batch)
    _checks.flag("squared_pred", squared_pred)
    _checks.flag("jaccard", jaccard)
    _checks.not_negative("smooth_nr", smooth_nr)
    _checks.not_negative("smooth_dr", smooth_dr)
    _checks.one_of("empty", empty, EMPTY)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _backends.check_backend(backend)
    pos_weight = _checks.per_channel("pos_weight", pos_weight, input)
    weight = _checks.per_channel("weight", weight, input)
    mask = _checks.full_rank_mask(mask, input)
    if input.dim() == 2:  # no spatial dims: planes of one pixel
        input, target, mask = input.unsqueeze(-1), target.unsqueeze(-1), None if mask is None else mask.unsqueeze(-1)
    loss, _ = _run_forward(
        input,
        target,
        pos_weight,
        weight,
        mask,
        bce_weight,
        dice_weight,
        batch,
        squared_pred,
        jaccard,
        smooth_nr,
        smooth_dr,
        empty,
        reduction,
        1,
        backend,
    )
    return loss


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    tensors, options = Tensors(*arguments[:5]), Options(*arguments[5:])
    return _backends.choose("dice_bce", options.backend, tensors.input)(tensors, options)


def _backward(grad: Tensor, *arguments: Any) -> Tensor:
    tensors, coefficients, options = Tensors(*arguments[:5]), arguments[5], Options(*arguments[6:])
    run = _backends.choose("dice_bce_backward", options.backend, tensors.input)
    return run(grad, tensors, coefficients, options)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return new_outputs(arguments[0], Options(*arguments[5:]))


def _fake_backward(grad: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    return gradient_like(input)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("dice_bce", _forward, _key)
    _LIBRARY.impl("dice_bce_backward", _backward, _key)
torch.library.register_fake("fastmtl::dice_bce", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("fastmtl::dice_bce_backward", _fake_backward, lib=_LIBRARY)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return _forward_op(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:5], output[1])
        ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _run_backward(grads[0], *ctx.saved_tensors, *ctx.options), *(None,) * (4 + len(ctx.options))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return _vmap_forward(info, in_dims, *arguments)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return _backward_op(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.options = Options(*inputs[7:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The coefficients depend on the logits: only a second look at the whole loss has all of the derivative."""
        grad, *rest = ctx.saved_tensors
        tensors, options = Tensors(*rest), ctx.options

        def gradient(grad: Tensor, input: Tensor) -> Tensor:
            return reference_gradient(grad, tensors._replace(input=input), options)

        pull: Any = torch.func.vjp(gradient, grad, tensors.input)[1]
        return *pull(grads[0]), *(None,) * (5 + len(options))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _vmap_backward(info, in_dims, *arguments)


class _ForwardOnce(torch.autograd.Function):
    """`_Forward` without a setup_context, which torch calls after binding all arguments anew: 20 us less."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        output = _Forward.forward(*arguments)
        _Forward.setup_context(ctx, arguments, output)
        return output

    backward = _Forward.backward


def _record(recorded: Any, plain: Any, *arguments: Any) -> Any:
    needed = torch.is_grad_enabled() and (arguments[0].requires_grad or arguments[1].requires_grad)
    return (recorded.apply if needed else plain.forward)(*arguments)


# torch.func wants to meet the autograd.Function before the op; everywhere else the op records itself.
def _transformed() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return (_Forward.apply if _transformed() else _forward_op)(*arguments)


def _run_backward(*arguments: Any) -> Tensor:
    return (_Backward.apply if _transformed() else _backward_op)(*arguments)


# torch.library.register_autograd would cost 70 us a call more: it matches the schema's 16 arguments anew each time.
_LIBRARY.impl("dice_bce", partial(_record, _ForwardOnce, _Forward), "Autograd")
_LIBRARY.impl("dice_bce_backward", partial(_record, _Backward, _Backward), "Autograd")


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """The vmapped dim moved in front of dim 0 and merged with it; a tensor without one is repeated."""
    if tensor is None:
        return None
    return (tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)


def _fold_tensors(size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> Tensors:
    folded: list[Any] = [_fold(tensor, dim, size) for tensor, dim in zip(arguments[:4], in_dims[:4], strict=True)]
    mask, dim = arguments[4], in_dims[4]
    if dim is not None:
        stacked = mask.movedim(dim, 0)
        mask = stacked.expand(size, folded[0].shape[0] // size, *stacked.shape[2:]).flatten(0, 1)
    elif mask is not None and mask.shape[0] != 1:
        mask = _fold(mask, None, size)
    return Tensors._make([*folded, mask])


def _vmap_forward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    size, options = info.batch_size, Options(*arguments[5:])
    tensors = _fold_tensors(size, in_dims, arguments)
    loss, coefficients = _run_forward(*tensors, *options._replace(groups=size * options.groups))
    samples, *rest = tensors.input.shape
    inner = options.loss_shape(torch.Size((samples // size, *rest)))
    return (loss.reshape(size, *inner), coefficients.unflatten(1, (size, -1))), (0, 1)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], grad: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    size, options = info.batch_size, Options(*arguments[6:])
    options = options._replace(groups=size * options.groups)
    tensors = _fold_tensors(size, in_dims[1:], arguments)
    grad = grad.expand(size, *grad.shape) if in_dims[0] is None else grad.movedim(in_dims[0], 0)
    grad = grad.reshape(options.loss_shape(tensors.input.shape))
    coefficients, dim = arguments[5], in_dims[6]  # [3, B, C] with the vmapped dim anywhere or nowhere
    stacked = coefficients.unsqueeze(1).expand(-1, size, -1, -1) if dim is None else coefficients.movedim(dim, 1)
    gradient = _run_backward(grad, *tensors, stacked.flatten(1, 2), *options)
    return gradient.unflatten(0, (size, -1)), 0


torch.library.register_vmap("fastmtl::dice_bce", _vmap_forward, lib=_LIBRARY)
torch.library.register_vmap("fastmtl::dice_bce_backward", _vmap_backward, lib=_LIBRARY)
