"""DICOM whole-slide images that the slide tests write, with pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, generate_uid

from fastmtl import data
from helpers.slides import TILE, halved, tissue_like

PIXELS = tissue_like(300, 210)  # five by four tiles
SPARSE = {"organisation": "TILED_SPARSE", "keep": [0, 1, 3, 7, 8, 12, 19]}
SYNTAX = {
    "raw": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "jpeg2000 lossy": "1.2.840.10008.1.2.4.91",
}


def frames(pixels: np.ndarray, tile: int = TILE) -> list[np.ndarray]:
    """The tiles of an image, row by row, those at its edge padded."""
    found = []
    for top in range(0, pixels.shape[0], tile):
        for left in range(0, pixels.shape[1], tile):
            part = pixels[top : top + tile, left : left + tile]
            missing = ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0))
            found.append(np.ascontiguousarray(np.pad(part, missing, mode="edge")))
    return found


def encoded(frame: np.ndarray, codec: str, photometric: str) -> bytes:
    if codec in ("raw", "implicit"):
        return frame.tobytes()
    if codec == "jpeg":
        inside = "RGB" if photometric == "RGB" else "YCBCR"
        sampling = "422" if photometric == "YBR_FULL_422" else "444"
        options = {"level": 90, "colorspace": "RGB", "outcolorspace": inside, "subsampling": sampling}
        return bytes(imagecodecs.jpeg8_encode(frame, **options))
    options = {"level": 0} if codec == "jpeg2000" else {"level": 40, "reversible": False}
    return bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", mct=photometric != "RGB", **options))


def write_instance(
    path: Path,
    pixels: np.ndarray,
    *,
    codec: str = "jpeg",
    photometric: str = "YBR_FULL_422",
    tile: int = TILE,
    flavour: str = "VOLUME",
    mpp: float = 0.5,
    series: str = "1.2.3.1",
    table: str = "basic",
    fragments: int = 1,
    part: tuple[int, int, int, int] | None = None,
    keep: Sequence[int] | None = None,
    organisation: str = "TILED_FULL",
    depths: Sequence[float] = (),
    **tags: Any,
) -> Path:
    """One instance.

    Args:
        path: of the file.
        pixels: RGB uint8 [h, w, 3] of the whole level.
        codec: of `SYNTAX`.
        photometric: of the frames; they are encoded so.
        tile: pixels a side.
        flavour: third word of ImageType.
        mpp: micrometres per pixel.
        series: its UID.
        table: "basic", "extended" or "" for no offset table.
        fragments: items of a frame.
        part: number in the concatenation, files of it, and the first frame and the one after the last in this file.
        keep: the tiles that are stored, if not all.
        organisation: TILED_FULL or TILED_SPARSE.
        depths: of the frames, millimetres.
        tags: further ones, or others than these.
    """
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6"), generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID = UID(series), UID("1.2.3")
    data.PatientName, data.PatientID, data.Modality = "SECRET^NAME", "SECRET-ID", "SM"
    data.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    data.Rows = data.Columns = tile
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = pixels.shape[:2]
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 1, 1
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = pixels.shape[2], 0, photometric
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = (side * mpp / 1000 for side in pixels.shape[1::-1])
    path_of_light, shared, measures = Dataset(), Dataset(), Dataset()
    path_of_light.ObjectiveLensPower = 20
    data.OpticalPathSequence = Items([path_of_light])
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared.PixelMeasuresSequence = Items([measures])
    data.SharedFunctionalGroupsSequence = Items([shared])
    data.DimensionOrganizationType = organisation
    tiles = frames(pixels, tile)
    chosen = list(range(len(tiles)) if keep is None else keep)
    if part:
        data.ConcatenationUID = UID("1.2.3.9")
        data.InConcatenationNumber, data.InConcatenationTotalNumber, first, last = part
        data.ConcatenationFrameOffsetNumber = first
        chosen = chosen[first:last]
    if organisation == "TILED_SPARSE":
        columns = -(-pixels.shape[1] // tile)
        places = [(number % columns * tile, number // columns * tile) for number in chosen]
        depths = depths or [0.0] * len(places)
        data.PerFrameFunctionalGroupsSequence = Items(
            [_place(x, y, depth) for (x, y), depth in zip(places, depths, strict=True)]
        )
    data.NumberOfFrames = len(chosen)
    stored = [encoded(tiles[number], codec, photometric) for number in chosen]
    if codec in ("raw", "implicit"):
        content = b"".join(stored)
        data.PixelData = content + bytes(len(content) % 2)
    elif table == "extended":
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(stored)
    else:
        data.PixelData = encapsulate(stored, fragments_per_frame=fragments, has_bot=table == "basic")
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = codec not in ("raw", "implicit")
    for name, value in tags.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(SYNTAX[codec])
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)
    return path


def _place(x: int, y: int, depth: float) -> Dataset:
    place, frame = Dataset(), Dataset()
    place.ColumnPositionInTotalImagePixelMatrix, place.RowPositionInTotalImagePixelMatrix = x + 1, y + 1
    place.XOffsetInSlideCoordinateSystem = place.YOffsetInSlideCoordinateSystem = 0.0
    place.ZOffsetInSlideCoordinateSystem = depth
    frame.PlanePositionSlideSequence = Items([place])
    return frame


def write_dicom(folder: Path, pixels: np.ndarray, *, levels: int = 2, beside: bool = True, **options: Any) -> Path:
    """A folder with the instances of a series: its levels, a label and a macro picture."""
    folder.mkdir(parents=True, exist_ok=True)
    series, mpp = options.setdefault("series", "1.2.3.1"), options.pop("mpp", 0.5)
    for level in range(levels):
        write_instance(folder / f"level-{level}.dcm", pixels, mpp=mpp * 2**level, **options)
        options["ImageType"] = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
        pixels = halved(pixels)
    if beside:
        for name, flavour in (("label", "LABEL"), ("macro", "OVERVIEW")):
            small = frames(pixels, TILE)[0]
            write_instance(folder / f"{name}.dcm", small, flavour=flavour, tile=TILE, series=series)
    return folder


def changed(path: Path, **tags: Any) -> None:
    """Set tags of a file."""
    file = dcmread(path)
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path)


def refused(path: Path, words: str) -> str:
    """What opening says: one line with the path, `words`, and nothing of the patient."""
    with pytest.raises(data.SlideError, match=words) as caught:
        data.open_slide(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


def parts(folder: Path, *bounds: int, **options) -> Path:
    """Level 0 as a concatenation, its frames cut at `bounds`."""
    folder.mkdir()
    edges = [0, *bounds, 20]
    for number, (first, last) in enumerate(pairwise(edges), 1):
        path = folder / f"part-{number}.dcm"
        write_instance(path, PIXELS, part=(number, len(edges) - 1, first, last), **options)
    write_instance(folder / "small.dcm", halved(PIXELS), mpp=1.0)
    return folder
