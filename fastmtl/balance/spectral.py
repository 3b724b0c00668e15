"""Methods that use the pseudo-inverse or the eigenvectors of G: IMTL-G, Aligned-MTL, ConFIG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastmtl.ops.gradients import matrix_solvers

from .gradient_balancer import GradientBalancer
from .gramian import cosines, given_weights, gramian, in_rank, mask_inactive, pseudo_inverse

_SCALES = ("min", "median", "mean")


class IMTLG(GradientBalancer):
    """Impartial gradients: the update has the same projection on every task's direction.

    Source: Liu et al., ICLR 2021, equation 6: w with sum 1 and equal <g, g_k> / |g_k|. In the form of Quinton & Rey
    (2024), which also covers linearly dependent gradients: w = v / sum v, v = pinv(G) sqrt(diag G).

    For nearly collinear gradients w can be very large, with both signs. `rtol` limits this: eigenvalues of G below rtol
    times the largest count as 0. If sum v is 0 up to rounding, the update is 0.

    Args:
        rtol: relative tolerance of the eigenvalues; None uses K times 2.2e-16, the rounding error of G.

    Raises:
        ValueError: `rtol` is negative.

    >>> IMTLG().weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), {})
    tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    def __init__(self, rtol: float | None = None) -> None:
        super().__init__()
        self.rtol = _check_rtol(rtol)

    def __repr__(self) -> str:
        return f"IMTLG(rtol={self.rtol})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64 with sum 1, 0 for inactive tasks, from G [K, K] float64."""
        G = gramian(G)
        active = G.diagonal() != 0
        size = G.diagonal().amax()
        A = G / torch.where(size > 0, size, 1.0)
        v = pseudo_inverse(A, self.rtol) @ A.diagonal().sqrt()
        total = v.sum()
        w = torch.where(total.abs() > 1e-12 * v.abs().sum(), v / total, 0.0)
        return mask_inactive(w, G, active)


class AlignedMTL(GradientBalancer):
    """Independent component alignment: gradients are made orthogonal and equal in norm.

    Source: Senushkin et al., CVPR 2023, algorithm 1. With G = V diag(l) V^T restricted to its numerical rank,
    w = sqrt(scale) V diag(l^-1/2) V^T weights.

    Args:
        scale: which statistic of the eigenvalues l to use: "min" (the paper), "median", or "mean" (called rmse in an
            earlier version of the authors' code).
        weights: task -> weight, or one per task in order; 1 each if None, as in the authors' code. TorchJD uses 1/K.
        rtol: eigenvalues below rtol times the largest count as 0; None uses K times 2.2e-16.

    Raises:
        ValueError: `scale` is not one of these, or `rtol` is negative.

    >>> AlignedMTL().weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), {})
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        scale: str = "min",
        *,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        rtol: float | None = None,
    ) -> None:
        if scale not in _SCALES:
            raise ValueError(f"`scale` must be one of {', '.join(_SCALES)}; got {scale!r}.")
        super().__init__()
        self.scale, self.rtol, self._given = scale, _check_rtol(rtol), weights

    def __repr__(self) -> str:
        return f"AlignedMTL(scale={self.scale!r}, weights={self._given!r}, rtol={self.rtol})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from G [K, K] float64."""
        G = gramian(G)
        active = G.diagonal() != 0
        eigenvalues, vectors = matrix_solvers.eigh(G)  # an inactive task is an eigenvector of the eigenvalue 0
        kept = in_rank(eigenvalues, self.rtol)
        rank = kept.sum().clamp(min=1)
        if self.scale == "min":
            scale = torch.where(kept, eigenvalues, torch.inf).amin()
        elif self.scale == "mean":
            scale = torch.where(kept, eigenvalues, 0.0).sum() / rank
        else:  # the lower of the two middle ones, as torch.median
            scale = eigenvalues.gather(0, (len(G) - rank + (rank - 1) // 2)[None])[0]
        lengths = torch.where(kept, (scale / eigenvalues).sqrt(), 0.0)
        given = torch.where(active, given_weights(self._given, losses, eigenvalues), 0.0)
        return mask_inactive((vectors * lengths) @ (vectors.T @ given), G, active)


class ConFIG(GradientBalancer):
    """Conflict-free inverse gradients: a direction with the same cosine to every gradient.

    Source: Liu et al., ICLR 2025, equation 2. u = pinv(unit gradients) 1, normalised; the update is
    (sum_k <g_k, u>) u, so its norm is the sum of the gradients' projections on u.

    Args:
        weights: task -> relative cosine, or one per task in order; 1 each if None.
        rtol: eigenvalues of the cosine matrix below rtol times the largest count as 0; None uses K times 2.2e-16.

    Raises:
        ValueError: `rtol` is negative.

    >>> ConFIG().weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), {})
    tensor([1.5000, 0.7500], dtype=torch.float64)
    """

    def __init__(
        self, weights: Mapping[str, float] | Sequence[float] | None = None, *, rtol: float | None = None
    ) -> None:
        super().__init__()
        self._given, self.rtol = weights, _check_rtol(rtol)

    def __repr__(self) -> str:
        return f"ConFIG(weights={self._given!r}, rtol={self.rtol})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from G [K, K] float64."""
        C, norms, active = cosines(G := gramian(G))
        wanted = torch.where(active, given_weights(self._given, losses, norms), 0.0)
        x = pseudo_inverse(C, self.rtol) @ wanted  # of the unit gradients
        square = x @ C @ x
        length = torch.where(active, norms, 0.0) @ C @ x
        return mask_inactive(x / norms * torch.where(square > 0, length / square, 0.0), G, active)


def _check_rtol(rtol: float | None) -> float | None:
    if rtol is not None and not rtol >= 0:
        raise ValueError(f"`rtol` must not be negative; got {rtol}.")
    return rtol
