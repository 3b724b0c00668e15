"""Transform decoded tiles to a batch on an NVIDIA GPU: Triton kernels on tables of addresses; the host never waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset import BACKGROUND
from .encoded_images import Mosaic
from .prefetch import EncodedBatch
from .quarantine import DamagedSampleError
from .stitching import covers
from .transform_cpu import TransformOptions, check_size, colour_matrices, in_pixels

_COLUMNS = 5


class DaliTensor(Protocol):
    """One of DALI's GPU tensors, uint8 [h, w, C]."""

    def data_ptr(self) -> int: ...
    def shape(self) -> Sequence[int]: ...


class Pixels(NamedTuple):
    """A decoded tile in device memory, row after row."""

    address: int
    height: int
    width: int
    channels: int

    @property
    def pitch(self) -> int:
        return self.width * self.channels


class GpuTransform:
    """Turns decoded tiles into one batch, on `device`."""

    def __init__(self, options: TransformOptions, device: torch.device):
        from ...kernels import transform_triton

        self._kernels, self._options, self._device = transform_triton, options, device
        self._scale, self._shift = (self._send(values) for values in (options.scale, options.shift))
        self._held: deque[tuple[torch.cuda.Event, object]] = deque()

    def __call__(self, batch: EncodedBatch, decoded: Sequence[DaliTensor], slides: list[str]) -> list[Tensor]:
        """Images float32 [B, 3, size, size] and for each map uint8 [B, C, size, size].

        Raises:
            DamagedSampleError: a tile decoded to fewer pixels than its index says, or to too few channels.
        """
        options, drawn, count, size = self._options, batch.drawn, len(batch.tiles), self._options.size
        places, uploaded = decoded_pixels(decoded, len(batch.encoded)), self._upload(batch)
        layout = _Places(batch, places, uploaded, [3, *(column.size for column in options.maps)])
        stitched = layout.stitch(self._kernels, self._device)
        field = self._send(drawn.field)
        keys = self._send(drawn.keys.view(np.int32))
        noise = self._send(drawn.noise) if drawn.noise.any() else None
        table, matrix = (self._send(values) for values in layout.table(0, size))
        if options.stain is None:
            images = torch.empty(count, 3, size, size, device=self._device)
            colour = self._send(colour_matrices(drawn.colour))
            numbers = self._scale, self._shift, BACKGROUND
            self._kernels.transform_image(table, matrix, field, colour, noise, keys, *numbers, images)
        else:
            levels = torch.empty(count, 3, size, size, dtype=torch.uint8, device=self._device)
            inside = torch.empty(count, size, size, dtype=torch.uint8, device=self._device)
            self._kernels.warp_image(table, matrix, field, BACKGROUND, levels, inside)
            images = options.stain_normalize(levels, inside, drawn, slides, self._send)
            if noise is not None:
                self._kernels.add_noise(images, noise, keys, self._scale, self._shift)
        maps = []
        for number, column in enumerate(options.maps, 1):
            table, matrix = (self._send(values) for values in layout.table(number, size))
            out = torch.empty(count, column.size, size, size, dtype=torch.uint8, device=self._device)
            nearest = options.takes_nearest(column)
            self._kernels.transform_mask(table, matrix, field, options.mask_threshold, nearest, out)
            maps.append(out > options.mask_threshold if nearest and column.kind != "classes" else out)
        self._hold((decoded, uploaded, stitched))
        return [images, *maps]

    def close(self) -> None:
        """Release the memory held for the device."""
        self._held.clear()

    def _upload(self, batch: EncodedBatch) -> dict[int, tuple[Pixels, Tensor]]:
        """Copy the tiles given as pixels in one transfer; keyed by the identity of their array."""
        mosaics = [mosaic for column in batch.mosaics for mosaic in column if mosaic is not None]
        arrays = {id(p.pixels): p.pixels for mosaic in mosaics for p in mosaic.tiles if p.pixels is not None}
        if not arrays:
            return {}
        flat = self._send(np.concatenate([array.reshape(-1) for array in arrays.values()]))
        ends = np.cumsum([array.size for array in arrays.values()]).tolist()
        return {
            name: (Pixels(flat.data_ptr() + end - array.size, *array.shape), flat)
            for (name, array), end in zip(arrays.items(), ends, strict=True)
        }

    def _send(self, values: NDArray) -> Tensor:
        return send(torch.from_numpy(np.ascontiguousarray(values)), self._device)

    def _hold(self, memory: object) -> None:
        """Keep the kernels' inputs alive until they have run: DALI reuses its buffers regardless of torch's streams."""
        if self._device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        self._held.append((done, memory))
        while self._held[0][0].query() and len(self._held) > 1:
            self._held.popleft()


