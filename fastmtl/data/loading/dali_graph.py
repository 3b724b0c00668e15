"""The DALI graph: encoded pieces in, pixels out; images to three channels, masks to one.

DALI decodes, on the CPU or (`mixed`) on the GPU. A batch holds any number of pieces; `finish` puts them together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require

MAX_PIECES = 2**16
"""Pieces a batch may hold; DALI wants a number, which costs nothing."""


class Graph:
    """A built pipeline that pulls from `feed`: lists of encoded pieces and of whether each is grey.

    After `run` raised anything the pipeline is unusable: build another.

    Args:
        feed: called for each batch; raises StopIteration after the last.
        device: where pieces are decoded; "gpu" is torch's current CUDA device, number `device_id`.
        device_id: of the GPU.
        num_threads: CPU threads of the pipeline.
        prefetch: batches decoded ahead.
    """

    def __init__(
        self,
        feed: Callable[[int], Any],
        *,
        device: Literal["cpu", "gpu"],
        device_id: int | None,
        num_threads: int,
        prefetch: int,
    ):
        dali = require("nvidia.dali", "loading tiles")
        decode = "mixed" if device == "gpu" else "cpu"
        options = {"num_threads": num_threads, "device_id": device_id, "prefetch_queue_depth": prefetch}
        # The older executor writes later batches over those handed out. Conditionals split the batch: one decoder's
        # output type holds for all its images.
        options |= {"batch_size": MAX_PIECES, "exec_dynamic": True, "enable_conditionals": True}
        build = dali.pipeline_def(**options)(_define)
        fn, types = require("nvidia.dali.fn", "loading tiles"), require("nvidia.dali.types", "loading tiles")
        self._pipeline = build(feed, decode, fn, types)
        self._pipeline.build()

    def run(self, stream: Any = None) -> Any:
        """The decoded pieces of the next batch, uint8 [h, w, 3] or [h, w, 1] each: DALI's TensorList.

        With `stream` (CUDA) they are ready for work on it, and the host does not wait.
        """
        return self._pipeline.run(stream)[0] if stream is not None else self._pipeline.run()[0]

    def rewind(self) -> None:
        """Make ready for another pass, after all batches of the last one were taken."""
        try:
            self._pipeline.run()
        except StopIteration:
            self._pipeline.reset()
        else:
            raise RuntimeError("rewind() came before the pass was over")


def _define(feed: Callable[[int], Any], decode: str, fn: Any, types: Any) -> Any:
    """Rewritten by DALI, which turns the `if` into a split of the batch; so it calls nothing but DALI."""
    encoded, is_grey = fn.external_source(
        source=feed, num_outputs=2, batch=True, dtype=[types.UINT8, types.BOOL], ndim=[1, 0]
    )
    # jpeg_fancy_upsampling is the CPU's way of interpolating chroma; without it the GPU's pixels differ.
    if is_grey:
        pixels = fn.decoders.image(encoded, device=decode, output_type=types.GRAY, jpeg_fancy_upsampling=True)
    else:
        pixels = fn.decoders.image(encoded, device=decode, output_type=types.RGB, jpeg_fancy_upsampling=True)
    return pixels


def undecodable(
    encoded: Sequence[NDArray[np.uint8]],
    is_grey: Sequence[bool],
    *,
    device: Literal["cpu", "gpu"],
    device_id: int | None,
) -> dict[int, str]:
    """Which of these DALI cannot decode, each tried by itself, and why. Slow; for after an error."""
    found: dict[int, str] = {}
    one, graph = _One(), None
    for number, (data, grey) in enumerate(zip(encoded, is_grey, strict=True)):
        one.next = [data], [np.array(grey)]
        try:
            graph = graph or Graph(one, device=device, device_id=device_id, num_threads=1, prefetch=1)
            graph.run()
        except Exception as error:
            found[number], graph = cause(error), None
    return found


class _One:
    """A feed of whatever was put there."""

    def __init__(self) -> None:
        self.next: Any = None

    def __call__(self, _iteration: int) -> Any:
        return self.next


def cause(error: Exception) -> str:
    """The line of a DALI error that says what went wrong: the one after "encountered:", else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = [line for previous, line in itertools.pairwise(lines) if previous == "encountered:"]
    return (after or lines or [type(error).__name__])[0]
