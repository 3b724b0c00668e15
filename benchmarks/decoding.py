"""The floor of loading: decode an epoch's tiles with TileLoader's decoders on as many threads, and do nothing else.

The bytes are in memory before the clock starts; nothing is read, joined, resampled, coloured or returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fastmtl import data
from fastmtl.data.images.png import SIGNATURE, decode_png
from fastmtl.data.loading.dali_graph import DaliGraph
from fastmtl.data.loading.encoded_images import EncodedImages
from fastmtl.data.loading.prefetch import Prefetcher
from fastmtl.data.loading.quarantine import Quarantine
from fastmtl.data.loading.samplers import Sampler
from fastmtl.data.loading.targets import Columns

NAME = "decode alone"


def decode_alone(
    tiles: Sequence[data.Tile], targets: Mapping[str, str], *, batch_size: int, num_threads: int, device: torch.device
) -> Callable[[], None]:
    """A function that decodes an epoch of `tiles`, images and the maps of `targets`, batch by batch."""
    batches = _encoded(tiles, targets, batch_size, num_threads)
    if device.type == "cpu" and all(tile[:8].tobytes() == SIGNATURE for encoded, _ in batches for tile in encoded):
        return _by_fastmtl(batches, num_threads)
    return _by_dali(batches, num_threads, device)


def _encoded(tiles: Sequence[data.Tile], targets: Mapping[str, str], batch_size: int, num_threads: int) -> list[Any]:
    """The batches of the loader's own prefetcher: tiles that several regions share are decoded once."""
    prefetcher = Prefetcher(
        EncodedImages(decode_png=False),
        Columns(targets, {}),
        data.Augmentation.none(),
        seed=0,
        quarantine=Quarantine(0, len(tiles)),
        replace=False,
        num_threads=num_threads,
        ahead=1,
    )
    plans = Sampler(batch_size, 0, False, False, None, 0, 0, False, 0, 1).plans(tiles, 0)
    prefetcher.start(0, tiles, plans)
    batches = [prefetcher(number) for number in range(len(plans))]
    prefetcher.close()
    return batches


def _by_fastmtl(batches: Sequence[Any], num_threads: int) -> Callable[[], None]:
    pool = ThreadPoolExecutor(num_threads)
    files = [(tile.tobytes(), 1 if grey else 3) for batch in batches for tile, grey in zip(*batch, strict=True)]
    parts = np.array_split(np.arange(len(files)), num_threads)

    def several(numbers: Sequence[int]) -> None:
        for number in numbers:
            if decode_png(*files[number]) is None:
                raise ValueError("a PNG that the loader would leave to DALI; the case is for those it decodes itself")

    def run() -> None:
        list(pool.map(several, parts))

    return run


def _by_dali(batches: Sequence[Any], num_threads: int, device: torch.device) -> Callable[[], None]:
    waiting = iter(batches)

    def source(_iteration: int) -> Any:
        return next(waiting)  # DALI expects StopIteration after the last one

    gpu = device.type == "cuda"
    graph = DaliGraph(
        source,
        device="gpu" if gpu else "cpu",
        device_id=torch.cuda.current_device() if gpu else None,
        num_threads=num_threads,
        prefetch=2,
    )

    def run() -> None:
        nonlocal waiting
        waiting = iter(batches)
        stream = torch.cuda.current_stream(device) if gpu else None
        for _ in batches:
            graph.run(stream)
        graph.rewind()

    return run
