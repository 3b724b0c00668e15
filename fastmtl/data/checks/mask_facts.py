"""The values of masks, counted once per version of their file."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..dataset import ImageSource, Region
from ..images.pictures import decode_image, file_of, opened_image, read_encoded
from ..slides.opened import opened

if TYPE_CHECKING:
    from PIL.Image import Image

MANY_VALUES = 32
"""Masks with more values have soft edges; those with fewer may hold labels."""

_LOSSY = ("jpeg", "plain jpeg", "jpeg2000", "webp", "jpegxl")
_PLAIN = (b"", b"\x00", b"\xff", b"\x00\xff")
_MOST_KNOWN = 2**18  # masks remembered, each about half a kilobyte


@dataclass(frozen=True, eq=False, slots=True)
class MaskFacts:
    """The contents of a mask.

    Attributes:
        values: uint8 [n], ascending: all values of any channel.
        pixels: int64 [C, n], pixels of each value by channel; C is 1 where all channels are equal. A sample counts its
            evenly spread regions: a value that appears only elsewhere has 0.
        solid: int64 [n], pixels whose eight neighbours have the same value: thin lines and soft edges have none. Zeros
            where all values are 0 and 255, where more than `MANY_VALUES` cover little, and for lossy files.
        channels: declared by the picture.
        is_lossy: whether it is stored as JPEG or similar: values are only near those that were drawn.
        is_sample: whether only parts of it were read.
    """

    values: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    solid: NDArray[np.int64]
    channels: int = 1
    is_lossy: bool = False
    is_sample: bool = False

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 [256], pixels by value, of all channels together."""
        found = np.zeros(256, np.int64)
        found[self.values] = self.plane()
        return found

    @property
    def top(self) -> int:
        """The largest value; 0 of a mask without pixels."""
        return int(self.values[-1]) if len(self.values) else 0

    @property
    def is_plain(self) -> bool:
        """Whether it is clearly one structure: grey, with 0 and 255, or with soft edges between them."""
        if len(self.pixels) > 1 or self.values.tobytes() in _PLAIN:
            return len(self.pixels) == 1
        return len(self.values) > 8 and self.top > _HALF and not self.solid.any()

    def plane(self, channel: int | None = None) -> NDArray[np.int64]:
        """int64 [n], `pixels` of a channel, of which a grey mask has one; of all channels together for None."""
        return self.pixels.sum(0) if channel is None else self.pixels[min(channel, len(self.pixels) - 1)]

    def share(self, above: int = 0) -> float:
        """The fraction of pixels with a value above `above`; 0 if none was counted."""
        total = int(self.pixels.sum())
        return float(self.pixels[:, self.values > above].sum()) / total if total else 0.0


def count_mask(picture: ImageSource) -> MaskFacts:
    """The contents of a mask, from all its pixels; cached until its file changes.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    if isinstance(picture, Path):
        return _remembered(picture, lambda: _of_file(picture))
    if isinstance(picture, Region):
        return _remembered(picture, lambda: _of_region(picture))
    return _remembered(picture, lambda: facts_of(picture.draw()))


def pixels_above(
    facts: Sequence[MaskFacts], threshold: int, channel: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels above `threshold` in each of N masks, and all pixels: int64 [N] each.

    Args:
        facts: of the masks.
        threshold: 0..255.
        channel: the one that is counted; None counts all channels together.
    """
    owner = np.repeat(np.arange(len(facts)), [len(one.values) for one in facts])
    pixels = np.concatenate([one.plane(channel) for one in facts])
    above = np.concatenate([one.values for one in facts]) > threshold
    found = (np.bincount(owner, weights, len(facts)).astype(np.int64) for weights in (pixels * above, pixels))
    return next(found), next(found)


def total_counts(facts: Sequence[MaskFacts]) -> NDArray[np.int64]:
    """int64 [256], pixels by value, of all masks and channels together."""
    return sum((one.counts for one in facts), np.zeros(256, np.int64))


