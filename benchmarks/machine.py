"""Facts about the machine for each row: the device, its instruction set, the version of each contender."""

from __future__ import annotations

import re
from importlib import metadata

import torch

from fastmtl import __version__
from fastmtl.ops.core.backends import BackendError, extension
from fastmtl.training.run_dir import processor_name

# Contenders whose first word is not the name of their package.
_PACKAGES = {"smp": "segmentation-models-pytorch", "DALI": "nvidia-dali-cuda130"}


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def instructions(device: torch.device) -> str:
    """The instruction set of the kernels: "avx2", "avx512", "sm_90"; "none" without the C++ extension."""
    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    try:
        return extension().isa()
    except BackendError:
        return "none"


def contender_version(name: str) -> str:
    """Package and version of a contender: the package named by its first word, or torch if that is not a package.

    >>> contender_version("torch eager") == contender_version("pairwise loop")
    True
    """
    word = re.split("[^A-Za-z0-9]", name)[0]
    if word == "fastmtl":
        return f"fastmtl {__version__}"  # a clone need not be installed
    for package in (_PACKAGES.get(word, word), "torch"):
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return ""
