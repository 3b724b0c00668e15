"""Open every image, mask and slide before training, so that damaged files do not stop it hours later.

Files are decoded in full. Some damage raises no exception: a JPEG whose second half is zeros decodes to grey, so its
stream is checked too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import reason_of
from ...utils.optional_imports import require
from ...utils.words import few
from ..dataset import Dataset, ImageSource, Problem, Region, Tile, maps_of
from ..images.pictures import file_of, opened_image, read_encoded, upright_size
from ..sizes import MAX_PIXELS, check_pixels
from ..slides import jpeg
from ..slides.opened import opened
from .checked_files import CheckedFiles
from .mask_facts import check_mode, note_drawing, note_image

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = {"JPEG", "MPO", "PNG", "BMP", "TIFF"}
_MOST_FRAMES = 1000
# DALI returns an all-zero image, and no error, for JPEG 2000 in TIFF.
_TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg"}


class DamagedTilesError(ValueError):
    """Some tiles cannot be used; `problems` lists all reasons."""

    def __init__(self, message: str, problems: Sequence[Problem]):
        super().__init__(message)
        self.problems = tuple(problems)


def check_tiles(
    tiles: Iterable[Tile],
    *,
    max_pixels: int = MAX_PIXELS,
    num_threads: int | None = None,
    checked: CheckedFiles | None = None,
) -> list[Problem]:
    """Decode every image and mask; the files that training cannot use, in the tiles' order.

    Finds missing, empty, truncated and partly zeroed files; formats that the loader cannot read (for any suffix);
    16-bit images; palette, 16-bit and coloured masks; masks of another size than their image; images of more than
    `max_pixels`; polygons, run-length codes and arrays that cannot be drawn; slides that cannot be opened, and regions
    outside them. The tiles inside a slide are not decoded: the loader quarantines damaged ones. Files that are in
    `checked` are not decoded again; it takes the others that are sound.
    """
    return _distinct(_check_each(tiles, max_pixels, num_threads, checked or CheckedFiles(None, max_pixels)))


MAX_DAMAGED = 0.05
"""Above this fraction of damaged tiles the disk is the likely cause."""


def usable_tiles(
    folder: Dataset,
    on_damaged: Literal["raise", "skip"] = "raise",
    *,
    max_damaged: float = MAX_DAMAGED,
    max_pixels: int = MAX_PIXELS,
    checked: CheckedFiles | None = None,
) -> tuple[Dataset, tuple[Problem, ...]]:
    """The folder without its damaged tiles, and their problems.

    Args:
        folder: the tiles to check.
        on_damaged: "raise" accepts no damage; "skip" drops tiles whose image or mask is damaged.
        max_damaged: "skip" still raises above this fraction of damaged tiles: the disk or the copy is probably broken,
            and training on the rest could be biased unnoticed.
        max_pixels: images with more pixels count as damaged.
        checked: files that need no check, because they are those that an earlier one found sound; takes the others
            that this one finds sound.

    Raises:
        DamagedTilesError: tiles are damaged; the message counts them and names the first files.
    """
    if on_damaged not in ("raise", "skip"):
        raise ValueError(f'`on_damaged` must be "raise" or "skip"; got {on_damaged!r}')
    found = _check_each(folder.tiles, max_pixels, None, checked or CheckedFiles(None, max_pixels))
    problems = _distinct(found)
    good = tuple(tile for tile, wrong in zip(folder.tiles, found, strict=True) if not wrong)
    lost = len(folder) - len(good)
    if lost and (on_damaged == "raise" or lost > max_damaged * len(folder)):
        advice = (
            'repair them, or set on_damaged = "skip"' if on_damaged == "raise" else "too many to skip: check the disk"
        )
        first = few(list(map(str, problems)), 3, "; ")
        raise DamagedTilesError(f"{lost} of {len(folder)} tiles are damaged ({advice}): {first}", problems)
    return replace(folder, tiles=good, problems=folder.problems + tuple(problems)), tuple(problems)


def _distinct(found: Iterable[list[Problem]]) -> list[Problem]:
    return list(dict.fromkeys(problem for problems in found for problem in problems))


def _check_each(
    tiles: Iterable[Tile], max_pixels: int, num_threads: int | None, checked: CheckedFiles
) -> list[list[Problem]]:
    require("PIL.Image", "checking images")
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        return list(pool.map(lambda tile: _check_tile(tile, max_pixels, checked), tiles))


def _check_tile(tile: Tile, max_pixels: int, checked: CheckedFiles) -> list[Problem]:
    problems: list[Problem] = []
    image_size = _check_picture(tile.image, tile.image, False, max_pixels, problems, checked)
    for _, mask in maps_of(tile):
        mask_size = _check_picture(mask, tile.image, True, max_pixels, problems, checked)
        where = named_file(mask, tile.image)
        if isinstance(mask, Path | Region) and mask == tile.image:
            problems.append(Problem(where, "is the image and its mask too; name the mask's own file"))
        elif image_size and mask_size and image_size != mask_size:
            sizes = f"the mask is {mask_size[0]}x{mask_size[1]} pixels, its image {image_size[0]}x{image_size[1]}"
            if not isinstance(tile.image, Region):
                problems.append(Problem(where, sizes))
            elif not _same_shape(image_size, mask_size):
                problems.append(Problem(where, f"{sizes}: they do not cover the same field of view"))
    return problems


def _same_shape(image: tuple[int, int], mask: tuple[int, int]) -> bool:
    """Whether a mask has its region's aspect ratio, to a pixel; slides and masks often differ in resolution."""
    one, other = image[0] * mask[1], image[1] * mask[0]
    return abs(one - other) <= max(*image, *mask, 0.01 * one)


