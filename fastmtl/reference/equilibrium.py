"""Definition of `equilibrium`: the positive solution of C y = r / y^p, by damped Newton steps.

It is the minimum of y^T C y / 2 - sum_i r_i psi(y_i), psi' = y^-p, which is convex. If 0 is in the convex hull of the
gradients behind C there is no minimum; the ridge then keeps y finite.
"""

import torch
from torch import Tensor

ITERATIONS, HALVINGS = 150, 8
RIDGE = 1e-12  # C has ones on its diagonal
TO_BOUNDARY, FULL_STEP = 0.95, 1e-3  # near the solution, differences of the objective are below its rounding error


def equilibrium(C: Tensor, r: Tensor, p: float) -> Tensor:
    """C [K, K] float64, a matrix of cosines; r [K] > 0; p > 0 -> y [K] float64, with C y = r / y^p."""
    K = C.shape[0]
    bad = 0.0 * (C.sum() + r.sum())  # NaN if any input is not finite
    C, r = C.nan_to_num(0.0, 0.0, 0.0), r.nan_to_num(1.0, 1.0, 1.0)
    C = C + RIDGE * torch.eye(K, dtype=C.dtype, device=C.device)
    halves = 0.5 ** torch.arange(HALVINGS, dtype=C.dtype, device=C.device)

    def objective(y: Tensor) -> Tensor:  # y [..., K]
        psi = y.log() if p == 1 else y ** (1 - p) / (1 - p)
        return (0.5 * (y @ C) * y - r * psi).sum(-1)

    y = torch.ones_like(r)
    for _ in range(ITERATIONS):
        pull = r * y**-p
        gradient = C @ y - pull
        factor = torch.linalg.cholesky_ex(C + torch.diag(p * pull / y)).L
        dy = torch.cholesky_solve(-gradient[:, None], factor)[:, 0]
        decrement = -(gradient * dy).sum()
        step = torch.where(dy < 0, -TO_BOUNDARY * y / dy, torch.inf).amin().clamp(max=1.0)
        tried = step * halves
        best = objective(y + tried[:, None] * dy).nan_to_num(torch.inf).argmin()
        near = decrement <= FULL_STEP * (pull * y).sum()
        dy = torch.where(near, step, tried[best]) * dy
        y = torch.where(dy.isfinite().all(), y + dy, y)
    return y + bad
