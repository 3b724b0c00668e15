"""The backends of the fused ops as pytest parameters; one that cannot run here is skipped with the reason."""

from __future__ import annotations

import pytest
import torch

from fastmtl.ops.core.backends import interpreting, missing

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
needs_cpp = pytest.mark.skipif(missing("cpp") is not None, reason=str(missing("cpp")))
needs_triton = pytest.mark.skipif(missing("triton") is not None, reason=str(missing("triton")))
needs_interpreter = pytest.mark.skipif(
    missing("triton") is not None or not interpreting(),
    reason="Triton's interpreter is off: there is a GPU, or no Triton",
)
KERNELS = (pytest.param("cpp", marks=needs_cpp), pytest.param("triton", marks=needs_triton))
BACKENDS = (pytest.param("reference"), *KERNELS)
# For tests that take minutes in Triton's interpreter.
SLOW_TRITON = (pytest.param("reference"), KERNELS[0], pytest.param("triton", marks=[needs_triton, pytest.mark.slow]))
# Triton's interpreter runs on NumPy, which warns where IEEE arithmetic makes a NaN that a `where` then drops.
ignore_numpy_warnings = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow|divide by zero|All-NaN slice) encountered:RuntimeWarning"
)
dirty_memory = [pytest.mark.usefixtures("poisoned_memory"), ignore_numpy_warnings]


def device_of(backend: str) -> str:
    """Where tensors must be for `backend`: on a CPU, Triton's kernels run in the interpreter."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
