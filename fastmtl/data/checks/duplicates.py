"""Images and slides that are there twice; if two sides of a split share one, its scores are too high."""

from __future__ import annotations

import hashlib
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from ...utils.words import counted
from ..dataset import Dataset, ImageSource, Problem, Region, Tile
from ..images.arrays import GreyPicture
from ..slides.errors import SlideError
from ..slides.ome_zarr.metadata import chunk_files, is_store
from ..slides.opened import UnreadableSlideError, opened, pixel_file
from ..slides.remote.path import RemotePath

_PAGE = 4096  # bytes
_PLACES = 64
_ACROSS = 8  # places of an OME-Zarr store, along each side
_SIDE = 64  # pixels of such a place
_CHUNK = 2**22  # bytes
_WITHOUT_PIXELS = (".mrxs", ".vms")  # these files of slides only name others


class Duplicates(NamedTuple):
    """What appears more than once in a data set, each as a list of two or more.

    Attributes:
        pictures: tiles that show one picture: the same file or region, or files that are equal byte for byte.
        slides: slides that are equal byte for byte.
        edited: slides that are equal at all places that were compared, but not everywhere.
        tiles: slide -> its tiles.
    """

    pictures: list[list[Tile]]
    slides: list[list[Path]]
    edited: list[list[Path]]
    tiles: Mapping[Path, list[Tile]]


def find_duplicates(dataset: Dataset) -> Duplicates:
    """Compare the files of a data set.

    Only files of equal size are read: a page in their middle, and if those are equal, images in full and slides at
    `_PLACES` places; slides that agree there are read in full, except those on servers. Of OME-Zarr stores, pixels of
    level 0 are compared, and in full its chunks.
    """
    tiles: dict[Path, list[Tile]] = defaultdict(list)
    for tile in dataset.tiles:
        if isinstance(tile.image, Region):
            tiles[tile.image.slide].append(tile)
    scans: dict[Path, list[Path]] = defaultdict(list)  # several where a DICOM series is named by several of its files
    for slide in tiles:
        if slide.suffix.lower() not in _WITHOUT_PIXELS:
            scans[pixel_file(slide)].append(slide)
    equal: dict[Hashable, list[Path]] = {file: list(own) for file, own in scans.items()}
    edited = []
    for alike in _several(_digests(scans, _sampled)):
        whole: dict[bytes, list[Path]] = defaultdict(list)
        for file in alike:
            whole[b"" if isinstance(file, RemotePath) else _whole(file)] += equal.pop(file)
        equal |= {same[0]: same for same in whole.values()}
        edited += [[same[0] for same in whole.values()]] if len(whole) > 1 else []
    slides = [same for same in equal.values() if len(same) > 1]
    pictures = [own for own in equal_pictures(dataset.tiles).values() if len(own) > 1]
    return Duplicates(pictures, slides, edited, tiles)


def duplicate_notices(dataset: Dataset, *, leaks_alone: bool = False, found: Duplicates | None = None) -> list[Problem]:
    """A notice if tiles show the same picture, one if slides are identical, and one if slides are nearly so.

    Args:
        dataset: the tiles that were compared.
        leaks_alone: whether to report only what several patients share.
        found: the result of `find_duplicates`, if it is there.
    """
    found = found or find_duplicates(dataset)
    notices = _slide_notice(dataset, found, found.slides, "under several names", leaks_alone)
    differing = f"with a slightly different copy (equal at {_PLACES} places of the file, not everywhere)"
    notices += _slide_notice(dataset, found, found.edited, differing, leaks_alone)
    groups = found.pictures
    leaks = [tiles for tiles in groups if len({tile.group for tile in tiles}) > 1]
    groups = leaks if leaks_alone else groups
    if not groups:
        return notices
    count = sum(len(tiles) for tiles in groups)
    first = (leaks or groups)[0]
    shown = f"{first[0].id} and {first[1].id}"
    if leaks:
        other = next(tile for tile in first if tile.group != first[0].group)
        shown = f"{first[0].id} of {first[0].group} and {other.id} of {other.group}"
    of_two = f", {len(leaks)} of them in two patients, so a split can leak" if leaks else ""
    appear = f"{counted(len(groups), 'picture')} {'appears' if len(groups) == 1 else 'appear'} more than once"
    return [*notices, Problem(dataset.root, f"{appear}, in {count} tiles{of_two}: {shown}")]


def duplicates_across(found: Duplicates, sides: Mapping[str, str]) -> list[str]:
    """What is on two sides of a split, in words: the two names, their patients and sides; slides first.

    Args:
        found: the result of `find_duplicates`.
        sides: id -> the side of a tile; tiles on none are passed over.
    """
    pairs = []
    for slides in found.slides:
        of_each = [(slide, tile) for slide in slides for tile in found.tiles[slide]]
        if pair := _first_pair([(tile, f"slide {slide}", str(slide)) for slide, tile in of_each], sides):
            pairs.append(pair)
    for tiles in found.pictures:
        if pair := _first_pair([(tile, tile.id, tile.id) for tile in tiles], sides):
            pairs.append(pair)
    return pairs


