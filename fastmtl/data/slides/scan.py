"""Scan a slide with the reader that matches its kind and first bytes."""

from __future__ import annotations

from pathlib import Path

from .dicom.instances import is_dicom
from .dicom.scan import scan_dicom
from .errors import SlideError
from .identity import kind_of
from .image_file import SIGNATURES, scan_image_file
from .ome_zarr.scan import scan_zarr
from .openslide_reader import scan_with_openslide
from .raster import Layout
from .remote.path import RemotePath
from .tiff import TIFF_SIGNATURES, scan_tiff
from .vendors.arranged import NotHereError

MAX_PIXELS = 2**38
"""A level 0 with more pixels is refused: half a million per side, more than any scanner produces."""


def scan(path: Path, max_pixels: int = MAX_PIXELS) -> Layout:
    """Everything about a slide except its pixels.

    Raises:
        SlideError, ImportError: as `open_slide`.
    """
    kind = kind_of(path)
    if kind == "dicom":
        return scan_dicom(path, max_pixels)
    if kind == "zarr":
        return scan_zarr(path, max_pixels)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SlideError(path, f"cannot be opened: {error.strerror}") from error
    if not head:
        raise SlideError(path, "the file is empty")
    for signature, codec in SIGNATURES.items():
        if head.startswith(signature):
            return scan_image_file(path, codec)
    reason = ""
    if head.startswith(TIFF_SIGNATURES):
        try:
            return scan_tiff(path, max_pixels)
        except NotHereError as error:
            reason = f" ({error})"
    if isinstance(path, RemotePath) and is_dicom(path):
        raise SlideError(path, "is DICOM, which is read from folders of this computer alone; copy all its files")
    if isinstance(path, RemotePath):
        raise SlideError(path, f"is of a kind that only OpenSlide reads, from local files alone{reason}; copy it")
    return scan_with_openslide(path, max_pixels)
