"""The DALI graph: encoded images and masks in, one normalised batch out.

On a GPU everything is DALI's. On the CPU DALI reads ahead and decodes, and `finish` does the rest in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..extras import require
from .finish import Finisher
from .source import Feed

BACKGROUND = 240
"""Grey level where the output reaches beyond the tile: empty glass, which stain estimation takes for no tissue."""

_DTYPES = (torch.float32, torch.uint8)


@dataclass(frozen=True)
class GraphOptions:
    """What the graph is built for.

    Attributes:
        size: output height and width, pixels.
        batch_size: the largest batch that will be fed.
        with_colour: whether colour parameters are fed.
        with_mask: whether masks are fed.
        mean: of the normalisation, RGB in 0..1.
        std: likewise.
        mask_threshold: mask pixels above it are foreground, 0..255.
        device: where decoding and everything after it runs.
        num_threads: CPU threads of the pipeline.
        prefetch: batches prepared ahead.
        fused: decode with DALI and leave the rest to `finish`; CPU only.
    """

    size: int
    batch_size: int
    with_colour: bool
    with_mask: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mask_threshold: int
    device: Literal["cpu", "gpu"]
    num_threads: int
    prefetch: int
    fused: bool


class Graph:
    """A built pipeline that pulls from `feed`.

    After `run` raised anything the pipeline is unusable: close it and build another.
    """

    def __init__(self, feed: Feed, options: GraphOptions):
        dali = require("nvidia.dali", "loading tiles")
        on_gpu = options.device == "gpu"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._pipeline = dali.Pipeline(
            batch_size=options.batch_size,
            num_threads=options.num_threads,
            device_id=self._device.index,
            prefetch_queue_depth=options.prefetch,
            exec_dynamic=True,  # the older executor writes later batches over those handed out
        )
        with self._pipeline:
            self._pipeline.set_outputs(*_define(feed, options))
        self._pipeline.build()
        self._options = options
        self._finisher = _finisher(options) if options.fused else None

    def run(self) -> list[Tensor]:
        """The next batch: images float32 [B, 3, H, W] and, with masks, maps uint8 [B, 1, H, W] of 0 and 1."""
        outputs = self._pipeline.run()
        if self._finisher is None:
            return [self._to_torch(output.as_tensor(), dtype) for output, dtype in zip(outputs, _DTYPES, strict=False)]
        images, matrices, *rest = outputs
        colours = np.asarray(rest.pop(0).as_tensor()) if self._options.with_colour else _same_colour(len(images))
        batch = [self._finisher.images(images, matrices, colours)]
        return [*batch, self._finisher.masks(rest[0], matrices)] if self._options.with_mask else batch

    def rewind(self) -> None:
        """Make ready for another pass, after all batches of the last one were taken."""
        try:
            self._pipeline.run()
        except StopIteration:
            self._pipeline.reset()
        else:
            raise RuntimeError("rewind() came before the pass was over")

    def _to_torch(self, output: Any, dtype: torch.dtype) -> Tensor:
        if self._device.type == "cpu":
            return torch.from_dlpack(output)  # the dynamic executor gives every batch buffers of its own
        # Copied: freed buffers go back to DALI, which does not wait for what torch's streams still read from them.
        tensor = torch.empty(output.shape(), dtype=dtype, device=self._device)
        copy = require("nvidia.dali.plugin.pytorch", "loading tiles").feed_ndarray
        copy(output, tensor, cuda_stream=torch.cuda.current_stream(self._device))
        return tensor


def _define(feed: Feed, options: GraphOptions) -> list[Any]:
    fn, types = require("nvidia.dali.fn", "loading tiles"), require("nvidia.dali.types", "loading tiles")
    kinds = [(types.UINT8, 1), (types.FLOAT, 2)]
    kinds += [(types.FLOAT, 1)] if options.with_colour else []
    kinds += [(types.UINT8, 1)] if options.with_mask else []
    encoded, matrix, *rest = fn.external_source(
        source=feed,
        num_outputs=len(kinds),
        batch=True,
        dtype=[dtype for dtype, _ in kinds],
        ndim=[ndim for _, ndim in kinds],
    )
    if options.fused:
        image = _decode(encoded, types.RGB, options)
        colour, mask = rest[: options.with_colour], rest[options.with_colour :]
        return [image, matrix, *colour, *(_decode(data, types.GRAY, options) for data in mask)]
    return _define_rest(encoded, matrix, rest, options)


def _define_rest(encoded: Any, matrix: Any, rest: list[Any], options: GraphOptions) -> list[Any]:
    fn, types = require("nvidia.dali.fn", "loading tiles"), require("nvidia.dali.types", "loading tiles")
    image = _resample(encoded, matrix, types.RGB, BACKGROUND, options)
    if options.with_colour:
        colour = rest.pop(0)
        image = fn.color_twist(image, brightness=colour[0], contrast=colour[1], saturation=colour[2], hue=colour[3])
    image = fn.crop_mirror_normalize(
        image,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in options.mean],
        std=[255 * value for value in options.std],
    )
    if not options.with_mask:
        return [image]
    mask = _resample(rest.pop(0), matrix, types.GRAY, 0, options)
    mask = fn.cast(mask > options.mask_threshold, dtype=types.UINT8)
    return [image, fn.reshape(mask, shape=[1, options.size, options.size], layout="CHW")]


def _decode(encoded: Any, colours: Any, options: GraphOptions) -> Any:
    return require("nvidia.dali.fn", "loading tiles").decoders.image(
        encoded,
        device="mixed" if options.device == "gpu" else "cpu",
        output_type=colours,
        jpeg_fancy_upsampling=True,  # the CPU's way of interpolating chroma; without it the GPU's pixels differ
    )


def _resample(encoded: Any, matrix: Any, colours: Any, outside: int, options: GraphOptions) -> Any:
    fn, types = require("nvidia.dali.fn", "loading tiles"), require("nvidia.dali.types", "loading tiles")
    shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT)
    extent = fn.reshape(fn.stack(shape[1], shape[0]), shape=[2, 1])
    return fn.warp_affine(
        _decode(encoded, colours, options),
        # The feed's matrix leads to 0..1 across the source; DALI's pixel centres are at .5, so the extent suffices.
        matrix=matrix * extent,
        size=(options.size, options.size),
        fill_value=outside,
        interp_type=types.INTERP_LINEAR,
    )


def _finisher(options: GraphOptions) -> Finisher:
    return Finisher(
        size=options.size,
        mean=options.mean,
        std=options.std,
        outside=BACKGROUND,
        mask_threshold=options.mask_threshold,
        num_threads=options.num_threads,
    )


def _same_colour(count: int) -> NDArray[np.float32]:
    return np.tile(np.array([1, 1, 1, 0], np.float32), (count, 1))
