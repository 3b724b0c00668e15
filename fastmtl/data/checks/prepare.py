"""Write a manifest for a folder of tiles or slides: its images, their masks, and their oddities."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic

from ..dataset import Dataset, Tile
from ..formats.folder import files_in, is_plain_image, name_without_ending
from ..formats.registry import MANIFESTS
from ..formats.tile_folder import is_tile_folder, read_tile_folder
from ..images.pictures import IMAGE_SUFFIXES, file_of, picture_size
from ..images.polygons import POLYGON_SUFFIXES
from ..manifest.path_rule import PathRule
from ..manifest.picture_refs import SLIDE_SUFFIXES
from ..manifest.table_io import read_table, write_table
from ..manifest.writing import write_manifest
from ..patient_names import PATIENT, group_of, one_spelling
from ..slides.index import FOLDER as INDEX_FOLDER
from ..slides.indexing import index_slide
from ..slides.opened import forget_opened, opened
from .checked_files import CheckedFiles
from .damaged_tiles import MAX_PIXELS, check_tiles

_SECONDS_UNSAVED = 10.0


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
        patients: that were found in the files' names, sorted; () if the manifest was there before.
        unnamed: files that can be used and that a manifest which was there does not name; it was left as it is.
        existed: whether the manifest was there, before or when all files had been read.
    """

    manifest: Path
    found: tuple[Found, ...]
    passed_over: dict[str, int]
    patients: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    existed: bool = False


def prepare(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    patient: str = PATIENT,
    index_folder: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 2,
    on_progress: Callable[[int, int, Path], None] = lambda done, total, path: None,
) -> Prepared:
    """Write a manifest of `folder` and index its slides.

    A file that cannot be read never stops the others. Calling it again, also after it was killed, does only what is
    missing: slides with an index are not scanned, and images that were found sound and have not changed are not decoded
    (their record is in `index_folder`, or else in `folder`/.fastmtl). The manifest and the indexes are complete or not
    there; a manifest that is there is never changed.

    Args:
        folder: searched with its sub-folders, except hidden ones.
        out: the manifest, .csv, .tsv or .parquet; `folder`/manifest.csv if None.
        patient: finds the patient in a file's name, see `group_of`; if names do not contain it, edit the column.
        index_folder: folder of the slide indexes; beside the slides if None.
        max_pixels: larger image files (not slides) are left out.
        workers: files that are read at the same time, in threads.
        on_progress: called after each file with the number of files done, that of all files, and the file.

    Raises:
        FileNotFoundError: no such folder, or no usable image in it.
        FileExistsError: there is a manifest already, and another `patient` than the default is asked for.
        ValueError: `workers` below 1, or a manifest from before that is no table.
    """
    folder = Path(folder)
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1; got {workers}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    manifest = folder / MANIFESTS[0] if out is None else Path(out)
    if manifest.exists() and patient != PATIENT:
        raise FileExistsError(
            f"{manifest} already exists, and its patients are not read again; remove it, or choose another file (--out)"
        )
    named = named_files(manifest) if manifest.exists() else None
    manifest.parent.mkdir(parents=True, exist_ok=True)
    home = folder / INDEX_FOLDER if index_folder is None else Path(index_folder)
    checked = CheckedFiles(home / "prepared-files.json", max_pixels)
    dataset, odd, passed_over = None, {}, {}
    if is_tile_folder(folder):
        dataset = read_tile_folder(folder, patient=patient)
        jobs = {file_of(tile.image): partial(_look_at_tile, tile, checked) for tile in dataset.tiles}
    else:
        images, masks, passed_over, odd = files_in(folder)
        jobs = {path: partial(_look, path, masks.get(path), index_folder, checked) for path in images}
    found = _look_at_all(jobs, workers, checked, on_progress)
    forget_opened()
    for one in found:
        one.problems += [odd[one.path]] if one.path in odd else []
    if dataset is not None:
        found += _without_tile(dataset, found)
    usable = [one for one in found if one.kind]
    if not usable:
        first = f", first {found[0].path}: {found[0].problems[0]}" if found else ""
        raise FileNotFoundError(f"no image or slide in {folder} can be used: {len(found)} found{first}")
    if named is None and manifest.exists():  # written meanwhile, by somebody or another call
        named = named_files(manifest)
    if named is not None:
        rule = PathRule(manifest.parent, Path(os.path.sep))
        unnamed = tuple(text for one in usable if (text := rule.relative(one.path)) not in named)
        if manifest.resolve().is_relative_to(folder.resolve()):
            passed_over = dict(Counter(passed_over) - Counter([manifest.suffix.lower()]))
        return Prepared(manifest, tuple(found), passed_over, unnamed=unnamed, existed=True)
    if dataset is not None:
        kept = {one.path for one in usable}
        dataset = dataset.subset([tile.id for tile in dataset.tiles if tile.image in kept])
        write_manifest(dataset, manifest, root=Path(os.path.sep))
        patients = dataset.groups
    else:
        patients = _write(manifest, usable, patient)
    return Prepared(manifest, tuple(found), passed_over, tuple(sorted(patients)))


