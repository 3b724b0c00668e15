"""A loss of sums over pixels fused with the linear layer before it: logits exist for a block of pixels at a time.

The loss is a function of sums over each class of each sample, so the forward adds up the sums of blocks, and the
backward computes each block's logits again, their gradient from the slopes of the loss in the sums, and from it the
gradients of features, weight and bias. Both read the features once; neither the logits [B, C, *spatial] nor their
gradient is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import FLOATING
from ..core.planes import gradient_like, in_place

_BLOCK_BYTES = 2**21  # of logits: they stay in a core's caches between the product and the loss
_LEAST_PIXELS = 256
# Storing smaller logits costs less than computing them twice. On a CPU that is so where glibc keeps the memory of all
# tensors, those of the features too: it returns larger blocks, and new ones cost page faults.
_SMALL_BYTES = 2**25
_FEW_CLASSES = 32  # on a GPU, likewise

Sums = Callable[[Tensor, int, slice], Tensor]  # (logits [1, C, n], sample, pixels) -> sums [K, 1, ...] of the block
Gradient = Callable[[Tensor, int, slice], Tensor]  # the same -> gradient of the logits [1, C, n]


class Layer(NamedTuple):
    """The arguments of the linear layer, checked.

    Attributes:
        features: [B, F, *spatial].
        weight: [C, F], or that of a 1x1 convolution.
        bias: [C], or None.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def compute(self) -> torch.dtype:
        """Of logits and sums: float32 or float64; on a GPU half-precision features keep their type, for the tensor
        cores, as a convolution's logits do."""
        dtype = self.features.dtype
        return dtype if self.features.is_cuda else torch.promote_types(dtype, torch.float32)

    @property
    def sums(self) -> torch.dtype:
        """Of the loss and of the sums over pixels."""
        return torch.promote_types(self.features.dtype, torch.float32)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Layer:
        """From the list of tensors that the ops take: features, weight and, if there is one, the bias."""
        return cls(tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.features, self.weight] if self.bias is None else [self.features, self.weight, self.bias]

    @property
    def matrix(self) -> Tensor:
        """The weight as [C, F]."""
        return self.weight.flatten(1)

    @property
    def pixels(self) -> Tensor:
        """The features as [B, F, N], N pixels with one stride."""
        return in_place(self.features).flatten(2)

    def like_logits(self) -> Tensor:
        """A tensor with the shape, dtype and device of the logits [B, C, *spatial], without their memory."""
        one = self.features.detach()[:, :1]
        return one.expand(-1, self.weight.shape[0], *one.shape[2:])


def check_layer(features: object, weight: object, bias: object, *, classes: int) -> Layer:
    """The layer; `weight` must have rows for `classes` or more.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; the message names the argument.
    """
    for name, value in (("features", features), ("weight", weight)):
        checks.tensor(name, value)
    assert isinstance(features, Tensor)
    assert isinstance(weight, Tensor)
    if features.dim() < 3 or features.numel() == 0:
        raise ValueError(
            f"`features` must be [B, F, *spatial] with at least one element; got {list(features.shape)}. A linear "
            "layer of samples without pixels has small logits: use it and the loss of logits."
        )
    checks.dtype("features", features, FLOATING, "Pass what the last layer reads.")
    F, found = features.shape[1], list(weight.shape)
    if weight.dim() < 2 or found[1] != F or any(size != 1 for size in found[2:]):
        raise ValueError(
            f"`weight` must be [C, {F}], or that of a 1x1 convolution, for `features` {list(features.shape)}; "
            f"got {found}."
        )
    if found[0] < classes:
        raise ValueError(f"`weight` must have a row for each of {classes} or more classes; got {found}.")
    checks.dtype("weight", weight, FLOATING, "Pass the layer's weight.")
    checks.device("weight", weight, features, "features")
    if bias is not None:
        checks.tensor("bias", bias)
        assert isinstance(bias, Tensor)
        checks.dtype("bias", bias, FLOATING, "Pass the layer's bias.")
        checks.device("bias", bias, features, "features")
        if list(bias.shape) != [found[0]]:
            raise ValueError(f"`bias` must be [{found[0]}], one for each row of `weight`; got {list(bias.shape)}.")
    return Layer(features, weight, bias)


