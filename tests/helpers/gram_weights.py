"""The weights of the methods that need a Gram matrix alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl import balance

DOUBLE = {"dtype": torch.float64}
# Methods of G alone, with options under which they have no state.
METHODS = {
    "aligned_mtl": {},
    "cagrad": {},
    "config_grad": {},
    "du_gate": {},
    "fairgrad": {"alpha": 2.0},
    "imtl_g": {},
    "mgda": {},
    "nash_mtl": {},
    "pcgrad": {},
    "gradvac": {},
    "sdmgrad": {},
    "moco": {},
    "modo": {"rho": 0.0},
    "momentum_config": {},
    "db_mtl": {},
    "graddrop": {},
    "upgrad": {},
}


def weights(method: str, G: Tensor, **options) -> Tensor:
    losses = {f"task{k}": torch.ones(()) for k in range(len(G))}
    return balance.create_balancer(method, **(METHODS.get(method, {}) | options)).weights(G, losses)
