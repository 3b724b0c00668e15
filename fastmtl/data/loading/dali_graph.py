"""The DALI graph: decodes tiles on the CPU or on the GPU (`mixed`), each to grey or RGB as requested.

A batch has any number of tiles; `transform_cpu` and `transform_gpu` stitch them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require

MAX_TILES = 2**16
"""The maximum number of encoded tiles in a batch; DALI requires a limit, and a large one has no cost."""


Source = Callable[[int], tuple[list[NDArray[np.uint8]], list[NDArray[np.bool_]]]]


class DaliGraph:
    """A built pipeline that decodes what `source` returns: lists of encoded tiles and of whether each is grey.

    After `run` raised an error the pipeline is unusable: build another.

    Args:
        source: called for each batch; raises StopIteration after the last.
        device: where tiles are decoded; "gpu" is torch's current CUDA device, number `device_id`.
        device_id: of the GPU.
        num_threads: CPU threads of the pipeline.
        prefetch: batches decoded ahead.
    """

    def __init__(
        self,
        source: Source,
        *,
        device: Literal["cpu", "gpu"],
        device_id: int | None,
        num_threads: int,
        prefetch: int,
    ):
        dali = require("nvidia.dali", "loading tiles")
        decode = "mixed" if device == "gpu" else "cpu"
        options = {"num_threads": num_threads, "device_id": device_id, "prefetch_queue_depth": prefetch}
        # The older executor overwrites returned batches with later ones. Conditionals split the batch, because a
        # decoder has one output type for all its images.
        options |= {"batch_size": MAX_TILES, "exec_dynamic": True, "enable_conditionals": True}
        build = dali.pipeline_def(**options)(_define)
        fn, types = require("nvidia.dali.fn", "loading tiles"), require("nvidia.dali.types", "loading tiles")
        self._pipeline = build(source, decode, fn, types)
        self._pipeline.build()

    def run(self, stream: Any = None) -> Any:
        """The decoded tiles of the next batch, uint8 [h, w, 3] or [h, w, 1] each: DALI's TensorList.

        With `stream` (CUDA) they are ready for work on it, and the host does not wait.
        """
        return self._pipeline.run(stream)[0] if stream is not None else self._pipeline.run()[0]

    def rewind(self) -> None:
        """Prepare another pass; call it after taking all batches of the last one."""
        try:
            self._pipeline.run()
        except StopIteration:
            self._pipeline.reset()
        else:
            raise RuntimeError("rewind() must be called after the end of a pass")


def _define(source: Source, decode: str, fn: Any, types: Any) -> Any:
    """DALI rewrites this function and turns the `if` into a split of the batch, so it may call only DALI."""
    encoded, is_grey = fn.external_source(
        source=source, num_outputs=2, batch=True, dtype=[types.UINT8, types.BOOL], ndim=[1, 0]
    )
    # jpeg_fancy_upsampling interpolates chroma as the CPU does; without it the GPU's pixels differ.
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
    """The tiles that DALI cannot decode, with reasons. Tries each alone, which is slow: call it after an error."""
    found: dict[int, str] = {}
    graph, batch = None, []
    for number, (data, grey) in enumerate(zip(encoded, is_grey, strict=True)):
        batch[:] = [data], [np.array(grey)]
        try:
            if graph is None:
                graph = DaliGraph(lambda _: tuple(batch), device=device, device_id=device_id, num_threads=1, prefetch=1)
            graph.run()
        except Exception as error:
            found[number], graph = cause(error), None
    return found


def cause(error: Exception) -> str:
    """The line of a DALI error that names the reason: the one after "encountered:", else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = [line for previous, line in itertools.pairwise(lines) if previous == "encountered:"]
    return (after or lines or [type(error).__name__])[0]
