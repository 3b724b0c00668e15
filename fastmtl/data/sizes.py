"""The size limit of pictures: image files, drawn pictures and the tiles of slides."""

from __future__ import annotations

MAX_PIXELS = 2**26
"""Larger pictures are refused before memory is allocated, as decompression bombs or whole slides: 8192 x 8192."""

_CHANNELS = 4  # of a picture with as many pixels; with more channels it may have fewer pixels


def check_pixels(width: int, height: int, channels: int = 1, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError for a picture that is larger than allowed.

    >>> check_pixels(60_000, 60_000)
    Traceback (most recent call last):
    ...
    ValueError: declares 60000x60000 pixels, more than 67,108,864
    """
    if width * height > max_pixels:
        raise ValueError(f"declares {width}x{height} pixels, more than {max_pixels:,}")
    if width * height * channels > _CHANNELS * max_pixels:
        raise ValueError(
            f"declares {width}x{height} pixels of {channels} channels, more than fastmtl allocates memory for"
        )
