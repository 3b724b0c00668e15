"""Decode a tile's bytes to RGB pixels with imagecodecs, which releases the GIL; supported codecs and their decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require
from ..dataset import BACKGROUND
from .declared import declared_size
from .jpeg import HOLE
from .raster import Encoding

Pixels = NDArray[np.uint8]

TIFF_CODECS = {
    1: "raw",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    33003: "jpeg2000",
    33005: "jpeg2000",
    34712: "jpeg2000",
    34925: "lzma",
    34933: "png",
    50000: "zstd",
    50001: "webp",
    50002: "jpegxl",
}
"""TIFF's compression tag -> codec. Others are refused when the slide is scanned."""

JPEG2000_YCBCR = 33003  # Aperio's: the codestream does not say that its components are YCbCr

_IMAGES = {"jpeg": "jpeg8", "jpeg part": "jpeg8", "plain jpeg": "jpeg8"}
_IMAGES |= {"jpeg2000": "jpeg2k", "webp": "webp", "jpegxl": "jpegxl"}
_ROWS = {"lzw": "lzw", "deflate": "zlib", "zstd": "zstd", "lzma": "lzma", "packbits": "packbits"}
# Partly zeroed tiles of these codecs may still decode, to grey (deflate and zstd would fail). A run of so many zero
# bytes is damage: LZW never has 64; in WebP blank parts have hundreds, in JPEG 2000 one per empty packet.
# Between these limits a quarter of the tile counts as damage.
_HOLES = {"lzw": (len(HOLE), len(HOLE)), "webp": (512, 4096), "jpeg2000": (512, 4096)}


def dali_decodes(encoding: Encoding) -> bool:
    """Whether DALI's `decoders.image` decodes such a tile reliably.

    It returns zeros for JPEG 2000 in TIFF and raises for WebP; it cannot read tiles that are not whole images.
    """
    plain = encoding.orientation == 1 and encoding.scale == 1 and not encoding.alpha
    layouts = {("rgb", 3), ("ycbcr", 3), ("grey", 1)}
    return (
        plain
        and encoding.codec in ("jpeg", "jpeg part", "plain jpeg", "plain png")
        and (encoding.colour, encoding.samples) in layouts
    )


def decode(
    data: bytes | bytearray | memoryview, encoding: Encoding, least: tuple[int, int], most: tuple[int, int]
) -> Pixels:
    """RGB uint8 [h, w, 3] as stored; (w, h) is `most`, the tile's size, or anything from `least` on at an edge.

    Raises:
        ValueError: the bytes are damaged, or hold an image of another size.
    """
    if encoding.codec in _HOLES:
        shortest, longest = _HOLES[encoding.codec]
        hole = min(max(len(data) // 4, shortest), longest)
        if bytes(data).find(bytes(hole)) >= 0:
            raise ValueError(f"has {hole} or more zero bytes inside: partly overwritten")
    declared = declared_size(data, encoding.codec)
    if declared and not _fits(declared, least, most):
        raise ValueError(f"declares {declared[0]}x{declared[1]} pixels, not {most[0]}x{most[1]}")
    try:
        samples = _samples(data, encoding, *most)
    except (ImportError, ValueError):
        raise
    except Exception as error:  # each codec has its own error type
        raise ValueError(f"does not decode as {encoding.codec}: {error}") from error
    if samples.ndim == 2:
        samples = samples[..., None]
    height, width = samples.shape[:2]
    if samples.dtype != np.uint8 or not _fits((width, height), least, most):
        raise ValueError(f"holds {width}x{height} {samples.dtype} pixels, not {most[0]}x{most[1]} uint8")
    return _to_rgb(samples, encoding)


def _fits(size: tuple[int, int], least: tuple[int, int], most: tuple[int, int]) -> bool:
    return least[0] <= size[0] <= most[0] and least[1] <= size[1] <= most[1]


def _samples(data: bytes | bytearray | memoryview, encoding: Encoding, width: int, height: int) -> NDArray:
    if encoding.scale > 1:
        return _scaled_jpeg(data, width, height)
    codecs = require("imagecodecs", "decoding slides")
    if encoding.codec in _IMAGES:
        first = {"index": 0} if encoding.codec == "jpegxl" else {}  # of an animation's frames
        return getattr(codecs, _IMAGES[encoding.codec] + "_decode")(data, **first)
    if encoding.codec.endswith("png"):
        return _png(data)
    row = width * encoding.samples
    if encoding.codec == "raw":
        values = np.frombuffer(data, np.uint8)
    else:
        unpack: Callable[..., bytes] = getattr(codecs, _ROWS[encoding.codec] + "_decode")
        values = np.frombuffer(unpack(data, out=height * row), np.uint8)  # no more than that: bombs raise
    if values.size == 0 or values.size % row:
        raise ValueError(f"holds {values.size} bytes, no whole rows of {row}: truncated")
    pixels = values[: height * row].reshape(-1, width, encoding.samples)
    return np.cumsum(pixels, axis=1, dtype=np.uint8) if encoding.predictor else pixels


def _scaled_jpeg(data: bytes | bytearray | memoryview, width: int, height: int) -> NDArray:
    """A JPEG decoded to a half, quarter or eighth by its transform, as OpenSlide's levels of NDPI are."""
    with require("PIL.Image", "decoding slides").open(BytesIO(data), formats=("JPEG",)) as image:
        image.draft(image.mode, (width, height))
        return np.asarray(image.convert("RGB"))


def _png(data: bytes | bytearray | memoryview) -> NDArray:
    """Any PNG as RGB or RGBA; Pillow handles palettes, transparent colours and fewer than 8 bits."""
    with require("PIL.Image", "decoding PNG").open(BytesIO(data), formats=("PNG",)) as image:
        has_alpha = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
        return np.asarray(image.convert("RGBA" if has_alpha else "RGB"))


def _to_rgb(samples: Pixels, encoding: Encoding) -> Pixels:
    has_alpha = encoding.alpha or (samples.shape[-1] == 4 and encoding.codec == "plain png")
    alpha = samples[..., -1:] if has_alpha else None
    if encoding.colour == "palette":
        pixels = np.frombuffer(encoding.palette, np.uint8).reshape(-1, 3)[samples[..., 0]]
    elif samples.shape[-1] <= 2:
        grey = ~samples[..., :1] if encoding.colour == "inverted" else samples[..., :1]
        pixels = np.repeat(grey, 3, axis=-1)
    else:
        pixels = samples[..., :3]
    if encoding.colour == "ycbcr" and encoding.codec != "jpeg":
        image = require("PIL.Image", "decoding slides").fromarray(np.ascontiguousarray(pixels), "YCbCr")
        pixels = np.asarray(image.convert("RGB"))
    return pixels if alpha is None else _over_background(pixels, alpha, encoding.alpha == "premultiplied")


def joined(planes: Sequence[Pixels], encoding: Encoding) -> Pixels:
    """RGB uint8 [h, w, 3] of red, green, blue and perhaps alpha, each uint8 [h, w]."""
    return _to_rgb(np.stack(planes, -1), encoding)


def _over_background(pixels: Pixels, alpha: Pixels, premultiplied: bool) -> Pixels:
    """Lay transparent pixels over the background."""
    share = alpha.astype(np.uint32)
    ours = pixels.astype(np.uint32) * (255 if premultiplied else share)
    return np.minimum((ours + (255 - share) * BACKGROUND + 127) // 255, 255).astype(np.uint8)
