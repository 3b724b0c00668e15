"""Targets of Mask2Former's loss: the objects of a batch, padded, with labels and masks in range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ops.core.checks import ROUNDING, may_look, names

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Targets(NamedTuple):
    """The objects of a batch, padded to T, the largest number in one sample."""

    labels: Tensor  # integers [B, T], 0 to num_classes - 1
    masks: Tensor  # [B, T, H', W'], uint8, bool or floating, 0 to 1
    num_targets: Tensor  # int64 [B], how many of a sample's T are not padding


def pad_targets(labels: Sequence[Tensor], masks: Sequence[Tensor]) -> Targets:
    """Lists of each sample's labels [t] and masks [t, h, w] as `Targets`; smaller masks get zeros below and right.

    >>> pad_targets([torch.tensor([2]), torch.tensor([1, 3])], [torch.ones(1, 4, 6), torch.ones(2, 5, 5)]).masks.shape
    torch.Size([2, 2, 5, 6])
    """
    if not labels or len(labels) != len(masks):
        raise ValueError(f"`labels` and `masks` must be lists of one length; got {len(labels)} and {len(masks)}.")
    for sample, (label, mask) in enumerate(zip(labels, masks, strict=True)):
        for name, value in (("labels", label), ("masks", mask)):
            if not isinstance(value, Tensor):
                raise TypeError(f"`{name}[{sample}]` must be a Tensor; got {type(value).__name__}.")
        if label.dim() != 1 or mask.dim() != 3 or label.shape[0] != mask.shape[0]:
            raise ValueError(
                f"`labels` must hold [t] and `masks` [t, h, w] for each sample; "
                f"got {list(label.shape)} and {list(mask.shape)} for sample {sample}."
            )
        if label.numel() and label.dtype not in INTEGERS:
            raise ValueError(f"`labels[{sample}]` must be integers; got {names((label.dtype,))}.")
    counts = [label.shape[0] for label in labels]
    most = max(counts)
    height, width = (max(mask.shape[dim] for mask in masks) for dim in (1, 2))

    def whole(mask: Tensor) -> Tensor:
        return pad(mask, (0, width - mask.shape[2], 0, height - mask.shape[1], 0, most - mask.shape[0]))

    return Targets(
        torch.stack([pad(label.long(), (0, most - label.shape[0])) for label in labels]),
        torch.stack([whole(mask) for mask in masks]),
        torch.tensor(counts, device=labels[0].device),
    )


def as_targets(
    labels: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor], num_targets: Tensor | None
) -> Targets:
    """`Targets` of padded tensors or of lists."""
    if not isinstance(labels, Tensor) and not isinstance(masks, Tensor):
        if num_targets is not None:
            raise ValueError("`num_targets` is only for padded tensors; the lengths of lists give the numbers.")
        return pad_targets(labels, masks)
    if not isinstance(labels, Tensor) or not isinstance(masks, Tensor):
        raise TypeError("`labels` and `masks` must both be tensors or both be lists.")
    if num_targets is None:
        num_targets = torch.full((labels.shape[0],), labels.shape[1], device=labels.device)
    return Targets(labels, masks, num_targets)


def known_targets(targets: Targets, num_classes: int) -> tuple[Targets, Tensor]:
    """Targets with label 0 for padding and unknown classes, and a scalar of 0. If a label, a mask or a count is out of
    range on a GPU, where raising would make the host wait, the scalar is NaN."""
    labels, masks, number = targets
    T = labels.shape[1]
    real = torch.arange(T, device=number.device) < number[:, None]
    strange = real & ((labels < 0) | (labels >= num_classes))
    low = high = torch.zeros_like(real, dtype=torch.float32)
    if masks.dtype != torch.bool and masks.numel():
        low, high = (torch.where(real, end.to(low), 0) for end in masks.flatten(2).aminmax(dim=2))
    outside = (low < -ROUNDING) | (high > 1 + ROUNDING)
    if not may_look(labels):
        bad = strange.any() | outside.any() | ((number < 0) | (number > T)).any()
        return targets._replace(labels=torch.where(real & ~strange, labels, 0)), torch.where(bad, torch.nan, 0.0)
    if strange.any():
        sample, place = strange.nonzero()[0].tolist()
        raise ValueError(
            f"`labels` must lie in 0 to {num_classes - 1} (num_classes is {num_classes}); got "
            f"{labels[sample, place]} for target {place} of sample {sample}. Count classes from 0, and omit "
            "targets that should be ignored."
        )
    if outside.any():
        sample, place = outside.nonzero()[0].tolist()
        worst = (high if high[sample, place] > 1 else low)[sample, place]
        raise ValueError(
            f"`masks` must lie in 0 to 1; got {worst:g} in target {place} of sample {sample}. Turn a 0/255 mask "
            "into 0/1: masks > 127."
        )
    if ((number < 0) | (number > T)).any():
        raise ValueError(f"`num_targets` must lie in 0 to {T}, the T of `labels`; got {number.tolist()}.")
    return targets._replace(labels=torch.where(real, labels, 0)), low.new_zeros(())
