"""Makes packages that import torchvision importable with a CPU build of torch.

torchvision's wheel on PyPI is linked against a CUDA torch. With a CPU torch its extension does not load, and its import
fails at the first op that it registers a fake for. So do torchmetrics, timm, segmentation-models-pytorch and LibMTL,
none of which uses that op: declaring it is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_libraries: list[torch.library.Library] = []  # an op exists as long as its library


def make_torchvision_importable() -> None:
    """Declare torchvision's ops if its extension does not load; nothing if it loads or is not installed."""
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
