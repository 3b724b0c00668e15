"""One level of a DICOM slide, from the files of which it consists: how its tiles are stored, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...sizes import MAX_PIXELS as MAX_PIECE_PIXELS
from .. import jpeg
from ..joined_files import PART
from ..raster import Encoding, Placement, Raster
from .frames import ITEM_HEAD, frames_of
from .instances import Instance

_CODECS = {
    "1.2.840.10008.1.2": "raw",
    "1.2.840.10008.1.2.1": "raw",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
}
"""Transfer syntax -> codec."""

_COLOURS = {
    "raw": {"RGB": "rgb", "MONOCHROME2": "grey", "MONOCHROME1": "inverted"},
    "jpeg": {"YBR_FULL_422": "ycbcr", "YBR_FULL": "ycbcr", "RGB": "rgb", "MONOCHROME2": "grey"},
    "jpeg2000": {"YBR_ICT": "rgb", "YBR_RCT": "rgb", "RGB": "rgb", "MONOCHROME2": "grey"},
}
"""Codec -> photometric interpretation -> colour of what its decoder returns: JPEG 2000 undoes ICT and RCT itself."""

_MAX_TILES = 2**24
_MARKERS = 2**12  # bytes of a frame in which its markers of colour are looked for
_SAMPLES = {"rgb": 3, "ycbcr": 3, "grey": 1, "inverted": 1}


def encoding_of(instance: Instance) -> Encoding:
    """How its tiles are stored; ValueError if they cannot be read."""
    codec = _CODECS.get(instance.syntax)
    if codec is None:
        known = "uncompressed, JPEG baseline and JPEG 2000"
        raise ValueError(f"has transfer syntax {instance.syntax[:64]}; readable are {known}")
    if instance.bits != 8:
        raise ValueError(f"has {instance.bits or 'signed'}-bit samples; scale them to 8-bit unsigned first")
    colour = _COLOURS[codec].get(instance.photometric, "")
    if _SAMPLES.get(colour) != instance.samples or (instance.planar and instance.samples > 1 and codec == "raw"):
        planes = " in planes" if instance.planar else ""
        raise ValueError(
            f"has {instance.photometric[:16]} pixels of {instance.samples} samples{planes} ({codec}); convert it to RGB"
        )
    return Encoding(codec, colour, instance.samples, items=codec != "raw")


def level_of(folder: Path, files: Sequence[tuple[int, Instance]]) -> Raster:
    """A level, or an image beside it.

    Args:
        folder: of the files.
        files: the level's, in order, each with its number among those of the slide.

    Raises:
        ValueError: files of the level are missing or contradict each other, or are of a kind that is not read.
        OSError: a file cannot be read.
    """
    first = files[0][1]
    _check(first, [instance for _, instance in files])
    encoding = encoding_of(first)
    raster = Raster(
        first.width,
        first.height,
        first.tile_width,
        first.tile_height,
        encoding,
        offsets=np.zeros(0, np.int64),
        counts=np.zeros(0, np.int64),
    )
    needed = raster.rows * raster.columns
    if max(needed, *(one.num_frames for _, one in files)) > _MAX_TILES:
        raise ValueError(f"declares more than {_MAX_TILES:,} tiles, which no slide has")
    offsets, counts = np.zeros(needed, np.int64), np.zeros(needed, np.int64)
    for number, instance in files:
        tiles = _tiles(raster, instance)
        if tiles is None:
            found, end = instance.num_frames, instance.first_frame + instance.num_frames
            if end > needed or instance.first_frame < 0:
                raise ValueError(f"{instance.file.name} has {found} frames, where its size needs {needed}: damaged")
            tiles = np.arange(instance.first_frame, end)
        if counts[tiles].any() or len(np.unique(tiles)) < len(tiles):
            raise ValueError(f"{instance.file.name} has two frames at one place (of several focal planes?)")
        begin, length = frames_of(folder / instance.file.name, instance, is_raw=encoding.codec == "raw")
        if encoding.codec == "jpeg" and encoding.samples == 3:
            _check_colour(folder, instance, encoding.colour, int(begin[0]))
        offsets[tiles], counts[tiles] = number * PART + begin, length
    is_sparse = not all(instance.is_full for _, instance in files)
    if not is_sparse and not counts.all():
        raise ValueError(f"has {np.count_nonzero(counts)} frames, where its size needs {needed}: a file is missing")
    # What was not scanned is background at every level, and not drawn from the finer one.
    placement = Placement(0, 0, first.width, first.height) if is_sparse else None
    return replace(raster, offsets=offsets, counts=counts, placement=placement)


def _check_colour(folder: Path, instance: Instance, colour: str, frame: int) -> None:
    """Raise ValueError if the first frame's markers contradict the header: one of the two would give wrong colours."""
    with (folder / instance.file.name).open("rb") as file:
        file.seek(frame + ITEM_HEAD)
        marked = jpeg.marked_colour(file.read(_MARKERS))
    if marked not in ("", colour):
        names = {"rgb": "RGB", "ycbcr": "YCbCr"}
        raise ValueError(
            f"{instance.file.name} declares {instance.photometric}, and its JPEG frames are marked as {names[marked]}: "
            "its colours are uncertain; correct PhotometricInterpretation"
        )


