"""Import a package of an extra at the moment it is needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import UserError

_EXTRAS = {
    "train": (
        *("PIL", "imagecodecs", "numba", "nvidia", "rich", "safetensors", "sklearn", "tensorboard", "tifffile"),
        *("tomli_w", "torchmetrics"),
    ),
    "models": ("huggingface_hub", "scipy", "segmentation_models_pytorch", "timm", "transformers"),
    "wsi": ("h5py", "openslide", "pyarrow", "rasterio", "shapely"),
    "bench": ("LibMTL", "matplotlib", "monai", "torchjd", "torchstain", "torchvision", "wsistream"),
}
"""Extra of pyproject.toml -> the modules that it installs and fastmtl imports."""


class MissingExtra(UserError, ImportError):
    """An optional package is not installed; the message says which extra has it."""


def install_command(module: str) -> str:
    """What installs `module`; "" for one that no extra has.

    >>> install_command("timm.models")
    "pip install 'fastmtl[models]'"
    """
    package = module.split(".")[0]
    return next((f"pip install 'fastmtl[{extra}]'" for extra, packages in _EXTRAS.items() if package in packages), "")


def require(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """The imported `module`; when its package is not installed, an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # the package is there and something it needs is not: its own message is the right one
        raise MissingExtra(f"{purpose} needs {package}; install it with: pip install 'fastmtl[{extra}]'") from error
