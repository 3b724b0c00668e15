"""One DICOM instance of a whole-slide image: what its header says, without its pixels. No tag of a patient is read.

Source: DICOM PS3.3 A.32.8 (VL Whole Slide Microscopy Image), C.8.12.4 (its image), C.7.6.16 (functional groups).
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....utils.optional_imports import require
from ..joined_files import FilePart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of VL Whole Slide Microscopy Image Storage."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_SERIES = ("SeriesInstanceUID", "ImageType")
_TAGS = (
    *_SERIES,
    *("SOPInstanceUID", "Rows", "Columns", "NumberOfFrames", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
    *("TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths", "OpticalPathSequence", "DimensionOrganizationType"),
    *("BitsAllocated", "SamplesPerPixel", "PixelRepresentation", "PlanarConfiguration", "PhotometricInterpretation"),
    *("ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber"),
    *("ImagedVolumeWidth", "ImagedVolumeHeight", "SharedFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
_PLACES = "PerFrameFunctionalGroupsSequence"


@dataclass(frozen=True, eq=False)
class Instance:
    """A file of the series.

    Attributes:
        file: its name, bytes and time of change.
        uid: of the instance; copies of a file have the same.
        flavour: "VOLUME" is a level; "LABEL", "OVERVIEW", "THUMBNAIL" and others are none.
        is_resampled: whether it was computed from a finer level.
        syntax: UID of the transfer syntax.
        width: of the whole level, pixels.
        height: likewise.
        tile_width: pixels.
        tile_height: likewise.
        num_frames: of this file.
        photometric: its colours, in DICOM's words.
        samples: values per pixel.
        bits: of a value.
        planar: 0 where a pixel's samples lie together.
        focal_planes: number.
        optical_paths: number.
        concatenation: UID of the level that several files make up; "" where this is all.
        part: number in the concatenation, from 1.
        parts: files of the concatenation; 0 if it does not say.
        first_frame: frames of the concatenation before this file's.
        is_full: whether all tiles are there, row by row (TILED_FULL).
        places: int64 [frames, 3], left and top edge in the level's pixels and the focal plane's place, of other tiles;
            None if the file does not say.
        spacing: millimetres between columns and between rows; None if it does not say.
        magnification: of the objective.
        pixels_at: where the element of the pixels begins, bytes.
        offset_table: bytes of the extended offset table.
        length_table: likewise.
    """

    file: FilePart
    uid: str
    flavour: str
    is_resampled: bool
    syntax: str
    width: int
    height: int
    tile_width: int
    tile_height: int
    num_frames: int
    photometric: str
    samples: int
    bits: int
    planar: int
    focal_planes: int
    optical_paths: int
    concatenation: str
    part: int
    parts: int
    first_frame: int
    is_full: bool
    places: NDArray[np.int64] | None
    spacing: tuple[float, float] | None
    magnification: float | None
    pixels_at: int
    offset_table: bytes
    length_table: bytes


class _NotReadError(ValueError):
    """A file is intact, and of a kind that is not read."""


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does; False for what cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_of(path: Path) -> tuple[str, str]:
    """(UID of the series, flavour) of a file; two empty texts if it is another kind of DICOM than a whole-slide image.

    Raises:
        ValueError: it is damaged; says so without what is written in it.
    """
    with _reading(path) as dicom:
        if str(dicom.filereader.read_file_meta_info(path).get("MediaStorageSOPClassUID", "")) != WHOLE_SLIDE:
            return "", ""
        header = _header(dicom, path, _SERIES)[0]
        return str(header.SeriesInstanceUID), _flavour(header)


def read_instance(path: Path) -> Instance:
    """The header of a file that `series_of` knows.

    Raises:
        ValueError: as `series_of`.
    """
    with _reading(path) as dicom:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
        header, at = _header(dicom, path, _TAGS)
        columns, rows = int(header.Columns), int(header.Rows)
        width = int(header.get("TotalPixelMatrixColumns") or columns)
        height = int(header.get("TotalPixelMatrixRows") or rows)
        is_full = header.get("DimensionOrganizationType") == "TILED_FULL" or (width <= columns and height <= rows)
        places = None if is_full else _places(dicom, path)
        paths = header.get("OpticalPathSequence") or [{}]
        power = paths[0].get("ObjectiveLensPower")
        return Instance(
            file=FilePart(path.name, status.st_size, status.st_mtime_ns),
            uid=str(header.SOPInstanceUID),
            flavour=_flavour(header),
            is_resampled="RESAMPLED" in (header.get("ImageType") or ()),
            syntax=str(header.file_meta.TransferSyntaxUID),
            width=width,
            height=height,
            tile_width=columns,
            tile_height=rows,
            num_frames=int(header.get("NumberOfFrames") or 1),
            photometric=str(header.PhotometricInterpretation),
            samples=int(header.SamplesPerPixel),
            bits=int(header.BitsAllocated) if not header.get("PixelRepresentation") else 0,
            planar=int(header.get("PlanarConfiguration") or 0),
            focal_planes=int(header.get("TotalPixelMatrixFocalPlanes") or 1),
            optical_paths=int(header.get("NumberOfOpticalPaths") or len(paths)),
            concatenation=str(header.get("ConcatenationUID") or ""),
            part=int(header.get("InConcatenationNumber") or 1),
            parts=int(header.get("InConcatenationTotalNumber") or 0),
            first_frame=int(header.get("ConcatenationFrameOffsetNumber") or 0),
            is_full=is_full,
            places=places,
            spacing=_spacing(header),
            magnification=float(power) if power else None,
            pixels_at=at,
            offset_table=bytes(header.get("ExtendedOffsetTable") or b""),
            length_table=bytes(header.get("ExtendedOffsetTableLengths") or b""),
        )


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """pydicom, whose errors become one line without values of tags, which may be a patient's."""
    dicom = require("pydicom", "opening DICOM slides", "dicom")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break a rule of the standard and are not used
            yield dicom
    except (ImportError, _NotReadError):
        raise
    except Exception as error:  # damaged headers make pydicom raise nearly any type
        missing = str(error).rpartition(" ")[2].strip("'") if isinstance(error, AttributeError) else ""
        reason = f"it has no {missing}" if missing in _TAGS else type(error).__name__
        raise ValueError(f"{path.name} is a damaged DICOM file ({reason}); copy it again") from error


