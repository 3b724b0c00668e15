"""Find the slides of a path: one slide, a folder of slides, or a manifest that names them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..images.pictures import IMAGE_SUFFIXES
from ..manifest.path_rule import PathRule
from ..manifest.picture_refs import SLIDE_SUFFIXES
from ..manifest.slide_rows import manifest_mpp
from ..manifest.table_io import TABLE_SUFFIXES, read_table
from ..slides.dicom.series import dicom_files, slides_in
from ..slides.ome_zarr.metadata import is_store
from ..slides.opened import UnreadableSlideError, opened
from ..slides.remote.path import RemotePath, slide_path
from .folder import files_in, is_plain_image


@dataclass(frozen=True)
class SlideFiles:
    """The slides found.

    Attributes:
        root: the folder that names start from.
        slides: path below `root`, with slashes -> file; the path of a slide on a server is its URL without colons.
        num_images: number of image files beside them, which are ignored.
        mpp: path as in `slides` -> micrometres per pixel of level 0, if the manifest gives it.
    """

    root: Path
    slides: Mapping[str, Path]
    num_images: int = 0
    mpp: Mapping[str, float] = field(default_factory=dict)


def find_slides(source: Path, *, root: Path | None = None) -> SlideFiles | None:
    """The slides of `source`; None if it holds only images, or nothing.

    A TIFF is a slide if it has several levels, tiles, or more pixels than a tile; one that cannot be opened counts as a
    slide beside other slides, or without images. Masks, recognised by their place, and folders of predictions are
    ignored.

    Args:
        source: a slide or its URL, a folder to search with its sub-folders, or a manifest with a column slide. An
            OME-Zarr store is a slide, and so is a folder of one DICOM series without other images or folders.
        root: folder that must contain a manifest's paths; the manifest's own folder if None.

    Raises:
        ValueError: a manifest that names no slide, or one outside `root`.
    """
    source = slide_path(source)
    if isinstance(source, RemotePath):
        return SlideFiles(source.parent, {source.name: source})
    if source.is_file() and source.suffix.lower() in TABLE_SUFFIXES:
        return _of_manifest(source, root or source.parent)
    if _is_slide(source):
        home, files = source.parent, [source]
    elif source.is_dir():
        home, files = source, files_in(source)[0]
    else:
        home, files = source.parent, [source] if source.is_file() else []
    kinds = {path: _kind(path) for path in files}
    num_images = sum(kind == "image" for kind in kinds.values())
    if not files or ("slide" not in kinds.values() and num_images):
        return None
    slides = {path.relative_to(home).as_posix(): path for path, kind in kinds.items() if kind != "image"}
    return SlideFiles(home, slides, num_images)


def _is_slide(folder: Path) -> bool:
    """Whether a path is a folder that is a slide itself."""
    if not folder.is_dir() or is_store(folder):
        return folder.is_dir()
    parts = dicom_files(folder)
    others = (path for path in folder.iterdir() if path not in parts and not path.name.startswith("."))
    if not parts or any(path.is_dir() or path.suffix.lower() in SLIDE_SUFFIXES | IMAGE_SUFFIXES for path in others):
        return False
    return slides_in(folder) == [folder]


def _kind(path: Path) -> str:
    """ "slide" or "image"; "" for a TIFF that cannot be opened."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "slide"
    if suffix not in SLIDE_SUFFIXES or suffix not in IMAGE_SUFFIXES:
        return "slide" if suffix in SLIDE_SUFFIXES else "image"
    try:
        return "image" if is_plain_image(path, opened(path)) else "slide"
    except UnreadableSlideError:
        return ""


def _of_manifest(manifest: Path, root: Path) -> SlideFiles:
    table = read_table(manifest)
    lowered = [name.lower() for name in table.names]
    rule, slides = PathRule(manifest.parent, root), {}
    for number, row in enumerate(table.rows):
        cell = row[lowered.index("slide")] if "slide" in lowered else ""
        if cell:
            path = rule.slide(cell, table.place(number))
            name = path.local_name if isinstance(path, RemotePath) else Path(os.path.relpath(path, root)).as_posix()
            if slides.setdefault(name, path) != path:
                raise ValueError(
                    f"{table.place(number)}: results of {path} and {slides[name]} would have the same name; rename one"
                )
    if not slides:
        raise ValueError(f"{manifest} has no slide in a column slide; to predict images, give their folder")
    given = manifest_mpp(table, rule)
    mpp = {name: given[path] for name, path in slides.items() if path in given}
    return SlideFiles(root, dict(sorted(slides.items())), mpp=mpp)
