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
    :math:`w \leftarrow w / \|w\|_1` (Algorithm 1, lines 6 and 7). Shares below `floor` are then raised to it, and the
    others scaled to the rest, which is not part of the paper: a set whose share has become tiny would need many updates
    to return.

    Args:
        shares: w, above 0, with sum 1.
        squared_norms: of each set's gradient.
        variances: of each set, the expected squared distance of an image's gradient from the set's gradient.
        zeta: the coefficients of both, 0 or more.
        batch: b, images in a batch of all ranks.
        floor: the least share, at most 1 / S.

    >>> pike_shares([0.5, 0.5], [1.0, 0.0], [0.0, 0.0], zeta=(1.0, 1.0), batch=8, floor=0.3)
    [0.7, 0.3]
    """
    pairs = zip(shares, squared_norms, variances, strict=True)
    logs = [log(w) + zeta[0] * square - zeta[1] / (2 * batch) * variance for w, square, variance in pairs]
    largest = max(logs)  # without it, large gradients would overflow
    raised = [exp(one - largest) for one in logs]
    return _floored([one / sum(raised) for one in raised], floor)


def _floored(shares: list[float], floor: float) -> list[float]:
    """Shares with sum 1 of which none is below `floor`."""
    low: set[int] = set()
    while True:
        above = sum(share for number, share in enumerate(shares) if number not in low)
        rest = 1 - len(low) * floor
        found = [floor if number in low else share * rest / above for number, share in enumerate(shares)]
        lower = {number for number, share in enumerate(found) if share < floor}
        if not lower or len(low | lower) == len(shares):  # all at the floor: it is 1 / S, up to rounding
            return found if not lower else [1 / len(shares)] * len(shares)
        low |= lower
