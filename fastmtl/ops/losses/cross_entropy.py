"""Cross-entropy over classes on the kernels of Dice + cross-entropy: one read forward, a read and a write backward."""

from __future__ import annotations

from torch import Tensor

from ..core import checks, class_checks
from .dice_ce import check_tensors, run
from .dice_ce_backends import Options

_REDUCTIONS = {"mean": "mean", "sum": "total", "sample": "none", "none": "totals"}


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """`torch.nn.functional.cross_entropy` for class numbers of any integer dtype, with a mask for missing labels.

        ce = -sum_c weight_c ((1 - label_smoothing) t_c + label_smoothing / C) log p_c       per pixel
    with p = softmax of input over C, t = 1 for the target's class and 0 elsewhere. Over the valid pixels of the batch:
        "mean": sum of ce / sum of the weights of the pixels' classes (torch's mean; 0 where torch computes 0 / 0)
        "sum": sum of ce, weighted and not divided (torch's sum)
        "sample": [B], each sample's own "mean"
        "none": for [B, C] inputs only, [B]: ce of each sample, 0 where it is ignored or masked (torch's none)

    Args:
        input: logits [B, C, *spatial] or [B, C], C >= 2, float16, bfloat16, float32 or float64.
        target: class numbers [B, *spatial] or [B, 1, *spatial], bool, uint8, int16, int32 or int64, read in their own
            dtype; or probabilities [B, C, *spatial], with which "mean" divides by the number of valid pixels, as in
            torch.
        weight: [C], one weight per class. Must be finite: an infinite weight makes the loss NaN, even if no valid pixel
            has its class (with "cpp" such a class has no effect).
        mask: bool or uint8, [B] or broadcastable to [B, *spatial]; elements where it is False are ignored: samples
            without this label.
        ignore_index: pixels of this class number are ignored; None: all count.
        label_smoothing: 0 to 1.
        reduction: see above. With spatial dims "none" raises: this op avoids writing a map of losses. Use "sample", or
            torch's function.
        backend: as in `dice_ce_loss`.

    Returns:
        A scalar or [B]; float32, or float64 for float64 logits.

    Differentiable in `input` only, any number of times; second and forward-mode derivatives run the reference.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names. A class number outside 0 to C - 1 that is
            not ignore_index raises on a CPU and makes the loss NaN on a GPU.
        BackendError: the requested backend cannot run these inputs here.

    Source: torch.nn.functional.cross_entropy, for the weights, the smoothing and the mean.

    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    >>> round(cross_entropy(logits, torch.tensor([0, 1]), mask=torch.tensor([True, False])).item(), 4)
    0.2395
    """
    checks.one_of("reduction", reduction, tuple(_REDUCTIONS))
    tensors = check_tensors(input, target, weight, mask)
    if reduction == "none" and input.dim() > 2:
        raise ValueError(
            f"`reduction` 'none' would be a loss for every pixel of `input` {list(input.shape)}, which this op does "
            "not write. Use 'sample' for one loss per sample, or torch.nn.functional.cross_entropy."
        )
    options = Options(
        ce_weight=1.0,
        dice_weight=0.0,
        ignore_index=class_checks.ignored(ignore_index),
        label_smoothing=label_smoothing,
        reduction=_REDUCTIONS[reduction],
        backend=backend,
    )
    return run(tensors, options)[0]
