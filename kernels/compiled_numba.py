"""Compilation of the CPU kernels in Python: they release the interpreter lock, and are cached if a folder is
writable."""

from __future__ import annotations

import numba


def compiled(function):
    """Decorator. The first call compiles; division by zero gives infinity, as in NumPy."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no writable folder for the cache
        return numba.njit(nogil=True, error_model="numpy")(function)
