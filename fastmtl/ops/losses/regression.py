"""Regression losses with missing labels: one pass of sums per sample forward, one elementwise pass backward.

With d = input - target and n the number of valid elements (of the sample under "none", 1 under "sum"):
    squared   d^2                                                dx = 2 d / n
    absolute  |d|                                                dx = sign(d) / n
    smooth    d^2 / (2 beta) if |d| < beta else |d| - beta / 2   dx = clamp(d / beta, -1, 1) / n
"""

from __future__ import annotations

from torch import Tensor

from ..core import backends, checks
from ..core.fields import checks_of
from ..core.loss_op import LossOp
from .regression_backends import BACKENDS, Options, Tensors, new_outputs, reference

_check_options = checks_of(Options)


def mse_loss(
    input: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Squared error, (input - target)^2, of the labelled elements: `torch.nn.functional.mse_loss` with a mask.

    "mean": the sum over the valid elements divided by their number, 0 if there are none; "sum": the sum; "none": the
    mean over each sample's valid elements, [B] (torch returns one number per element instead). Under "none" a NaN in
    one sample stays in that sample.

    Args:
        input: [B, ...] (boxes [B, 4], reconstructions [B, 3, H, W]), float16, bfloat16, float32 or
            float64.
        target: the shape of input; bool, uint8, int16, int32, int64 or floating, read in its own dtype, without a copy
            or a cast: a uint8 image of 0 to 255 can be the target of a reconstruction.
        mask: bool or uint8, [B] (which samples are labelled), [B, C] or as many dims as input, broadcastable to it.
            Elements where it is False are ignored, even if the input or target there is invalid.
        reduction: "mean", "sum" or "none".
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar or [B]; float32, or float64 for float64 input. Partial sums are added in float64; results are the same
        for any number of threads and in every run.

    Differentiable in `input` only, any number of times; second and forward-mode derivatives run the reference.
    The backward keeps the inputs and one number per sample. Contiguous, channels_last and expanded tensors are read in
    place; a tensor whose spatial dims have no common stride (a crop, a transpose) is copied.

    Raises:
        ValueError: an invalid shape, dtype, device or name, or a target that requires a gradient.
        TypeError: an argument that must be a tensor is not one.
        BackendError: the requested backend cannot run these inputs here.

    Source: torch.nn.functional.mse_loss.

    >>> boxes, target = torch.tensor([[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 9.0, 9.0]]), torch.tensor([[0, 0, 2, 2]] * 2)
    >>> mse_loss(boxes, target, mask=torch.tensor([True, False]))
    tensor(1.)
    """
    return _regression_loss(input, target, mask, "squared", 1.0, reduction, backend)


def l1_loss(
    input: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Absolute error, |input - target|, of the labelled elements: `torch.nn.functional.l1_loss` with a mask.

    Arguments, result and errors are those of `mse_loss`. The gradient is 0 where input equals target.

    Source: torch.nn.functional.l1_loss.

    >>> l1_loss(torch.tensor([1.0, 5.0]), torch.tensor([3, 5]), reduction="none")
    tensor([2., 0.])
    """
    return _regression_loss(input, target, mask, "absolute", 1.0, reduction, backend)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    *,
    beta: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Squared error below beta, absolute error above: `torch.nn.functional.smooth_l1_loss` with a mask.

    With d = input - target: d^2 / (2 beta) if |d| < beta, else |d| - beta / 2.

    Args:
        beta: 0 to 1e30, in the units of input; 0 gives the absolute error.

    The other arguments, the result and the errors are those of `mse_loss`.

    Source: Girshick 2015, Fast R-CNN, eq. 3 (beta 1).

    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), reduction="none")
    tensor([0.1250, 2.5000])
    """
    checks.between("beta", beta, 0, 1e30)
    return _regression_loss(input, target, mask, "smooth", float(beta), reduction, backend)


def _regression_loss(
    input: Tensor, target: Tensor, mask: Tensor | None, error: str, beta: float, reduction: str, backend: str
) -> Tensor:
    _check_pair(input, target)
    options = Options(error, beta, reduction, backend)
    _check_options(options)
    mask = checks.full_rank_mask(mask, input)
    if reduction != "none" and mask is None and input.is_contiguous() and target.is_contiguous():
        input, target = input.view(1, 1, -1), target.view(1, 1, -1)  # one long run is fast
    while input.dim() < 3:  # [B] and [B, n] as planes: one channel of one, or of n, pixels
        input, target, mask = input.unsqueeze(1), target.unsqueeze(1), None if mask is None else mask.unsqueeze(1)
    return _regression(*Tensors(input, target, mask), *options)[0]


def _check_pair(input: Tensor, target: Tensor) -> None:
    checks.tensor("input", input)
    checks.tensor("target", target)
    shape = list(input.shape)
    if input.dim() == 0:
        raise ValueError("`input` must be [B, ...]; got a scalar. Add the batch: input.unsqueeze(0).")
    if input.numel() == 0:
        raise ValueError(f"`input` must have at least one element; got {shape}. Skip the empty batch.")
    checks.dtype("input", input, backends.FLOATING, "Pass predictions.")
    if target.shape != input.shape:
        raise ValueError(
            f"`target` must match `input` {shape}; got {list(target.shape)}. Nothing is broadcast: reshape one of "
            "them, or expand the target."
        )
    checks.dtype("target", target, checks.TARGETS, "Convert it first.")
    checks.device("target", target, input)
    checks.constant("target", target)


_regression = LossOp(
    "regression",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=lambda tensors, options: new_outputs(tensors.input, options),
    reference=reference,
)
