"""16-bit grey scans and images in HDF5 arrays, as 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..sizes import check_pixels
from .hdf5 import open_array
from .pictures import image_file


def _min_max(values: NDArray) -> NDArray[np.uint8]:
    """Stretch an image: its smallest value becomes 0 and its largest 255; a constant image becomes 0."""
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.zeros(values.shape, np.uint8)
    return np.rint((values.astype(np.float32) - low) * np.float32(255 / (high - low))).astype(np.uint8)


PREPROCESSING: dict[str, Callable[[NDArray], NDArray[np.uint8]]] = {"min_max": _min_max}
"""Name in recipes -> function that turns a grey image of any depth into 8-bit grey."""


@dataclass(frozen=True)
class GreyPicture:
    """A grey image file of 8 or 16 bits, stretched to 8 bits by a named method; a `Drawn`.

    Attributes:
        file: a grey image that Pillow reads (PNG, TIFF).
        method: a name in `PREPROCESSING`.
    """

    file: Path
    method: str = "min_max"

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [h, w, 3], three equal channels.

        Raises:
            ValueError: an unknown method, or an image that has colours or cannot be read.
        """
        check_preprocessing(self.method)
        with image_file(self.file) as image:
            if image.mode not in ("L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
                raise ValueError(f"{self.file} has {image.mode} pixels; preprocessing {self.method!r} is for grey ones")
            values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError(f"{self.file} has pixels that are not finite")
        return np.repeat(PREPROCESSING[self.method](values)[..., None], 3, axis=2)


@dataclass(frozen=True)
class ArrayRow:
    """One image of an HDF5 array [N, H, W, C] or [N, H, W]; a `Drawn`.

    Attributes:
        file: the HDF5 file.
        key: the array's name in it.
        row: which image, from 0.
        scale: factor applied before values are rounded and clipped to 0..255; 255 for arrays of 0..1.
    """

    file: Path
    key: str
    row: int
    scale: float = 1.0

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [H, W] for one channel, else [H, W, C].

        Raises:
            ValueError: no such file, array or row; not an image; whole numbers outside 0..255; as `open_array`.
        """
        with open_array(self.file, self.key) as array:
            if array.ndim not in (3, 4) or not 0 <= self.row < array.shape[0]:
                shape = list(array.shape)
                raise ValueError(f"{self.file}: {self.key} {shape} has no image {self.row}; expected [N, H, W, C]")
            height, width, channels = (*array.shape[1:], 1)[:3]
            try:
                check_pixels(width, height, channels)
            except ValueError as error:
                raise ValueError(f"{self.file}: {self.key} {error}") from None
            values = array[self.row]
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
        if values.dtype == np.uint8 and self.scale == 1:
            return values
        if np.issubdtype(values.dtype, np.integer) and self.scale == 1 and not _fits(values):
            raise ValueError(
                f"{self.file}: {self.key}[{self.row}] holds {values.min()} to {values.max()}, and pixels are 0 to 255; "
                "scale it, or save class indices that fit"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{self.file}: {self.key}[{self.row}] has values that are not finite")
        return np.clip(np.rint(values.astype(np.float64) * self.scale), 0, 255).astype(np.uint8)


def _fits(values: NDArray) -> bool:
    return not values.size or (values.min() >= 0 and values.max() <= 255)


def check_preprocessing(name: str) -> None:
    """Raise ValueError unless `name` is in `PREPROCESSING`."""
    if name not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {name!r}; known: {', '.join(PREPROCESSING)}")
