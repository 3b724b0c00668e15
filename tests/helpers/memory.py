"""What a process holds in memory, for the tests that it stays flat."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from pathlib import Path

import pytest

STATM = Path("/proc/self/statm")

needs_statm = pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")


def resident_bytes() -> int:
    """Resident memory without the freed blocks that glibc keeps: their amount differs by 100 MiB from run to run."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
