"""fastmtl: a multi-task training engine for medical and whole-slide images, and fused ops for any PyTorch loop."""

from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  loads the OpenMP runtime that fastmtl._C shares with it

if TYPE_CHECKING:
    from .losses.patching import patch as patch
    from .losses.patching import unpatch as unpatch

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`patch` and `unpatch`, whose module is imported when it is used."""
    if name in ("patch", "unpatch"):
        from .losses import patching

        return getattr(patching, name)
    raise AttributeError(f"module 'fastmtl' has no attribute {name!r}")