class _Places:
    """Where each image of a batch is in device memory, after `stitch`."""

    def __init__(
        self,
        batch: EncodedBatch,
        decoded: Sequence[Pixels],
        uploaded: dict[int, tuple[Pixels, Tensor]],
        channels: Sequence[int],
    ):
        self._batch, self._decoded, self._uploaded, self._channels = batch, decoded, uploaded, channels
        self._stitched: dict[tuple[int, int], Pixels] = {}
        self._found = [
            [self._tiles(picture, row, mosaic) if mosaic else [] for row, mosaic in enumerate(mosaics)]
            for picture, mosaics in enumerate(batch.mosaics)
        ]

    def stitch(self, kernels: ModuleType, device: torch.device) -> Tensor | None:
        """Stitch the mosaics that are not covered by one tile; returns their memory."""
        wanted = [
            (picture, row, mosaic, mosaic.size)
            for picture, mosaics in enumerate(self._batch.mosaics)
            for row, mosaic in enumerate(mosaics)
            if mosaic and mosaic.size and not any(covers(part, mosaic.size) for part in mosaic.tiles)
        ]
        if not wanted:
            return None
        shapes = []
        for picture, row, _, (width, height) in wanted:
            found = self._found[picture][row]
            shapes.append((height, width, found[0].channels if found else self._channels[picture]))
        sizes = [height * width * channels for height, width, channels in shapes]
        # Images come first, so that their background is one fill.
        split = sum(size for size, (picture, *_) in zip(sizes, wanted, strict=True) if picture == 0)
        memory = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        memory[:split] = BACKGROUND
        starts = (memory.data_ptr() + np.cumsum([0, *sizes])).tolist()
        jobs = []
        for (picture, row, mosaic, _), shape, start in zip(wanted, shapes, starts, strict=False):
            place = self._stitched[picture, row] = Pixels(start, *shape)
            for part, pixels in zip(mosaic.tiles, self._found[picture][row], strict=True):
                left, top = max(part.x, 0), max(part.y, 0)
                right = min(part.x + (part.width or pixels.width), place.width)
                bottom = min(part.y + (part.height or pixels.height), place.height)
                if right > left and bottom > top:
                    source = pixels.address + (top - part.y) * pixels.pitch + (left - part.x) * pixels.channels
                    target = start + top * place.pitch + left * place.channels
                    length = (right - left) * place.channels
                    jobs.append((source, pixels.pitch, target, place.pitch, length, bottom - top))
        if jobs:
            kernels.stitch(send(torch.tensor(jobs), device), max(job[-1] for job in jobs))
        return memory

    def table(self, picture: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The kernels' table, int64 [B, 5], and the matrices float32 [B, 6]; after `stitch`."""
        rows, matrices = [], []
        for row, mosaic in enumerate(self._batch.mosaics[picture]):
            place = self._place(picture, row, mosaic) if mosaic else (0, 0, 0, 0, self._channels[picture])
            if place[-1] < self._channels[picture]:
                reason = f"has {place[-1]} channels, not {self._channels[picture]}"
                raise DamagedSampleError(int(self._batch.tiles[row]), picture, reason)
            rows.append(place)
            matrices.append(in_pixels(self._batch.drawn.matrix[row], size, place[2], place[3]).reshape(-1))
        return np.array(rows, np.int64).reshape(-1, _COLUMNS), np.array(matrices, np.float32).reshape(-1, 6)

    def _place(self, picture: int, row: int, mosaic: Mosaic) -> tuple[int, int, int, int, int]:
        """A row of the table: address, pitch, height, width, channels."""
        pixels = self._stitched.get((picture, row))
        if pixels is None and mosaic.size is not None:
            number = next(i for i, part in enumerate(mosaic.tiles) if covers(part, mosaic.size))
            part, pixels = mosaic.tiles[number], self._found[picture][row][number]
            address = pixels.address - part.y * pixels.pitch - part.x * pixels.channels
            return address, pixels.pitch, mosaic.size[1], mosaic.size[0], pixels.channels
        pixels = pixels or self._found[picture][row][0]
        return pixels.address, pixels.pitch, pixels.height, pixels.width, pixels.channels

    def _tiles(self, picture: int, row: int, mosaic: Mosaic) -> list[Pixels]:
        found = []
        for part, number in zip(mosaic.tiles, self._batch.numbers[picture][row], strict=True):
            pixels = self._decoded[number] if number >= 0 else self._uploaded[id(part.pixels)][0]
            check_size(int(self._batch.tiles[row]), picture, part, pixels.height, pixels.width)
            found.append(pixels)
        return found


def decoded_pixels(decoded: Sequence[DaliTensor], count: int) -> list[Pixels]:
    """The addresses of DALI's decoded tiles; their shapes are on the host, so nothing waits."""
    return [Pixels(decoded[number].data_ptr(), *decoded[number].shape()) for number in range(count)]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; from pinned memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
