"""Damage in any place of a slide's headers and directories gives pixels, or one line: never another error, never more
memory or time than a sound file."""

import logging
import time
import tracemalloc

import numpy as np
import pytest
import tifffile
from helpers.ndpi_slides import write_ndpi
from helpers.slides import TILE, halved, tissue_like
from helpers.vendor_slides import write_leica, write_philips, write_ventana

from fastmtl import data

PIXELS = tissue_like(200, 140)
PLANES = np.ascontiguousarray(np.moveaxis(PIXELS, -1, 0))
TILED = {"tile": (TILE, TILE), "photometric": "rgb"}
EXAMPLES = 40
MEGABYTE = 2**20


def _aperio(file):
    words = "Aperio Image Library v1\n200x140 (64x64)|AppMag = 20|MPP = 0.4990"
    file.write(PIXELS, description=words, compression="jpeg", metadata=None, **TILED)
    file.write(halved(PIXELS), description=words, compression="jpeg", metadata=None, **TILED)


def _ome(file):
    channels = {
        "axes": "CYX",
        "Channel": {"Name": ["Red", "Green", "Blue"]},
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.5,
    }
    options = {"tile": (TILE, TILE), "photometric": "minisblack", "compression": "deflate"}
    file.write(PLANES, subifds=1, metadata=channels, **options)
    file.write(np.ascontiguousarray(PLANES[:, ::2, ::2]), subfiletype=1, **options)


def _planar(file):
    file.write(PLANES, planarconfig="separate", compression="lzw", metadata=None, **TILED)


def _strips(file):
    file.write(PIXELS, photometric="rgb", compression="deflate", predictor=True, rowsperstrip=30, metadata=None)


def _written(write, **options):
    def to(path):
        with tifffile.TiffWriter(path, **options) as file:
            write(file)

    return to


_LARGE, _MACRO = tissue_like(256, 192), tissue_like(60, 100)
WRITERS = {
    "aperio": _written(_aperio),
    "ome": _written(_ome, ome=True),
    "planar": _written(_planar, bigtiff=True),
    "strips": _written(_strips),
    "hamamatsu": lambda path: write_ndpi(path, [_LARGE, halved(halved(_LARGE))], _MACRO),
    "leica": lambda path: write_leica(path, _LARGE, _MACRO),
    "philips": lambda path: write_philips(path, _LARGE, _MACRO, missing=[(0, 1)]),
    "ventana": lambda path: write_ventana(path, _LARGE, _MACRO),
}


def _header_bytes(path):
    """Where the file says something but pixels."""
    with tifffile.TiffFile(path) as file:
        pixels = np.zeros(path.stat().st_size, bool)
        tops = [page.aspage() for page in file.pages]
        for page in [*tops, *(each.aspage() for top in tops for each in top.pages or ())]:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                pixels[offset : offset + count] = True
    return np.flatnonzero(~pixels)


def _damaged(stored, places, rng):
    """One to four bytes changed among `places`, or the end cut off."""
    if rng.random() < 0.2:
        return stored[: int(rng.integers(1, len(stored)))]
    changed = bytearray(stored)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.choice(places))
        changed[at] = rng.choice([0, 1, 255, changed[at] ^ (1 << int(rng.integers(8))), int(rng.integers(256))])
    return bytes(changed)


def _look(path):
    with data.open_slide(path) as slide:
        for number, level in enumerate(slide.levels):
            region = data.Region(path, 0, 0, min(level.width, 256), min(level.height, 256), number)
            assert slide.read_region(0, 0, region.width, region.height, number).shape == (
                region.height,
                region.width,
                3,
            )
            slide.encoded_tiles(region)
        for name in slide.associated_names[:2]:
            if "page" not in name:
                slide.associated(name)


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_headers_give_pixels_or_one_line(tmp_path, kind):
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    sound, path = tmp_path / "sound.tif", tmp_path / "damaged.tif"
    WRITERS[kind](sound)
    stored, places, rng = sound.read_bytes(), _header_bytes(sound), np.random.default_rng(0)
    _look(sound)
    refused = []
    tracemalloc.start()
    try:
        for _ in range(EXAMPLES):
            path.write_bytes(_damaged(stored, places, rng))
            begin = time.perf_counter()
            try:
                _look(path)
            except data.SlideError as error:
                refused.append(str(error))
            assert time.perf_counter() - begin < 10
        assert tracemalloc.get_traced_memory()[1] < 400 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert all(str(path) in line and "\n" not in line for line in refused)
    assert EXAMPLES > len(refused) > EXAMPLES // 10


def _dicom(folder):
    pytest.importorskip("pydicom")
    from helpers.dicom_slides import write_dicom

    write_dicom(folder, PIXELS, organisation="TILED_SPARSE", beside=False)
    return sorted(folder.glob("*.dcm"))


def _zarr(folder):
    pytest.importorskip("zarr")
    from helpers.zarr_slides import write_zarr

    write_zarr(folder, PIXELS)
    return sorted(folder.rglob("zarr.json"))


@pytest.mark.parametrize("write", [_dicom, _zarr])
def test_damaged_files_of_a_folder_give_pixels_or_one_line(tmp_path, write):
    folder = tmp_path / "slide"
    files = [(path, path.read_bytes()) for path in write(folder)]
    rng, refused = np.random.default_rng(0), []
    for number in range(EXAMPLES):
        path, stored = files[number % len(files)]
        path.write_bytes(_damaged(stored, np.arange(min(len(stored), 2500)), rng))
        begin = time.perf_counter()
        try:
            _look(folder)
        except data.SlideError as error:
            refused.append(str(error))
        assert time.perf_counter() - begin < 10
        path.write_bytes(stored)
    assert all(line.startswith(str(folder)) and "\n" not in line and "SECRET" not in line for line in refused)
    assert len(refused) > EXAMPLES // 10
