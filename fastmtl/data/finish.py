"""Resampling, colour and normalisation in one pass over the decoded pixels, on the CPU.

DALI's CPU operators for these three take about eight times as long; on a GPU its own are used. The kernels release the
interpreter lock, so threads share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..extras import require

# DALI's colour space for hue and saturation: luma, and two chroma axes that hue turns and saturation scales.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)  # DALI's has three digits, and so changes colours it is asked to keep
_MIDDLE_GREY = 128.0


def colour_matrices(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [B, 3, 4]: RGB 0..255 and 1 -> RGB, for brightness, contrast, saturation, hue in degrees [B, 4]."""
    brightness, contrast, saturation, hue = colour.astype(np.float64).T
    angle = np.deg2rad(hue)
    chroma = np.zeros((len(colour), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * np.cos(angle)
    chroma[:, 1, 2] = saturation * np.sin(angle)
    chroma[:, 2, 1] = -chroma[:, 1, 2]
    matrices = np.empty((len(colour), 3, 4), np.float32)
    matrices[:, :, :3] = (brightness * contrast)[:, None, None] * (_FROM_YIQ @ chroma @ _TO_YIQ)
    matrices[:, :, 3] = (brightness * _MIDDLE_GREY * (1 - contrast))[:, None]
    return matrices


class Finisher:
    """Turns decoded images of any size into one batch.

    Args:
        size: output height and width, pixels.
        mean: of the normalisation, RGB in 0..1.
        std: likewise.
        outside: grey level beyond the image's edge, 0..255.
        mask_threshold: mask pixels above it are foreground, 0..255.
        num_threads: threads that share a batch.
    """

    def __init__(
        self,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        outside: float,
        mask_threshold: float,
        num_threads: int,
    ):
        self._size, self._num_threads = size, num_threads
        self._scale = (1 / (255 * np.asarray(std))).astype(np.float32)
        self._shift = (-np.asarray(mean) / np.asarray(std)).astype(np.float32)
        self._outside, self._threshold = np.float32(outside), np.float32(mask_threshold)
        require("numba", "augmenting on the CPU")
        from ..kernels import finish_numba

        self._image, self._mask = finish_numba.finish_image, finish_numba.finish_mask
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fastmtl-finish")

    def images(self, pixels: Sequence[Any], matrices: Any, colours: NDArray[np.float32]) -> Tensor:
        """float32 [B, 3, size, size] from uint8 [h, w, 3], matrices [B, 2, 3] (see `Feed`) and colours [B, 4]."""
        result = torch.empty(len(pixels), 3, self._size, self._size)
        out, colour = result.numpy(), colour_matrices(colours)

        def one(i: int) -> None:
            decoded, matrix = _in_pixels(pixels[i], matrices[i])
            self._image(decoded, matrix, colour[i], self._scale, self._shift, self._outside, out[i])

        self._each(one, len(pixels))
        return result

    def masks(self, pixels: Sequence[Any], matrices: Any) -> Tensor:
        """uint8 [B, 1, size, size] of 0 and 1, from uint8 [h, w, 1]."""
        result = torch.empty(len(pixels), 1, self._size, self._size, dtype=torch.uint8)
        out = result.numpy()

        def one(i: int) -> None:
            self._mask(*_in_pixels(pixels[i], matrices[i]), self._threshold, out[i])

        self._each(one, len(pixels))
        return result

    def _each(self, one: Any, count: int) -> None:
        """`one(i)` for every i, each thread taking a run of them."""
        bounds = np.linspace(0, count, self._num_threads + 1).astype(int).tolist()

        def several(start: int, stop: int) -> None:
            for i in range(start, stop):
                one(i)

        list(self._pool.map(several, bounds[:-1], bounds[1:]))


def _in_pixels(decoded: Any, matrix: Any) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    pixels = np.asarray(decoded)
    extent = np.array([[pixels.shape[1]], [pixels.shape[0]]], np.float32)
    return pixels, np.asarray(matrix) * extent
