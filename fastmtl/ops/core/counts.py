"""Counts of a loss, made on request in the pass that computes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """Per sample. A sigmoid predicts where the logit is above 0, and has in the target what is 0.5 or more; a softmax
    predicts the class of the largest logit."""

    true_positive: Tensor  # int64 [B, C]: predicted and in the target; see the class
    false_positive: Tensor  # int64 [B, C]
    false_negative: Tensor  # int64 [B, C]
    non_finite: Tensor  # int64 [B]: elements (softmax: pixels) with a logit that is NaN or infinite
