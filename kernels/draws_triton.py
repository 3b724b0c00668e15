"""Random numbers of `balance.Draws` on a GPU, in one launch: a hash of a seed, a counter on the device and a position.

Every number of 32 bits fits an unsigned product, so uint32 arithmetic gives the bits of the definition.
"""

import torch
import triton
import triton.language as tl

from .planes_triton import LAUNCH

_BLOCK = 1024


@triton.jit
def draw(step, position, seed):
    """Float64 in [0, 1) for each position, int64; step: pointer to int64; seed: 32 bits, hashed on the host."""
    key = (tl.load(step) & 0xFFFFFFFF).to(tl.uint32) * 0x85EBCA77 + tl.cast(seed, tl.int64).to(tl.uint32)
    key = (key ^ (key >> 15)) * 0x2C1B3C6D
    h = (position & 0xFFFFFFFF).to(tl.uint32) ^ ((position >> 32).to(tl.uint32) * 0x61C88647) ^ key
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0x735A2D97
    h = h ^ (h >> 15)
    return (h >> 8).to(tl.float64) * (1.0 / 16777216)


@triton.jit
def draws_kernel(step, out, count, start, seed, BLOCK: tl.constexpr):
    """out float64 [count], for the positions from `start` on."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, draw(step, place + tl.cast(start, tl.int64), seed), mask=place < count)


def uniform(step: torch.Tensor, seed: int, count: int, start: int) -> torch.Tensor:
    """See `Draws.uniform`; `seed`: 0 to 2^32 - 1."""
    out = torch.empty(count, dtype=torch.float64, device=step.device)
    with torch.cuda.device_of(step):
        draws_kernel[(triton.cdiv(count, _BLOCK),)](step, out, count, start, seed, BLOCK=_BLOCK, **LAUNCH)
    return out
