"""Checks of the arguments of softmax losses: class numbers or probabilities, a pixel mask, one weight per class."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .backends import FLOATING

NOTHING_IGNORED = -(2**63) + 1  # an `ignore_index` that no target contains; NaN as int64 is one less
CLASSES = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64)


def logits_and_classes(input: Tensor, target: Tensor, *, soft: bool = True) -> tuple[Tensor, Tensor]:
    """Logits [B, C, *spatial] with a target [B, 1, *spatial] (class numbers) or, if `soft`, [B, C, *spatial]
    (probabilities); both get one pixel if they have no spatial dims."""
    checks.tensor("input", input)
    checks.tensor("target", target)
    shape = list(input.shape)
    if input.dim() < 2:
        raise ValueError(f"`input` must be [B, C, *spatial]; got {shape}. Add the missing dims with `unsqueeze`.")
    if input.numel() == 0:
        raise ValueError(f"`input` must have at least one element; got {shape}. Skip the empty batch.")
    if shape[1] < 2:
        raise ValueError(
            f"`input` must have a channel for each of 2 or more classes; got {shape}. One channel is for a sigmoid."
        )
    checks.dtype("input", input, FLOATING, "Pass logits, not labels.")
    checks.device("target", target, input)
    checks.constant("target", target)
    flat, one, found = [shape[0], *shape[2:]], [shape[0], 1, *shape[2:]], list(target.shape)
    if soft and found == shape:
        checks.dtype("target", target, checks.TARGETS, "Convert it first.")
    elif any(found == allowed for allowed in (flat, one)):  # torch.compile does not find symbolic sizes with `in`
        checks.dtype("target", target, CLASSES, "Class numbers are integers: target.long().")
        target = target if target.dim() == input.dim() else target.unsqueeze(1)
    else:
        allowed = f"{flat} or {one}, or probabilities {shape}," if soft else f"{flat} or {one},"
        advice = " Pass class numbers: target.argmax(1)." if found == shape else ""
        if checks.channels_last(input, target):
            advice = " Move its channels: target.movedim(-1, 1)." if soft else " Pass class numbers: target.argmax(-1)."
        raise ValueError(f"`target` must be class numbers {allowed} to fit logits {shape}; got {found}.{advice}")
    if input.dim() == 2:
        input, target = input.unsqueeze(-1), target.unsqueeze(-1)
    return input, target


def pixel_mask(mask: Tensor | None, input: Tensor) -> Tensor | None:
    """The mask as [B, 1, *spatial], with dims of 1 where it broadcasts; `input` is [B, C, *spatial]."""
    if mask is None:
        return None
    checks.tensor("mask", mask)
    checks.dtype("mask", mask, (torch.bool, torch.uint8), "Compare it with the value of a valid pixel.")
    checks.device("mask", mask, input)
    expected, found = [input.shape[0], 1, *input.shape[2:]], list(mask.shape)
    if mask.dim() == 1:
        mask = mask.reshape(-1, *(1 for _ in expected[1:]))
    elif mask.dim() == len(expected) - 1:
        mask = mask.unsqueeze(1)
    if mask.dim() != len(expected) or any(m != 1 and m != n for m, n in zip(mask.shape, expected, strict=True)):
        flat = [expected[0], *expected[2:]]
        raise ValueError(f"`mask` must be [{expected[0]}] or broadcastable to {flat} dim by dim; got {found}.")
    return mask


def class_weight(weight: Tensor | None, input: Tensor, name: str = "weight") -> Tensor | None:
    """One weight per class, [C]."""
    if weight is None:
        return None
    checks.tensor(name, weight)
    checks.dtype(name, weight, FLOATING, "Convert it first.")
    checks.device(name, weight, input)
    checks.constant(name, weight)
    if weight.dim() != 1 or weight.shape[0] != input.shape[1]:
        raise ValueError(f"`{name}` must be [{input.shape[1]}], one per class; got {list(weight.shape)}.")
    return weight


def ignored(value: object) -> int:
    """`ignore_index` as int64; None becomes a number that no target contains."""
    if value is None:
        return NOTHING_IGNORED
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`ignore_index` must be an integer; got {type(value).__name__}. Pass int(ignore_index).")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"`ignore_index` must fit into int64; got {value}.")
    return value


def no_class_ignored(value: object, default: int | None = None) -> None:
    """Refuse `ignore_index` with a sigmoid, whose target has no class numbers."""
    if ignored(value) not in (NOTHING_IGNORED, ignored(default)):
        raise ValueError(
            f"`ignore_index` names a class, which activation='sigmoid' does not have; got {value}. Pass "
            f"mask=target != {value}."
        )


def raise_if_outside(number: int, classes: int) -> None:
    if number:
        raise ValueError(
            f"`target` holds class numbers that the logits have no channel for ({number} pixels): they must lie in 0 "
            f"to {classes - 1}. Exclude such pixels with `ignore_index` or `mask`, or remap them."
        )


def check_numbers(index: Tensor, classes: int, valid: Tensor | None) -> None:
    """Raise for a valid class number outside 0 to classes - 1; waits for the device."""
    strange = (index < 0) | (index >= classes)
    raise_if_outside(int((strange if valid is None else strange & valid).sum()), classes)


def check_shares(target: Tensor, mask: Tensor | None) -> None:
    """On a CPU: raise for probabilities [B, C, *spatial] outside 0 to 1."""
    if target.shape[1] != 1:
        checks.unit(target, mask)


def check_classes(target: Tensor, mask: Tensor | None, input: Tensor, ignore_index: int) -> None:
    """On a CPU: raise for an invalid class number or probability."""
    check_shares(target, mask)
    if target.shape[1] == 1 and target.device.type == "cpu":
        valid = target.long() != ignore_index
        check_numbers(target, input.shape[1], valid if mask is None else valid & mask.bool())
