"""What a loss counts on request in the pass it makes anyway."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    true_positive: Tensor  # int64 [B, C]: predicted (logit > 0) and in the target (t >= 0.5)
    false_positive: Tensor  # int64 [B, C]
    false_negative: Tensor  # int64 [B, C]
    non_finite: Tensor  # int64 [B]: elements whose logit is NaN or infinite