def _check_picture(
    picture: ImageSource,
    image: ImageSource,
    is_mask: bool,
    max_pixels: int,
    problems: list[Problem],
    checked: CheckedFiles,
) -> tuple[int, int] | None:
    """(width, height) of a picture; None, and a new entry in `problems`, when it cannot be used."""
    if isinstance(picture, Path):
        return _check_file(picture, is_mask, max_pixels, problems, checked)
    try:
        if isinstance(picture, Region):
            _check_region(picture, max_pixels)
            return picture.width, picture.height
        check_pixels(getattr(picture, "width", 0), getattr(picture, "height", 0), max_pixels=max_pixels)
        pixels = picture.draw()
        check_pixels(pixels.shape[1], pixels.shape[0], max_pixels=max_pixels)
        if is_mask:
            note_drawing(picture, pixels)
        return pixels.shape[1], pixels.shape[0]
    except Exception as error:  # readers raise many types on damaged data, and each means: do not train on it
        reason = reason_of(error)
    where = named_file(picture, image)
    problems.append(Problem(where, reason.removeprefix(f"{where}: ").removeprefix(f"{where} ")))
    return None


def _check_region(region: Region, max_pixels: int) -> None:
    if region.width * region.height > max_pixels:
        raise ValueError(f"the region has {region.width}x{region.height} pixels, more than {max_pixels:,}")
    slide = opened(region.slide)
    if slide.damage:
        raise ValueError(slide.damage)
    levels = slide.levels
    if not 0 <= region.level < len(levels):
        raise ValueError(f"has levels 0 to {len(levels) - 1}, and the region wants level {region.level}")
    full, scale = levels[0], levels[region.level].downsample
    right, bottom = region.x + region.width * scale, region.y + region.height * scale
    if region.x >= full.width or region.y >= full.height or right <= 0 or bottom <= 0:
        raise ValueError(f"is {full.width}x{full.height} pixels; the region at {region.x}, {region.y} is outside it")


def named_file(picture: ImageSource, image: ImageSource) -> Path:
    """The file to name in messages about `picture`: its own, else that of its image."""
    own = file_of(picture)
    return own if own != Path() else file_of(image)


def _check_file(
    path: Path, is_mask: bool, max_pixels: int, problems: list[Problem], checked: CheckedFiles
) -> tuple[int, int] | None:
    """(width, height) of a file's image as shown; None, and a new entry in `problems`, when it cannot be used."""
    identity, known = checked.find(path, is_mask)
    if known is not None:
        return known
    image_module = require("PIL.Image", "checking images")
    try:
        data = read_encoded(path)
        with opened_image(data) as image:
            size = _check_image(image, data, is_mask, max_pixels)
            if is_mask:
                note_image(path, image)
        checked.add(path, is_mask, identity, size)
        return size
    except image_module.UnidentifiedImageError:
        reason = "not an image, or its header is damaged"
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning):
        reason = f"declares more than {max_pixels:,} pixels"
    except Exception as error:  # as in `_check_picture`
        reason = reason_of(error)
    problems.append(Problem(path, reason))
    return None


def _check_image(image: Image, data: bytes, is_mask: bool, max_pixels: int) -> tuple[int, int]:
    width, height = image.size
    check_pixels(width, height, max_pixels=max_pixels)
    if image.format not in _FORMATS:
        raise ValueError(f"holds a {image.format} image; convert it to PNG or JPEG")
    if image.format == "TIFF" and image.info.get("compression") not in _TIFF_COMPRESSIONS:
        raise ValueError(f"has TIFF compression {image.info.get('compression')!r}; use deflate, LZW or JPEG")
    if (frames := _num_frames(image)) > 1:
        raise ValueError(f"holds {frames} pictures, a slide or a stack; name a slide in the column slide, or save one")
    image.load()
    if image.format in ("JPEG", "MPO"):
        jpeg.check_file(data)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"has {image.mode} pixels, more than 8 bits; convert it to 8-bit")
    if is_mask:
        check_mode(image)
    return upright_size(image)


def _num_frames(image: Image) -> int:
    """The number of pictures in a TIFF or PNG file; in a TIFF at most `_MOST_FRAMES`, because each takes longer to
    find than the one before."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1) if image.format == "PNG" else 1
    count = 1
    with suppress(EOFError):
        while count < _MOST_FRAMES:
            image.seek(count)
            count += 1
    image.seek(0)
    return count
