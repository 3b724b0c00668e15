"""Small slides laid out as Leica, Philips and Ventana lay out theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from .slides import halved

TILE = 64
_SCN = "http://www.leica-microsystems.com/scn/2010/10/01"


def quartered(pixels: np.ndarray) -> np.ndarray:
    return halved(halved(pixels))


def pages(path: Path, parts: Sequence[tuple[np.ndarray, dict[str, Any]]], **options: Any) -> Path:
    """A BigTIFF of pages with the options of each, tiled if they say nothing else."""
    shared = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "jpeg", "metadata": None, **options}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for pixels, own in parts:
            file.write(pixels, **{**shared, **own})
    return path


def write_leica(
    path: Path,
    pixels: np.ndarray,
    macro: np.ndarray,
    *,
    offset: tuple[int, int] = (40, 60),
    pyramids: int = 1,
    light: str = "brightfield",
    change: Callable[[str], str] = str,
) -> Path:
    """A glass of 1000x2000 pixels of 500 nm with a pyramid of three levels at `offset`, and its picture."""
    levels = [pixels, halved(pixels), quartered(pixels)]
    nm = 500

    def image(view: Sequence[int], first: int, sizes: Sequence[np.ndarray]) -> str:
        x, y, width, height = view
        dimensions = "".join(
            f'<dimension sizeX="{one.shape[1]}" sizeY="{one.shape[0]}" r="{r}" ifd="{first + r}"/>'
            for r, one in enumerate(sizes)
        )
        return (
            f'<image name="i"><creationDate>2024-01-01</creationDate><device model="SCN400" version="1"/>'
            f'<pixels sizeX="{sizes[0].shape[1]}" sizeY="{sizes[0].shape[0]}">{dimensions}</pixels>'
            f'<view sizeX="{width}" sizeY="{height}" offsetX="{x}" offsetY="{y}"/>'
            f"<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
            f"<numericalAperture>0.4</numericalAperture><illuminationSource>{light}</illuminationSource>"
            f"</illuminationSettings></scanSettings></image>"
        )

    glass = 1000 * nm, 2000 * nm
    view = offset[0] * nm, offset[1] * nm, pixels.shape[1] * nm, pixels.shape[0] * nm
    xml = (
        f'<?xml version="1.0"?><scn xmlns="{_SCN}"><collection name="c" sizeX="{glass[0]}" sizeY="{glass[1]}">'
        f"<barcode>QUJD</barcode>{image((0, 0, *glass), 0, [macro])}{image(view, 1, levels) * pyramids}"
        "</collection></scn>"
    )
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    rest = [(level, scale if number == 0 else {"subfiletype": 1}) for number, level in enumerate(levels)]
    return pages(path, [(macro, {"description": change(xml)}), *rest])


def write_philips(
    path: Path,
    pixels: np.ndarray,
    label: np.ndarray,
    *,
    missing: Sequence[tuple[int, int]] = (),
    slides: int = 1,
    change: Callable[[str], str] = str,
) -> Path:
    """Three levels, each padded to whole tiles with white; `missing` (level, tile) have no bytes."""
    levels = [_padded(one) for one in (pixels, halved(pixels), quartered(pixels))]
    side = 0.0005

    def spacing(number: int) -> str:
        value = f"&quot;{side * 2**number:.9f}&quot; &quot;{side * 2**number:.9f}&quot;"
        return f'<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030">{value}</Attribute>'

    told = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(number)}'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER">{number}</Attribute></DataObject>'
        for number in range(len(levels))
    )
    scan = (
        '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        '<Attribute Name="DICOM_DERIVATION_DESCRIPTION">tiff-useBigTIFF=1-levels=20,10002-x=y</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{told}</Array></Attribute>'
        f"{spacing(0)}</DataObject>"
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_MANUFACTURER">PHILIPS</Attribute>'
        f'<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>{scan * slides}</Array></Attribute></DataObject>'
    )
    parts: list[tuple[np.ndarray, dict[str, Any]]] = [(levels[0], {"description": change(xml)})]
    parts += [(level, {"subfiletype": 1, "description": f"level={n}"}) for n, level in enumerate(levels[1:], 1)]
    parts.append((label, {"subfiletype": 1, "description": "Label", "tile": None, "rowsperstrip": label.shape[0]}))
    pages(path, parts, software="Philips DP v1.0")
    for level, tile in missing:
        empty_tile(path, level, tile)
    return path


def _padded(pixels: np.ndarray) -> np.ndarray:
    below, right = -pixels.shape[0] % TILE, -pixels.shape[1] % TILE
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), constant_values=255)


def empty_tile(path: Path, page: int, tile: int) -> None:
    """Make a tile one that does not exist: no place, no bytes."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for code in (324, 325):
            tag = file.pages[page].tags[code]
            width = tag.valuebytecount // tag.count
            at = tag.valueoffset + tile * width
            data[at : at + width] = bytes(width)
    path.write_bytes(data)


def write_ventana(
    path: Path,
    pixels: np.ndarray,
    macro: np.ndarray,
    *,
    areas: int = 1,
    left: int = 0,
    overlap: int = 0,
    change: Callable[[str], str] = str,
) -> Path:
    """Two levels at 20x and 10x, of whole tiles, in `areas` areas (0: a file without areas) that begin at `left`."""
    columns, rows = pixels.shape[1] // TILE, pixels.shape[0] // TILE
    iscan = '<iScan ScanRes="0.5" Magnification="20" UnitNumber="2000515" BuildVersion="3.3"/>'
    # Tiles are numbered from the bottom, every other row from right to left.
    numbers = np.arange(1, columns * rows + 1).reshape(rows, columns)
    numbers[1::2] = numbers[1::2, ::-1]
    numbers = numbers[::-1]
    joints = [(numbers[row, at], numbers[row, at + 1], "RIGHT") for row in range(rows) for at in range(columns - 1)]
    joints += [(numbers[row, at], numbers[row - 1, at], "UP") for row in range(1, rows) for at in range(columns)]
    told = "".join(
        f'<TileJointInfo Tile1="{one}" Tile2="{other}" Direction="{where}" Confidence="98" '
        f'OverlapX="{overlap if where == "RIGHT" else 0}" OverlapY="0"/>'
        for one, other, where in joints
    )
    info = (
        f'<ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{rows}" NumCols="{columns}" Width="{TILE}" Height="{TILE}" '
        f'Pos-X="{left}" Pos-Y="0">{told}</ImageInfo>'
    )
    origins = "".join(f'<AOI{number} OriginX="0" OriginY="0"/>' for number in range(areas))
    encode = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo>{info * areas}</SlideStitchInfo><AoiOrigin>{origins}</AoiOrigin>'
        "</EncodeInfo>"
    )
    parts: list[tuple[np.ndarray, dict[str, Any]]] = [
        (macro, {"description": "Label_Image", "tile": None, "extratags": [_packet(iscan)]})
    ]
    for number, level in enumerate([pixels, halved(pixels)]):
        tags = [_packet(change(encode))] if areas and not number else []
        words = f"level={number} mag={20 / 2**number:g} quant=95"
        parts.append((level, {"description": words, "extratags": tags, "subfiletype": int(number > 0)}))
    return pages(path, parts, software="ScanOutputManager 1.1.0.15854")


def _packet(xml: str) -> tuple[int, int, int, bytes, bool]:
    data = xml.encode()
    return 700, 1, len(data), data, True
