"""Images of arrays: the input, saliency on the input, grids of feature maps and filters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..utils.normalization import Normalization

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 256  # longer side of a picture of an image, pixels
_CELL, _GAP = 96, 4  # side of a map or filter, and the gap between two
_LIGHT = np.array((255, 222, 60), np.float32)  # the colour of saliency, as in the Mask2Tasks paper
_BRIGHTEST = 0.99  # share of the pixels that are less than fully bright: gradients have a few very high values


def original(image: Tensor, normalization: Normalization) -> NDArray[np.uint8]:
    """Normalised float [3, H, W] -> RGB uint8 [H, W, 3]."""
    pixels = image.detach().float().cpu().permute(1, 2, 0).numpy() * normalization.std + normalization.mean
    return (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)  # NaN, which no cast accepts, is black


def plain(image: Tensor, normalization: Normalization) -> Image:
    """The network's input."""
    return _enlarged(original(image, normalization))


def lit(image: Tensor, values: Tensor, normalization: Normalization) -> Image:
    """The input [3, H, W] in dark grey, and `values` [H, W], 0 or more, as yellow light on it."""
    light = values.detach().double().cpu()
    # Gradients of single pixels are noisy; their local mean shows the regions.
    light = torch.nn.functional.avg_pool2d(light[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    top = light.flatten().quantile(_BRIGHTEST) if light.numel() <= 2**24 else light.max()
    share = (light / top.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1).nan_to_num().numpy()[..., None]
    grey = original(image, normalization).mean(2, keepdims=True) * 0.55
    return _enlarged((grey * (1 - share) + _LIGHT * share).astype(np.uint8))


def multiples(cells: list[NDArray[np.uint8]], columns: int) -> Image:
    """A grid of cells [h, w] or [h, w, 3], enlarged to squares without smoothing, on a transparent background."""
    from PIL import Image

    rows = -(-len(cells) // columns)
    size = (columns * (_CELL + _GAP) - _GAP, rows * (_CELL + _GAP) - _GAP)
    sheet = Image.new("RGBA", size)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        one = Image.fromarray(cell).convert("RGB").resize((_CELL, _CELL), Image.Resampling.NEAREST)
        sheet.paste(one, (column * (_CELL + _GAP), row * (_CELL + _GAP)))
    return sheet


def grey(values: Tensor) -> NDArray[np.uint8]:
    """[h, w] scaled from its minimum (black) to its maximum (white); a constant is black."""
    values = values.detach().float().cpu()
    span = (values.max() - values.min()).clamp(min=1e-12)
    return ((values - values.min()) / span * 255).round().to(torch.uint8).numpy()


def coloured(weights: Tensor) -> NDArray[np.uint8]:
    """A filter [3, k, k] as RGB [k, k, 3]: 0 is mid-grey, its largest absolute weight black or full colour."""
    weights = weights.detach().float().cpu()
    share = weights / weights.abs().max().clamp(min=1e-12)
    return ((share + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _enlarged(pixels: NDArray[np.uint8]) -> Image:
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = _SIDE / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
