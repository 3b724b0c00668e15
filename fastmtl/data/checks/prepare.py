"""Write a manifest for a folder of tiles or slides: its images, their masks, and their oddities."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..dataset import Tile
from ..formats.folder import files_in, is_plain_image, name_without_ending
from ..formats.registry import MANIFESTS
from ..formats.tile_folder import is_tile_folder, read_tile_folder
from ..images.pictures import IMAGE_SUFFIXES, file_of, picture_size
from ..images.polygons import POLYGON_SUFFIXES
from ..manifest.path_rule import PathRule
from ..manifest.picture_refs import SLIDE_SUFFIXES
from ..manifest.table_io import write_table
from ..manifest.writing import write_manifest
from ..patient_names import PATIENT, group_of
from ..slides.indexing import index_slide
from ..slides.opened import forget_opened, opened
from .damaged_tiles import MAX_PIXELS, check_tiles


@dataclass
class Found:
    """One image or slide of the folder.

    Attributes:
        path: its file.
        kind: "tile", "slide", or "" if it cannot be used.
        mask: its mask file.
        size: (width, height), pixels; (0, 0) unknown.
        levels: number of a slide's levels.
        mpp: micrometres per pixel of a slide; None if unknown or implausible.
        problems: its oddities, or why it cannot be used.
    """

    path: Path
    kind: str = ""
    mask: Path | None = None
    size: tuple[int, int] = (0, 0)
    levels: int = 1
    mpp: float | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`.

    Attributes:
        manifest: the file.
        found: every image and slide, sorted by path; those of kind "" are not in the manifest.
        passed_over: numbers of files that are not images, by ending; of masks without an image, and linked folders.
    """

    manifest: Path
    found: tuple[Found, ...]
    passed_over: dict[str, int]


def prepare(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    patient: str = PATIENT,
    index_folder: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    on_file: Callable[[Path], None] = lambda path: None,
) -> Prepared:
    """Write a manifest of `folder` and index its slides.

    Args:
        folder: searched with its sub-folders, except hidden ones.
        out: the manifest, .csv, .tsv or .parquet; `folder`/manifest.csv if None.
        patient: finds the patient in a file's name, see `group_of`; if names do not contain it, edit the column.
        index_folder: folder of the slide indexes; beside the slides if None.
        max_pixels: larger image files (not slides) are left out.
        on_file: called with each file before it is opened, for progress.

    Raises:
        FileNotFoundError: no such folder, or no usable image in it.
        FileExistsError: `out` exists already.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    manifest = folder / MANIFESTS[0] if out is None else Path(out)
    if manifest.exists():
        raise FileExistsError(f"{manifest} already exists; remove it, or choose another file (--out)")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    if is_tile_folder(folder):
        return _prepare_classes(folder, manifest, patient, max_pixels)
    images, masks, passed_over, odd = files_in(folder)
    found = []
    for path in images:
        on_file(path)
        one = _look(path, masks.get(path), index_folder, max_pixels)
        one.problems += [odd[path]] if path in odd else []
        found.append(one)
    forget_opened()
    usable = [one for one in found if one.kind]
    if not usable:
        first = f", first {found[0].path}: {found[0].problems[0]}" if found else ""
        raise FileNotFoundError(f"no image or slide in {folder} can be used: {len(found)} found{first}")
    _write(manifest, usable, patient)
    return Prepared(manifest, tuple(found), passed_over)


def _prepare_classes(folder: Path, manifest: Path, patient: str, max_pixels: int) -> Prepared:
    dataset = read_tile_folder(folder, patient=patient)
    problems: dict[Path, list[str]] = {}
    for problem in (*dataset.problems, *check_tiles(dataset.tiles, max_pixels=max_pixels)):
        problems.setdefault(problem.path, []).append(problem.reason)
    found = []
    for tile in dataset.tiles:
        image, mask = file_of(tile.image), None if tile.mask is None else file_of(tile.mask)
        of_mask = problems.pop(mask, []) if mask else []
        wrong = [*problems.pop(image, []), *(f"{mask}: {reason}" for reason in of_mask)]
        size = (0, 0) if wrong else picture_size(image)
        found.append(Found(image, "" if wrong else "tile", mask, size, problems=wrong))
    kept = {one.path for one in found if one.kind}
    found += [Found(path, problems=reasons) for path, reasons in sorted(problems.items())]
    tiles = [tile for tile in dataset.tiles if tile.image in kept]
    if not tiles:
        raise FileNotFoundError(f"no image in {folder} can be used, first {found[0].path}: {found[0].problems[0]}")
    write_manifest(dataset.subset(tile.id for tile in tiles), manifest, root=Path(os.path.sep))
    return Prepared(manifest, tuple(found), {})


def _look(path: Path, mask: Path | None, index_folder: str | Path | None, max_pixels: int) -> Found:
    found = Found(path, mask=mask)
    if path.suffix.lower() in SLIDE_SUFFIXES or path.is_dir():
        _look_at_slide(found, index_folder)
        if found.kind or path.suffix.lower() not in IMAGE_SUFFIXES:
            return found
    file_mask = None if mask is None or mask.suffix.lower() in POLYGON_SUFFIXES else mask
    problems = check_tiles([Tile(path.name, path, file_mask, None, "")], max_pixels=max_pixels)
    if problems:
        # The slide reader's problems of a TIFF come first: it looks closer.
        found.problems += [str(problem) if problem.path != path else problem.reason for problem in problems]
    else:
        found.kind, found.size, found.problems = "tile", picture_size(path), []
    return found


def _look_at_slide(found: Found, index_folder: str | Path | None) -> None:
    """Fill in `found` if its file is a slide, or the reason why not; leave plain images of a tile's size unchanged."""
    try:
        slide = opened(found.path)
    except (ValueError, ImportError) as error:
        found.problems.append(str(error).removeprefix(f"{found.path}: "))
        return
    if is_plain_image(found.path, slide):
        return
    full = slide.levels[0]
    found.kind, found.size, found.levels, found.mpp = "slide", (full.width, full.height), len(slide.levels), slide.mpp
    found.problems += slide.problems
    try:
        index = index_slide(found.path, index_folder=index_folder)
    except Exception as error:  # an unreadable tile, a folder that cannot be written to: continue with the others
        found.problems.append(f"not indexed: {str(error).removeprefix(f'{found.path}: ')}")
        return
    found.problems += [problem for problem in index.layout.problems if problem not in found.problems]


def _write(manifest: Path, usable: list[Found], patient: str) -> None:
    rule = PathRule(manifest.parent, Path(os.path.sep))
    texts = [rule.relative(one.path) for one in usable]
    bare = [
        text.removesuffix(one.path.name) + name_without_ending(one.path)
        for one, text in zip(usable, texts, strict=True)
    ]
    stems = Counter(bare)
    names = ["id", "image", "slide", "mask", "patient"]
    rows = []
    for one, text, stem in zip(usable, texts, bare, strict=True):
        place = ("", text) if one.kind == "slide" else (text, "")
        mask = "" if one.mask is None else rule.relative(one.mask)
        rows.append([stem if stems[stem] == 1 else text, *place, mask, group_of(one.path.name, patient)])
    used = [at for at in range(len(names)) if any(row[at] for row in rows)]
    write_table(manifest, [names[at] for at in used], [[row[at] for at in used] for row in rows])
