"""Sampling shares of data sets from the size and the noise of their gradients: PiKE.

Zeman Li, Yuan Deng, Peilin Zhong, Meisam Razaviyayn, Vahab Mirrokni, "PiKE: Adaptive Data Mixing for Large-Scale
Multi-Task Learning Under Low Gradient Conflicts", NeurIPS 2025, arXiv:2502.06244, Algorithm 1. A set is what the paper
calls a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log


def pike_shares(
    shares: Sequence[float],
    squared_norms: Sequence[float],
    variances: Sequence[float],
    *,
    zeta: tuple[float, float],
    batch: int,
    floor: float = 0.0,
) -> list[float]:
    r"""The next shares of S data sets in the drawn samples.

    :math:`w_k \leftarrow w_k \exp(\zeta_1 \|\nabla L_k\|^2 - \frac{\zeta_2}{2 b} \sigma_k^2)`, then
    :math:`w \leftarrow w / \|w\|_1` (Algorithm 1, lines 6 and 7). Each set then gets its `floor`, and its share of the
    rest: :math:`w_k \leftarrow f + (1 - S f) w_k`, which is not part of the paper. Without it, a set whose share has
    become tiny would need many updates to return.

    Args:
        shares: w, above 0, with sum 1.
        squared_norms: of each set's gradient.
        variances: of each set, the expected squared distance of an image's gradient from the set's gradient.
        zeta: the coefficients of both, 0 or more.
        batch: b, images in a batch of all ranks.
        floor: the least share f, at most 1 / S.

    >>> pike_shares([0.5, 0.5], [1.0, 0.0], [0.0, 0.0], zeta=(1.0, 1.0), batch=8, floor=0.3)
    [0.5924234314520194, 0.40757656854798055]
    """
    pairs = zip(shares, squared_norms, variances, strict=True)
    logs = [log(w) + zeta[0] * square - zeta[1] / (2 * batch) * variance for w, square, variance in pairs]
    largest = max(logs)  # without it, large gradients would overflow
    raised = [exp(one - largest) for one in logs]
    total, rest = sum(raised), 1 - len(raised) * floor
    return [floor + rest * one / total for one in raised]