def recall(picture: ImageSource) -> MaskFacts | None:
    """The cached result of `count_mask`; None if it would have to read the mask."""
    return _known.get(_key(picture))


def note_facts(path: Path, facts: MaskFacts) -> None:
    """Cache the contents of the mask `path`, which are known."""
    _remembered(path, lambda: facts)


def note_image(path: Path, image: Image) -> None:
    """Count and cache the mask `path`, opened as a Pillow image that is decoded anyway."""
    _remembered(path, lambda: _of_image(image))


def note_drawing(picture: ImageSource, pixels: NDArray[np.uint8]) -> None:
    """Count and cache the drawn mask `picture`."""
    _remembered(picture, lambda: facts_of(pixels))


def facts_of(pixels: NDArray[np.uint8], *, channels: int = 0, is_lossy: bool = False) -> MaskFacts:
    """The contents of uint8 [h, w] or [h, w, C]; `channels` is the declared number if it is not C."""
    declared = channels or (pixels.shape[2] if pixels.ndim == 3 else 1)
    if pixels.ndim == 3:
        planes = [np.ascontiguousarray(pixels[..., channel]) for channel in range(pixels.shape[2])]
        if all(_equal(plane, planes[0], is_lossy) for plane in planes[1:]):
            planes = planes[:1]
    else:
        planes = [pixels]
    counts = np.stack([np.bincount(plane.reshape(-1), minlength=256) for plane in planes])
    return _facts(counts, lambda: planes, declared, is_lossy)


def merged(facts: Sequence[MaskFacts], extra: Sequence[MaskFacts] = (), *, is_sample: bool = False) -> MaskFacts:
    """Merge several parts of a mask. Parts in `extra` were selected by content: their pixels count for coloured masks,
    to distinguish the channels, but not for the fractions of grey ones."""
    if len(facts) == 1 and not extra:
        return facts[0]
    every = [*facts, *extra]
    planes = max((one.pixels.shape[0] for one in every), default=1)
    counts, solid, seen = np.zeros((planes, 256), np.int64), np.zeros(256, np.int64), np.zeros(256, bool)
    for number, one in enumerate(every):
        seen[one.values] = True
        solid[one.values] += one.solid
        if number < len(facts) or planes > 1:
            counts[:, one.values] += one.pixels  # what is grey is the same in all channels
    values = np.flatnonzero(seen)
    channels = max((one.channels for one in every), default=1)
    lossy = any(one.is_lossy for one in every)
    return MaskFacts(values.astype(np.uint8), counts[:, values], solid[values], channels, lossy, is_sample)


def check_mode(image: Image) -> None:
    """ValueError if a Pillow image cannot be a mask: it has a palette, colours, or its shape in the alpha channel."""
    if image.mode in ("P", "PA"):
        raise ValueError(
            "is a palette mask, its values are colours; save it as 8-bit grey: 0 and 255, or class indices"
        )
    if image.mode not in ("L", "LA", "1"):
        red, green, blue = image.convert("RGB").split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            raise ValueError("is a coloured mask; save it as 8-bit grey: 0 and 255, or class indices")
    if image.mode not in ("LA", "RGBA", "La", "RGBa"):
        return
    alpha = image.getchannel(image.getbands()[-1])
    if alpha.getextrema()[0] == 255:
        return
    grey, clear = np.asarray(image.getchannel(0)), np.asarray(alpha) <= _HALF
    if grey.size and (grey == grey.flat[0]).all():
        raise ValueError(
            f"is {grey.flat[0]} everywhere and has its shape in the alpha channel, which is not read; save the alpha "
            "channel as 8-bit grey"
        )
    if (clear & (grey > 0)).any():
        raise ValueError(
            "has pixels above 0 that its alpha channel makes transparent, and alpha is not read; save it as 8-bit grey "
            "without alpha"
        )


_NEAR = 8  # grey levels between the channels of a grey picture that JPEG stored as a coloured one
_HALF = 127  # of alpha: up to it, a pixel counts as transparent
_known: dict[Hashable, MaskFacts] = {}