def _look_at_all(
    jobs: Mapping[Path, Callable[[], Found]],
    workers: int,
    checked: CheckedFiles,
    on_progress: Callable[[int, int, Path], None],
) -> list[Found]:
    """The results of all jobs in their order. What is found sound is recorded from time to time and at an interruption,
    which waits only for the files that are being read."""
    pool, saved = ThreadPoolExecutor(workers), monotonic()
    try:
        running = {pool.submit(_safely, path, job): path for path, job in jobs.items()}
        for done, one in enumerate(as_completed(running), 1):
            on_progress(done, len(running), running[one])
            if monotonic() - saved > _SECONDS_UNSAVED:
                checked.save()
                saved = monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        checked.save()
    return [one.result() for one in running]


def _safely(path: Path, job: Callable[[], Found]) -> Found:
    try:
        return job()
    except Exception as error:  # whatever a reader raises, out of memory too: the others are still wanted
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Found(path, problems=[f"cannot be read: {reason.removeprefix(f'{path}: ')}"])


def _look_at_tile(tile: Tile, checked: CheckedFiles) -> Found:
    """A tile of a tile folder with its mask."""
    image, mask = file_of(tile.image), None if tile.mask is None else file_of(tile.mask)
    wrong = [
        problem.reason if problem.path == image else str(problem)
        for problem in check_tiles([tile], max_pixels=checked.max_pixels, num_threads=1, checked=checked)
    ]
    return Found(image, "" if wrong else "tile", mask, (0, 0) if wrong else picture_size(image), problems=wrong)


def _without_tile(dataset: Dataset, found: Sequence[Found]) -> list[Found]:
    """The files that reading a tile folder reported and that are no tile, such as masks without an image. Tiles that it
    reported are marked as unusable in `found`."""
    tiles = {path: one for one in found for path in (one.path, one.mask) if path is not None}
    others: dict[Path, list[str]] = {}
    for problem in dataset.problems:
        if problem.path in tiles:
            one = tiles[problem.path]
            one.kind = ""
            one.problems.append(problem.reason if problem.path == one.path else str(problem))
        else:
            others.setdefault(problem.path, []).append(problem.reason)
    return [Found(path, problems=reasons) for path, reasons in sorted(others.items())]


def _look(path: Path, mask: Path | None, index_folder: str | Path | None, checked: CheckedFiles) -> Found:
    found = Found(path, mask=mask)
    if path.suffix.lower() in SLIDE_SUFFIXES or path.is_dir():
        _look_at_slide(found, index_folder)
        if found.kind or path.suffix.lower() not in IMAGE_SUFFIXES:
            return found
    file_mask = None if mask is None or mask.suffix.lower() in POLYGON_SUFFIXES else mask
    tile = Tile(path.name, path, file_mask, None, "")
    problems = check_tiles([tile], max_pixels=checked.max_pixels, num_threads=1, checked=checked)
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


def named_files(manifest: Path) -> set[str]:
    """The paths in the columns image and slide of a manifest, as they are written there."""
    table = read_table(manifest)
    columns = [at for at, name in enumerate(table.names) if name.lower() in ("image", "slide")]
    cells = {row[at].replace("\\", "/") for row in table.rows for at in columns if row[at]}
    return cells | {cell.partition(":")[2] for cell in cells}  # after the preprocessing, as in min_max:scan.png


def _write(manifest: Path, usable: list[Found], patient: str) -> set[str]:
    """Write the manifest; returns its patients, each in one spelling."""
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
    return set(one_spelling(row[-1] for row in rows).values())
