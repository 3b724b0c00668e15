"""The base of methods whose inner products are of gradients of independent batches: SDMGrad and MoDo."""

from __future__ import annotations

import torch
from torch import Tensor

from .gradient_balancer import GradientBalancer


class BatchPairs(GradientBalancer):
    """Base: A = J1 J2^T replaces the Gram matrix; J1 and J2 [K, P] are gradients of independent batches.

    With the same batch in J1 and J2, noise would bias the diagonal. Micro-batches (`last=False`) serve as independent
    batches: for n of them A is the mean over all pairs, (Gram(sum) - sum Gram) n / (n - 1), computed from n Gram
    matrices and one more K x P buffer. A step with one batch uses its biased Gram matrix. All micro-batches of a step
    must have the same `scale`.
    """

    strategies = ("sequential", "batched")
    sums_rows = False

    def __init__(self) -> None:
        super().__init__()
        self._before: Tensor | None = None  # [K, P], the rows after the previous micro-batch
        self._grams: Tensor | None = None  # [K, K], the sum of the micro-batches' Gram matrices
        self._batches = 0

    def _between(self) -> None:
        self._split = self._ranks.splits
        self._take(self._ranks.copied(self._arena))

    def _forget(self) -> None:
        super()._forget()
        self._batches = 0

    def _take(self, rows: Tensor) -> None:
        """Add the newest micro-batch's Gram matrix."""
        if self._batches == 0 or self._before is None or self._grams is None:
            self._grams, self._before = super()._gram(rows), rows.clone()
        else:
            self._grams = self._grams + super()._gram(torch.sub(rows, self._before, out=self._before))
            self._before.copy_(rows)
        self._batches += 1

    def _gram(self, J: Tensor) -> Tensor:
        whole = super()._gram(J)
        if self._batches == 0:
            return whole
        self._take(J)
        assert self._grams is not None
        A = (whole - self._grams) * (self._batches / (self._batches - 1))
        self._batches, self._before = 0, None
        return A
