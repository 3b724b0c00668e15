"""From decoded pieces to a batch on an NVIDIA GPU: Triton's kernels on tables of addresses; the host never waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset import BACKGROUND
from .encoded import Mosaic
from .prefetch import EncodedBatch
from .quarantine import DamagedSampleError
from .transform_cpu import FinishOptions, colour_matrices, covers, extent, in_pixels

_COLUMNS = 5


class Pixels(NamedTuple):
    """A decoded piece in device memory, its rows one after the other."""

    address: int
    height: int
    width: int
    channels: int

    @property
    def pitch(self) -> int:
        return self.width * self.channels


class GpuFinisher:
    """Turns decoded pieces into one batch, on `device`."""

    def __init__(self, options: FinishOptions, device: torch.device):
        from ...kernels import transform_triton

        self._kernels, self._options, self._device = transform_triton, options, device
        self._scale, self._shift = (self._send(values) for values in (options.scale, options.shift))
        self._held: deque[tuple[Any, Any]] = deque()

    def __call__(self, ready: EncodedBatch, pieces: Any, slides: list[str]) -> list[Tensor]:
        """Images float32 [B, 3, size, size] and for each map uint8 [B, C, size, size].

        Raises:
            DamagedSampleError: a piece decoded to another size than its index says.
        """
        options, drawn, count, size = self._options, ready.drawn, len(ready.tiles), self._options.size
        decoded, uploaded = decoded_pixels(pieces, len(ready.encoded)), self._upload(ready)
        layout = Layout(ready, decoded, uploaded, [3, *(column.size for column in options.maps)])
        canvases = layout.stitch(self._kernels, self._device)
        field = self._send(drawn.field)
        keys = self._send(drawn.keys.view(np.int32))
        noise = self._send(drawn.noise) if drawn.noise.any() else None
        table, matrix = (self._send(values) for values in layout.table(0, size))
        if options.stain is None:
            images = torch.empty(count, 3, size, size, device=self._device)
            colour = self._send(colour_matrices(drawn.colour))
            numbers = self._scale, self._shift, BACKGROUND
            self._kernels.finish_image(table, matrix, field, colour, noise, keys, *numbers, images)
        else:
            levels = torch.empty(count, 3, size, size, dtype=torch.uint8, device=self._device)
            inside = torch.empty(count, size, size, dtype=torch.uint8, device=self._device)
            self._kernels.warp_image(table, matrix, field, BACKGROUND, levels, inside)
            images = options.normalise(levels, inside, drawn, slides, self._send)
            if noise is not None:
                self._kernels.add_noise(images, noise, keys, self._scale, self._shift)
        maps = []
        for number, column in enumerate(options.maps, 1):
            table, matrix = (self._send(values) for values in layout.table(number, size))
            out = torch.empty(count, column.size, size, size, dtype=torch.uint8, device=self._device)
            nearest = options.takes_nearest(column)
            self._kernels.finish_mask(table, matrix, field, options.mask_threshold, nearest, out)
            maps.append(out > options.mask_threshold if nearest and column.kind != "classes" else out)
        self._hold((pieces, uploaded, canvases))
        return [images, *maps]

    def close(self) -> None:
        """Let go of what was held for the device."""
        self._held.clear()

    def _upload(self, ready: EncodedBatch) -> dict[int, tuple[Pixels, Tensor]]:
        """Pieces that came as pixels, by the identity of their array, in one copy."""
        canvases = [canvas for column in ready.canvases for canvas in column if canvas is not None]
        arrays = {id(p.pixels): p.pixels for canvas in canvases for p in canvas.pieces if p.pixels is not None}
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

    def _hold(self, memory: Any) -> None:
        """Keep what the kernels read until they have run: DALI reuses its buffers without asking torch's streams."""
        if self._device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        self._held.append((done, memory))
        while self._held[0][0].query() and len(self._held) > 1:
            self._held.popleft()


