"""GO4Align: tasks are grouped by their risk, and the tasks of a group have the same weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .base import values
from .loss_base import LossBalancer


class GO4Align(LossBalancer):
    """Group optimization of Shen et al., NeurIPS 2024, as in the authors' code.

    p_k <- p_k exp(-lr L_k), normalised over the tasks of the step; v_k = p_k sum_j L_j / L_k; k-means divides the
    numbers v into groups, and w_k is the mean of v over k's group. The authors' k-means starts at random and stops at
    a local optimum. In one dimension the best groups are intervals, which dynamic programming finds without a draw.

    The weights depend on the losses of the whole step, so the graphs of all micro-batches are kept until the last one,
    and micro-batches save no memory. The losses must be positive; a negative one would be increased, so that it makes
    all weights NaN.

    Args:
        groups: number of groups, >= 1; as many as tasks, or more: w is v.
        lr: rate of p; 1e-4 in the authors' code.

    Raises:
        ValueError: `groups` is less than 1 or no whole number, or `lr` is negative.

    >>> parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0, 4.0]))
    >>> losses = dict(zip("abc", parameter, strict=True))
    >>> GO4Align(lr=0.0).backward(losses)["weights"]
    tensor([2.0000, 2.0000, 0.5000], dtype=torch.float64)
    """

    state_names = ("logs",)
    needs_all_losses = True

    def __init__(self, groups: int = 2, *, lr: float = 1e-4) -> None:
        if not groups >= 1 or groups % 1 or not lr >= 0:
            raise ValueError(f"`groups` must be a whole number of at least 1, `lr` not negative; got {groups}, {lr}.")
        super().__init__()
        self.groups, self.lr = groups, lr
        self._logs: Tensor | None = None  # [K] float64: logarithms of p, up to a constant

    def __repr__(self) -> str:
        return f"GO4Align(groups={self.groups}, lr={self.lr})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64, 0 for tasks whose loss is 0; G is not used."""
        found = values(losses)
        active = found != 0
        logs = self._hold("logs", torch.zeros_like(found)) - self.lr * found
        p = torch.where(active, logs, -torch.inf).softmax(0).nan_to_num(0.0)
        v = torch.where(active, p * found.sum() / torch.where(active, found, 1.0), 0.0)
        return torch.where((found >= 0).all(), group_means(v, active, self.groups), torch.nan)

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        found = values(total)
        moving = (found != 0 if active is None else active) & (found.isfinite() & (found >= 0)).all()
        logs = self._hold("logs", torch.zeros_like(found))
        logs.copy_(torch.where(moving, logs - self.lr * found, logs))


def group_means(v: Tensor, active: Tensor, groups: int) -> Tensor:
    """The active entries of v [K] replaced by the means of their groups, which minimise the sum of squared distances to
    them; 0 elsewhere."""
    K = len(v)
    ordered, place = torch.where(active, v, torch.inf).sort()
    here = active[place]
    middle = torch.where(active, v, 0.0).sum() / active.sum().clamp(min=1)
    x = torch.where(here, ordered - middle, 0.0)
    count, first, second = torch.nn.functional.pad(torch.stack([here.to(v.dtype), x, x * x]).cumsum(1), (1, 0))
    end = torch.arange(K + 1, device=v.device)
    sizes = (count - count[:, None]).clamp(min=1)  # row i, column j: the ordered entries from i to before j
    spread = (second - second[:, None] - (first - first[:, None]) ** 2 / sizes).clamp(min=0)
    spread = torch.where(end[:, None] <= end, spread, torch.inf)
    least, starts = torch.where(end == 0, 0.0, torch.inf).to(v.dtype), []
    for _ in range(min(groups, K)):
        least, start = (least[:, None] + spread).min(0)
        starts.append(start)
    means, stop = torch.zeros_like(v), end[-1:]
    for start in reversed(starts):
        begin = start.gather(0, stop)
        mean = middle + (first.gather(0, stop) - first.gather(0, begin)) / sizes[begin, stop]
        means = torch.where((end[:-1] >= begin) & (end[:-1] < stop), mean, means)
        stop = begin
    return torch.where(active, torch.zeros_like(v).scatter(0, place, means), 0.0)
