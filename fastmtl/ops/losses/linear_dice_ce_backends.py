"""The backends of `fastmtl::linear_dice_ce` and its backward: blocks of logits on the kernels of `fastmtl::dice_ce`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...reference.dice_ce import loss_of_sums
from ...reference.linear_dice_ce import linear_dice_ce_loss as reference_loss
from ...reference.overlap import OverlapSums
from ..core.class_checks import check_classes
from ..core.fields import keywords
from . import dice_ce_backends, softmax_overlap
from .dice_ce_backends import Options, slopes_of_sums
from .linear_blocks import Layer, gradients_of_blocks, sums_of_blocks


class Tensors(NamedTuple):
    """The op's tensor arguments, in the order of its schema."""

    layer: list[Tensor]  # features [B, F, *spatial], weight [C, F] or [C, F, 1, ...], and the bias [C] if there is one
    target: Tensor  # class numbers [B, 1, *spatial], or probabilities [B, C, *spatial] of any dtype
    class_weight: Tensor | None  # [C]
    mask: Tensor | None  # bool or uint8 [B, 1, *spatial], or with dims of 1

    @property
    def soft(self) -> bool:
        return self.target.shape[1] != 1

    def of_logits(self) -> dice_ce_backends.Tensors:
        """The arguments of `dice_ce` for logits whose memory does not exist."""
        logits = Layer.of(self.layer).like_logits()
        return dice_ce_backends.Tensors(logits, self.target, self.class_weight, self.mask)


def new_outputs(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """As `dice_ce_backends.new_outputs`, with three slopes of each segment also without a Dice term."""
    return dice_ce_backends.new_outputs(tensors.of_logits(), options._replace(dice_weight=1.0))


def reference(tensors: Tensors, options: Options) -> Tensor:
    """The loss in plain torch, differentiable any number of times."""
    features, target = tensors.layer[0], tensors.target
    mask = None if tensors.mask is None else tensors.mask.expand(features.shape[0], 1, *features.shape[2:])
    layer = Layer.of(tensors.layer)
    settings = keywords(options, "counts", "backend")
    return reference_loss(*layer, target, class_weight=tensors.class_weight, mask=mask, **settings)


class _Blocks:
    """The arguments of `dice_ce` for a block of pixels; one spatial dim."""

    def __init__(self, tensors: Tensors, options: Options) -> None:
        _, target, self._weight, mask = tensors.of_logits()
        features = tensors.layer[0]
        self._target = target.flatten(2)  # [B, 1 or C, N]
        self._mask = None if mask is None else mask.expand(features.shape[0], 1, *features.shape[2:]).flatten(2)
        self._ignored = options.ignore_index

    @property
    def valid(self) -> Tensor | None:
        """Pixels [B, 1, N]; None: all."""
        return _counted(self._target, self._mask, self._ignored)

    def __call__(self, logits: Tensor, sample: int, pixels: slice) -> dice_ce_backends.Tensors:
        mask = None if self._mask is None else self._mask[sample : sample + 1, :, pixels]
        return dice_ce_backends.Tensors(logits, self._target[sample : sample + 1, :, pixels], self._weight, mask)


def _counted(target: Tensor, mask: Tensor | None, ignored: int) -> Tensor | None:
    """Where the mask is not 0 and the class number, if the target has them, is not `ignored`; None: everywhere."""
    valid = None if mask is None else mask.bool()
    if target.shape[1] != 1 or not _holds(target.dtype, ignored):
        return valid
    return target != ignored if valid is None else valid & (target != ignored)


def _holds(dtype: torch.dtype, number: int) -> bool:
    """Whether a tensor of the dtype can have the number, which torch would wrap in a comparison otherwise."""
    if dtype == torch.bool:
        return number in (0, 1)
    return torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max


def _sums(backend: str, block: dice_ce_backends.Tensors, o: Options) -> list[Tensor]:
    """I, P, T, cross-entropy and pixels of each class, and with label smoothing -sum log p, each [1, C]."""
    input, target, _, mask = block
    run, own = softmax_overlap.BACKENDS[backend][0], softmax_overlap.Tensors(input, target, mask)
    sums = [*run(own, softmax_overlap.Options(o.ignore_index, o.squared_pred, backend))[0]]
    if o.label_smoothing:  # the cross-entropy of equal shares of all classes
        mask, classes = _counted(target, mask, o.ignore_index), input.shape[1]
        equal = softmax_overlap.Tensors(input, input.new_full((), 1 / classes).expand(input.shape), mask)
        sums.append(run(equal, softmax_overlap.Options(o.ignore_index, False, backend))[0][3] * classes)
    return sums


def _counts(backend: str, block: dice_ce_backends.Tensors, o: Options) -> Tensor:
    """[1, 3 C + 1]."""
    return dice_ce_backends.BACKENDS[backend][0](block, Options(ignore_index=o.ignore_index, counts=True))[2]


def forward_in_blocks(backend: str, tensors: Tensors, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    layer, blocks = Layer.of(tensors.layer), _Blocks(tensors, o)
    logits, target, weight, mask = tensors.of_logits()
    check_classes(target, mask, logits, o.ignore_index)  # all of it before the first block
    loss, coefficients, counts = new_outputs(tensors, o)
    counts.zero_()

    def sums_of(logits: Tensor, sample: int, pixels: slice) -> Tensor:
        block = blocks(logits, sample, pixels)
        if o.counts:
            counts[sample] += _counts(backend, block, o)[0]
        return torch.stack(_sums(backend, block, o))

    sums = sums_of_blocks(layer, blocks.valid, sums_of)
    overlap = OverlapSums(*sums[:5])
    coefficients.copy_(slopes_of_sums(overlap, weight, tensors.soft, o))
    settings = keywords(o, "counts", "backend", "ignore_index", "squared_pred")
    loss.copy_(loss_of_sums(overlap, sums[-1], soft=tensors.soft, weight=weight, **settings))
    return loss, coefficients, counts


def backward_in_blocks(backend: str, grad: Tensor, tensors: Tensors, coefficients: Tensor, o: Options) -> list[Tensor]:
    blocks, run = _Blocks(tensors, o), dice_ce_backends.BACKENDS[backend][1]
    o = o._replace(dice_weight=1.0)  # so that the slopes are those of segments

    def gradient(logits: Tensor, sample: int, pixels: slice) -> Tensor:
        own = grad[sample : sample + 1] if grad.dim() else grad
        slopes = coefficients[:, sample : sample + 1].contiguous()
        return run(own, blocks(logits, sample, pixels), slopes, o)

    return gradients_of_blocks(Layer.of(tensors.layer), blocks.valid, gradient)


def _in_blocks(backend: str) -> tuple[Any, Any]:
    return partial(forward_in_blocks, backend), partial(backward_in_blocks, backend)


BACKENDS = {backend: _in_blocks(backend) for backend in ("cpp", "triton", "reference")}
