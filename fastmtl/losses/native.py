"""The fused losses of `fastmtl.ops` as modules: settings at construction, tensors at the call."""

from __future__ import annotations

from typing import Any

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
        return ops.dice_bce_loss(
            input, target, pos_weight=self.pos_weight, weight=self.weight, mask=mask, **self.settings
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
