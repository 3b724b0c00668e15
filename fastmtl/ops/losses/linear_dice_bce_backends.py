"""The backends of `fastmtl::linear_dice_bce` and its backward: blocks of logits on the kernels of
`fastmtl::dice_bce`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ...reference.dice_bce import loss_of_sums
from ...reference.linear_dice_bce import linear_dice_bce_loss as reference_loss
from ..core import checks
from ..core.fields import keywords
from . import dice_bce_backends, sigmoid_overlap
from .dice_bce_backends import Options, slopes_of_sums
from .linear_blocks import Layer, gradients_of_blocks, sums_of_blocks


class Tensors(NamedTuple):
    """The op's tensor arguments, in the order of its schema."""

    layer: list[Tensor]  # features [B, F, *spatial], weight [C, F] or [C, F, 1, ...], and the bias [C] if there is one
    target: Tensor  # [B, C, *spatial], any dtype
    pos_weight: Tensor | None  # [C]
    channel_weight: Tensor | None  # [C]
    mask: Tensor | None  # bool or uint8, as many dims as features, broadcastable to [B, C, *spatial]


def new_outputs(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    return dice_bce_backends.new_outputs(Layer.of(tensors.layer).like_logits(), options)


def reference(tensors: Tensors, options: Options) -> Tensor:
    """The loss in plain torch, differentiable any number of times."""
    layer, target, pos_weight, channel_weight, mask = tensors
    return reference_loss(
        *Layer.of(layer),
        target,
        pos_weight=pos_weight,
        channel_weight=channel_weight,
        mask=mask,
        **keywords(options, "counts", "groups", "backend"),
    )


class _Blocks:
    """The arguments of `dice_bce` for a block of pixels; one spatial dim."""

    def __init__(self, tensors: Tensors) -> None:
        _, target, self._pos_weight, _, mask = tensors
        self._target = target.flatten(2)  # [B, C, N]
        # [B or 1, C or 1, N]
        self._mask = None if mask is None else mask.expand(*mask.shape[:2], *target.shape[2:]).flatten(2)

    @property
    def valid(self) -> Tensor | None:
        """Pixels [B, 1, N] where any channel is valid; None: all."""
        if self._mask is None:
            return None
        return self._mask.bool().any(1, keepdim=True).expand(self._target.shape[0], -1, -1)

    def __call__(self, logits: Tensor, sample: int, pixels: slice) -> dice_bce_backends.Tensors:
        mask = self._mask
        if mask is not None:
            mask = (mask if mask.shape[0] == 1 else mask[sample : sample + 1])[:, :, pixels]
        target = self._target[sample : sample + 1, :, pixels]
        return dice_bce_backends.Tensors(logits, target, self._pos_weight, None, mask)


def forward_in_blocks(backend: str, tensors: Tensors, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    layer, blocks, run = Layer.of(tensors.layer), _Blocks(tensors), sigmoid_overlap.BACKENDS[backend][0]
    tensors = tensors._replace(target=checks.unit_or_nan(tensors.target, tensors.mask))  # before the first block
    loss, coefficients, counts = new_outputs(tensors, o)
    counts.zero_()
    count, counting = dice_bce_backends.BACKENDS[backend][0], Options(counts=True)

    def sums_of(logits: Tensor, sample: int, pixels: slice) -> Tensor:
        block = blocks(logits, sample, pixels)
        if o.counts:
            counts[:, sample] += count(block, counting)[2][:, 0]
        own = sigmoid_overlap.Tensors(logits, block.target, block.pos_weight, block.mask)
        return run(own, sigmoid_overlap.Options(o.squared_pred, backend))[0]

    sums = sums_of_blocks(layer, blocks.valid, sums_of)
    sums = sums.sum(1) if o.batch else sums
    coefficients.copy_(slopes_of_sums([*sums], tensors.channel_weight, o))
    settings = keywords(o, "counts", "groups", "backend", "squared_pred", "batch")
    loss.copy_(loss_of_sums(*sums, weight=tensors.channel_weight, **settings))
    return loss, coefficients, counts


def backward_in_blocks(backend: str, grad: Tensor, tensors: Tensors, coefficients: Tensor, o: Options) -> list[Tensor]:
    layer, blocks, run = Layer.of(tensors.layer), _Blocks(tensors), dice_bce_backends.BACKENDS[backend][1]
    grads = o.grad_planes(grad, layer.like_logits().shape)
    each = o._replace(reduction="none", batch=False)  # one gradient for each plane

    def gradient(logits: Tensor, sample: int, pixels: slice) -> Tensor:
        slopes = coefficients[:, sample : sample + 1].contiguous()
        return run(grads[sample : sample + 1], blocks(logits, sample, pixels), slopes, each)

    return gradients_of_blocks(layer, blocks.valid, gradient)


def _in_blocks(backend: str) -> tuple[Any, Any]:
    return partial(forward_in_blocks, backend), partial(backward_in_blocks, backend)


BACKENDS = {backend: _in_blocks(backend) for backend in ("cpp", "triton", "reference")}
