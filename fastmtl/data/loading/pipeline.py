"""Read, decode and transform batches in order; a batch with a damaged tile is read again without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...errors import reason_of
from ...protocols import Batch
from ..dataset import Tile
from .dali_graph import DaliGraph, cause, undecodable
from .prefetch import EncodedBatch, Plan, Prefetcher
from .quarantine import DamagedSampleError, TileReadError
from .samplers import slides_of
from .transform_cpu import CpuTransform, TransformOptions

if TYPE_CHECKING:
    from .transform_gpu import GpuTransform


class Pipeline:
    """Prefetcher, DALI graph and transform. Built on first use and rebuilt after an error: DALI does not recover."""

    def __init__(
        self,
        prefetcher: Prefetcher,
        options: TransformOptions,
        *,
        device: Literal["cpu", "gpu"],
        num_threads: int,
        prefetch: int,
    ):
        self._prefetcher, self._options = prefetcher, options
        self._kind: Literal["cpu", "gpu"] = device
        self._device = torch.device("cuda", torch.cuda.current_device()) if device == "gpu" else torch.device("cpu")
        self._num_threads, self._prefetch = num_threads, prefetch
        self._transform: CpuTransform | GpuTransform | None = None
        self._graph: DaliGraph | None = None
        self._idle = False
        self._epoch = self._done = 0
        self._tiles: Sequence[Tile] = ()
        self._plans: Sequence[Plan] = ()

    def start(self, epoch: int, tiles: Sequence[Tile], plans: Sequence[Plan]) -> None:
        """Start a pass over these batches."""
        self._epoch, self._tiles, self._plans, self._done = epoch, tiles, plans, 0
        self._restart()

    def _restart(self) -> None:
        """Go on with the first batch that `next` has not returned."""
        if self._done == len(self._plans):
            return
        if not self._idle:  # stopped during a pass, or broken: it still holds that pass's batches
            self._graph = None
        self._prefetcher.start(self._epoch, self._tiles, self._plans[self._done :])
        self._idle = False

    def next(self) -> tuple[EncodedBatch, list[Tensor]]:
        """The next batch: images float32 [B, 3, H, W] and maps uint8 [B, C, H, W]. After an error call `start`.

        Raises:
            TileReadError: it cannot be read; or more tiles are damaged than the quarantine takes.
        """
        while True:
            try:
                found = self._next()
            except TileReadError:
                raise
            except DamagedSampleError as error:
                self._prefetcher.report(error.tile, error.picture, error.reason)
            except Exception as error:  # DALI's RuntimeError does not name the sample
                reason_of(error)  # raises errors that say nothing about the tiles
                if not self._report_undecodable():
                    ids = ", ".join(self._tiles[tile].id for tile in self._plans[self._done].samples.tolist())
                    place = f"a batch of epoch {self._epoch}"
                    raise TileReadError(f"{place} cannot be read: {cause(error)}; its tiles: {ids}", ()) from error
            else:
                self._done += 1
                return found
            self._restart()

    def _next(self) -> tuple[EncodedBatch, list[Tensor]]:
        if self._transform is None:
            self._transform = self._make_transform()
        batch, decoded = self._decoded()
        slides = slides_of([self._tiles[tile] for tile in batch.tiles.tolist()])
        return batch, self._transform(batch, decoded, slides)

    def _decoded(self) -> tuple[EncodedBatch, Any]:
        """The next batch and what DALI decodes of it. DALI starts with the first batch that it has something to decode
        of: a data set of PNG files never waits for it."""
        if self._graph is None:
            batch = self._prefetcher.next()
            if not batch.encoded:
                return batch, ()
            self._prefetcher.give_back(batch)
            self._graph = DaliGraph(
                self._prefetcher,
                device=self._kind,
                device_id=self._device.index,
                num_threads=self._num_threads,
                prefetch=self._prefetch,
            )
        stream = torch.cuda.current_stream(self._device) if self._kind == "gpu" else None
        decoded = self._graph.run(stream)
        return self._prefetcher.fed.popleft(), decoded

    def end_pass(self) -> None:
        """Prepare another pass; call it after the last batch."""
        if self._graph is not None and not self._idle:
            self._graph.rewind()
        self._idle = True

    def _report_undecodable(self) -> bool:
        """Quarantine the tiles of the current batches that DALI cannot decode; returns whether any were found."""
        found = False
        for batch in list(self._prefetcher.fed):
            reasons = undecodable(batch.encoded, batch.is_grey, device=self._kind, device_id=self._device.index)
            for picture, rows in enumerate(batch.numbers):
                for row, numbers in enumerate(rows):
                    for reason in [reasons[number] for number in numbers if number in reasons][:1]:
                        self._prefetcher.report(int(batch.tiles[row]), picture, reason)
                        found = True
        return found

    def to_device(self, batch: Batch) -> Batch:
        """Move the small tensors to the images' device; the host does not wait."""
        if self._kind == "cpu":
            return batch
        from .transform_gpu import send

        return replace(
            batch,
            targets={name: send(target, self._device) for name, target in batch.targets.items()},
            has_label=send(batch.has_label, self._device),
            metadata={name: send(value, self._device) for name, value in batch.metadata.items()},
        )

    def close(self, *, wait: bool = True) -> None:
        """Free threads and buffers."""
        self._graph, self._idle = None, False
        self._prefetcher.close(wait=wait)
        if self._transform is not None:
            self._transform.close()
            self._transform = None

    def _make_transform(self) -> CpuTransform | GpuTransform:
        if self._kind == "cpu":
            return CpuTransform(self._options)
        from .transform_gpu import GpuTransform

        return GpuTransform(self._options, self._device)
