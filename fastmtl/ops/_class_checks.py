"""Checks of what a softmax loss takes: class numbers or probabilities, a mask of pixels, one weight a class."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._backends import FLOATING

NOTHING_IGNORED = -(2**63)  # an `ignore_index` that no target has
_CLASSES = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64)


def logits_and_classes(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C, *spatial] with a target [B, 1, *spatial] (class numbers) or [B, C, *spatial] (probabilities); both
    get one pixel where they have none."""
    _checks.tensor("input", input)
    _checks.tensor("target", target)
    shape = list(input.shape)
    if input.dim() < 2:
        raise ValueError(f"`input` must be [B, C, *spatial]; got {shape}. Add the missing dims with `unsqueeze`.")
    if input.numel() == 0:
        raise ValueError(f"`input` must have at least one element; got {shape}. Skip the empty batch.")
    if shape[1] < 2:
        raise ValueError(
            f"`input` must have a channel for each of 2 or more classes; got {shape}. One channel: dice_bce_loss."
        )
    _checks.dtype("input", input, FLOATING, "Pass logits, not labels.")
    _checks.device("target", target, input)
    _checks.constant("target", target)
    flat, one = [shape[0], *shape[2:]], [shape[0], 1, *shape[2:]]
    if list(target.shape) == shape:
        _checks.dtype("target", target, _checks.TARGETS, "Convert it first.")
    elif list(target.shape) in (flat, one):
        _checks.dtype("target", target, _CLASSES, "Class numbers are integers: target.long().")
        target = target if target.dim() == input.dim() else target.unsqueeze(1)
    else:
        raise ValueError(
            f"`target` must be class numbers {flat} or {one}, or probabilities {shape}, to fit `input`; "
            f"got {list(target.shape)}."
        )
    if input.dim() == 2:
        input, target = input.unsqueeze(-1), target.unsqueeze(-1)
    return input, target


def pixel_mask(mask: Tensor | None, input: Tensor) -> Tensor | None:
    """The mask [B, 1, *spatial], or [B, 1, 1, ...] of whole samples; `input` has at least one spatial dim."""
    if mask is None:
        return None
    _checks.tensor("mask", mask)
    _checks.dtype("mask", mask, (torch.bool, torch.uint8), "Compare it with what marks a valid pixel.")
    _checks.device("mask", mask, input)
    batch, spatial, found = input.shape[0], list(input.shape[2:]), list(mask.shape)
    if found == [batch]:
        return mask.reshape(batch, 1, *(1 for _ in spatial))
    if found in ([batch, *spatial], [batch, 1, *spatial]):
        return mask.reshape(batch, 1, *spatial)
    raise ValueError(f"`mask` must be [{batch}] or {[batch, *spatial]}, samples or pixels of `input`; got {found}.")


def class_weight(weight: Tensor | None, input: Tensor) -> Tensor | None:
    """One weight a class, [C]."""
    if weight is None:
        return None
    _checks.tensor("weight", weight)
    _checks.dtype("weight", weight, FLOATING, "Convert it first.")
    _checks.device("weight", weight, input)
    _checks.constant("weight", weight)
    if weight.dim() != 1 or weight.shape[0] != input.shape[1]:
        raise ValueError(f"`weight` must be [{input.shape[1]}], one for each class; got {list(weight.shape)}.")
    return weight


def ignored(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`ignore_index` must be an integer; got {type(value).__name__}.")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"`ignore_index` must fit into int64; got {value}.")
    return value


def smoothing(value: float) -> None:
    if not 0 <= _checks.finite("label_smoothing", value) <= 1:
        raise ValueError(f"`label_smoothing` must lie in 0 to 1; got {value}.")


NO_CLASS = (
    "`target` holds class numbers that `input` has no channel for ({number} pixels): they must lie in 0 to {last}. "
    "Give what is to be left out as `ignore_index` or in `mask`, and remap the rest."
)
