"""The fused losses of `fastmtl.ops` as modules: settings are given at construction, tensors at the call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import ops

_OF_A_CALL = ("input", "inputs", "target", "z1", "z2", "mask", "return_counts")


class _OfOp(nn.Module):
    """Stores the settings of an op: all its keywords except those of each call, with the op's defaults.

    Each setting is an attribute. Tensors are buffers: they move with the module and are not parameters.

    Raises:
        TypeError: a setting that the op does not have; the message lists those it has.
    """

    op: ClassVar[Callable[..., Any]]
    of_a_call: ClassVar[Sequence[str]] = _OF_A_CALL

    def __init_subclass__(cls) -> None:
        """`help` and `inspect` show the op's own keywords and defaults."""
        if not hasattr(cls, "op"):
            return
        parameters = inspect.signature(cls.op).parameters.values()
        cls.__signature__ = inspect.Signature([each for each in parameters if each.name not in cls.of_a_call])

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        known = inspect.signature(type(self)).parameters
        for name in settings:
            if name not in known:
                raise TypeError(f"`{name}` is not a setting of {type(self).__name__}; it has {', '.join(known)}.")
        for name, parameter in known.items():
            value = settings.get(name, parameter.default)
            if isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, passed to the op in every call."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply the op to one batch with the stored settings."""
        return type(self).op(input, target, mask=mask, **self.settings)

    def extra_repr(self) -> str:
        shown = ((name, list(v.shape) if isinstance(v, Tensor) else repr(v)) for name, v in self.settings.items())
        return ", ".join(f"{name}={value}" for name, value in shown)


class DiceBCELoss(_OfOp):
    """`fastmtl.ops.dice_bce_loss` with its settings kept.

    >>> import torch
    >>> loss = DiceBCELoss(bce_weight=0.6, dice_weight=0.4, reduction="sum")
    >>> loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).shape
    torch.Size([])
    """

    op = staticmethod(ops.dice_bce_loss)


class DiceCELoss(_OfOp):
    """`fastmtl.ops.dice_ce_loss` with its settings kept.

    >>> import torch
    >>> loss = DiceCELoss(dice_weight=1.0, ce_weight=1.0, include_background=False)
    >>> loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.uint8)).shape
    torch.Size([])
    """

    op = staticmethod(ops.dice_ce_loss)


class CrossEntropyLoss(_OfOp):
    """`fastmtl.ops.losses.cross_entropy` with its settings kept.

    >>> import torch
    >>> loss = CrossEntropyLoss(label_smoothing=0.1)
    >>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3863
    """

    op = staticmethod(ops.cross_entropy)


class BCEWithLogitsLoss(_OfOp):
    """`torch.nn.BCEWithLogitsLoss` with targets of any dtype and a mask: `fastmtl.ops.bce_with_logits`.

    >>> import torch
    >>> loss = BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))
    >>> round(loss(torch.zeros(4, 1), torch.ones(4, 1, dtype=torch.uint8)).item(), 4)
    1.3863
    """

    op = staticmethod(ops.bce_with_logits)


class FocalLoss(_OfOp):
    """`fastmtl.ops.focal_loss` with its settings kept.

    >>> import torch
    >>> loss = FocalLoss(gamma=1.5, alpha=None)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).shape
    torch.Size([])
    """

    op = staticmethod(ops.focal_loss)


class TverskyLoss(_OfOp):
    """`fastmtl.ops.tversky_loss` with its settings kept.

    >>> import torch
    >>> loss = TverskyLoss(alpha=0.3, beta=0.7, gamma=0.75)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).shape
    torch.Size([])
    """

    op = staticmethod(ops.tversky_loss)


class _OfLinearOp(_OfOp):
    of_a_call = ("features", "weight", "bias", "target", "mask")

    def forward(  # type: ignore[override]
        self, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Apply the op to the features that the layer (weight, bias) reads, with the stored settings."""
        return type(self).op(features, weight, bias, target, mask=mask, **self.settings)


class LinearDiceCELoss(_OfLinearOp):
    """`fastmtl.ops.linear_dice_ce_loss` with its settings kept; called with features, the layer's weight and bias, and
    the target.

    >>> import torch
    >>> head = torch.nn.Conv2d(8, 40, 1)
    >>> target = torch.zeros(2, 16, 16, dtype=torch.uint8)
    >>> LinearDiceCELoss(batch=True)(torch.rand(2, 8, 16, 16), head.weight, head.bias, target).shape
    torch.Size([])
    """

    op = staticmethod(ops.linear_dice_ce_loss)


class LinearDiceBCELoss(_OfLinearOp):
    """`fastmtl.ops.linear_dice_bce_loss` with its settings kept; called as `LinearDiceCELoss` is."""

    op = staticmethod(ops.linear_dice_bce_loss)


class NTXentLoss(_OfOp):
    """`fastmtl.ops.nt_xent_loss` with its settings kept; called with the projections [N, D] of two views.

    >>> import torch
    >>> NTXentLoss(temperature=0.5)(torch.eye(4), torch.eye(4)).shape
    torch.Size([])
    """

    op = staticmethod(ops.nt_xent_loss)


class MSELoss(_OfOp):
    """`fastmtl.ops.mse_loss` with its settings kept.

    >>> import torch
    >>> MSELoss()(torch.zeros(2, 4), torch.ones(2, 4), mask=torch.tensor([True, False]))
    tensor(1.)
    """

    op = staticmethod(ops.mse_loss)


class L1Loss(_OfOp):
    """`fastmtl.ops.l1_loss` with its settings kept."""

    op = staticmethod(ops.l1_loss)


class SmoothL1Loss(_OfOp):
    """`fastmtl.ops.smooth_l1_loss` with its settings kept."""

    op = staticmethod(ops.smooth_l1_loss)


class DeepSupervisionLoss(_OfOp):
    """`fastmtl.ops.deep_supervision_loss` with its settings kept; called with a list of logits and one mask.

    >>> import torch
    >>> loss = DeepSupervisionLoss(weights=[1.0, 0.5], downsample="max")
    >>> loss([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], torch.ones(1, 1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([])
    """

    op = staticmethod(ops.deep_supervision_loss)

    def forward(self, inputs: Sequence[Tensor], target: Tensor, mask: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] a list of heads
        """Apply the op to the logits of all heads with the stored settings."""
        return type(self).op(inputs, target, mask=mask, **self.settings)