def _remembered(picture: ImageSource, count: Callable[[], MaskFacts]) -> MaskFacts:
    """The cached facts of a picture whose file did not change, else the result of `count`."""
    key = _key(picture)
    known = _known.get(key)
    if known is None:
        known = count()
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        if key is not None:
            _known[key] = known
    return known


def _key(picture: ImageSource) -> Hashable:
    """A picture and the state of its file; None without a hash, or without the file."""
    file = file_of(picture)
    try:
        hash(picture)
        state = file.stat() if file != Path() else None
    except (OSError, TypeError):
        return None
    return picture, state and (state.st_mtime_ns, state.st_size)


def _of_file(path: Path) -> MaskFacts:
    with opened_image(read_encoded(path)) as image:
        image.load()
        return _of_image(image)


def _of_image(image: Image) -> MaskFacts:
    """Facts of a Pillow image that passed `check_mode`, so it is grey in any mode."""
    if image.mode not in ("L", "1"):
        image = image.getchannel(0)
    counts = np.array(image.histogram()[:256], np.int64)[None]
    lossy = image.format in ("JPEG", "MPO", "JPEG2000", "WEBP")
    return _facts(counts, lambda: [np.asarray(image.convert("L"))], 1, lossy)


def _facts(
    counts: NDArray[np.int64], planes: Callable[[], Sequence[NDArray[np.uint8]]], channels: int, is_lossy: bool
) -> MaskFacts:
    values = np.flatnonzero(counts[0] if len(counts) == 1 else counts.any(0))
    solid = np.zeros(256, np.int64)
    if not is_lossy and _may_be_labels(values, counts):
        for plane in planes():
            solid += np.bincount(_solid(plane), minlength=256)
    return MaskFacts(values.astype(np.uint8), counts[:, values], solid[values], channels, is_lossy)


def _may_be_labels(values: NDArray[np.int64], counts: NDArray[np.int64]) -> bool:
    """Whether solid areas must be counted: not with 0 and 255 alone, nor where many values cover little, since finding
    areas in all soft edges would take as long as decoding them."""
    if len(values) <= 2 and {*values.tolist()} <= {0, 255}:
        return False
    if len(values) <= MANY_VALUES or values[-1] <= _HALF:
        return True
    return 10 * int(counts[:, 1 : _HALF + 1].sum()) > int(counts[:, 1:].sum())


def _equal(one: NDArray[np.uint8], other: NDArray[np.uint8], is_lossy: bool) -> bool:
    if not is_lossy:
        return bool((one == other).all())
    return int((np.maximum(one, other) - np.minimum(one, other)).max(initial=0)) <= _NEAR


def _solid(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The values of pixels whose eight neighbours have the same value."""
    if min(plane.shape) < 3:
        return np.zeros(0, np.uint8)
    rows = (plane[:-2] == plane[1:-1]) & (plane[2:] == plane[1:-1])
    middle = plane[1:-1]
    beside = (middle[:, :-2] == middle[:, 1:-1]) & (middle[:, 2:] == middle[:, 1:-1])
    return middle[:, 1:-1][beside & rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]]


def _of_region(region: Region) -> MaskFacts:
    slide = opened(region.slide)
    encoding = slide.encoding(region.level)
    pixels = read_mask_region(region)
    if encoding is None:
        return facts_of(pixels)
    is_grey = encoding.colour in ("grey", "inverted")
    return facts_of(pixels, channels=1 if is_grey else pixels.shape[2], is_lossy=encoding.codec in _LOSSY)


def read_mask_region(region: Region) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] as the loader reads a mask: 0 outside the slide."""
    canvas = np.zeros((region.height, region.width, 3), np.uint8)
    for piece in opened(region.slide).encoded_tiles(region):
        pixels = piece.pixels
        if pixels is None:
            assert piece.data is not None
            pixels = decode_image(piece.data.tobytes())
        pixels = pixels[: piece.height, : piece.width]
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        left, top = max(piece.x, 0), max(piece.y, 0)
        part = pixels[top - piece.y : region.height - piece.y, left - piece.x : region.width - piece.x]
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas
