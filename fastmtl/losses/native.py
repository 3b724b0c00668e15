"""The fused losses of `fastmtl.ops` as modules: settings at construction, tensors at the call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypedDict, Unpack

from torch import Tensor, nn

from .. import ops


class DiceBCELoss(nn.Module):
    """`fastmtl.ops.dice_bce_loss` with its settings kept; every keyword of the op but `mask` is a setting.

    `pos_weight` and `weight` given as tensors are buffers: they move with the module and are no parameters.

    >>> import torch
    >>> loss = DiceBCELoss(bce_weight=0.6, dice_weight=0.4, reduction="sum")
    >>> loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).shape
    torch.Size([])
    """

    pos_weight: Tensor | float | None
    weight: Tensor | float | None

    def __init__(
        self,
        *,
        bce_weight: float = 0.5,
        dice_weight: float = 0.5,
        pos_weight: Tensor | float | None = None,
        weight: Tensor | float | None = None,
        batch: bool = False,
        squared_pred: bool = False,
        jaccard: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        empty: str = "one",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, value in (("pos_weight", pos_weight), ("weight", weight)):
            if isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        self.settings: dict[str, Any] = {
            "bce_weight": bce_weight,
            "dice_weight": dice_weight,
            "batch": batch,
            "squared_pred": squared_pred,
            "jaccard": jaccard,
            "smooth_nr": smooth_nr,
            "smooth_dr": smooth_dr,
            "empty": empty,
            "reduction": reduction,
            "backend": backend,
        }

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of logits [B, C, *spatial] against a target of the same shape; see `fastmtl.ops.dice_bce_loss`."""
        tensors = {"pos_weight": self.pos_weight, "weight": self.weight, "mask": mask}
        return ops.dice_bce_loss(input, target, return_counts=False, **tensors, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class _Kept(nn.Module):
    """Keeps an op's settings; those that are tensors are buffers, which move with the module and are no parameters."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self._names = list(settings)
        for name, value in settings.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        plain = ((name, value) for name, value in self.settings.items() if not isinstance(value, Tensor))
        return ", ".join(f"{name}={value!r}" for name, value in plain)


class FocalLoss(_Kept):
    """`fastmtl.ops.focal_loss` with its settings kept; every keyword of the op but `mask` is a setting.

    >>> import torch
    >>> loss = FocalLoss(gamma=1.5, alpha=None)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).shape
    torch.Size([])
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: Tensor | float | None = 0.25,
        activation: str = "sigmoid",
        weight: Tensor | float | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            {
                "gamma": gamma,
                "alpha": alpha,
                "activation": activation,
                "weight": weight,
                "ignore_index": ignore_index,
                "reduction": reduction,
                "backend": backend,
            }
        )

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of logits [B, C, *spatial]; see `fastmtl.ops.focal_loss` for the target."""
        return ops.focal_loss(input, target, mask=mask, **self.settings)


class TverskyLoss(_Kept):
    """`fastmtl.ops.tversky_loss` with its settings kept; every keyword of the op but `mask` is a setting.

    >>> import torch
    >>> loss = TverskyLoss(alpha=0.3, beta=0.7, gamma=0.75)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).shape
    torch.Size([])
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        activation: str = "sigmoid",
        weight: Tensor | float | None = None,
        ignore_index: int | None = None,
        include_background: bool = True,
        batch: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        empty: str = "one",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            {
                "alpha": alpha,
                "beta": beta,
                "gamma": gamma,
                "activation": activation,
                "weight": weight,
                "ignore_index": ignore_index,
                "include_background": include_background,
                "batch": batch,
                "smooth_nr": smooth_nr,
                "smooth_dr": smooth_dr,
                "empty": empty,
                "reduction": reduction,
                "backend": backend,
            }
        )

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of logits [B, C, *spatial]; see `fastmtl.ops.tversky_loss` for the target."""
        return ops.tversky_loss(input, target, mask=mask, **self.settings)


class BCEWithLogitsLoss(_Kept):
    """`torch.nn.BCEWithLogitsLoss` that takes targets of any dtype and a mask; see `fastmtl.ops.bce_with_logits`.

    >>> import torch
    >>> loss = BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))
    >>> round(loss(torch.zeros(4, 1), torch.ones(4, 1, dtype=torch.uint8)).item(), 4)
    1.3863
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__({"weight": weight, "pos_weight": pos_weight, "reduction": reduction, "backend": backend})

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of logits of any shape against a target of the same shape."""
        return ops.bce_with_logits(input, target, mask=mask, **self.settings)


class _OfOp(nn.Module):
    """Keeps settings of an op: its keywords but those that go with a call. Tensors become buffers, no parameters."""

    op: ClassVar[Callable[..., Any]]
    _of_a_call: ClassVar[tuple[str, ...]] = ("input", "target", "mask", "return_counts")

    def __init_subclass__(cls) -> None:
        """`help` and `inspect` show the op's own keywords and defaults."""
        parameters = inspect.signature(cls.op).parameters.values()
        settings = [parameter for parameter in parameters if parameter.name not in cls._of_a_call]
        cls.__signature__ = inspect.Signature(settings)

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        known = inspect.signature(type(self)).parameters
        for name, value in settings.items():
            if name not in known:
                raise TypeError(f"`{name}` is no setting of {type(self).__name__}; it has {', '.join(known)}.")
            if isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
        self.settings = {name: value for name, value in settings.items() if name not in self._buffers}

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The op on one batch, with the settings kept."""
        return type(self).op(input, target, mask=mask, **self.settings, **self._buffers)

    def extra_repr(self) -> str:
        tensors = [f"{name}={list(value.shape)}" for name, value in self._buffers.items() if value is not None]
        return ", ".join([*(f"{name}={value!r}" for name, value in self.settings.items()), *tensors])


class _CrossEntropySettings(TypedDict, total=False):
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: str
    backend: str


class _DiceCESettings(_CrossEntropySettings, total=False):
    ce_weight: float
    dice_weight: float
    include_background: bool
    batch: bool
    squared_pred: bool
    jaccard: bool
    smooth_nr: float
    smooth_dr: float
    empty: str


class DiceCELoss(_OfOp):
    """`fastmtl.ops.dice_ce_loss` with its settings kept: every keyword of the op but `mask` and `return_counts`.

    >>> import torch
    >>> loss = DiceCELoss(dice_weight=1.0, ce_weight=1.0, include_background=False)
    >>> loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.uint8)).shape
    torch.Size([])
    """

    op = staticmethod(ops.dice_ce_loss)

    def __init__(self, **settings: Unpack[_DiceCESettings]) -> None:
        super().__init__(**settings)


class CrossEntropyLoss(_OfOp):
    """`fastmtl.ops.cross_entropy` with its settings kept: every keyword of the op but `mask`.

    >>> import torch
    >>> loss = CrossEntropyLoss(label_smoothing=0.1)
    >>> round(loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3863
    """

    op = staticmethod(ops.cross_entropy)

    def __init__(self, **settings: Unpack[_CrossEntropySettings]) -> None:
        super().__init__(**settings)


class NTXentLoss(nn.Module):
    """`fastmtl.ops.nt_xent_loss` with its settings kept.

    >>> import torch
    >>> NTXentLoss(temperature=0.5)(torch.eye(4), torch.eye(4)).shape
    torch.Size([])
    """

    def __init__(self, *, temperature: float = 0.1, backend: str = "auto") -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"temperature": temperature, "backend": backend}

    def forward(self, z1: Tensor, z2: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of the projections [N, D] of two views; see `fastmtl.ops.nt_xent_loss`."""
        return ops.nt_xent_loss(z1, z2, mask=mask, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class MSELoss(nn.Module):
    """`fastmtl.ops.mse_loss` with its settings kept.

    >>> import torch
    >>> MSELoss()(torch.zeros(2, 4), torch.ones(2, 4), mask=torch.tensor([True, False]))
    tensor(1.)
    """

    def __init__(self, *, reduction: str = "mean", backend: str = "auto") -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"reduction": reduction, "backend": backend}

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of predictions [B, ...] against a target of the same shape; see `fastmtl.ops.mse_loss`."""
        return ops.mse_loss(input, target, mask=mask, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class L1Loss(MSELoss):
    """`fastmtl.ops.l1_loss` with its settings kept."""

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of predictions [B, ...] against a target of the same shape; see `fastmtl.ops.l1_loss`."""
        return ops.l1_loss(input, target, mask=mask, **self.settings)


class SmoothL1Loss(MSELoss):
    """`fastmtl.ops.smooth_l1_loss` with its settings kept."""

    def __init__(self, *, beta: float = 1.0, reduction: str = "mean", backend: str = "auto") -> None:
        super().__init__(reduction=reduction, backend=backend)
        self.settings["beta"] = beta

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of predictions [B, ...] against a target of the same shape; see `fastmtl.ops.smooth_l1_loss`."""
        return ops.smooth_l1_loss(input, target, mask=mask, **self.settings)