def equal_pictures(tiles: Sequence[Tile]) -> dict[Hashable, list[Tile]]:
    """The tiles by their picture; tiles of identical image files are together."""
    by_picture: dict[Hashable, list[Tile]] = defaultdict(list)
    files = {tile.id: file for tile in tiles if (file := _file(tile.image)) is not None}
    contents = _digests(set(files.values()), _whole)
    for tile in tiles:
        by_picture[contents.get(files.get(tile.id, Path())) or _key(tile.image)].append(tile)
    return by_picture


def _slide_notice(
    dataset: Dataset, found: Duplicates, groups: Sequence[list[Path]], how: str, leaks_alone: bool
) -> list[Problem]:
    patients = {slide: tiles[0].group for slide, tiles in found.tiles.items()}
    leaks = [slides for slides in groups if len({patients[slide] for slide in slides}) > 1]
    groups = leaks if leaks_alone else groups
    if not groups:
        return []
    first, other = (leaks or groups)[0][:2]
    if leaks:
        other = next(slide for slide in leaks[0] if patients[slide] != patients[first])
    whose = [f" of {patients[slide]}" * bool(leaks) for slide in (first, other)]
    of_two = f", {len(leaks)} of them in two patients, so a split can leak" if leaks else ""
    reason = f"{counted(len(groups), 'slide')} {how}{of_two}: {first}{whose[0]} and {other}{whose[1]}"
    return [Problem(dataset.root, reason)]


def _first_pair(named: Sequence[tuple[Tile, str, str]], sides: Mapping[str, str]) -> str:
    """The first entry (tile, words, name) and one of another name on another side; "" if there is none."""
    placed: dict[tuple[str, str], tuple[Tile, str]] = {}
    for tile, words, name in named:
        if tile.id in sides:
            placed.setdefault((name, sides[tile.id]), (tile, words))
    for (name, side), (tile, words) in placed.items():
        for (other_name, other_side), (other, other_words) in placed.items():
            if other_side != side and other_name != name:
                return f"{words} ({tile.group}, {side}) and {other_words} ({other.group}, {other_side})"
    return ""


def _file(picture: ImageSource) -> Path | None:
    """The file whose whole content is the picture."""
    if isinstance(picture, GreyPicture):
        return picture.file
    return picture if isinstance(picture, Path) else None


def _key(picture: ImageSource) -> Hashable:
    """A key shared by equal pictures; a custom picture without a hash equals no other."""
    return picture if isinstance(picture, Hashable) else id(picture)


def _digests(files: Iterable[Path], digest: Callable[[Path], bytes]) -> dict[Path, bytes]:
    """The `digest` of each file that may equal another."""
    alike: dict[Hashable, list[Path]] = defaultdict(list)
    for file in files:
        alike[_size(file)].append(file)
    for same in [same for size, same in alike.items() if size and len(same) > 1]:
        for file in same:
            alike[_middle(file)].append(file)
    return {
        file: digest(file) for key, same in alike.items() if isinstance(key, bytes) and len(same) > 1 for file in same
    }


def _several(digests: Mapping[Path, bytes]) -> list[list[Path]]:
    """The files of each digest that several have."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for file, digest in digests.items():
        groups[digest].append(file)
    return [files for files in groups.values() if len(files) > 1]


def _whole(file: Path) -> bytes:
    found = hashlib.sha256()
    for name, part in chunk_files(file) if file.is_dir() else [("", file)]:
        found.update(name.encode())
        with part.open("rb") as content:
            while chunk := content.read(_CHUNK):
                found.update(chunk)
    return found.digest()


def _sampled(slide: Path) -> bytes:
    """A digest of pages at places of a slide: different scans differ everywhere."""
    if _is_store(slide):
        return _pixels(slide, _ACROSS)
    size, found = slide.stat().st_size, hashlib.sha256()
    with slide.open("rb") as content:
        for place in range(_PLACES):
            content.seek(size * place // _PLACES)
            found.update(content.read(_PAGE))
    return found.digest()


def _is_store(slide: Path) -> bool:
    return slide.suffix.lower() == ".zarr" if isinstance(slide, RemotePath) else is_store(slide)


def _pixels(store: Path, across: int) -> bytes:
    """A digest of the pixels at places in a grid; one like no other if they cannot be read."""
    found = hashlib.sha256()
    try:
        slide = opened(store)
        full = slide.levels[0]
        for row, column in product(range(across), range(across)):
            x, y = full.width * (2 * column + 1) // (2 * across), full.height * (2 * row + 1) // (2 * across)
            found.update(slide.read_region(x - _SIDE // 2, y - _SIDE // 2, _SIDE, _SIDE).tobytes())
    except (SlideError, UnreadableSlideError):
        return str(store).encode()
    return found.digest()


def _size(file: Path) -> int | tuple[int, int]:
    """Bytes, or (width, height) of a store; 0 if it is neither, which `check_tiles` reports."""
    try:
        if not (isinstance(file, RemotePath) and _is_store(file)):
            state = file.stat()
            if not stat.S_ISDIR(state.st_mode):
                return state.st_size if stat.S_ISREG(state.st_mode) else 0
        full = opened(file).levels[0]
        return full.width, full.height
    except (OSError, UnreadableSlideError):
        return 0


def _middle(file: Path) -> bytes:
    """Bytes that differ in most pictures of one size: headers are alike, and ends may be."""
    if _is_store(file):
        return _pixels(file, 1)
    with file.open("rb") as content:
        content.seek(file.stat().st_size // 2)
        return content.read(_PAGE)