def _header(dicom: Any, path: Path, tags: tuple[str, ...]) -> tuple[Dataset, int]:
    """These tags of a file, and where its pixels begin."""
    syntax = str(dicom.filereader.read_file_meta_info(path).TransferSyntaxUID)
    if syntax == _DEFLATED:
        raise _NotReadError(f"{path.name} is compressed as a whole (transfer syntax {syntax}), which is not read")
    with path.open("rb") as file:
        header = dicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
        return header, file.tell()


def _flavour(header: Dataset) -> str:
    words = header.get("ImageType") or ()
    return str(words[2]) if len(words) > 2 else ""


def _places(dicom: Any, path: Path) -> NDArray[np.int64] | None:
    """Where each frame lies; None if the file does not say."""
    frames = _header(dicom, path, (_PLACES,))[0].get(_PLACES) or ()
    found = []
    for frame in frames:
        if not frame.get("PlanePositionSlideSequence"):
            return None
        place = frame.PlanePositionSlideSequence[0]
        depth = float(place.get("ZOffsetInSlideCoordinateSystem") or 0)
        left, top = int(place.ColumnPositionInTotalImagePixelMatrix), int(place.RowPositionInTotalImagePixelMatrix)
        found.append((left - 1, top - 1, round(depth * 1e6)))
    return np.array(found, np.int64).reshape(-1, 3) if found else None


def _spacing(header: Dataset) -> tuple[float, float] | None:
    groups = header.get("SharedFunctionalGroupsSequence") or [{}]
    measures = groups[0].get("PixelMeasuresSequence") or [{}]
    if spacing := measures[0].get("PixelSpacing"):
        return float(spacing[1]), float(spacing[0])  # rows come first
    extent = [header.get("ImagedVolumeWidth"), header.get("ImagedVolumeHeight")]
    pixels = [header.get("TotalPixelMatrixColumns"), header.get("TotalPixelMatrixRows")]
    if not all(extent) or not all(pixels):
        return None
    return float(extent[0]) / int(pixels[0]), float(extent[1]) / int(pixels[1])
