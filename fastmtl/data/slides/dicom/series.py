"""The DICOM files of a folder, by series: each series of whole-slide images is a slide."""

from __future__ import annotations

from pathlib import Path

from ..errors import SlideError
from .instances import is_dicom, series_of

_LEVEL = "VOLUME"


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, whatever they are called, and what else is called .dcm; by name."""
    files = (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in files if path.suffix.lower() == ".dcm" or is_dicom(path))


def files_of_slide(path: Path) -> list[Path]:
    """The files of a slide: those of the only series of the folder `path`, or of the series that the file is of.

    Raises:
        SlideError: a file of the folder is damaged (it may be a level), there is no slide or a choice of several.
    """
    slides = _slides_in(path if path.is_dir() else path.parent, path)
    if path.is_dir() and len(slides) == 1:
        return slides[0]
    for files in slides:
        if path in files:
            return files
    if not path.is_dir() or not slides:
        raise SlideError(path, "is DICOM, but no level of a whole-slide image (VL Whole Slide Microscopy)")
    several = " and ".join(f"{files[0].name} ({len(files)} files)" for files in slides[:3])
    more = " and others" if len(slides) > 3 else ""
    raise SlideError(path, f"holds {len(slides)} slides (DICOM series): {several}{more}; name a file of the one meant")


def slides_in(folder: Path) -> list[Path]:
    """The paths of the slides that a folder's DICOM files make up: the folder, if it is one; a file of each series, if
    it is several, or if one of its files is damaged, all of them, so that each is reported."""
    try:
        slides = _slides_in(folder, folder)
    except (SlideError, ImportError):
        return dicom_files(folder)
    return [folder] if len(slides) == 1 else [files[0] for files in slides]


def _slides_in(folder: Path, path: Path) -> list[list[Path]]:
    """The files of each series with a level."""
    series: dict[str, list[Path]] = {}
    with_levels: set[str] = set()
    for file in dicom_files(folder):
        try:
            if not is_dicom(file):
                raise ValueError(f"{file.name} is no DICOM file: damaged or empty; copy it again, or remove it")
            uid, flavour = series_of(file)
        except ValueError as error:
            raise SlideError(path, str(error)) from error
        if uid:
            series.setdefault(uid, []).append(file)
            with_levels |= {uid} if flavour == _LEVEL else set()
    return [files for uid, files in series.items() if uid in with_levels]
