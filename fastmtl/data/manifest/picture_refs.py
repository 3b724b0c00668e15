"""Pictures as text in a manifest's cells.

    tiles/7.png                an image file; on a row with a region of a slide also a mask slide (a tiled TIFF of the
                               slide's extent); on a row with a whole slide any image of the slide's extent
    7.geojson                  polygons over the row's image or region
    min_max:scans/7.png        16-bit grey, stretched by the method of that name
    rle:310x360:1 3 10 5       a run-length code along rows, height x width; rle-column: down columns
    masks.h5#masks/7           image 7 of the array "masks"; masks.h5#masks/7*255 multiplies its values

Paths are relative to the manifest's folder and must stay below the data root. A mask slide may be a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ..dataset import ImageSource, Region
from ..images.arrays import PREPROCESSING, ArrayRow, GreyPicture
from ..images.pictures import IMAGE_SUFFIXES, picture_size
from ..images.polygons import POLYGON_SUFFIXES, Polygons
from ..images.run_lengths import RunLengths
from ..slides.opened import downsample_of
from .path_rule import PathRule
from .slide_rows import same_extent

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide", ".jp2", ".dcm", ".zarr"}
)
_ANNOTATIONS = {".xml": "ASAP or ImageScope", ".annotations": "HALO", ".ndpa": "NDP.view", ".qpdata": "QuPath"}
_RUNS = re.compile(r"rle(-column)?:(\d{1,9})x(\d{1,9}):([\d\s]*)")
_ROW = re.compile(r"(.+\.(?:h5|hdf5))#(.+)/(\d{1,12})(?:\*(\d+(?:\.\d+)?(?:e[-+]?\d+)?))?", re.IGNORECASE)
_STRETCHED = re.compile(rf"({'|'.join(PREPROCESSING)}):(.+)")


@dataclass(frozen=True)
class PolygonOptions:
    """How polygons are drawn, see `Polygons`.

    Attributes:
        classes, offset, renamed, ignored, region: as of `Polygons`.
        unannotated: what a file without any polygon is: "background", an empty mask; or "unlabelled", no mask.
    """

    classes: tuple[str, ...] = ()
    offset: tuple[float, float] = (0.0, 0.0)
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    region: str = ""
    unannotated: Literal["background", "unlabelled"] = "background"

    def over(self, file: Path, x: float, y: float, width: int, height: int, downsample: float) -> Polygons:
        """The polygons of `file` inside a rectangle."""
        own = {"classes": self.classes, "offset": self.offset, "renamed": self.renamed}
        return Polygons(file, x, y, width, height, downsample, **own, ignored=self.ignored, region=self.region)


def slide_name(text: str, slide: Path) -> str:
    """The cell of a `slide` without its ending; what follows a point in the name of a folder is none."""
    if slide.suffix.lower() not in SLIDE_SUFFIXES and slide.is_dir():
        return text
    return text.rpartition(".")[0]


def looks_like_picture(text: str) -> bool:
    """Whether a cell names a picture; opens nothing."""
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
        place: of the cell, for messages.
        over: the row's image, whose field of view polygons and mask slides share; None for the image itself.
        whole_slide: whether the row names a whole slide, of which `over` is a tile: an image file covers the slide.
        polygons: how to draw polygons.

    Raises:
        ValueError: a path outside the root, a malformed code, an image whose size is needed and cannot be read, or a
            picture that cannot be cut as its slide is.
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
    mask_slide = isinstance(over, Region) and PurePosixPath(text).suffix.lower() in SLIDE_SUFFIXES
    path = rule.slide(text, place) if mask_slide else rule.resolve(text, place)
    if tool := _ANNOTATIONS.get(path.suffix.lower()):
        raise ValueError(
            f"{place}: {text} has annotations as {tool} keeps them, which are not read; export GeoJSON, as QuPath "
            "does, or masks"
        )
    if path.suffix.lower() in POLYGON_SUFFIXES:
        if over is None:
            raise ValueError(f"{place}: {text} holds polygons and no image")
        return _polygons_over(path, over, place, polygons)
    if isinstance(over, Region) and (whole_slide or mask_slide):
        return same_extent(path, over, place)
    return path


def write_picture(picture: ImageSource, rule: PathRule) -> str:
    """The cell that `read_picture` reads the picture from.

    Raises:
        ValueError: a manifest cannot name such a picture.
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
        extent = (over.x, over.y, over.width, over.height, downsample_of(over))
    else:
        try:
            extent = (0, 0, *picture_size(over), 1.0)
        except (OSError, ValueError) as error:
            raise ValueError(f"{place}: polygons need the size of their image: {error}") from error
    return options.over(path, *extent)
