"""A kernel's time on an H200, predicted from its machine code and the bytes it has to move. Not a measurement.

time = max(bytes / bandwidth, instructions / issue rate, special functions / their rate). The share of full waves is
reported beside it and is not part of the prediction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .machine_code import HotLoop, Usage

MULTIPROCESSORS = 132
BANDWIDTH = 4.3e12  # bytes per second that a large copy reaches
ISSUE = MULTIPROCESSORS * 128 * 1.98e9  # instructions of one thread per second: 33e12
SPECIAL = ISSUE / 8  # exp, log, rcp and conversions from bytes share a unit of 16 lanes
_REGISTERS, _THREADS, _SHARED, _BLOCKS = 65536, 2048, 227 * 1024, 32  # of one multiprocessor


class Prediction(NamedTuple):
    """
    Attributes:
        bandwidth: bytes per second, each byte that has to be moved counted once.
        bound: what limits it: "bytes", "issue" or "special".
        full_waves: share of the time in which all multiprocessors have as many blocks as they can hold.
    """

    bandwidth: float
    bound: str
    full_waves: float


def warps_per_multiprocessor(usage: Usage, num_warps: int) -> int:
    """As many as registers and shared memory allow."""
    registers = -(-max(usage.registers, 1) * 32 // 256) * 256 * num_warps  # a warp gets them in units of 256
    shared = usage.shared_bytes + 1024  # that every block needs
    return num_warps * min(_REGISTERS // registers, _THREADS // (32 * num_warps), _SHARED // shared, _BLOCKS)


def predict(
    loop: HotLoop, blocks: float, grid: tuple[int, ...], bytes_per_element: float, per_thread: float
) -> Prediction:
    """For a kernel whose hot loop handles `per_thread` elements in each thread; a multiprocessor holds `blocks`."""
    seconds = {  # per element
        "bytes": bytes_per_element / BANDWIDTH,
        "issue": loop.instructions / per_thread / ISSUE,
        "special": loop.special / per_thread / SPECIAL,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    waves = math.prod(grid) / (MULTIPROCESSORS * blocks)
    return Prediction(bytes_per_element / seconds[bound], bound, waves / math.ceil(waves))
