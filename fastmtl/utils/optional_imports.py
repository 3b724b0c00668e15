"""Imports packages of extras when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import UserError

DISTRIBUTION = "fastmtl-engine"
"""What pip installs; on the package index, `fastmtl` is another project."""

_EXTRAS = {
    "train": (
        *("PIL", "imagecodecs", "numba", "nvidia", "rich", "safetensors", "sklearn", "tensorboard", "tifffile"),
        *("tomli_w", "torchmetrics"),
    ),
    "models": ("huggingface_hub", "scipy", "segmentation_models_pytorch", "timm", "transformers"),
    "wsi": ("h5py", "openslide", "pyarrow", "rasterio", "shapely"),
    "remote": ("fsspec", "requests", "s3fs"),
    "dicom": ("pydicom",),
    "zarr": ("zarr",),
    "nnunet": ("nnunetv2",),
    "bench": ("LibMTL", "matplotlib", "monai", "torchjd", "torchstain", "torchvision", "wsistream"),
}
"""Extra of pyproject.toml -> the modules that it installs and fastmtl imports."""


class MissingExtra(UserError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


def install_extra(extra: str) -> str:
    """The command that installs an extra.

    >>> install_extra("wsi")
    "pip install 'fastmtl-engine[wsi]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def install_command(module: str) -> str:
    """The command that installs `module`; "" if no extra has it.

    >>> install_command("timm.models")
    "pip install 'fastmtl-engine[models]'"
    """
    package = module.split(".")[0]
    return next((install_extra(extra) for extra, packages in _EXTRAS.items() if package in packages), "")


def require(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """The imported `module`; if its package is not installed, an ImportError with the command to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # a dependency of the package is missing: its own message is right
        raise MissingExtra(f"{purpose} needs {package}; install it with: {install_extra(extra)}") from error
