"""Definition of `nonnegative_qp`: small convex quadratic programs over x >= 0, a fixed number of iterations each.

Mehrotra's predictor-corrector interior-point method: x and the multipliers z = H x + q stay positive and their products
go to zero. It needs as many steps for a singular H, or one of a condition of 1e15, as for a good one.
"""

import torch
from torch import Tensor

ITERATIONS = 40  # 12 to 25 are needed; what has converged does not move any more
RIDGE = 1e-14  # on the factored matrix alone, where H is 1 at most: residuals stay exact
TO_BOUNDARY = 0.995
SMALLEST = 1e-200


def nonnegative_qp(H: Tensor, q: Tensor) -> Tensor:
    """min over x >= 0 of x^T H x / 2 + q^T x. H [..., K, K] positive semidefinite, q [..., K], float64 -> x [..., K].

    Where the minimum is not unique, one of them. A row of zeros in H needs a positive q there.
    """
    size = H.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)  # [..., 1]
    slope = q.abs().amax(-1, keepdim=True)
    size, slope = torch.where(size > 0, size, 1.0), torch.where(slope > 0, slope, 1.0)
    bad = 0.0 * (H.sum((-2, -1)) + q.sum(-1))  # not finite where anything is not
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
    """The longest step [..., 1] along dx that leaves x >= 0."""
    return torch.where(dx < 0, -x / dx, torch.inf).amin(-1, keepdim=True).clamp(max=1.0 / TO_BOUNDARY)
