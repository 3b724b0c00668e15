"""Definition of PCGrad's weights from the Gram matrix (Yu et al. 2020, algorithm 1), with no host branch on data.

Projecting g_i on the normal plane of g_j changes one coefficient of g_i's expansion in the K gradients, so the whole
algorithm runs on the K x K inner products: starting at c = e_i, s = (G c)_j is the product with g_j, and c_j -= s /
G_jj.
"""

import torch
from torch import Tensor


def pcgrad_weights(G: Tensor, order: Tensor, mean: bool, with_self: bool = False) -> Tensor:
    """G [K, K] float64, order int64 [K, M] (row i: the tasks to project task i against) -> w [K].

    i in row i is skipped, unless `with_self`: then g_i is also projected against itself, as in LibMTL and
    Pytorch-PCGrad.
    """
    K = G.shape[0]
    tasks = torch.arange(K, device=G.device)
    norms = G.diagonal()  # squared
    C = torch.eye(K, dtype=G.dtype, device=G.device)  # row i: the coefficients c of task i
    for j in order.unbind(1):  # j [K]: each task's next partner, its original gradient
        s = (G[j] * C).sum(1)
        conflict = (s < 0) & (norms[j] != 0) & ((j != tasks) | with_self)  # a zero row is an inactive task
        step = torch.where(conflict, s / norms[j], 0.0)
        C = C - step[:, None] * (tasks == j[:, None])
    w = C.sum(0)
    if mean:
        w = w / (norms != 0).sum().clamp(min=1)
    return w + (0.0 * G).sum()  # not finite if G is not, which `s < 0` would miss
