"""The text of a picture in a manifest's cell, and the picture in a text.

    tiles/7.png                an image file; on a row with a region of a slide also a mask slide (a tiled TIFF of the
                               slide's extent); on a row with a whole slide any image of the slide's extent
    7.geojson                  polygons over the row's image or region
    min_max:scans/7.png        16-bit grey, stretched by the method of that name
    rle:310x360:1 3 10 5       a run-length code along rows, height x width; rle-column: down columns
    masks.h5#masks/7           image 7 of the array "masks"; masks.h5#masks/7*255 multiplies its values

Paths are relative to the manifest's folder and must stay below the data root.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..dataset import ImageSource, Region
from ..formats.tile_folder import IMAGE_SUFFIXES
from ..identifiers import tell_apart, unicode_form
from ..images.arrays import PREPROCESSING, ArrayRow, GreyPicture
from ..images.pictures import picture_size
from ..images.polygons import POLYGON_SUFFIXES, Polygons
from ..images.run_lengths import RunLengths

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide", ".jp2", ".dcm"}
)
_ANNOTATIONS = {".xml": "ASAP or ImageScope", ".annotations": "HALO", ".ndpa": "NDP.view", ".qpdata": "QuPath"}
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_RUNS = re.compile(r"rle(-column)?:(\d{1,9})x(\d{1,9}):([\d\s]*)")
_ROW = re.compile(r"(.+\.(?:h5|hdf5))#(.+)/(\d{1,12})(?:\*(\d+(?:\.\d+)?(?:e[-+]?\d+)?))?", re.IGNORECASE)
_STRETCHED = re.compile(rf"({'|'.join(PREPROCESSING)}):(.+)")


@dataclass(frozen=True)
class PathRule:
    """Which files a manifest may name.

    Attributes:
        folder: what relative paths start from.
        root: what a path must not leave.
        names: of the files in folders that were looked into.
    """

    folder: Path
    root: Path
    names: dict[Path, list[str]] = field(default_factory=dict, compare=False, repr=False)

    def resolve(self, text: str, place: str) -> Path:
        """The path that `text` names, as written from the working directory.

        Backslashes are Windows' slashes, unless a file has them in its name; a file is found whose name has another
        Unicode form.

        Raises:
            ValueError: it lies outside `root`, on a drive of another computer, or is a name of two files. Links are not
                followed: what stands inside the root was put there.
        """
        if "\0" in text:
            raise ValueError(f"{place}: {text!r} is no path: it holds a zero byte")
        path = self._inside(text, place)
        if "\\" in text and not os.path.lexists(path):
            path = self._inside(text.replace("\\", "/"), place)
        if _DRIVE.match(text) and os.name != "nt" and not os.path.lexists(path):
            raise ValueError(f"{place}: {text} is on a Windows drive; write it relative to {self.folder}, with slashes")
        return path if text.isascii() else self._on_disk(path, place)

    def relative(self, path: Path) -> str:
        """What `resolve` makes `path` of."""
        return PurePosixPath(Path(os.path.relpath(path, self.folder))).as_posix()

    def _inside(self, text: str, place: str) -> Path:
        path = Path(os.path.normpath(self.folder / text))
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.root)):
            raise ValueError(
                f"{place}: {text} lies outside the data root {self.root}; if it may, name a folder that holds both as "
                "data.root"
            )
        return path

    def _on_disk(self, path: Path, place: str) -> Path:
        """`path` as its file and folders spell it; as it is where they are not there."""
        if path == path.parent or os.path.lexists(path):
            return path
        home = self._on_disk(path.parent, place)
        names = self.names.get(home)
        if names is None:
            names = self.names[home] = os.listdir(home) if home.is_dir() else []
        found = sorted(name for name in names if unicode_form(name) == unicode_form(path.name))
        if len(found) > 1:
            raise ValueError(
                f"{place}: {tell_apart(home / found[0], home / found[1])} are both there; rename or remove one"
            )
        return home / (found[0] if found else path.name)


@dataclass(frozen=True)
class PolygonOptions:
    """How polygons are drawn, see `Polygons`."""

    classes: tuple[str, ...] = ()
    offset: tuple[float, float] = (0.0, 0.0)


def looks_like_picture(text: str) -> bool:
    """Whether a cell reads as a picture: nothing is opened."""
    if _RUNS.fullmatch(text) or _ROW.fullmatch(text) or _STRETCHED.fullmatch(text):
        return True
    return PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES | POLYGON_SUFFIXES | SLIDE_SUFFIXES


def read_picture(
    text: str,
    rule: PathRule,
    place: str,
    *,
    over: ImageSource | None = None,
    whole_slide: bool = False,
    polygons: PolygonOptions = PolygonOptions(),
) -> ImageSource:
    """The picture that a cell names.

    Args:
        text: the cell.
        rule: which paths are allowed.
        place: where the cell stands, for messages.
        over: the row's image, whose field of view polygons and mask slides share; None for the image itself.
        whole_slide: whether the row is of a whole slide, of which `over` is a tile: an image file covers the slide.
        polygons: how polygons are drawn.

    Raises:
        ValueError: a path outside the root, a malformed code, an image whose size is needed and cannot be read, or one
            that cannot be cut as its slide is.
    """
    if whole_slide and (_RUNS.fullmatch(text) or _ROW.fullmatch(text) or _STRETCHED.fullmatch(text)):
        raise ValueError(
            f"{place}: {text[:60]} cannot be cut into the tiles of its slide; give polygons, a mask slide or an image"
        )
    if found := _RUNS.fullmatch(text):
        order = "column" if found[1] else "row"
        return RunLengths(" ".join(found[4].split()), int(found[2]), int(found[3]), order)
    if text.startswith("rle"):
        raise ValueError(f"{place}: a run-length code reads rle:HEIGHTxWIDTH:start length ...; got {text[:60]!r}")
    if found := _ROW.fullmatch(text):
        return ArrayRow(rule.resolve(found[1], place), found[2], int(found[3]), float(found[4] or 1))
    if found := _STRETCHED.fullmatch(text):
        return GreyPicture(rule.resolve(found[2], place), found[1])
    path = rule.resolve(text, place)
    if tool := _ANNOTATIONS.get(path.suffix.lower()):
        raise ValueError(
            f"{place}: {text} has annotations as {tool} keeps them, which are not read; export GeoJSON, as QuPath "
            "does, or masks"
        )
    if path.suffix.lower() in POLYGON_SUFFIXES:
        if over is None:
            raise ValueError(f"{place}: {text} holds polygons and no image")
        return _polygons_over(path, over, place, polygons)
    if isinstance(over, Region) and (whole_slide or path.suffix.lower() in SLIDE_SUFFIXES):
        from .slide_rows import same_extent

        return same_extent(path, over, place)
    return path


def write_picture(picture: ImageSource, rule: PathRule) -> str:
    """The cell that `read_picture` reads the picture from.

    Raises:
        ValueError: a manifest has no text for such a picture.
    """
    if isinstance(picture, Path):
        return rule.relative(picture)
    if isinstance(picture, RunLengths):
        kind = "rle" if picture.order == "row" else "rle-column"
        return f"{kind}:{picture.height}x{picture.width}:{picture.text}"
    if isinstance(picture, GreyPicture):
        return f"{picture.method}:{rule.relative(picture.file)}"
    if isinstance(picture, ArrayRow):
        scale = "" if picture.scale == 1 else f"*{picture.scale:.17g}"
        return f"{rule.relative(picture.file)}#{picture.key}/{picture.row}{scale}"
    if isinstance(picture, Polygons):
        return rule.relative(picture.file)
    if isinstance(picture, Region):
        return rule.relative(picture.slide)
    raise ValueError(f"a manifest cannot hold {picture!r}: it knows files, regions, polygons, codes and HDF5 rows")


def _polygons_over(path: Path, over: ImageSource, place: str, options: PolygonOptions) -> Polygons:
    if isinstance(over, Region):
        from .slide_rows import downsample_of

        extent = (over.x, over.y, over.width, over.height, downsample_of(over))
    else:
        try:
            extent = (0, 0, *picture_size(over), 1.0)
        except (OSError, ValueError) as error:
            raise ValueError(f"{place}: polygons need the size of their image: {error}") from error
    return Polygons(path, *extent, classes=options.classes, offset=options.offset)
