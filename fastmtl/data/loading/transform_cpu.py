"""Transform decoded tiles to a batch on the CPU: stitch, resample once, colour, standardise; maps get the same
geometry.

Uses our own kernels, because DALI's operators take many times as long. `transform_gpu` does the same on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...ops.core.backends import extension
from ...ops.core.pointers import on_one_thread
from ..dataset import BACKGROUND
from .augment import Parameters
from .encoded_images import EncodedTile, Mosaic
from .prefetch import EncodedBatch
from .quarantine import DamagedSampleError, nonsense
from .stitching import View, address_of, stitched
from .targets import MapColumn

# DALI's colour space for hue and saturation: luma and two chroma axes; hue rotates them, saturation scales them.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)  # DALI's inverse has three digits and so changes colours that should not change
_MIDDLE_GREY = 128.0


class StainNormalization(Protocol):
    """The stain normaliser interface of the loader. No draws are passed if its attribute `augments` is False."""

    def __call__(
        self,
        images: Tensor,
        *,
        slides: list[str],
        inside: Tensor | None = None,
        colour: Tensor | None = None,
        mean: Sequence[float],
        std: Sequence[float],
        draws: Tensor | None = None,
    ) -> Tensor:
        """float32 [B, 3, H, W], stain-normalised and standardised, from uint8 [B, 3, H, W] after geometry.

        Args:
            images: RGB.
            slides: B keys; tiles with the same key share a stain.
            inside: uint8 [B, H, W], 0 in the background.
            colour: float32 [B, 3, 4], RGB 0..255 and 1 -> RGB 0..255, to be applied after.
            mean: subtracted after, RGB in 0..1.
            std: divided by.
            draws: float32 [B, 4], uniform in 0..1, for stain augmentation; None without.
        """
        ...


@dataclass(frozen=True)
class TransformOptions:
    """The settings of the transform.

    Attributes:
        size: output height and width, pixels.
        mean: subtracted from the image, RGB in 0..1.
        std: divided by.
        mask_threshold: mask pixels above it are foreground, 0..255.
        maps: the columns read with the images.
        num_threads: CPU threads for a batch.
        stain: normalises stains between geometry and colour; None: a single pass does everything.
        with_draws: whether `stain` receives draws.
        mask_sampling: "bilinear" or "nearest", before the threshold.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mask_threshold: int
    maps: tuple[MapColumn, ...]
    num_threads: int
    stain: StainNormalization | None = None
    with_draws: bool = False
    mask_sampling: str = "bilinear"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"`size` must be 1 or more; got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive; got {self.std}")
        if self.mask_sampling not in ("bilinear", "nearest"):
            raise ValueError(f'`mask_sampling` must be "bilinear" or "nearest"; got {self.mask_sampling!r}')

    def takes_nearest(self, column: MapColumn) -> bool:
        """Whether the map is sampled without interpolation; classes always are."""
        return column.kind == "classes" or self.mask_sampling == "nearest"

    @property
    def scale(self) -> NDArray[np.float32]:
        """level * scale + shift is the standardised grey level."""
        return (1 / (255 * np.asarray(self.std))).astype(np.float32)

    @property
    def shift(self) -> NDArray[np.float32]:
        return (-np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)

    def stain_normalize(
        self, images: Tensor, inside: Tensor, drawn: Parameters, slides: list[str], to: Callable[[NDArray], Tensor]
    ) -> Tensor:
        """Apply `stain` to the images; `to` moves arrays to their device."""
        if self.stain is None:
            raise ValueError("`stain` is None")
        draws = to(drawn.stain) if self.with_draws else None
        colour = to(colour_matrices(drawn.colour))
        normal = self.stain(
            images, slides=slides, inside=inside, colour=colour, mean=self.mean, std=self.std, draws=draws
        )
        return normal.contiguous()  # kernels add the noise by address


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


def in_pixels(matrix: NDArray[np.float32], size: int, height: int, width: int) -> NDArray[np.float32]:
    """[2, 3] from output pixels to source pixels, from a matrix in fractions of both."""
    per_pixel = np.array([1 / size, 1 / size, 1], np.float32)
    return matrix * per_pixel * np.array([[width], [height]], np.float32)


def check_size(tile: int, picture: int, part: EncodedTile, height: int, width: int) -> None:
    """Check that a tile decoded to at least the size in its index.

    Raises:
        DamagedSampleError: it is smaller.
    """
    if part.width > width or part.height > height:
        expected = f"{part.width}x{part.height}"
        raise DamagedSampleError(tile, picture, f"it decoded to {width}x{height} pixels, not {expected}")


