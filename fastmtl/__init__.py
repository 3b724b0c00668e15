"""fastmtl: a multi-task training engine for medical and whole-slide images, and fused ops for any PyTorch loop."""

import importlib
from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  loads the OpenMP runtime that fastmtl._C shares with it

if TYPE_CHECKING:
    from .api.loaded_run import load as load
    from .losses.patching import patch as patch
    from .losses.patching import unpatch as unpatch

__version__ = "0.1.0"

_HOME = {"load": "api.loaded_run", "patch": "losses.patching", "unpatch": "losses.patching"}
__all__ = ["load", "patch", "unpatch"]


def __getattr__(name: str) -> Any:
    """The functions of `_HOME`, whose modules are imported when they are used."""
    if name not in _HOME:
        raise AttributeError(f"module 'fastmtl' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
