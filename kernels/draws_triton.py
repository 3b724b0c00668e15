"""Random numbers of `balance.Draws` on a GPU, in one launch: a hash of a seed, a counter on the device and a position.

Every number of 32 bits fits an unsigned product, so uint32 arithmetic gives the bits of the definition.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 1024
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def draws_kernel(step, out, count, start, seed, BLOCK: tl.constexpr):
    """step int64 scalar; out float64 [count], for the positions from `start` on; seed: 32 bits, hashed on the host."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = (tl.load(step) & 0xFFFFFFFF).to(tl.uint32) * 0x85EBCA77 + tl.cast(seed, tl.int64).to(tl.uint32)
    key = (key ^ (key >> 15)) * 0x2C1B3C6D
    position = place + tl.cast(start, tl.int64)
    h = (position & 0xFFFFFFFF).to(tl.uint32) ^ ((position >> 32).to(tl.uint32) * 0x61C88647) ^ key
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) * 0x735A2D97
    h = h ^ (h >> 15)
    tl.store(out + place, (h >> 8).to(tl.float64) * (1.0 / 16777216), mask=place < count)


def uniform(step: torch.Tensor, seed: int, count: int, start: int) -> torch.Tensor:
    """See `Draws.uniform`; `seed`: 0 to 2^32 - 1."""
    out = torch.empty(count, dtype=torch.float64, device=step.device)
    with torch.cuda.device_of(step):
        draws_kernel[(triton.cdiv(count, _BLOCK),)](step, out, count, start, seed, BLOCK=_BLOCK, **_LAUNCH)
    return out