class CpuTransform:
    """Turns decoded tiles into one batch, on the CPU."""

    def __init__(self, options: TransformOptions):
        self._options, self._kernels = options, extension()
        self._scale, self._shift = options.scale, options.shift
        self._pool = ThreadPoolExecutor(max(options.num_threads - 1, 1), thread_name_prefix="fastmtl-transform")

    def __call__(self, batch: EncodedBatch, decoded: Sequence[Any], slides: list[str]) -> list[Tensor]:
        """Images float32 [B, 3, size, size] and for each map uint8 [B, C, size, size].

        Raises:
            DamagedSampleError: a decoded image does not match what was encoded.
        """
        options, drawn, count = self._options, batch.drawn, len(batch.tiles)
        pixels = [np.asarray(decoded[number]) for number in range(len(batch.encoded))]
        shape = (count, 3, options.size, options.size)
        if options.stain is None:
            images, inside = torch.empty(shape), torch.empty(0)
        else:
            images = torch.empty(shape, dtype=torch.uint8)
            inside = torch.empty(count, options.size, options.size, dtype=torch.uint8)
        # NumPy's zeros: torch's would start its threads and wait for them while others use the cores.
        shapes = [(count, column.size, options.size, options.size) for column in options.maps]
        layers = [np.zeros(shape, np.uint8) for shape in shapes]
        tables = np.zeros((1 + len(layers), count, 5), np.int64)
        geometry = [np.ascontiguousarray(drawn.matrix), np.ascontiguousarray(drawn.field)]
        colour = colour_matrices(drawn.colour), drawn.noise, drawn.keys, self._scale, self._shift
        addresses = [address_of(values) for values in colour]

        def transform_rows(start: int, stop: int) -> None:
            alive = [self._locate(batch, pixels, tables, row) for row in range(start, stop)]
            share = options.size, start, stop
            for picture, table in enumerate(tables):
                where = address_of(table), *map(address_of, geometry), drawn.field.shape[-1]
                if picture:
                    self._transform_maps(options.maps[picture - 1], where, share, layers[picture - 1])
                elif options.stain is None:
                    self._kernels.transform_images(where, share, addresses, BACKGROUND, images.data_ptr())
                else:
                    self._kernels.warp_images(where, share, BACKGROUND, images.data_ptr(), inside.data_ptr())
            del alive  # kept until here: the tables hold only addresses

        self._each(transform_rows, count)
        maps = [torch.from_numpy(layer) for layer in layers]
        if options.stain is None:
            return [images, *maps]
        with on_one_thread():  # the other threads decode the next batch
            normal = options.stain_normalize(images, inside, drawn, slides, torch.from_numpy)
        if drawn.noise.any():
            self._each(
                lambda *rows: self._kernels.add_noise((options.size, *rows), addresses, normal.data_ptr()), count
            )
        return [normal, *maps]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _transform_maps(
        self, column: MapColumn, where: Sequence[int], share: tuple[int, int, int], layer: NDArray[np.uint8]
    ) -> None:
        threshold, nearest = self._options.mask_threshold, self._options.takes_nearest(column)
        self._kernels.transform_maps(where, share, threshold, nearest, column.size, address_of(layer))
        if nearest and column.kind != "classes":
            rows = layer[share[1] : share[2]]
            np.greater(rows, threshold, out=rows)

    def _locate(
        self, batch: EncodedBatch, decoded: Sequence[NDArray[np.uint8]], tables: NDArray[np.int64], row: int
    ) -> list[NDArray[np.uint8]]:
        """Write where a row's image and maps are in memory; returns the memory."""
        alive = []
        for picture, channels in enumerate((3, *(column.size for column in self._options.maps))):
            mosaic = batch.mosaics[picture][row]
            if mosaic is None and picture:
                continue
            view = self._view(batch, decoded, picture, row, mosaic or Mosaic([], (1, 1)), channels)
            if view.channels < channels:
                reason = f"has {view.channels} channels, not {channels}"
                raise DamagedSampleError(int(batch.tiles[row]), picture, reason)
            tables[picture, row] = view[1:]
            alive.append(view.memory)
        return alive

    def _view(
        self,
        batch: EncodedBatch,
        decoded: Sequence[NDArray[np.uint8]],
        picture: int,
        row: int,
        mosaic: Mosaic,
        channels: int,
    ) -> View:
        """The pixels of a mosaic, copied only if it has several tiles or reaches beyond the slide; of `channels`
        channels if it has none."""
        tile, found = int(batch.tiles[row]), []
        for part, number in zip(mosaic.tiles, batch.numbers[picture][row], strict=True):
            pixels = part.pixels
            if pixels is None:
                pixels = decoded[number]
                if reason := nonsense(batch.encoded[number], pixels):
                    raise DamagedSampleError(tile, picture, reason)
            check_size(tile, picture, part, pixels.shape[0], pixels.shape[1])
            found.append(pixels)
        return stitched(mosaic, found, channels, BACKGROUND if picture == 0 else 0)

    def _each(self, transform_rows: Callable[[int, int], None], count: int) -> None:
        """Call `transform_rows(start, stop)` for even parts of 0 .. count, the first one on this thread."""
        threads = self._options.num_threads
        bounds = sorted({count * number // threads for number in range(threads + 1)})
        others = [self._pool.submit(transform_rows, *part) for part in itertools.pairwise(bounds[1:])]
        try:
            if count:
                transform_rows(0, bounds[1])
        finally:
            wait(others)  # they use this batch's memory
        for one in others:
            one.result()
