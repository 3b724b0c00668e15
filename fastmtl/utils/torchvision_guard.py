"""Lets packages that import torchvision be imported beside a CPU build of torch.

torchvision's wheel on PyPI is linked against a CUDA torch. Beside a CPU torch its extension does not load, and its
import stops at the first op it registers a fake for. With it stop torchmetrics, timm, segmentation-models-pytorch and
LibMTL, none of which uses that op: declaring it is enough for them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_libraries: list[torch.library.Library] = []  # an op lives as long as the library that declared it


def make_torchvision_importable() -> None:
    """Declare torchvision's ops where its extension cannot load; does nothing where it can, or is not installed."""
    if torch.version.cuda is not None or _libraries or _extension_loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    for extension in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            return False
    return True
