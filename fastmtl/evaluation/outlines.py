"""Outlines of true and predicted areas on an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data import open_picture
from ..data.dataset import ImageSource

TRUE_COLOUR, PREDICTED_COLOUR = (
    (64, 196, 255),
    (255, 214, 0),
)  # distinguishable for every kind of colour vision, and on H&E
_SIDE = 320  # longer side of a thumbnail, pixels


def thumbnail(picture: ImageSource, masks: tuple[Tensor, Tensor] | None) -> Any:
    """The picture at thumbnail size, the true outline solid and the predicted one dashed over it."""
    from PIL import Image

    image = Image.fromarray(open_picture(picture))
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32).copy()  # [H, W, 3]
    if masks is None:
        return Image.fromarray(pixels.astype(np.uint8))
    true, predicted = (
        np.asarray(Image.fromarray(mask.numpy() * 255).resize(size, Image.Resampling.BICUBIC)) > 127 for mask in masks
    )
    return Image.fromarray(outlined(pixels, true, predicted).astype(np.uint8))


def outlined(pixels: NDArray[np.float32], true: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`pixels` [H, W, 3] with the outlines of masks [H, W]: the true one solid, the predicted one dashed over it."""
    rows, columns = np.indices(true.shape)
    lines = (_outline(true), _outline(predicted) & ((rows + columns) // 6 % 3 > 0))
    pixels = pixels.copy()
    pixels[_grown(lines[0] | lines[1])] *= 0.45  # a dark seam keeps both colours visible on white and on dark tissue
    for line, colour in zip(lines, (TRUE_COLOUR, PREDICTED_COLOUR), strict=True):
        pixels[line] = colour
    return pixels


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask's pixels within two of its edge; the picture's border is not an edge."""
    return mask & _grown(_grown(~mask))


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and its four-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
