"""Reading regions of a slide, and opening one: `data.open_slide` compared with OpenSlide and tifffile, one thread each,
on a synthetic slide."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmtl import data
from fastmtl.data.synthetic import tissue

from ..registry import Case, Inputs, Run, register

SIDE, PAINTED, TILE, REGION, COUNT = 4096, 1024, 256, 256, 64


@cache
def slide_file() -> Path:
    """A pyramid of three levels, JPEG tiles with 4:2:0 chroma, indexed; gone when the process ends."""
    import tifffile

    folder = Path(tempfile.mkdtemp(prefix="fastmtl-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    haematoxylin, eosin, _ = tissue.paint(rng, PAINTED, PAINTED, tissue.ARCHITECTURES["Polyp"])
    painted = tissue.expose(rng, haematoxylin, eosin, tissue.random_stain(rng))
    pixels, path = np.tile(painted, (SIDE // PAINTED, SIDE // PAINTED, 1)), folder / "slide.tiff"
    with tifffile.TiffWriter(path) as file:
        for level in range(3):
            file.write(
                pixels,
                tile=(TILE, TILE),
                photometric="ycbcr",
                compression="jpeg",
                compressionargs={"level": 80},
                subsampling=(2, 2),
                subfiletype=1 if level else 0,
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            pixels = np.ascontiguousarray(pixels[::2, ::2])
    data.index_slide(path)
    return path


def _make(device: torch.device) -> Inputs:
    corners = np.random.default_rng(1).integers(0, SIDE - REGION, (COUNT, 2)).tolist()
    return {"path": slide_file(), "corners": corners, "device": device}


def _tensors(regions: list[NDArray[np.uint8]], inputs: Inputs) -> tuple[torch.Tensor, ...]:
    return (torch.from_numpy(np.stack(regions)).to(inputs["device"]),)


def _ours(inputs: Inputs) -> Run:
    slide = data.open_slide(inputs["path"])
    return lambda: _tensors([slide.read_region(x, y, REGION, REGION) for x, y in inputs["corners"]], inputs)


def _pieces(inputs: Inputs) -> Run:
    """What comes before any decoder: bytes found, read, joined with their tables, checked. Hands out our answer."""
    slide, answer = data.open_slide(inputs["path"]), _ours(inputs)()

    def run() -> tuple[torch.Tensor, ...]:
        for x, y in inputs["corners"]:
            slide.encoded_tiles(data.Region(slide.path, x, y, REGION, REGION))
        return answer

    return run


def _openslide(inputs: Inputs) -> Run:
    import openslide

    slide = openslide.OpenSlide(inputs["path"])
    slide.set_cache(openslide.OpenSlideCache(0))  # an epoch's tiles are more than a cache holds

    def read(x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(slide.read_region((x, y), 0, (REGION, REGION)).convert("RGB"))

    return lambda: _tensors([read(x, y) for x, y in inputs["corners"]], inputs)


def _zarr(inputs: Inputs) -> Run:
    import tifffile
    import zarr

    array: Any = zarr.open(tifffile.imread(inputs["path"], aszarr=True, level=0), mode="r")
    return lambda: _tensors([array[y : y + REGION, x : x + REGION] for x, y in inputs["corners"]], inputs)


def _truth(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    import tifffile

    whole = tifffile.imread(inputs["path"], level=0)
    return _tensors([whole[y : y + REGION, x : x + REGION] for x, y in inputs["corners"]], inputs)


def _opens(reader: str) -> Any:
    """Opens the slide and returns its levels' sizes."""

    def run(inputs: Inputs) -> Run:
        path = inputs["path"]
        if reader == "fastmtl":
            return lambda: (_sizes([(level.width, level.height) for level in data.open_slide(path).levels], inputs),)
        if reader == "OpenSlide":
            import openslide

            return lambda: (_sizes(openslide.OpenSlide(path).level_dimensions, inputs),)
        import tifffile

        def pages() -> list[tuple[int, int]]:
            with tifffile.TiffFile(path) as file:
                return [(level.shape[1], level.shape[0]) for level in file.series[0].levels]

        return lambda: (_sizes(pages(), inputs),)

    return run


def _sizes(sizes: Any, inputs: Inputs) -> torch.Tensor:
    return torch.tensor(sizes, dtype=torch.float64, device=inputs["device"])


_SLIDE = f"JPEG 4:2:0, {SIDE} x {SIDE}, tiles of {TILE}"
register(
    Case(
        op="open_slide",
        shape=f"{COUNT} random regions of {REGION} x {REGION}, {_SLIDE}, one thread",
        mode="read_region",
        make=_make,
        contenders={
            "fastmtl": _ours,
            "OpenSlide.read_region": _openslide,
            "tifffile and zarr": _zarr,
            "read pieces without decoding": _pieces,
        },
        min_bytes=0,
        tolerance=0.01,
        truth=_truth,
        figures={"OpenSlide.read_region": 1.5},
        items=COUNT,
    )
)
register(
    Case(
        op="open_slide",
        shape=f"indexed, {_SLIDE}",
        mode="open",
        make=_make,
        contenders={"fastmtl": _opens("fastmtl"), "OpenSlide": _opens("OpenSlide"), "tifffile": _opens("tifffile")},
        min_bytes=0,
        tolerance=0,
        truth=lambda inputs: (_sizes([(SIDE >> level, SIDE >> level) for level in range(3)], inputs),),
    )
)
