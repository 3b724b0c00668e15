"""Functions of the gradient methods: active tasks, cosines, the simplex; on G's device, without branches on data.

A task is active if its entry on G's diagonal is not 0. Masks of fixed shape remove inactive tasks before a method
solves its problem: a row of zeros would be a task that every direction improves (MGDA and CAGrad would return 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastmtl.ops.core.constants import to_device
from fastmtl.ops.gradients import matrix_solvers


def gramian(G: Tensor | None) -> Tensor:
    """Return G after checking it.

    Raises:
        ValueError: G is None or not [K, K] float64.
    """
    if G is None:
        raise ValueError("`G` must be the Gram matrix [K, K] of the gradients; got None. Take it from ops.gram(J).")
    if G.ndim != 2 or G.shape[0] != G.shape[1] or G.dtype != torch.float64:
        raise ValueError(f"`G` must be [K, K] float64; got {list(G.shape)} {G.dtype}. Take it from ops.gram(J).")
    return G


def cosines(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C [K, K], norms [K], active bool [K]; an inactive task is orthogonal to all others and has norm 1."""
    squares = G.diagonal()
    active = squares != 0
    norms = torch.where(active, squares, 1.0).sqrt()
    C = G / norms / norms[:, None]
    ones = torch.eye(len(G), dtype=torch.bool, device=G.device)
    return torch.where(ones, 1.0, C), norms, active  # the diagonal carries no NaN: `mask_inactive` looks at G itself


def norms_and_cosines(G: Tensor) -> tuple[Tensor, Tensor]:
    """Norms [K] and cosines [K, K] for the log; the cosine with a zero gradient is 0."""
    norms = G.diagonal().clamp(min=0).sqrt()
    lengths = torch.outer(norms, norms)
    return norms, torch.where(lengths == 0, 0.0, G / lengths)


def mask_inactive(w: Tensor, G: Tensor, active: Tensor) -> Tensor:
    """w with 0 for inactive tasks; NaN everywhere if G is not finite."""
    return torch.where(active, w, 0.0) + 0.0 * G.sum()


def given_weights(weights: Mapping[str, float] | Sequence[float] | None, losses: Mapping[str, Tensor], like: Tensor):
    """The user's weights, by name or in order, as [K] float64 on `like`'s device; ones of `like`'s dtype if None.

    Raises:
        ValueError: the weights do not match the tasks.
    """
    K = like.shape[0]
    if weights is None:
        return torch.ones(K, dtype=like.dtype, device=like.device)
    if isinstance(weights, Mapping):
        if set(weights) != set(losses):
            raise ValueError(f"`weights` must name the tasks {list(losses)}; got {list(weights)}.")
        weights = [weights[name] for name in losses]
    if len(weights) != K:
        raise ValueError(f"`weights` must hold one weight per task, {K}; got {len(weights)}.")
    return to_device([float(weight) for weight in weights], like.device).clone()


def least_norm(G: Tensor, active: Tensor) -> Tensor:
    """argmin a^T G a over the simplex of the active tasks: [K], 0 elsewhere.

    With x >= 0 and a = x / sum x this is the minimum of x^T (G + 1 1^T) x / 2 - sum x, for G scaled to size 1: both
    problems have the same optimality conditions.
    """
    K = len(G)
    if K == 2:  # closed form
        share = (G[1, 1] - G[0, 1]) / (G[0, 0] + G[1, 1] - 2 * G[0, 1])
        share = torch.where(share.isnan(), 0.5, share.clamp(0, 1))  # equal gradients
        share = torch.where(active[1], torch.where(active[0], share, 0.0), 1.0)
        return torch.where(active, torch.stack([share, 1 - share]), 0.0)
    both = active[:, None] & active
    size = torch.where(active, G.diagonal(), 0.0).amax()
    H = torch.where(both, G / torch.where(size > 0, size, 1.0) + 1.0, 0.0)
    H = H + torch.diag((~active).to(G.dtype))
    x = matrix_solvers.nonnegative_qp(H[None], torch.where(active, -1.0, 1.0).to(G.dtype)[None])[0]
    x = torch.where(active, x, 0.0)
    return x / torch.where(x.sum() == 0, 1.0, x.sum())


def pseudo_inverse(G: Tensor, rtol: float | None) -> Tensor:
    """Pseudo-inverse of a positive semidefinite [K, K]; eigenvalues up to rtol (K eps if None) times the largest count
    as 0."""
    eigenvalues, vectors = matrix_solvers.eigh(G)
    kept = in_rank(eigenvalues, rtol)
    return (vectors * torch.where(kept, 1 / eigenvalues, 0.0)) @ vectors.T


def in_rank(eigenvalues: Tensor, rtol: float | None) -> Tensor:
    """bool [K]: which eigenvalues (ascending) are larger than 0 up to rounding."""
    K = len(eigenvalues)
    return eigenvalues > (K * torch.finfo(torch.float64).eps if rtol is None else rtol) * eigenvalues[-1]


def project_on_simplex(v: Tensor, active: Tensor) -> Tensor:
    """The nearest point of the simplex of the active tasks, [K]; 0 elsewhere."""
    highest = torch.where(active, v, -torch.inf).max()
    v = v - torch.where(highest.isneginf(), 0.0, highest)  # 1 would be lost beside large numbers
    ordered = torch.where(active, v, -torch.inf).sort(descending=True).values
    above = torch.where(ordered.isneginf(), 0.0, ordered).cumsum(0) - 1
    counts = torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device)
    support = (ordered * counts > above).sum().clamp(min=1)
    level = above.gather(0, support[None] - 1) / support
    return torch.where(active, (v - level).clamp(min=0), 0.0)
