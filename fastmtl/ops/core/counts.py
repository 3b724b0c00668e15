"""Optional counts from the pass that computes a loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """Counts per sample. With a sigmoid a logit above 0 is a positive prediction, and a target of 0.5 or more a
    positive; a softmax predicts the class of the largest logit."""

    true_positive: Tensor  # int64 [B, C]: predicted and in the target
    false_positive: Tensor  # int64 [B, C]
    false_negative: Tensor  # int64 [B, C]
    non_finite: Tensor  # int64 [B]: elements (softmax: pixels) with a logit that is NaN or infinite
