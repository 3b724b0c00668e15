"""Scan a PNG, JPEG or JPEG 2000 file: a slide of one level and one tile."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ...utils.optional_imports import require
from ..sizes import MAX_PIXELS as MAX_PIECE_PIXELS
from .errors import SlideError
from .raster import Encoding, Layout, Raster, levels_of
from .scale import Scale

SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "plain png",
    b"\xff\xd8\xff": "plain jpeg",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "jpeg2000",
    b"\xff\x4f\xff\x51": "jpeg2000",  # a bare codestream
}
"""First bytes of a file -> codec."""

# Pillow's modes -> colour, samples, alpha. Pillow decodes any PNG to RGB or RGBA.
_JPEG_MODES = {"L": ("grey", 1, ""), "RGB": ("rgb", 3, "")}
_PNG_MODES = {
    "L": ("grey", 1, ""), "RGB": ("rgb", 3, ""), "RGBA": ("rgb", 4, "straight"), "1": ("rgb", 4, ""),
    "P": ("rgb", 4, ""), "PA": ("rgb", 4, ""), "LA": ("rgb", 4, ""),
}  # fmt: skip
_JPEG2000_MODES = {**_JPEG_MODES, "LA": ("grey", 2, "straight"), "RGBA": ("rgb", 4, "straight")}
_MODES = {"plain jpeg": _JPEG_MODES, "plain png": _PNG_MODES, "jpeg2000": _JPEG2000_MODES}
_EXIF_ORIENTATION = 274


def scan_image_file(path: Path, codec: str) -> Layout:
    """Read the header of an image file.

    Raises:
        SlideError: damaged, too large to be decoded in one piece, or not 8-bit grey, RGB or palette.
    """
    pillow = require("PIL.Image", "opening images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with path.open("rb") as stream, pillow.open(stream, formats=("PNG", "JPEG", "JPEG2000")) as image:
                (width, height), mode = image.size, image.mode
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
                transparent = "transparency" in image.info
    except pillow.DecompressionBombError as error:
        raise SlideError(path, f"declares more than {MAX_PIECE_PIXELS:,} pixels; {_ADVICE}") from error
    except Exception as error:  # Pillow's plugins raise nearly any type for damaged headers
        raise SlideError(path, f"not a readable image, truncated or damaged: {error}") from error
    if width * height > MAX_PIECE_PIXELS:
        raise SlideError(path, f"declares {width}x{height} pixels, more than {MAX_PIECE_PIXELS:,}; {_ADVICE}")
    if mode not in _MODES[codec]:
        raise SlideError(path, f"has {mode} pixels; convert it to 8-bit grey or RGB")
    colour, samples, alpha = ("rgb", 4, "straight") if transparent else _MODES[codec][mode]
    encoding = Encoding(codec, colour, samples, alpha, orientation=orientation if 1 <= orientation <= 8 else 1)
    count = path.stat().st_size
    raster = Raster(width, height, width, height, encoding, np.zeros(1, np.int64), np.array([count], np.int64))
    return Layout(
        reader="native",
        vendor="image",
        levels=levels_of((raster,)),
        rasters=(raster,),
        bounds=(0, 0, *raster.shown_size),
        why_no_mpp=Scale().why_no_mpp,
        problems=Scale().said,
    )


_ADVICE = "make it a tiled TIFF, for example with: vips tiffsave IN OUT --tile --pyramid"
