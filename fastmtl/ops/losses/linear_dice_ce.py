"""Softmax Dice + cross-entropy of a linear layer's logits, which are never stored."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ...reference.dice_ce import loss_of_sums
from ...reference.overlap import OverlapSums
from ..core import checks, class_checks
from ..core.fields import checks_of, keywords
from .dice_ce import check_reduction, dice_ce_loss
from .dice_ce_backends import Options
from .linear_blocks import check_layer, linear_loss, stored_logits, stores_logits
from .softmax_overlap import softmax_overlap_op

_check_options = checks_of(Options)


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
    fuse: bool | None = None,
    backend: str = "auto",
) -> Tensor:
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
            smooth_nr, smooth_dr, empty, reduction: as for `dice_ce_loss`.
        fuse: False stores the logits and calls `dice_ce_loss`, True never does. None stores them where that is faster:
            if they, and on a CPU the features too, have less than 32 MiB; on a GPU also for fewer than 32 classes.
        backend: of the sums and gradients of each block, as for `dice_ce_loss`.

    Returns:
        A scalar, or [B] for reduction "none"; float32, or float64 for float64 features. Where nothing is stored,
        half-precision features are multiplied in float32 on a CPU, and in their own type on a GPU.

    Differentiable in features, weight and bias, once where nothing is stored. Deterministic. torch.compile runs it
    between two graphs.

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
        backend=backend,
    )
    _check_options(options)
    shape = layer.like_logits()
    class_weight = class_checks.class_weight(class_weight, shape, "class_weight")
    if stores_logits(layer, fuse):
        settings = keywords(options, "counts", "ignore_index")
        logits = stored_logits(layer)
        return cast(
            Tensor, dice_ce_loss(logits, target, weight=class_weight, mask=mask, ignore_index=ignore_index, **settings)
        )
    _, target = class_checks.logits_and_classes(shape, target)
    mask = class_checks.pixel_mask(mask, shape)
    if checks.may_look(target):  # all of it before the first block
        class_checks.check_classes(target, mask, shape, options.ignore_index)
    mask = None if mask is None else mask.expand(shape.shape[0], 1, *shape.shape[2:]).flatten(2)
    return linear_loss(layer, _DiceCE(target.flatten(2), class_weight, mask, options))


class _DiceCE(NamedTuple):
    """The loss of the sums I, P, T, cross-entropy and pixels of each class, and with label smoothing of -sum log p."""

    target: Tensor  # [B, 1 or C, N]
    class_weight: Tensor | None
    mask: Tensor | None  # [B, 1, N]
    options: Options

    def sums(self, logits: Tensor, sample: int, pixels: slice) -> Tensor:
        parts = [softmax_overlap_op(logits, *given)[0] for given in self._given(logits, sample, pixels)]
        return parts[0] if len(parts) == 1 else torch.cat([parts[0], parts[1][3:4] * logits.shape[1]])

    def gradient(self, grad: Tensor, logits: Tensor, sample: int, pixels: slice) -> Tensor:
        given = self._given(logits, sample, pixels)
        none = grad.new_empty(0)
        found = self._backward(grad[:5], logits, given[0], none)
        if len(given) > 1:
            of_entropy = torch.zeros_like(grad[:5])
            of_entropy[3] = grad[5] * logits.shape[1]
            found = found + self._backward(of_entropy, logits, given[1], none)
        return found

    @staticmethod
    def _backward(grad: Tensor, logits: Tensor, given: tuple[Any, ...], none: Tensor) -> Tensor:
        target, mask, *options = given
        return softmax_overlap_op.backward(grad.contiguous(), logits, target, mask, none, *options)

    def loss(self, sums: Tensor) -> Tensor:
        settings = keywords(self.options, "counts", "backend", "ignore_index", "squared_pred")
        spread = sums[5] if len(sums) > 5 else sums[3]
        soft = self.target.shape[1] != 1
        return loss_of_sums(OverlapSums(*sums[:5]), spread, soft=soft, weight=self.class_weight, **settings)

    def _given(self, logits: Tensor, sample: int, pixels: slice) -> list[tuple[Any, ...]]:
        """The arguments of `softmax_overlap` after the logits: of the target, and with label smoothing also of equal
        shares of all classes, whose cross-entropy is that of smoothing."""
        o, target = self.options, self.target[sample : sample + 1, :, pixels]
        mask = None if self.mask is None else self.mask[sample : sample + 1, :, pixels]
        given: list[tuple[Any, ...]] = [(target, mask, o.ignore_index, o.squared_pred, o.backend)]
        if o.label_smoothing:
            if target.shape[1] == 1:
                valid = target != o.ignore_index
                mask = valid if mask is None else valid & mask.bool()
            equal = logits.new_full((), 1 / logits.shape[1]).expand(logits.shape)
            given.append((equal, mask, o.ignore_index, False, o.backend))
        return given
