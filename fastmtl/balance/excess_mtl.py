"""ExcessMTL: tasks far from convergence count more, whatever loss they cannot avoid."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .gradient_balancer import GradientBalancer
from .gramian import gramian, mask_inactive

_EPS = 1e-7  # under the root, as in the authors' code


class ExcessMTL(GradientBalancer):
    """Excess risks of He et al., ICML 2024, equations 6 to 9: noise in the labels does not raise a task's weight.

    The excess risk is estimated as e_k = sum_p g_kp^2 / h_kp, where h = sqrt(S + 1e-7) and S [K, P] is the sum of the
    squared gradients so far (Adagrad's estimate of the Hessian's diagonal). Then w_k <- w_k exp(lr e_k / e_k(0)),
    normalised so that the weights of a step's tasks sum to their number, as in the authors' code and LibMTL; TorchJD's
    sum to 1. Only the shared gradients are weighted.

    S has the dtype of the arena's rows and is part of `state_dict`; its columns follow the order of `shared`. S and
    e(0) restart when the shared parameters change (are frozen or unfrozen). Ranks that divide the columns save their
    own part of S.

    Args:
        lr: rate of the weights; 0.01 in LibMTL, 1 in the authors' example and TorchJD.
        warmup: steps with equal weights, over which e(0) is the mean; 1 in the authors' code, three epochs in the
            paper (appendix C.1).

    Raises:
        ValueError: `lr` is not positive, or `warmup` is less than 1 or no whole number.

    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> losses = {"a": parameter.sum(), "b": (3 * parameter).sum()}
    >>> ExcessMTL().backward(losses, [parameter])["weights"]  # the warm-up
    tensor([1., 1.], dtype=torch.float64)
    """

    state_names = ("squares", "baseline", "seen", "logs")
    split_state = ("squares",)
    strategies = ("sequential", "batched")

    def __init__(self, lr: float = 0.01, *, warmup: int = 1) -> None:
        if not lr > 0 or not warmup >= 1 or warmup % 1:
            raise ValueError(f"`lr` must be positive and `warmup` a whole number of at least 1; got {lr}, {warmup}.")
        super().__init__()
        self.lr, self.warmup = lr, warmup
        self._squares: Tensor | None = None  # S [K, P]
        self._baseline: Tensor | None = None  # [K] float64: sum of the excess risks of the warm-up
        self._seen: Tensor | None = None  # [K] float64: steps in the warm-up
        self._logs: Tensor | None = None  # [K] float64: logarithms of the weights, up to a constant
        self._excess: Tensor | None = None  # [K] float64, of this step

    def __repr__(self) -> str:
        return f"ExcessMTL(lr={self.lr}, warmup={self.warmup})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks; G [K, K] float64 only shows which are. In `backward` it updates w."""
        G = gramian(G)
        active = G.diagonal() != 0
        logs = self._hold("logs", torch.zeros_like(G.diagonal()))
        if self._excess is not None:
            excess, self._excess = self._excess, None
            sound = active & (G.isfinite().all() & excess.isfinite().all())  # a skipped step changes no state
            baseline, seen = self._hold("baseline", torch.zeros_like(logs)), self._hold("seen", torch.zeros_like(logs))
            known = seen >= self.warmup
            ratio = excess / torch.where(baseline > 0, baseline / self.warmup, 1.0)
            logs.copy_(torch.where(sound & known, logs + self.lr * ratio, logs))
            baseline.copy_(torch.where(sound & ~known, baseline + excess, baseline))
            seen.add_(sound & ~known)
        share = torch.where(active, logs, -torch.inf).softmax(0).nan_to_num(0.0)
        return mask_inactive(active.sum() * share, G, active)

    def _rows(
        self, J: Tensor, losses: Mapping[str, Tensor], scale: Tensor | float | None, active: Tensor | None
    ) -> Tensor:
        if self._squares is None or self._squares.shape != J.shape:
            self._squares = self._baseline = self._seen = None
        squares, norms = self._hold("squares", torch.zeros_like(J)), self._norms(J)
        moving = (norms != 0 if active is None else active) & norms.isfinite().all()
        fresh = J if scale is None else J / scale
        # An infinite S would make the task's excess risk 0 for the rest of the training.
        summed = (squares + fresh * fresh).clamp(max=torch.finfo(J.dtype).max)
        squares.copy_(torch.where(moving[:, None], summed, squares))
        # The norm of g / sqrt(h) is summed in float64 and over all ranks.
        self._excess = self._norms(fresh / (squares + _EPS) ** 0.25).square()
        return J
