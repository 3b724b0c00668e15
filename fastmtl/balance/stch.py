"""STCH: a smooth maximum of the losses, so that the worst task decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .base import values
from .gramian import given_weights
from .loss_base import LossBalancer


class STCH(LossBalancer):
    """Smooth Tchebycheff scalarization of Lin et al., ICML 2024: mu log sum_k exp(lambda_k (L_k - z_k) / mu).

    Its gradient is sum_k w_k grad L_k with w_k = lambda_k softmax_k(lambda (L - z) / mu). The smaller mu, the closer to
    the largest lambda_k (L_k - z_k). The sum is not linear in the losses, so the graphs of all micro-batches are kept
    until the last one, and micro-batches save no memory.

    With `warmup`, as in the authors' code for multi-task learning and LibMTL: sum_k log L_k for that number of epochs,
    then K mu log sum_k exp(log(L_k / M_k) / mu), where M is the mean loss of the warm-up's last epoch and K counts the
    tasks of the step. The losses must be positive; a negative one would be increased, so that it makes all weights NaN.
    Call `on_epoch()` at the end of every epoch; fastmtl's trainer does.

    Args:
        mu: smoothing, > 0; 0.01 to 1 in the paper, 1 in the authors' code for multi-task learning.
        weights: lambda, task -> preference or one per task in order; 1 / (number of the step's tasks) each if None.
        reference: z, the best reachable losses, by name or in order; 0 if None.
        warmup: epochs; 0 is the paper's formula. The authors' code and LibMTL have 5.

    Raises:
        ValueError: `mu` is not positive, `warmup` is negative or no whole number, or it was given with `weights` or
            `reference`.

    >>> parameter = torch.nn.Parameter(torch.tensor([1.0, 4.0]))
    >>> STCH(mu=1.0).backward({"a": parameter[0], "b": parameter[1]})["weights"].round(decimals=4)
    tensor([0.0912, 0.4088], dtype=torch.float64)
    """

    needs_all_losses = True

    def __init__(
        self,
        mu: float = 0.1,
        *,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        reference: Mapping[str, float] | Sequence[float] | None = None,
        warmup: int = 0,
    ) -> None:
        if not mu > 0 or not warmup >= 0 or warmup % 1:
            raise ValueError(f"`mu` must be positive and `warmup` a whole number, not negative; got {mu}, {warmup}.")
        if warmup and (weights is not None or reference is not None):
            raise ValueError(f"`warmup` must be 0 with `weights` or `reference`; got {warmup}: M replaces both.")
        super().__init__()
        self.mu, self.warmup, self._given, self._reference = mu, warmup, weights, reference
        self.state_names = ("sums", "epochs") if warmup else ()
        self._sums: Tensor | None = None  # [2, K]: sum of the losses of the warm-up's last epoch; steps
        self._epochs = torch.zeros((), dtype=torch.float64)  # so far

    def __repr__(self) -> str:
        rest = f"reference={self._reference!r}, warmup={self.warmup}"
        return f"STCH(mu={self.mu}, weights={self._given!r}, {rest})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64, 0 for tasks whose loss is 0; G is not used."""
        found = values(losses)
        active = found != 0
        count = active.sum().clamp(min=1).to(found.dtype)
        if self.warmup:
            factors, heights = count / torch.where(active, found, 1.0), self._over_mean(found)
        else:
            factors = given_weights(self._given, losses, found)
            factors = factors / count if self._given is None else factors
            best = 0.0 if self._reference is None else given_weights(self._reference, losses, found)
            heights = factors * (found - best)
        share = torch.where(active, heights / self.mu, -torch.inf).softmax(0)
        if self.warmup:
            share = torch.where(self._hold("epochs", found.new_zeros(())) < self.warmup, 1 / count, share)
            share = torch.where((found >= 0).all(), share, torch.nan)
        return torch.where(active, factors * share, 0.0)

    def _over_mean(self, found: Tensor) -> Tensor:
        """log(L / M) [K]; 0 for a task without labels in the whole epoch of which M is the mean."""
        total, steps = self._hold("sums", torch.zeros_like(torch.stack([found, found])))
        return torch.where(steps > 0, found * steps / total, 1.0).log()

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        if self.warmup:
            found = values(total)
            counts = (found != 0 if active is None else active) & found.isfinite() & (found >= 0).all()
            counts = counts & (self._hold("epochs", found.new_zeros(())) == self.warmup - 1)
            fresh = torch.stack([torch.where(counts, found, 0.0), counts.double()])
            self._hold("sums", torch.zeros_like(fresh)).add_(fresh)

    def on_epoch(self) -> None:
        """End an epoch; after `warmup` of them the smooth maximum begins."""
        self._epochs.add_(1)
