"""PNG tiles decoded here: the pixels that Pillow and DALI give, and no picture made of damage."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiles import make_loader, random_pixels, write_folder
from PIL import Image

from fastmtl.data.images.png import decode_png
from fastmtl.data.loading.encoded_images import EncodedImages

pytest.importorskip("imagecodecs", reason="PNG is decompressed by imagecodecs")


def _smooth(height: int, width: int) -> np.ndarray:
    """RGB uint8 with gradients and a little noise: encoders choose all kinds of filters."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(height).integers(0, 4, (height, width, 3))
    return (np.stack([2 * x + y, x * y // 8, 255 - y], -1) + noise).astype(np.uint8)


def _filtered(pixels: np.ndarray, code: int) -> bytes:
    """Every row of [H, W, C] by one filter, written from PNG's definition: unlike Pillow's choice, none is missed."""
    height, width, channels = pixels.shape
    lines = np.zeros((height + 1, (width + 1) * channels), np.int64)
    lines[1:, channels:] = pixels.reshape(height, -1)
    here, left = lines[1:, channels:], lines[1:, :-channels]
    above, corner = lines[:-1, channels:], lines[:-1, :-channels]
    guess = left + above - corner
    distances = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)])
    paeth = np.choose(distances.argmin(0), [left, above, corner])
    predicted = [0 * here, left, above, (left + above) // 2, paeth][code]
    return b"".join(bytes([code]) + row.tobytes() for row in (here - predicted).astype(np.uint8))


def _png(rows: bytes, width: int, height: int, colour: int, *, extra: bytes = b"", cut: int = 2**30) -> bytes:
    """A file of filtered rows, its stream in chunks of at most `cut` bytes."""
    stream = zlib.compress(rows)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = b"".join(_chunk(b"IDAT", stream[at : at + cut]) for at in range(0, len(stream), cut))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + parts + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _saved(pixels: np.ndarray, **options) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("code", range(5))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 9), (33, 20)])
def test_every_filter_is_undone(code, channels, size):
    for pixels in (_smooth(*size), random_pixels(1, 64)[: size[0], : size[1]]):
        pixels = pixels[..., :channels]
        data = _png(_filtered(pixels, code), size[1], size[0], {1: 0, 3: 2}[channels], cut=11)
        assert np.array_equal(np.asarray(Image.open(BytesIO(data))).reshape(pixels.shape), pixels)  # the test's own PNG
        assert np.array_equal(decode_png(data, channels), pixels)


def test_what_decoders_turn_or_blend_is_left_to_them():
    rgb = _smooth(8, 8)
    assert decode_png(_saved(rgb), 3) is not None
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_png(_saved(rgb), 1) is None
    assert decode_png(_saved(rgb[..., 0]), 3) is None
    assert decode_png(_saved(rgb, transparency=(1, 2, 3)), 3) is None
    assert decode_png(_saved(rgb, exif=exif), 3) is None
    assert decode_png(_saved(np.dstack([rgb, rgb[..., :1]])), 3) is None
    assert decode_png(_saved(rgb[..., 0].astype(np.uint16) * 257), 1) is None
    assert decode_png(_saved(rgb[..., 0] > 9), 1) is None
    palette = BytesIO()
    Image.fromarray(rgb).quantize(16).save(palette, "PNG")
    assert decode_png(palette.getvalue(), 3) is None
    interlaced = bytearray(_saved(rgb))
    interlaced[28] = 1
    interlaced[29:33] = struct.pack(">I", zlib.crc32(interlaced[12:29]))
    assert decode_png(bytes(interlaced), 3) is None


def test_no_damage_makes_a_picture():
    pixels = _smooth(40, 40)
    data = _saved(pixels)
    for length in range(8, len(data) - 8, 7):
        with pytest.raises(ValueError, match="PNG"):
            decode_png(data[:length], 3)
    bits = np.random.default_rng(0)
    for at in bits.integers(8, len(data) - 12, 200).tolist():
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << int(bits.integers(8))
        try:
            found = decode_png(bytes(spoiled), 3)
        except ValueError:
            continue
        assert found is None or np.array_equal(found, pixels)  # a bit that says nothing of the pixels
    half = bytearray(data)
    half[len(half) // 2 : -20] = bytes(len(half[len(half) // 2 : -20]))
    with pytest.raises(ValueError, match="PNG"):
        decode_png(bytes(half), 3)


def test_a_wrong_filter_and_a_bomb_are_said():
    with pytest.raises(ValueError, match="row 1 has a filter"):
        decode_png(_png(bytes([0, 1, 2, 3, 9, 1, 2, 3]), 1, 2, 2), 3)
    with pytest.raises(ValueError, match="60000x60000 pixels, more than"):
        decode_png(_png(bytes(64), 60_000, 60_000, 2), 3)
    with pytest.raises(ValueError, match="not 16"):
        decode_png(_png(bytes(8), 1, 4, 2), 3)


@pytest.mark.parametrize("kind", ["mask", "masks", "classes"])
def test_batches_are_those_of_dali(tmp_path: Path, kind: str):
    pytest.importorskip("nvidia.dali", reason="the loader needs DALI")
    folder = write_folder(tmp_path, {"A": 4, "B": 4})
    Image.open(folder.tiles[0].image).quantize(32).save(folder.tiles[0].image)
    Image.open(folder.tiles[1].image).convert("L").save(folder.tiles[1].image)
    Image.open(folder.tiles[2].image).convert("RGBA").save(folder.tiles[2].image)
    Image.open(folder.tiles[3].mask).convert("RGB").save(folder.tiles[3].mask)
    gamma = Image.open(folder.tiles[4].image)
    folder.tiles[4].image.write_bytes(_saved(np.asarray(gamma), pnginfo=_gamma()))
    batches = [
        list(make_loader(folder.tiles, targets={"map": kind}, pictures=EncodedImages(decode_png=ours)))
        for ours in (True, False)
    ]
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets["map"], theirs.targets["map"])


def _gamma():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", 30_000))
    info.add(b"sBIT", bytes([5, 5, 5]))
    return info
