"""The balancing methods as their papers write them, on full gradients J [K, P]: independent of fastmtl's solves on G.

Quadratic programs are solved by trying every active set, which is exact and slow.
"""

from __future__ import annotations

from itertools import combinations, product

import torch
from torch import Tensor


def subsets(K: int, smallest: int = 0) -> list[list[int]]:
    return [list(s) for size in range(smallest, K + 1) for s in combinations(range(K), size)]


def mgda(J: Tensor) -> Tensor:
    """The shortest vector [P] in the convex hull of the rows."""
    best = J[J.norm(dim=1).argmin()]
    for chosen in subsets(len(J), 2):
        base, rest = J[chosen[0]], J[chosen[1:]] - J[chosen[0]]
        shares = torch.linalg.lstsq(rest.T, -base[:, None], driver="gelsd").solution[:, 0]
        point = base + shares @ rest
        if (shares >= 0).all() and shares.sum() <= 1 and point.norm() < best.norm():
            best = point
    return best


def upgrad(J: Tensor) -> Tensor:
    """The mean of the rows, each projected on {d: J d >= 0}."""
    total = torch.zeros_like(J[0])
    lengths = J.norm(dim=1)
    for g in J:
        candidates = []
        for active in subsets(len(J)):
            d = g.clone()
            if active:
                basis = torch.linalg.qr(J[active].T).Q
                d = d - basis @ (basis.T @ d)
            if (J @ d >= -1e-10 * lengths * g.norm()).all():
                candidates.append(d)
        total += min(candidates, key=lambda d: (d - g).norm().item())
    return total / len(J)


def imtl_g(J: Tensor) -> Tensor:
    """Liu et al. 2021, equation 6."""
    units = J / J.norm(dim=1, keepdim=True)
    D, U = J[:1] - J[1:], units[:1] - units[1:]
    alpha = J[0] @ U.T @ torch.linalg.inv(D @ U.T)
    return torch.cat([(1 - alpha.sum())[None], alpha]) @ J


def aligned_mtl(J: Tensor) -> Tensor:
    """Every singular value becomes the smallest one."""
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    return torch.ones(len(J), dtype=J.dtype) @ (S.min() * U @ Vh)


def config_grad(J: Tensor) -> Tensor:
    units = J / J.norm(dim=1, keepdim=True)
    direction = torch.linalg.lstsq(units, torch.ones(len(J), 1, dtype=J.dtype), driver="gelsd").solution[:, 0]
    direction = direction / direction.norm()
    return (J @ direction).sum() * direction


def gradvac(J: Tensor, order: Tensor, target: Tensor, beta: float, always: bool) -> Tensor:
    """Moves `target` in place."""
    total = torch.zeros_like(J[0])
    for i in range(len(J)):
        g = J[i].clone()
        for j in order[i].tolist():
            phi = torch.dot(g, J[j]) / (g.norm() * J[j].norm())
            wanted = target[i, j].clone()
            low = phi < wanted
            if low:
                sine, goal = (1 - phi**2).sqrt(), (1 - wanted**2).sqrt()
                g += g.norm() * (wanted * sine - phi * goal) / (J[j].norm() * goal) * J[j]
            if always or low:
                target[i, j] = (1 - beta) * wanted + beta * phi
        total += g
    return total


def du_gate(J: Tensor, weighted: bool) -> Tensor:
    total = J[0].clone()
    for g in J[1:]:
        cosine = torch.dot(J[0], g) / (J[0].norm() * g.norm())
        total += g * (max(0.0, cosine.item()) if weighted else float(cosine >= 0))
    return total


def graddrop(J: Tensor, u: Tensor, leak: float) -> Tensor:
    total = torch.zeros_like(J[0])
    for p in range(J.shape[1]):
        column = J[:, p]
        purity = 0.5 * (1 + column.sum() / column.abs().sum())
        for g in column:
            kept = g > 0 if u[p] < purity else g < 0
            total[p] += g if kept else leak * g
    return total


def simplex(v: Tensor) -> Tensor:
    """The nearest point of the simplex, by trying every support."""
    best = None
    for support in subsets(len(v), 1):
        point = torch.zeros_like(v)
        point[support] = v[support] - (v[support].sum() - 1) / len(support)
        if (point >= 0).all() and (best is None or (point - v).norm() < (best - v).norm()):
            best = point
    assert best is not None
    return best


def sdmgrad(A: Tensor, v: Tensor, strength: float, lr: float, momentum: float, steps: int) -> tuple[Tensor, Tensor]:
    """w and the moved v."""
    pull = strength * torch.full_like(v, 1 / len(v))
    scaled = A / A.diagonal().clamp(min=0).sqrt().mean() ** 2
    speed = torch.zeros_like(v)
    for _ in range(steps):
        speed = momentum * speed + scaled @ (v + pull)
        v = simplex(v - lr * speed)
    return (v + pull) / (1 + strength), v


def gradnorm(w: Tensor, rows: Tensor, losses: Tensor, first: Tensor, alpha: float, lr: float) -> Tensor:
    """The next w, with autograd's derivative of L_grad; `rows` [K, P] are the gradients of W."""
    w = w.clone().requires_grad_()
    lengths = torch.stack([(w[k] * rows[k]).norm() for k in range(len(w))])
    rates = losses / first
    target = (lengths.mean() * (rates / rates.mean()) ** alpha).detach()
    (lengths - target).abs().sum().backward()
    moved = (w - lr * w.grad).detach()
    return len(w) * moved / moved.sum()


def excess_risks(history: list[Tensor]) -> Tensor:
    """He et al. 2024, equations 6 and 7, of the last of all gradients J [K, P] so far: element by element."""
    last = history[-1]
    total = torch.zeros(len(last), dtype=last.dtype)
    for k in range(len(last)):
        for p in range(last.shape[1]):
            root = sum(J[k, p].item() ** 2 for J in history) + 1e-7
            total[k] += last[k, p] ** 2 / root**0.5
    return total


def momentum_config(history: list[Tensor], beta1: float, beta2: float, eps: float) -> Tensor:
    """Liu et al. 2025, algorithm 1, with every task's average moved in each step: the last update [P]."""
    m, v = torch.zeros_like(history[0]), torch.zeros_like(history[0][0])
    before = torch.zeros_like(v)
    update = v
    for t, J in enumerate(history, 1):
        m = beta1 * m + (1 - beta1) * J
        u = config_grad(m / (1 - beta1**t))
        now = u * (1 - beta1**t)
        v = beta2 * v + (1 - beta2) * ((now - beta1 * before) / (1 - beta1)) ** 2
        before = now
        update = u / ((v / (1 - beta2**t)).sqrt() + eps)
    return update


def best_groups(v: Tensor, groups: int) -> Tensor:
    """k-means by trying every assignment: each number becomes its group's mean."""
    best, least = v, torch.inf
    for labels in product(range(groups), repeat=len(v)):
        label = torch.tensor(labels)
        means = torch.stack([v[label == one].mean() for one in labels])
        if (v - means).square().sum() < least:
            best, least = means, (v - means).square().sum()
    return best
