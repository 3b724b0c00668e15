"""TIFF's and EXIF's orientation codes: converts rectangles and pixels between the stored image and the upright one.

A code is up to three steps in this order: transpose, flip along x, flip along y.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# code -> (transposed, flipped along x, flipped along y)
_STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
CODES = frozenset(_STEPS)

Box = tuple[int, int, int, int]
"""x, y, width, height."""


def stored_box(box: Box, shown: tuple[int, int], code: int) -> Box:
    """The position in the stored image of a rectangle in the upright image of size `shown` (width, height)."""
    transposed, flip_x, flip_y = _STEPS[code]
    x, y, width, height = _flipped(box, shown, flip_x, flip_y)
    return (y, x, height, width) if transposed else (x, y, width, height)


def shown_box(box: Box, shown: tuple[int, int], code: int) -> Box:
    """The inverse of `stored_box`."""
    transposed, flip_x, flip_y = _STEPS[code]
    x, y, width, height = box
    return _flipped((y, x, height, width) if transposed else box, shown, flip_x, flip_y)


def upright(pixels: NDArray[np.uint8], code: int) -> NDArray[np.uint8]:
    """Stored pixels [H, W, C], rotated upright."""
    transposed, flip_x, flip_y = _STEPS[code]
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _flipped(box: Box, shown: tuple[int, int], flip_x: bool, flip_y: bool) -> Box:
    x, y, width, height = box
    return (shown[0] - x - width if flip_x else x, shown[1] - y - height if flip_y else y, width, height)