class Layout:
    """Where each picture of a batch lies, and what must be copied together first."""

    def __init__(
        self,
        ready: EncodedBatch,
        decoded: Sequence[Pixels],
        uploaded: dict[int, tuple[Pixels, Tensor]],
        channels: Sequence[int],
    ):
        self._ready = ready
        self._found = [
            [
                self._pieces(decoded, uploaded, picture, row) if canvas is not None else []
                for row, canvas in enumerate(canvases)
            ]
            for picture, canvases in enumerate(ready.canvases)
        ]
        self._channels = channels
        self._places: dict[tuple[int, int], Pixels] = {}

    def stitch(self, kernels: Any, device: torch.device) -> Tensor | None:
        """Put together the canvases that are not one piece; the memory they lie in."""
        wanted = [
            (picture, row, canvas)
            for picture, canvases in enumerate(self._ready.canvases)
            for row, canvas in enumerate(canvases)
            if canvas is not None and canvas.size is not None and not any(covers(p, canvas.size) for p in canvas.pieces)
        ]
        if not wanted:
            return None
        shapes = [self._shape(*one) for one in wanted]
        sizes = [height * width * channels for height, width, channels in shapes]
        # Images come first, so that their background is one fill.
        split = sum(size for size, (picture, *_) in zip(sizes, wanted, strict=True) if picture == 0)
        memory = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        memory[:split] = BACKGROUND
        starts = (memory.data_ptr() + np.cumsum([0, *sizes])).tolist()
        jobs = []
        for (picture, row, canvas), shape, start in zip(wanted, shapes, starts, strict=False):
            place = Pixels(start, *shape)
            self._places[picture, row] = place
            for piece, pixels in zip(canvas.pieces, self._found[picture][row], strict=True):
                left, top = max(piece.x, 0), max(piece.y, 0)
                right = min(piece.x + (piece.width or pixels.width), place.width)
                bottom = min(piece.y + (piece.height or pixels.height), place.height)
                if right > left and bottom > top:
                    source = pixels.address + (top - piece.y) * pixels.pitch + (left - piece.x) * pixels.channels
                    target = start + top * place.pitch + left * place.channels
                    length = (right - left) * place.channels
                    jobs.append((source, pixels.pitch, target, place.pitch, length, bottom - top))
        if jobs:
            kernels.stitch(send(torch.tensor(jobs), device), max(job[-1] for job in jobs))
        return memory

    def table(self, picture: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """int64 [B, 5] as the kernels want it, and the matrices float32 [B, 6]; after `stitch`."""
        rows, matrices = [], []
        for row, canvas in enumerate(self._ready.canvases[picture]):
            place = (0, 0, 0, 0, 1)
            if canvas is not None:
                place = self._place(picture, row, canvas)
                if place[-1] < self._channels[picture]:
                    tile, reason = (
                        int(self._ready.tiles[row]),
                        f"has {place[-1]} channels, not {self._channels[picture]}",
                    )
                    raise DamagedSampleError(tile, picture, reason)
            rows.append(place)
            matrices.append(in_pixels(self._ready.drawn.matrix[row], size, place[2], place[3]).reshape(-1))
        return np.array(rows, np.int64).reshape(-1, _COLUMNS), np.array(matrices, np.float32).reshape(-1, 6)

    def _place(self, picture: int, row: int, canvas: Mosaic) -> tuple[int, int, int, int, int]:
        if (picture, row) in self._places:
            pixels = self._places[picture, row]
            return pixels.address, pixels.pitch, pixels.height, pixels.width, pixels.channels
        if canvas.size is None:
            pixels = self._found[picture][row][0]
            return pixels.address, pixels.pitch, pixels.height, pixels.width, pixels.channels
        number = next(i for i, piece in enumerate(canvas.pieces) if covers(piece, canvas.size))
        piece, pixels = canvas.pieces[number], self._found[picture][row][number]
        address = pixels.address - piece.y * pixels.pitch - piece.x * pixels.channels
        return address, pixels.pitch, canvas.size[1], canvas.size[0], pixels.channels

    def _shape(self, picture: int, row: int, canvas: Mosaic) -> tuple[int, int, int]:
        found, (width, height) = self._found[picture][row], canvas.size or (0, 0)
        return height, width, found[0].channels if found else self._channels[picture]

    def _pieces(
        self, decoded: Sequence[Pixels], uploaded: dict[int, tuple[Pixels, Tensor]], picture: int, row: int
    ) -> list[Pixels]:
        canvas, found = self._ready.canvases[picture][row], []
        for piece, number in zip(canvas.pieces if canvas else (), self._ready.numbers[picture][row], strict=True):
            pixels = decoded[number] if number >= 0 else uploaded[id(piece.pixels)][0]
            extent(int(self._ready.tiles[row]), picture, piece, pixels.height, pixels.width)
            found.append(pixels)
        return found


def decoded_pixels(pieces: Any, count: int) -> list[Pixels]:
    """Where DALI's decoded pieces lie; shapes are the host's, so nothing waits."""
    return [Pixels(pieces[number].data_ptr(), *pieces[number].shape()) for number in range(count)]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; from pinned memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
