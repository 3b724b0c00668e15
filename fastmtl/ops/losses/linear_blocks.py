"""A loss of sums over pixels fused with the linear layer before it: logits exist for a block of pixels at a time.

The loss is a function of sums over each class of each sample, so the forward adds up the sums of blocks, and the
backward computes each block's logits again, their gradient from the slopes of the loss in the sums, and from it the
gradients of features, weight and bias. Both read the features once; of the logits, [B, C, *spatial], and of their
gradient, neither is stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import FLOATING
from ..core.planes import in_place

_BLOCK_BYTES = 2**21  # of logits: they stay in a core's caches between the product and the loss
_LEAST_PIXELS = 256
# Storing smaller logits costs less than computing them twice. On a CPU that is so where glibc keeps the memory of all
# tensors, those of the features too: it returns larger blocks, and new ones cost page faults.
_SMALL_BYTES = 2**25
_FEW_CLASSES = 32  # on a GPU, likewise


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


class BlockLoss(Protocol):
    """A loss of sums over pixels; K sums for each class of each sample."""

    def sums(self, logits: Tensor, sample: int, pixels: slice) -> Tensor:
        """[K, 1, C] over the block `pixels` of a sample; logits [1, C, n]."""
        ...

    def gradient(self, grad: Tensor, logits: Tensor, sample: int, pixels: slice) -> Tensor:
        """The gradient of the logits [1, C, n]; grad: of the sums [K, 1, C]."""
        ...

    def loss(self, sums: Tensor) -> Tensor:
        """The loss from the sums [K, B, C], differentiable."""
        ...


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


def linear_loss(layer: Layer, loss: BlockLoss) -> Tensor:
    """The loss of the layer's logits. Differentiable once, in features, weight and bias; deterministic."""
    if torch.compiler.is_compiling():
        # Not traced: it loops over any number of blocks, and its backward differentiates the loss of the sums.
        not_traced: Any = torch.compiler.disable(_without_autocast)
        return not_traced(layer, loss)
    return _without_autocast(layer, loss)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, loss: BlockLoss) -> Tensor:
        product, total = _Product.of(Layer(features, weight, bias)), list[Tensor]()
        for sample in range(features.shape[0]):
            parts = [loss.sums(product.logits(sample, pixels), sample, pixels) for pixels in product.blocks]
            total.append(torch.stack(parts).to(torch.float64).sum(0))
        ctx.loss, sums = loss, torch.cat(total, 1).to(torch.promote_types(features.dtype, torch.float32))
        ctx.save_for_backward(features, weight, bias, sums)
        return loss.loss(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():  # with create_graph=True, which would get gradients without a graph
            raise RuntimeError("a loss fused with its linear layer can be differentiated once; pass fuse=False.")
        features, weight, bias, sums = ctx.saved_tensors
        product, loss = _Product.of(Layer(features, weight, bias)), ctx.loss
        with torch.enable_grad():
            leaf = sums.detach().requires_grad_()
            (slopes,) = torch.autograd.grad(loss.loss(leaf), leaf, grads)
        wants_features, wants_weight, wants_bias, _ = ctx.needs_input_grad
        of_features = torch.empty_like(product.features) if wants_features else None
        of_weight = sums.new_zeros(product.rows.shape) if wants_weight else None
        of_bias = sums.new_zeros(product.rows.shape[:1]) if wants_bias else None
        for sample in range(features.shape[0]):
            for pixels in product.blocks:
                grad = slopes[:, sample : sample + 1]
                inner = loss.gradient(grad, product.logits(sample, pixels), sample, pixels)[0]
                if of_features is not None:
                    of_features[sample, :, pixels] = product.rows.t() @ inner
                if of_weight is not None:
                    of_weight += (inner @ product.read(sample, pixels).t()).to(of_weight.dtype)
                if of_bias is not None:
                    of_bias += inner.sum(1, dtype=of_bias.dtype)
        return (
            None if of_features is None else of_features.unflatten(2, features.shape[2:]),
            None if of_weight is None else of_weight.view(weight.shape).to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
            None,
        )


class _Product(NamedTuple):
    """The layer as a product of matrices for a block of pixels."""

    features: Tensor  # [B, F, N]
    rows: Tensor  # [C, F]
    bias: Tensor | None  # [C, 1]

    @classmethod
    def of(cls, layer: Layer) -> _Product:
        compute, bias = layer.compute, layer.bias
        return cls(layer.pixels, layer.matrix.to(compute), None if bias is None else bias.to(compute).unsqueeze(1))

    @property
    def blocks(self) -> list[slice]:
        """The blocks of each sample's pixels."""
        number = self.features.shape[2]
        size = max(_LEAST_PIXELS, _BLOCK_BYTES // (self.rows.shape[0] * self.rows.element_size()))
        return [slice(start, min(start + size, number)) for start in range(0, number, size)]

    def read(self, sample: int, pixels: slice) -> Tensor:
        """The features [F, n] of a block, in the type of the product."""
        return self.features[sample, :, pixels].to(self.rows.dtype)

    def logits(self, sample: int, pixels: slice) -> Tensor:
        """[1, C, n]."""
        read = self.read(sample, pixels)
        return (self.rows @ read if self.bias is None else torch.addmm(self.bias, self.rows, read)).unsqueeze(0)


def _without_autocast(layer: Layer, loss: BlockLoss) -> Any:
    with torch.autocast(layer.features.device.type, enabled=False):
        return _LinearLoss.apply(*layer, loss)
