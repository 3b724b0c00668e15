"""How the CPU's kernels in Python are compiled: without the interpreter lock, kept where a folder can be written."""

from __future__ import annotations

import numba


def compiled(function):
    """Decorator. The first call compiles; division by zero gives infinity, as NumPy's does."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that a cache could be written to
        return numba.njit(nogil=True, error_model="numpy")(function)
