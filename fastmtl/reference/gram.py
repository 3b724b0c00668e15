"""Definition of `gram` and `grad_norms`: J [K, P] gradients of K tasks -> their inner products, in float64."""

import torch
from torch import Tensor


def gram(J: Tensor) -> Tensor:
    """G = J J^T as float64 [K, K], exactly symmetric. J [K, P], any floating dtype."""
    rows = J.double()  # exact, as is each product of two float32, bf16 or fp16 values
    G = rows @ rows.T
    return G.tril() + G.tril(-1).T  # a matrix product may differ between the two halves


def grad_norms(J: Tensor) -> Tensor:
    """Norms of the rows of J [K, P] as float64 [K]."""
    return torch.linalg.vector_norm(J.double(), dim=1)