def _check(first: Instance, instances: Sequence[Instance]) -> None:
    """Raise ValueError if files are missing, are not of one kind, or hold more than one image a tile."""
    for instance in instances:
        for count, what in ((instance.focal_planes, "focal planes"), (instance.optical_paths, "optical paths")):
            if count != 1:
                raise ValueError(f"{instance.file.name} has {count} {what}; only one is read: export one")
    if first.concatenation or len(instances) > 1:
        numbers, parts = [instance.part for instance in instances], max(first.parts, instances[-1].part)
        if missing := sorted(set(range(1, parts + 1)) - set(numbers)):
            raise ValueError(f"lacks file {missing[0]} of the {parts} of its concatenation; copy all files")
        if len(set(numbers)) < len(numbers) or {instance.concatenation for instance in instances} != {
            first.concatenation
        }:
            names = " and ".join(instance.file.name for instance in instances[:2])
            raise ValueError(f"has two images of one size, {names}; keep one (a focal plane, an optical path)")
    kinds = {
        (one.tile_width, one.tile_height, one.syntax, one.photometric, one.samples, one.bits, one.planar)
        for one in instances
    }
    if len(kinds) > 1:
        raise ValueError("has files that differ in their tiles or encoding")
    size, tile = (first.width, first.height), (first.tile_width, first.tile_height)
    if min(*size, *tile, *(one.num_frames for one in instances)) < 1:
        raise ValueError(f"declares {size[0]}x{size[1]} pixels in tiles of {tile[0]}x{tile[1]}: damaged")
    if tile[0] * tile[1] > MAX_PIECE_PIXELS:
        raise ValueError(f"has tiles of {tile[0]}x{tile[1]} pixels, more than {MAX_PIECE_PIXELS:,}")


def _tiles(raster: Raster, instance: Instance) -> NDArray[np.int64] | None:
    """The tile that each frame of a file is, where the file says it."""
    places = instance.places
    if instance.is_full:
        return None
    if places is None:
        raise ValueError(f"{instance.file.name} does not say where its frames lie (neither TILED_FULL nor positions)")
    if len(places) != instance.num_frames:
        raise ValueError(f"{instance.file.name} says where {len(places)} of {instance.num_frames} frames lie: damaged")
    if len(np.unique(places[:, 2])) > 1:
        raise ValueError(f"{instance.file.name} has several focal planes; only one is read: export one")
    columns, rows = places[:, 0] // raster.tile_width, places[:, 1] // raster.tile_height
    inside = (columns >= 0) & (rows >= 0) & (columns < raster.columns) & (rows < raster.rows)
    if not inside.all():
        raise ValueError(f"{instance.file.name} has a frame that lies outside of its level: damaged")
    if (places[:, 0] % raster.tile_width).any() or (places[:, 1] % raster.tile_height).any():
        raise ValueError(f"{instance.file.name} has tiles that overlap or do not lie in a grid, which are not read")
    return rows * raster.columns + columns
