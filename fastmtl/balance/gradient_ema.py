"""Methods that use a moving average of the gradients, [K, P] in the arena's layout: DB-MTL and MoCo."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from .base import values
from .gradient_balancer import GradientBalancer
from .gramian import gramian, mask_inactive, project_on_simplex


class Averaged(GradientBalancer):
    """Base: Y [K, P], one average per task, replaces the gradients. A task without labels keeps its row.

    Y has the dtype of the arena's rows and is part of `state_dict`; its columns follow the order of `shared`. It
    restarts when the shared parameters change (are frozen or unfrozen). Ranks that divide the columns save their own
    part.
    """

    state_names = ("average", "steps")
    strategies = ("sequential", "batched")
    reusable = False
    split_state = ("average",)

    def __init__(self) -> None:
        super().__init__()
        self._average: Tensor | None = None
        self._steps: Tensor | None = None  # [K] float64: how often each row was updated

    @abstractmethod
    def _rate(self, steps: Tensor) -> Tensor:
        """[K]: the weight of the new gradient in each row at its `steps`-th update, counted from 1."""

    def _rows(
        self, J: Tensor, losses: Mapping[str, Tensor], scale: Tensor | float | None, active: Tensor | None
    ) -> Tensor:
        norms = self._norms(J)
        active = norms != 0 if active is None else active
        if self._average is None or self._average.shape != J.shape:
            self._average = self._steps = None
        average, steps = self._hold("average", torch.zeros_like(J)), self._hold("steps", torch.zeros_like(norms))
        moving = active & norms.isfinite().all()  # a skipped step changes no state
        steps.add_(moving)
        rate = torch.where(moving, self._rate(steps.clamp(min=1)), 0.0).to(J.dtype)[:, None]
        fresh = J if scale is None else J / scale
        # Not lerp: with a rate of 0, NaN must not reach the average.
        average.copy_(torch.where(rate > 0, average + rate * (fresh - average), average))
        # If the gradient is not finite, the rows must not be finite either, so that the step is skipped.
        rows = torch.where(active[:, None], average, 0.0) + (0.0 * norms.sum()).to(J.dtype)
        return rows if scale is None else rows * scale


class DBMTL(Averaged):
    """Dual balancing of Lin et al., 2023, algorithm 1: gradients of the log losses, scaled to the largest norm.

    Y_k <- Y_k + (1 - beta_t) (grad log(L_k + eps) - Y_k), beta_t = beta / t^decay; w_k = max_j |Y_j| / |Y_k|.
    Heads also get the gradient of the log loss. The logarithm needs the loss of the whole step, so the graphs of all
    micro-batches are kept until the last one, and micro-batches save no memory.

    Args:
        beta: weight of the old average, 0 to 1.
        decay: exponent of beta's decay over the steps; 0 keeps beta constant (LibMTL), the authors recommend 0.5.
        eps: added inside the logarithm.

    Raises:
        ValueError: an option is out of range.

    >>> DBMTL().weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), {})
    tensor([2., 1.], dtype=torch.float64)
    """

    needs_all_losses = True

    def __init__(self, beta: float = 0.9, *, decay: float = 0.0, eps: float = 1e-8) -> None:
        if not 0 <= beta <= 1 or not decay >= 0 or not eps >= 0:
            raise ValueError(f"`beta` must be from 0 to 1, `decay` and `eps` >= 0; got {beta}, {decay}, {eps}.")
        super().__init__()
        self.beta, self.decay, self.eps = beta, decay, eps

    def __repr__(self) -> str:
        return f"DBMTL(beta={self.beta}, decay={self.decay}, eps={self.eps})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from the averages' G [K, K] float64."""
        G = gramian(G)
        active = G.diagonal() != 0
        norms = G.diagonal().sqrt()
        return mask_inactive(norms.amax() / torch.where(active, norms, 1.0), G, active)

    def _objectives(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # A task without labels has the loss 0 and a gradient of 0: 0 / eps is 0 too.
        return {name: (loss + max(self.eps, torch.finfo(loss.dtype).tiny)).log() for name, loss in losses.items()}

    def _rate(self, steps: Tensor) -> Tensor:
        return 1 - self.beta / steps**self.decay


class MoCo(Averaged):
    """Fernando et al., ICLR 2023, algorithm 1: averaging removes the bias that batch noise causes in MGDA's weights.

    Y <- Y + beta_t (J - Y); w <- projection of w - gamma_t (Y Y^T + rho I) w onto the simplex; beta_t = beta /
    t^beta_decay and gamma_t = gamma / t^gamma_decay. In the authors' code (`published=True`) and in LibMTL each
    gradient is first scaled so that its norm is its loss, and a softmax replaces the projection.

    Args:
        beta, beta_decay: rate of Y and its decay.
        gamma, gamma_decay: rate of w and its decay.
        rho: regularisation of w.
        published: follow the authors' code instead of the paper.

    Raises:
        ValueError: an option is negative.

    >>> MoCo(gamma=0.25).weights(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), {})
    tensor([0.6250, 0.3750], dtype=torch.float64)
    """

    state_names = (*Averaged.state_names, "w", "moves")

    def __init__(
        self,
        beta: float = 0.5,
        *,
        beta_decay: float = 0.5,
        gamma: float = 0.1,
        gamma_decay: float = 0.5,
        rho: float = 0.0,
        published: bool = False,
    ) -> None:
        if min(beta, beta_decay, gamma, gamma_decay, rho) < 0:
            raise ValueError(
                "`beta`, `beta_decay`, `gamma`, `gamma_decay` and `rho` must not be negative; "
                f"got {beta}, {beta_decay}, {gamma}, {gamma_decay}, {rho}."
            )
        super().__init__()
        self.beta, self.beta_decay, self.gamma, self.gamma_decay = beta, beta_decay, gamma, gamma_decay
        self.rho, self.published = rho, published
        self._w: Tensor | None = None
        self._moves: Tensor | None = None

    def __repr__(self) -> str:
        rates = f"beta={self.beta}, beta_decay={self.beta_decay}, gamma={self.gamma}, gamma_decay={self.gamma_decay}"
        return f"MoCo({rates}, rho={self.rho}, published={self.published})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from G [K, K] float64 of the averages; updates w."""
        G = gramian(G)
        active = G.diagonal() != 0
        sound = G.isfinite().all()
        moves = self._hold("moves", G.new_zeros(()))
        before = self._hold("w", torch.full_like(G.diagonal(), 1 / len(G)))
        rate = self.gamma / moves.add_(sound).clamp(min=1) ** self.gamma_decay
        moved = before - rate * (G @ before + self.rho * before)
        if self.published:
            w = torch.where(active, moved, -torch.inf).softmax(0).nan_to_num(0.0)
        else:
            w = project_on_simplex(moved, active)
        before.copy_(torch.where(sound & active, w, before))
        return mask_inactive(w, G, active)

    def _rows(
        self, J: Tensor, losses: Mapping[str, Tensor], scale: Tensor | float | None, active: Tensor | None
    ) -> Tensor:
        if self.published:
            norms = self._norms(J)
            factor = torch.where(norms == 0, 0.0, values(losses) / norms) * (1.0 if scale is None else scale)
            J = J * factor.to(J.dtype)[:, None]
        return super()._rows(J, losses, scale, active)

    def _rate(self, steps: Tensor) -> Tensor:
        return (self.beta / steps**self.beta_decay).clamp(max=1)
