"""Pixels of any picture (file, region, drawing) for display and prediction. Training uses the loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import reason_of
from ...utils.limited_reads import read_whole
from ...utils.optional_imports import require
from ..dataset import ImageSource, Region
from ..identifiers import near_file
from ..sizes import MAX_PIXELS, check_pixels
from ..slides import jpeg
from ..slides.opened import opened

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG2000")  # Pillow runs another program for PostScript
_ORIENTATION_TAG = 0x0112
_WIDTH, _HEIGHT, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 278, 322, 323
_PLANES = 4  # at most, of a TIFF that stores its colours separately


def open_picture(picture: ImageSource) -> NDArray[np.uint8]:
    """RGB uint8 [h, w, 3], rotated upright as in the loader.

    Raises:
        OSError, ValueError: it cannot be read; the message names the file.
    """
    if isinstance(picture, Path):
        try:
            pixels = decode_image(read_encoded(picture))
        except ValueError as error:
            raise ValueError(f"{picture}: {error}") from error
    elif isinstance(picture, Region):
        pixels = opened(picture.slide).read_region(picture.x, picture.y, picture.width, picture.height, picture.level)
    else:
        pixels = picture.draw()
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] != 3:
        raise ValueError(f"{picture} has {pixels.shape[2]} channels; a picture has 1 or 3")
    return pixels


@contextmanager
def image_file(file: Path) -> Iterator[Image]:
    """Pillow's image of a file; its pixels are read on first use.

    Raises:
        ValueError: not an image, a damaged one or one of more than `MAX_PIXELS`, also inside the block; names the file.
    """
    try:
        with opened_image(read_encoded(file)) as image:
            check_pixels(*image.size)
            yield image
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: {_reason(error)}") from error


def picture_size(picture: ImageSource) -> tuple[int, int]:
    """(width, height) of `open_picture`; reads pixels only if the size is not stored elsewhere."""
    if isinstance(picture, Path):
        if picture.exists() and not picture.is_file():
            raise ValueError(f"{picture}: not a file")
        with require("PIL.Image", "opening images").open(picture, formats=_FORMATS) as image:
            return upright_size(image)
    if isinstance(picture, Region):
        return picture.width, picture.height
    width, height = getattr(picture, "width", 0), getattr(picture, "height", 0)
    if width and height:
        return width, height
    pixels = picture.draw()
    return pixels.shape[1], pixels.shape[0]


def upright_size(image: Image) -> tuple[int, int]:
    """(width, height) of an opened Pillow image after its EXIF rotation."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is not None:  # Pillow's `size` of a TIFF is that after the rotation, in some versions only once it is read
        turned = tags.get(_ORIENTATION_TAG, 1) >= 5
        return (tags[_HEIGHT], tags[_WIDTH]) if turned else (image.width, image.height)
    turned = image.getexif().get(_ORIENTATION_TAG, 1) >= 5
    return (image.height, image.width) if turned else (image.width, image.height)


def file_of(picture: ImageSource) -> Path:
    """The file of a picture, for messages and thumbnails; `Path()` without one, as for run lengths."""
    if isinstance(picture, Path):
        return picture
    return picture.slide if isinstance(picture, Region) else getattr(picture, "file", Path())


def read_encoded(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty, too large, or a folder, pipe or device, which may never end.
    """
    try:
        data = read_whole(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"No such file: {path}{near_file(path)}") from None
    except IsADirectoryError:
        raise ValueError("is not a file") from None
    if not data:
        raise ValueError("the file is empty")
    return data


def opened_image(data: bytes) -> Image:
    """Pillow's image of encoded bytes; its pixels are decoded on first use.

    Raises:
        ValueError: decoding would take too long.
        Exception: Pillow's errors.
    """
    image = require("PIL.Image", "opening images").open(BytesIO(data), formats=_FORMATS)
    if image.format in ("JPEG", "MPO"):
        jpeg.check_num_scans(data)
    elif image.format == "TIFF" and image.info.get("compression") == "jpeg":
        tags: Any = getattr(image, "tag_v2", {})
        width = tags.get(_TILE_WIDTH, image.width)
        height = tags.get(_TILE_HEIGHT, tags.get(_ROWS_PER_STRIP, image.height))
        jpeg.check_num_scans(data, streams=-(-image.width // width) * -(-image.height // height) * _PLANES)
    return image


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """The pixels of an encoded image, upright: uint8 [h, w] of a grey one, else RGB [h, w, 3].

    Raises:
        ValueError: not an image, a damaged one, or one of more than 8 bits.
    """
    operations = require("PIL.ImageOps", "opening images")
    try:
        with opened_image(data) as file:
            check_pixels(*file.size)
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"has {file.mode} pixels, more than 8 bits; convert it to 8-bit")
            is_grey = file.mode in ("1", "L", "LA")
            return np.asarray(operations.exif_transpose(file).convert("L" if is_grey else "RGB"))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """An error of Pillow in one line: its plugins raise nearly any type on damaged data."""
    if type(error).__name__.startswith("DecompressionBomb"):
        return f"declares more than {MAX_PIXELS:,} pixels"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image, or its header is damaged"
    return reason_of(error)
