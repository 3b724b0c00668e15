"""NT-Xent, SimCLR's contrastive loss, in plain torch: the definition of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

EPSILON = 1e-12  # smallest divisor, as in torch.nn.functional.normalize


def nt_xent_loss(
    z: Tensor,  # projections [2N, D]; rows i and i + N are a positive pair
    temperature: float = 0.1,
    mask: Tensor | None = None,  # bool [N]: the valid pairs
) -> Tensor:
    """See `fastmtl.ops.nt_xent_loss`. Differentiable any number of times."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    rows, pairs = z.shape[0], z.shape[0] // 2
    valid = torch.ones(rows, dtype=torch.bool, device=z.device) if mask is None else mask.bool().repeat(2)
    # Invalid rows become a constant other than 0, where the norm has derivatives of every order.
    y = normalize(torch.where(valid[:, None], z.to(dtype), 1.0), dim=1, eps=EPSILON)
    s = y @ y.T / temperature
    positive = torch.where(valid, s.diagonal(pairs).repeat(2), 0.0)
    s = s.masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device) | ~valid, -torch.inf)
    s = torch.where(valid[:, None], s, 0.0)  # logsumexp of a row of -inf has no derivative
    loss = torch.where(valid, s.logsumexp(1) - positive, 0.0)
    return loss.sum() / valid.sum().clamp(min=1)