def stores_logits(layer: Layer, fuse: bool | None) -> bool:
    """Whether to store the logits, by the argument `fuse`; None: where that is faster."""
    if fuse is not None:
        checks.flag("fuse", fuse)
        return not fuse
    features, classes = layer.features, layer.weight.shape[0]
    size = features[:, 0].numel() * classes * features.element_size()
    if features.is_cuda:
        return classes < _FEW_CLASSES or size < _SMALL_BYTES
    return max(size, features.numel() * features.element_size()) < _SMALL_BYTES


def stored_logits(layer: Layer) -> Tensor:
    """The logits [B, C, *spatial], in the features' dtype."""
    dtype = layer.features.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    logits = torch.nn.functional.conv1d(layer.pixels, layer.matrix.to(dtype).unsqueeze(2), bias)
    return logits.unflatten(2, layer.features.shape[2:])


def sums_of_blocks(layer: Layer, valid: Tensor | None, sums: Sums) -> Tensor:
    """The float64 sums over blocks, [K, B, ...]; valid: pixels [B, 1, N] whose features are read, None: all."""
    product, total = _Product.of(layer, valid), list[Tensor]()
    with _exactly(layer):
        for sample in range(product.features.shape[0]):
            parts = [sums(product.logits(sample, pixels), sample, pixels) for pixels in product.blocks]
            total.append(torch.stack(parts).to(torch.float64).sum(0))
    return torch.cat(total, 1)


def gradients_of_blocks(layer: Layer, valid: Tensor | None, gradient: Gradient) -> list[Tensor]:
    """The gradients of features, weight and bias, from those of the logits of blocks."""
    product = _Product.of(layer, valid)
    of_features = gradient_like(layer.features)
    written = of_features.flatten(2)
    of_weight = product.rows.new_zeros(product.rows.shape, dtype=layer.sums)
    of_bias = of_weight.new_zeros(of_weight.shape[0])
    with _exactly(layer):
        for sample in range(product.features.shape[0]):
            for pixels in product.blocks:
                read = product.read(sample, pixels)
                inner = gradient(product.product(read), sample, pixels)[0]
                written[sample, :, pixels] = product.rows.t() @ inner
                of_weight += inner @ read.t()
                of_bias += inner.sum(1, dtype=of_bias.dtype)
    found = [of_features, of_weight.view(layer.weight.shape).to(layer.weight.dtype)]
    return found if layer.bias is None else [*found, of_bias.to(layer.bias.dtype)]


class _Product(NamedTuple):
    """The layer as a product of matrices for a block of pixels."""

    features: Tensor  # [B, F, N]
    rows: Tensor  # [C, F]
    bias: Tensor | None  # [C, 1]
    valid: Tensor | None  # [B, 1, N]

    @classmethod
    def of(cls, layer: Layer, valid: Tensor | None) -> _Product:
        compute, bias = layer.compute, layer.bias
        bias = None if bias is None else bias.to(compute).unsqueeze(1)
        return cls(layer.pixels, layer.matrix.to(compute), bias, valid)

    @property
    def blocks(self) -> list[slice]:
        """The blocks of each sample's pixels."""
        number = self.features.shape[2]
        size = max(_LEAST_PIXELS, _BLOCK_BYTES // (self.rows.shape[0] * self.rows.element_size()))
        return [slice(start, min(start + size, number)) for start in range(0, number, size)]

    def read(self, sample: int, pixels: slice) -> Tensor:
        """The features [F, n] of a block, in the type of the product; 0 where a pixel is not valid, because 0 times
        the NaN that may be there would be NaN in the gradient of the weight."""
        read = self.features[sample, :, pixels].to(self.rows.dtype)
        return read if self.valid is None else torch.where(self.valid[sample, :, pixels], read, 0.0)

    def product(self, read: Tensor) -> Tensor:
        """The logits [1, C, n] of features [F, n]."""
        return (self.rows @ read if self.bias is None else torch.addmm(self.bias, self.rows, read)).unsqueeze(0)

    def logits(self, sample: int, pixels: slice) -> Tensor:
        return self.product(self.read(sample, pixels))


def _exactly(layer: Layer) -> torch.autocast:
    """Without autocast, which would round the products of the blocks."""
    return torch.autocast(layer.features.device.type, enabled=False)
