"""Random numbers that differ in every replay of a CUDA graph: a hash of a seed, a counter and the position.

torch's generators count on the host, so a graph would replay the numbers it captured. Here the counter is a tensor on
the device, which `advance` increments. The numbers are the same on every device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.core.backends import Implementation, choose, register

_MASK = 0xFFFFFFFF


class Draws:
    """A stream of random numbers for each step; `uniform` returns those of the current step."""

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"`seed` must be an integer; got {seed!r}.")
        self._seed = seed
        self._step = torch.zeros((), dtype=torch.int64)

    def uniform(self, count: int, device: torch.device, start: int = 0) -> Tensor:
        """[count] float64 in [0, 1), multiples of 2^-24, for the positions starting at `start`."""
        step, seed = self.source(device)
        return choose("draws", "auto", step)(step, seed, count, start)

    def source(self, device: torch.device) -> tuple[Tensor, int]:
        """What the numbers are a hash of, besides the position: the counter on `device`, and the seed as 32 bits."""
        if self._step.device != device:
            self._step = self._step.to(device, non_blocking=True)
        return self._step, (self._seed * 0x9E3779B1 + 0x27D4EB2F) & _MASK

    def normal(self, count: int, device: torch.device) -> Tensor:
        """[count] float64, standard normal (Box and Muller)."""
        radius, angle = self.uniform(2 * count, device).chunk(2)
        return (-2 * (1 - radius).log()).sqrt() * (2 * torch.pi * angle).cos()

    def advance(self) -> None:
        """Continue with the next step's numbers."""
        self._step.add_(1)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "step": self._step.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seed, self._step = state["seed"], torch.as_tensor(state["step"]).clone()


def uniform(step: Tensor, seed: int, count: int, start: int) -> Tensor:
    """`Draws.uniform` in plain torch, from `Draws.source`."""
    key = (step & _MASK) * 0x85EBCA77 + seed & _MASK
    key = (key ^ (key >> 15)) * 0x2C1B3C6D & _MASK
    h = torch.arange(start, start + count, dtype=torch.int64, device=step.device)
    if start + count > _MASK:
        h = (h & _MASK) ^ ((h >> 32) * 0x61C88647 & _MASK)
    h = h ^ key
    # Wellons' lowbias32; int64 holds every product's lower 32 bits.
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        h = ((h ^ (h >> shift)) * factor) & _MASK
    h = h ^ (h >> 15)
    return (h >> 8).double() * 2.0**-24


def _uniform_triton(step: Tensor, seed: int, count: int, start: int) -> Tensor:
    from fastmtl.kernels import draws_triton

    return draws_triton.uniform(step, seed, count, start)


register(
    "draws",
    {
        "triton": Implementation(_uniform_triton, "cuda", (torch.int64,)),
        "reference": Implementation(uniform, "any", (torch.int64,)),
    },
)
