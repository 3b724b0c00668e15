"""Slides of other formats (MIRAX, ...), read by OpenSlide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ...utils.optional_imports import require
from ..dataset import BACKGROUND
from .codecs import Pixels
from .errors import DamagedPieceError, SlideError
from .orientation import Box
from .raster import Layout, Level
from .scale import believed, number

if TYPE_CHECKING:
    from openslide import OpenSlide
    from PIL.Image import Image


def scan_with_openslide(path: Path, max_pixels: int) -> Layout:
    """Scan a slide with OpenSlide.

    Raises:
        ImportError: OpenSlide is not installed; says how to install it.
        SlideError: OpenSlide cannot read the file either.
    """
    slide = _open(path)
    try:
        words = slide.properties
        width, height = slide.dimensions
        if width * height > max_pixels:
            raise SlideError(path, f"declares {width}x{height} pixels, more than max_pixels={max_pixels:,}")
        levels = []
        sizes = zip(slide.level_dimensions, slide.level_downsamples, strict=True)
        for at, ((w, h), downsample) in enumerate(sizes):
            if not 0 < downsample < float("inf"):
                raise SlideError(path, f"OpenSlide gives level {at} the downsample {downsample:g}: damaged metadata")
            tile = [_number(words, f"openslide.level[{at}].tile-{side}") for side in ("width", "height")]
            levels.append(Level(w, h, downsample, *(int(length or 256) for length in tile)))
        x, y = _number(words, "openslide.mpp-x"), _number(words, "openslide.mpp-y")
        magnification = _number(words, "openslide.objective-power")
        scale = believed((x, y) if x and y else None, "OpenSlide", "its properties", magnification)
        bounds = [_number(words, f"openslide.bounds-{side}") for side in ("x", "y", "width", "height")]
        whole = (0, 0, width, height)
        return Layout(
            reader="openslide",
            vendor=str(words.get("openslide.vendor", "")),
            levels=tuple(levels),
            mpp=scale.mpp,
            mpp_source=scale.source,
            why_no_mpp=scale.why_no_mpp,
            magnification=magnification,
            bounds=_box([whole[side] if value is None else int(value) for side, value in enumerate(bounds)]),
            problems=scale.said,
        )
    finally:
        slide.close()


class OpenSlideReader:
    """Reads pixels with OpenSlide; the file is opened on first use. Thread-safe."""

    def __init__(self, path: Path, levels: tuple[Level, ...]):
        self._path, self._levels = path, levels
        self._slide: OpenSlide | None = None
        self._opening = Lock()

    def close(self) -> None:
        with self._opening:
            if self._slide is not None:
                self._slide.close()
                self._slide = None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """RGB uint8 [height, width, 3]; x, y in level-0 pixels."""
        openslide = require("openslide", "reading this slide", extra="wsi")
        try:
            part = self._opened().read_region((x, y), level, (width, height))
        except openslide.OpenSlideError as error:
            self.close()  # OpenSlide refuses every read after an error
            raise DamagedPieceError(self._path, (x, y, level), str(error)) from error
        return _on_background(part)

    def associated_names(self) -> tuple[str, ...]:
        return tuple(self._opened().associated_images)

    def associated(self, name: str) -> Pixels:
        """RGB uint8 [h, w, 3]."""
        openslide = require("openslide", "reading this slide", extra="wsi")
        try:
            return _on_background(self._opened().associated_images[name])
        except openslide.OpenSlideError as error:
            self.close()
            raise SlideError(self._path, f"its {name} picture cannot be read: {error}") from error

    def _opened(self) -> OpenSlide:
        with self._opening:
            if self._slide is None:
                self._slide = _open(self._path)
            return self._slide


def _open(path: Path) -> OpenSlide:
    openslide = require(
        "openslide", f"opening {path.name}, which is no TIFF or image that fastmtl reads itself,", "wsi"
    )
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(path, "neither a slide nor an image: its content is of no known format") from error
    except openslide.OpenSlideError as error:
        raise SlideError(path, f"OpenSlide cannot open it: {error}") from error


def _on_background(picture: Image) -> Pixels:
    """Lay an RGBA image over the background: transparent parts were never scanned."""
    image = require("PIL.Image", "reading slides")
    canvas = image.new("RGB", picture.size, (BACKGROUND,) * 3)
    canvas.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    return np.asarray(canvas)


def _number(words: Mapping[str, str], name: str) -> float | None:
    return number(words[name]) if name in words else None


def _box(values: list[int]) -> Box:
    x, y, width, height = values
    return x, y, width, height
