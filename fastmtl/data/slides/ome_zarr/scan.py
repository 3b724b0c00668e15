"""Scan an OME-Zarr slide: its levels and their scales; no chunk is read."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from pathlib import Path

from ....utils.optional_imports import require
from ...sizes import MAX_PIXELS as MAX_PIECE_PIXELS
from ..errors import SlideError
from ..raster import Layout, Level
from ..remote.path import RemotePath
from ..scale import Scale, believed, micrometres
from .metadata import Array, ZarrImage, read_image
from .reader import missing_chunks

_SAME = 0.02  # by how much a level's scale may differ from what its size says, besides rounding
_EVEN = 1e-3  # by how much a level may be smaller across than down, besides rounding: it has one downsample


def scan_zarr(path: Path, max_pixels: int) -> Layout:
    """Read the metadata of a store.

    Raises:
        SlideError: it holds no image, several, or one of a kind that is not read; the message says which.
        ImportError: zarr is not installed.
    """
    require("zarr", "opening OME-Zarr slides", "zarr")
    try:
        image = read_image(path)
        return _scan(path, image, max_pixels)
    except ValueError as error:
        raise SlideError(path, str(error)) from error
    except OSError as error:
        raise SlideError(path, f"cannot be read: {error.strerror or type(error).__name__}") from error


def _scan(path: Path, image: ZarrImage, max_pixels: int) -> Layout:
    base, problems = image.arrays[0], list[str]()
    y, x = image.at("y"), image.at("x")
    height, width = base.shape[y], base.shape[x]
    if width * height > max_pixels:
        raise SlideError(path, f"declares {width}x{height} pixels, more than max_pixels={max_pixels:,}")
    if image.num_images > 1:
        problems.append(f"holds {image.num_images} images: the first is read")
    levels = [_level(image, array, base) for array in image.arrays]
    for number, (finer, level) in enumerate(pairwise(levels), 1):
        if not level.downsample > finer.downsample:
            raise ValueError(f"its level {number} is not coarser than the one before it: damaged metadata")
    if isinstance(path, RemotePath):
        problems.append("its chunks on the server are not counted: where one is missing, the fill value is read")
    for number, array in enumerate(image.arrays):
        if lost := missing_chunks(image, array):
            of_all = f"{lost} of {array.num_stored} chunks of level {number}"
            problems.append(f"{of_all} are not stored: the store's fill value is read there")
    scale = _mpp(image)
    return Layout(
        reader="zarr",
        vendor="ome-zarr",
        levels=tuple(levels),
        mpp=scale.mpp,
        mpp_source=scale.source,
        why_no_mpp=scale.why_no_mpp,
        bounds=(0, 0, width, height),
        problems=(*problems, *scale.said),
    )


def _level(image: ZarrImage, array: Array, base: Array) -> Level:
    """A level with the downsample that its scale gives; ValueError if its size says another."""
    y, x = image.at("y"), image.at("x")
    if prod(array.chunk) > 3 * MAX_PIECE_PIXELS:
        raise ValueError(
            f"has chunks of {prod(array.chunk):,} values, which are decoded in one piece; make them smaller"
        )
    sides = [array.scale[axis] / base.scale[axis] for axis in (x, y)]
    downsample = sum(sides) / 2
    for axis, side in zip((x, y), sides, strict=True):
        few = (1 + downsample) / base.shape[axis] * 2  # sizes are rounded
        if not abs(base.shape[axis] / array.shape[axis] / side - 1) <= _SAME + few + 1 / array.shape[axis]:
            raise ValueError(
                f"its level {array.path} of {array.shape[x]}x{array.shape[y]} pixels has {side:g} times the scale of "
                "the first, which does not fit its size: damaged metadata"
            )
        if abs(array.shift[axis] - base.shift[axis]) > array.scale[axis]:  # half a pixel is usual
            raise ValueError(f"its level {array.path} begins elsewhere than the first, which is not read")
    if abs(sides[0] / sides[1] - 1) > _EVEN + 1 / array.shape[x] + 1 / array.shape[y]:
        raise ValueError(
            f"its level {array.path} is {sides[0]:g} times smaller across and {sides[1]:g} times down, which is not "
            "read; make levels that are equally smaller both ways"
        )
    return Level(array.shape[x], array.shape[y], downsample, array.chunk[x], array.chunk[y])


def _mpp(image: ZarrImage) -> Scale:
    found = []
    for name in "xy":
        at = image.at(name)
        factor = micrometres(image.axes[at].unit)
        if factor is None:
            unit = image.axes[at].unit
            why = f"OME-Zarr's scale is in {unit!r}, which is no length" if unit else "OME-Zarr's scale has no unit"
            return Scale(why_no_mpp=f"{why}; pass mpp where they are needed")
        found.append(image.arrays[0].scale[at] * factor)
    return believed((found[0], found[1]), "OME-Zarr", "OME-Zarr's scale and unit")
