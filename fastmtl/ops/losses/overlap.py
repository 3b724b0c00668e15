"""The sums behind every overlap loss, in one pass over logits and target."""

from __future__ import annotations

from torch import Tensor

from ...reference.overlap import OverlapSums
from ..core import backends, checks, class_checks
from .sigmoid_overlap import sigmoid_overlap_op
from .softmax_overlap import softmax_overlap_op


def overlap_sums(
    input: Tensor,
    target: Tensor,
    *,
    activation: str = "sigmoid",
    pos_weight: Tensor | float | None = None,
    mask: Tensor | None = None,
    ignore_index: int | None = None,
    squared_pred: bool = False,
    backend: str = "auto",
) -> OverlapSums:
    """Intersection, prediction, target, entropy and element sums per channel of each sample: five tensors [B, C].

    Dice, Jaccard, Tversky, generalized Dice and their logarithms and powers are a few operations on these small
    tensors. Each of them then reads logits and target once forward and once backward, and writes the gradient once.

        intersection = sum p t,  prediction = sum p^q,  target = sum t^q,  elements = number of valid elements
        entropy = -sum (pos_weight t log p + (1 - t) log(1 - p))    with activation="sigmoid"
        entropy = -sum t log p                                      with activation="softmax"

    Args:
        input: logits [B, C, *spatial], float16, bfloat16, float32 or float64.
        target: the same shape (0 to 1, any dtype); with "softmax" also class numbers [B, *spatial], integers. A value
            outside 0 to 1 raises on a CPU and makes the sums NaN on a GPU.
        activation: "sigmoid" or "softmax" (over C).
        pos_weight: with "sigmoid": a number or [C].
        mask: bool or uint8; True: the element counts. "sigmoid": [B], [B, C] or broadcastable to input; "softmax": [B]
            or broadcastable to [B, *spatial].
        ignore_index: with "softmax" and class numbers: pixels of this class are ignored.
        squared_pred: q = 2 instead of 1.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        `OverlapSums`, float32 (float64 for float64 logits); `intersection`, `prediction` and `entropy` are
        differentiable in `input`, any number of times; second and forward-mode derivatives run the reference.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names; an invalid class number as in
            `dice_ce_loss`.
        BackendError: the requested backend cannot run these inputs here.

    >>> logits, target = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    >>> sums = overlap_sums(logits, target)
    >>> tversky = sums.intersection / (0.3 * sums.prediction + 0.7 * sums.target)
    >>> round(tversky.item(), 4)
    0.5882
    """
    checks.one_of("activation", activation, ("sigmoid", "softmax"))
    checks.flag("squared_pred", squared_pred)
    backends.check_backend(backend)
    if activation == "sigmoid":
        class_checks.no_class_ignored(ignore_index)
        checks.logits_and_target(input, target)
        weight = checks.per_channel("pos_weight", pos_weight, input)
        return _sigmoid(input, target, weight, checks.full_rank_mask(mask, input), squared_pred, backend)
    if pos_weight is not None:
        raise ValueError("`pos_weight` is for activation='sigmoid'; multiply the entropy sums of the classes instead.")
    logits, classes = class_checks.logits_and_classes(input, target)
    ignored, mask = class_checks.ignored(ignore_index), class_checks.pixel_mask(mask, logits)
    sums, _ = softmax_overlap_op(logits, classes, mask, ignored, squared_pred, backend)
    return OverlapSums(*sums)


def _sigmoid(
    input: Tensor, target: Tensor, pos_weight: Tensor | None, mask: Tensor | None, squared_pred: bool, backend: str
) -> OverlapSums:
    if input.dim() == 2:  # no spatial dims: planes of one pixel
        input, target, mask = input.unsqueeze(-1), target.unsqueeze(-1), None if mask is None else mask.unsqueeze(-1)
    sums, _ = sigmoid_overlap_op(input, target, pos_weight, mask, squared_pred, backend)
    intersection, prediction, of_target, entropy, elements = sums.unbind()
    return OverlapSums(intersection, prediction, of_target.detach(), entropy, elements.detach())
