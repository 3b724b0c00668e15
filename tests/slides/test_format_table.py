"""The table of formats of docs/slides.md: each row is written as a file, opened, and compared with other readers."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers.ndpi_slides import write_ndpi
from helpers.paths import ROOT
from helpers.slides import TILE, halved, tissue_like, write_jpeg_with_tables, write_tiff
from helpers.vendor_slides import quartered, write_leica, write_philips, write_ventana
from PIL import Image

from fastmtl import data

openslide = pytest.importorskip("openslide")
PIXELS, SMALL = tissue_like(512, 384), tissue_like(120, 200, seed=3)
_APERIO = "Aperio Image Library\n512x384 (64x64) JPEG/RGB|AppMag = 20|MPP = 0.5"


class Format(NamedTuple):
    """A row: what the file is, how it is written, how its levels are stored."""

    name: str
    write: Callable[[Path], Path]
    levels: str


def tiff(name, **options):
    return Format(name, lambda path: write_tiff(path, PIXELS, levels=2, **options), "pages")


def aperio(path):
    """Tables once, colour by the tag alone."""
    tags = [(270, 2, len(_APERIO) + 1, _APERIO, True)]
    return write_jpeg_with_tables(path, PIXELS, "rgb", tags=tags)


def ome(path):
    tiled = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as file:
        scale = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
        file.write(PIXELS, subifds=1, metadata={"axes": "YXS", **scale}, **tiled)
        file.write(halved(PIXELS), subfiletype=1, **tiled)
    return path


def ome_planes(path):
    with tifffile.TiffWriter(path, ome=True) as file:
        words = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}, "PhysicalSizeX": 0.5}
        words |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
        file.write(
            np.moveaxis(PIXELS, -1, 0), metadata=words, photometric="minisblack", tile=(TILE, TILE), compression="lzw"
        )
    return path


def strips(path):
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=16, compression="lzw", metadata=None, **scale)
    return path


def picture(path, kind):
    if kind == "jpeg 2000":
        path.write_bytes(imagecodecs.jpeg2k_encode(PIXELS, level=0))
    else:
        Image.fromarray(PIXELS).save(path, kind)
    return path


def dicom(name, **options):
    def write(path):
        pytest.importorskip("pydicom")
        from helpers.dicom_slides import write_dicom

        return write_dicom(path, PIXELS, **options)

    return Format(name, write, "files")


def ome_zarr(name, **options):
    def write(path):
        pytest.importorskip("zarr")
        from helpers.zarr_slides import write_zarr

        return write_zarr(path, PIXELS, **options)

    return Format(name, write, "arrays")


FORMATS = [
    Format("Aperio SVS", aperio, "pages"),
    tiff("tiled TIFF, BigTIFF", compression="jpeg", bigtiff=True),
    tiff("tiled TIFF", compression="jpeg2000"),
    tiff("tiled TIFF", compression="webp", compressionargs={"lossless": True}),
    tiff("tiled TIFF", compression="jpegxl"),
    tiff("tiled TIFF", compression="png"),
    tiff("tiled TIFF", compression="lzw", predictor=True),
    tiff("tiled TIFF", compression="deflate"),
    tiff("tiled TIFF", compression="zstd"),
    tiff("tiled TIFF", compression="lzma"),
    tiff("tiled TIFF", compression="packbits"),
    tiff("tiled TIFF"),
    Format("TIFF in strips", strips, "one"),
    Format("OME-TIFF", ome, "SubIFDs"),
    Format("OME-TIFF, a page for each colour", ome_planes, "one"),
    Format("Hamamatsu NDPI", lambda path: write_ndpi(path, [PIXELS, quartered(PIXELS)], SMALL), "pages and between"),
    Format("Leica SCN", lambda path: write_leica(path, PIXELS, SMALL), "pages"),
    Format("Leica SCN of several areas", lambda path: write_leica(path, PIXELS, SMALL, pyramids=2), "pages"),
    Format("Philips TIFF", lambda path: write_philips(path, PIXELS, SMALL), "pages"),
    Format("Ventana BIF, TIFF", lambda path: write_ventana(path, PIXELS, SMALL), "pages"),
    Format("Ventana BIF of several areas", lambda path: write_ventana(path, PIXELS, SMALL, areas=2), "pages"),
    Format("Ventana BIF, tiles overlap", lambda path: write_ventana(path, PIXELS, SMALL, overlap=4), "pages"),
    dicom("DICOM"),
    dicom("DICOM, TILED_SPARSE", codec="jpeg2000", photometric="YBR_RCT", organisation="TILED_SPARSE"),
    dicom("DICOM", codec="jpeg2000 lossy", photometric="YBR_ICT"),
    dicom("DICOM", codec="raw", photometric="RGB"),
    ome_zarr("OME-Zarr 0.4", version="0.4"),
    ome_zarr("OME-Zarr 0.5 in shards", shard=2),
    Format("PNG file", lambda path: picture(path, "png"), "one"),
    Format("JPEG file", lambda path: picture(path, "jpeg"), "one"),
    Format("JPEG 2000 file", lambda path: picture(path, "jpeg 2000"), "one"),
]
_CODECS = {"jpeg": "JPEG", "jpeg2000": "JPEG 2000", "webp": "WebP", "jpegxl": "JPEG XL", "png": "PNG", "lzw": "LZW"}
_CODECS |= {"deflate": "Deflate", "zstd": "Zstandard", "lzma": "LZMA", "packbits": "PackBits", "raw": "none"}
_CODECS |= {"plain png": "PNG", "plain jpeg": "JPEG", "jpeg part": "JPEG"}


def by_openslide(path, level):
    with openslide.OpenSlide(path / "level-0.dcm" if path.is_dir() else path) as slide:
        found = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
        return np.where(found[..., 3:] > 0, found[..., :3], np.uint8(240))


def by_tifffile(path, level):
    with tifffile.TiffFile(path) as file:
        if file.is_scn or file.is_philips or file.is_bif or file.is_ndpi:
            raise ValueError("places, paddings and levels between are not its matter")
        found = file.series[0].levels[level].asarray()
        return np.moveaxis(found, 0, -1) if found.shape[0] == 3 else found


def by_pillow(path, _level):
    with Image.open(path, formats=("PNG", "JPEG", "JPEG2000")) as image:
        return np.asarray(image.convert("RGB"))


def by_pydicom(path, level):
    """The frames, each decoded by itself."""
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dcmread(path / f"level-{level}.dcm")
    pixels = np.zeros((file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns, 3), np.uint8)
    for number, frame in enumerate(pydicom.pixels.iter_pixels(file)):
        down, across = divmod(number, -(-pixels.shape[1] // TILE))
        place = pixels[down * TILE : (down + 1) * TILE, across * TILE : (across + 1) * TILE]
        place[:] = frame[: place.shape[0], : place.shape[1]]
    return pixels


def by_zarr(path, level):
    zarr = pytest.importorskip("zarr")
    return np.moveaxis(zarr.open_array(str(path / str(level)), mode="r")[0, :, 0], 0, -1)


READERS = {"OpenSlide": by_openslide, "tifffile": by_tifffile, "Pillow": by_pillow}
READERS |= {"pydicom": by_pydicom, "zarr": by_zarr}


def equal_to(path: Path, slide: data.Slide) -> str:
    """The readers that open the file and give the same pixels of all levels."""
    found = []
    for name, read in READERS.items():
        for number, level in enumerate(slide.levels):
            try:
                other = read(path, number)
            except Exception:  # not a format of this reader
                break
            if not np.array_equal(slide.read_region(0, 0, level.width, level.height, number), other):
                break
        else:
            found.append(name)
    return ", ".join(found)


def row_of(one: Format, folder: Path) -> str:
    path = one.write(folder / "slide.any")
    layout = data.index_slide(path).layout
    with data.open_slide(path) as slide:
        encoding = slide.encoding()
        assert (len(slide.levels) > 1) == (one.levels != "one") or one.name == "Aperio SVS"
        codec = _CODECS[encoding.codec] if encoding else "any"
        reader = {"native": "fastmtl", "openslide": "OpenSlide", "zarr": "zarr"}[layout.reader]
        return (
            f"| {one.name} | {codec} | {one.levels} | {slide.mpp_source or '-'} | {reader} | {equal_to(path, slide)} |"
        )


@pytest.mark.parametrize("number", range(len(FORMATS)))
def test_the_table_of_formats_is_true(tmp_path, number):
    assert row_of(FORMATS[number], tmp_path) in (ROOT / "docs" / "slides.md").read_text(encoding="utf-8").splitlines()


def test_the_table_has_no_other_rows():
    page = (ROOT / "docs" / "slides.md").read_text(encoding="utf-8")
    table = page.split("| file | codec |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(FORMATS)
