"""Import a package of an extra at the moment it is needed."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """The imported `module`; when its package is not installed, an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # the package is there and something it needs is not: its own message is the right one
        raise ImportError(f"{purpose} needs {package}; install it with: pip install 'fastmtl[{extra}]'") from error
