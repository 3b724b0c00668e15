"""Definition of `nonnegative_qp`: small convex quadratic programs over x >= 0, a fixed number of iterations each.

Mehrotra's predictor-corrector interior-point method: x and the multipliers z = H x + q stay positive and their products
go to zero. A singular H, or a condition number of 1e15, needs no more steps than a well-conditioned H.
"""

import torch
from torch import Tensor

ITERATIONS = 40  # 12 to 25 are needed; converged problems no longer change
RIDGE = 1e-14  # only on the factored matrix, where H is at most 1: residuals stay exact
TO_BOUNDARY = 0.995
SMALLEST = 1e-200


def nonnegative_qp(H: Tensor, q: Tensor) -> Tensor:
    """min over x >= 0 of x^T H x / 2 + q^T x. H [..., K, K] positive semidefinite, q [..., K], float64 -> x [..., K].

    If the minimum is not unique, one of them. A row of zeros in H needs a positive q there.
    """
    size = H.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)  # [..., 1]
    slope = q.abs().amax(-1, keepdim=True)
    size, slope = torch.where(size > 0, size, 1.0), torch.where(slope > 0, slope, 1.0)
    bad = 0.0 * (H.sum((-2, -1)) + q.sum(-1))  # NaN if any input is not finite
    H, q = (H / size[..., None]).nan_to_num(0.0, 0.0, 0.0), (q / slope).nan_to_num(0.0, 0.0, 0.0)
    ridge = RIDGE * torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    x, z = torch.ones_like(q), torch.ones_like(q)
    for _ in range(ITERATIONS):
        residual = _times(H, x) + q - z
        gap = (x * z).mean(-1, keepdim=True)
        factor = torch.linalg.cholesky_ex(H + ridge + torch.diag_embed(z / x)).L
        dx = _solve(factor, -residual - z)
        dz = -z - z / x * dx
        step = torch.minimum(_longest(x, dx), _longest(z, dz))
        aimed = ((x + step * dx) * (z + step * dz)).mean(-1, keepdim=True)
        goal = gap * (aimed / gap).clamp(0, 1) ** 3 - dx * dz
        dx = _solve(factor, -residual - z + goal / x)
        dz = -z + (goal - z * dx) / x
        step = (TO_BOUNDARY * torch.minimum(_longest(x, dx), _longest(z, dz))).clamp(max=1.0)
        done = (gap < 1e-18) | ~(dx.isfinite() & dz.isfinite()).all(-1, keepdim=True)
        step = torch.where(done, 0.0, step)
        x = torch.where(done, x, x + step * dx).clamp(min=SMALLEST)
        z = torch.where(done, z, z + step * dz).clamp(min=SMALLEST)
    return x * (slope / size) + bad[..., None]


def _times(H: Tensor, x: Tensor) -> Tensor:
    return (H @ x[..., None])[..., 0]


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[..., None], factor)[..., 0]


def _longest(x: Tensor, dx: Tensor) -> Tensor:
    """The longest step [..., 1] along dx that keeps x >= 0."""
    return torch.where(dx < 0, -x / dx, torch.inf).amin(-1, keepdim=True).clamp(max=1.0 / TO_BOUNDARY)
