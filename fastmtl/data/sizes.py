"""How large a picture may be: one limit for image files, everything drawn and the tiles of slides."""

from __future__ import annotations

MAX_PIXELS = 2**26
"""Pictures of more pixels are refused before memory is taken: 8192 x 8192, a decompression bomb or a whole slide."""

_CHANNELS = 4  # of a picture with as many pixels; more channels, fewer pixels


def check_pixels(width: int, height: int, channels: int = 1, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError where a picture of this size is larger than allowed.

    >>> check_pixels(60_000, 60_000)
    Traceback (most recent call last):
    ...
    ValueError: declares 60000x60000 pixels, more than 67,108,864
    """
    if width * height > max_pixels:
        raise ValueError(f"declares {width}x{height} pixels, more than {max_pixels:,}")
    if width * height * channels > _CHANNELS * max_pixels:
        raise ValueError(f"declares {width}x{height} pixels of {channels} channels, more than fastmtl takes memory for")
