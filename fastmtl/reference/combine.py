"""Definition of `combine`: J [K, P] gradients and w [K] weights -> the combined gradient [P]."""

import torch
from torch import Tensor


def combine(J: Tensor, w: Tensor) -> Tensor:
    """sum over k of w_k J_k, task 0 first, in float32 (float64 for float64 J): [P]."""
    dtype = torch.float64 if J.dtype == torch.float64 else torch.float32
    w = w.to(dtype)
    total = w[0] * J[0].to(dtype)
    for k in range(1, J.shape[0]):
        total = total + w[k] * J[k].to(dtype)
    return total
