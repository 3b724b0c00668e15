"""Feed, decoder and finisher as one: started on some batches, it gives them one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...protocols import Batch
from ..dataset import Tile
from .dali_graph import Graph, undecodable
from .prefetch import EncodedBatch, Feed, Plan
from .samplers import slides_of
from .transform_cpu import Finisher, FinishOptions


class Reader:
    """Built lazily, and again after anything went wrong: DALI's pipeline does not survive an error."""

    def __init__(
        self, feed: Feed, options: FinishOptions, *, device: Literal["cpu", "gpu"], num_threads: int, prefetch: int
    ):
        self._feed, self._options = feed, options
        self._kind: Literal["cpu", "gpu"] = device
        self._device = torch.device("cuda", torch.cuda.current_device()) if device == "gpu" else torch.device("cpu")
        self._num_threads, self._prefetch = num_threads, prefetch
        self._finisher: Any = None
        self._graph: Graph | None = None
        self._idle = False
        self._tiles: Sequence[Tile] = ()

    def start(self, epoch: int, tiles: Sequence[Tile], plans: Sequence[Plan]) -> None:
        """Give these batches next."""
        if not plans:
            return
        self._tiles = tiles
        if not self._idle:  # one left in mid-pass, or broken, still holds that pass's batches
            self._graph = None
        self._feed.start(epoch, tiles, plans)
        if self._graph is None:
            self._graph = Graph(
                self._feed,
                device=self._kind,
                device_id=self._device.index,
                num_threads=self._num_threads,
                prefetch=self._prefetch,
            )
        self._idle = False

    def next(self) -> tuple[EncodedBatch, list[Tensor]]:
        """The next batch: images float32 [B, 3, H, W] and maps uint8 [B, C, H, W]. After an error call `start`."""
        if self._graph is None:
            raise RuntimeError("next() came before start()")
        if self._finisher is None:
            self._finisher = self._make_finisher()
        stream = torch.cuda.current_stream(self._device) if self._kind == "gpu" else None
        pieces = self._graph.run(stream)
        ready = self._feed.fed.popleft()
        slides = slides_of([self._tiles[tile] for tile in ready.tiles.tolist()])
        return ready, self._finisher(ready, pieces, slides)

    def finish(self) -> None:
        """After the last batch: make ready for another pass."""
        if self._graph is not None and not self._idle:
            self._graph.rewind()
            self._idle = True

    def report_undecodable(self) -> bool:
        """Look for what DALI cannot decode among the batches it has; set those tiles aside; whether there were any."""
        found = False
        for ready in list(self._feed.fed):
            reasons = undecodable(ready.encoded, ready.is_grey, device=self._kind, device_id=self._device.index)
            for picture, rows in enumerate(ready.numbers):
                for row, numbers in enumerate(rows):
                    for reason in [reasons[number] for number in numbers if number in reasons][:1]:
                        self._feed.report(int(ready.tiles[row]), picture, reason)
                        found = True
        return found

    def to_device(self, batch: Batch) -> Batch:
        """The batch with the small tensors where the images are; the host does not wait."""
        if self._kind == "cpu":
            return batch
        from .transform_gpu import send

        return Batch(
            batch.images,
            {name: send(target, self._device) for name, target in batch.targets.items()},
            send(batch.has_label, self._device),
            {name: send(value, self._device) for name, value in batch.metadata.items()},
            batch.ids,
            batch.groups,
        )

    def close(self, *, wait: bool = True) -> None:
        """Free the pipeline with its threads and buffers, and the feed's threads."""
        self._graph, self._idle = None, False
        self._feed.close(wait=wait)
        if self._finisher is not None:
            self._finisher.close()
            self._finisher = None

    def _make_finisher(self) -> Any:
        if self._kind == "cpu":
            return Finisher(self._options)
        from .transform_gpu import GpuFinisher

        return GpuFinisher(self._options, self._device)
